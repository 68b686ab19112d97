"""What identifies a prepared detector."""

from zsad.bundle import parse_ref, read_config, read_tensors
from zsad.distributed.prepare import Prepared


def test_other_tensors_are_another_detector():
    """Two memories of normal images may share settings and thresholds; their rows must not mix in one run."""
    url = parse_ref("nano").url
    config, tensors = read_config(url), read_tensors(url)
    assert Prepared(config, tensors).fingerprint() == Prepared(config, tensors).fingerprint()
    assert Prepared(config, tensors).fingerprint() != Prepared(config, tensors + b" ").fingerprint()
