"""Settings of an evaluation: refused before anything is touched, translated for the main job's own parts."""

import pytest

from zsad.cli import parse
from zsad.errors import ConfigError
from zsad.evaluation.config import EvaluateConfig

BASE = {"dataset": "mvtec:/data/mvtec", "output": "/out"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "/data"}, "must be LAYOUT:URL"),
        ({"output": ""}, "--output is empty"),
        ({"defect_words": ("dent", "")}, "none of them empty"),
        ({"resolution": 8}, "--resolution 8: give 16 to 4096 px, or native"),
        ({"limit": -1}, "--limit -1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"max_error_share": 2.0}, "--max-error-share"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(**{**BASE, **changes})


def test_every_product_may_have_its_own_detector():
    config = EvaluateConfig(**BASE, detector="s3://m/{product}/", object="{product}", normals="/d/{product}/train/good")
    asked = config.scoring("metal_nut")
    assert (asked.detector, asked.object, asked.normals) == (
        "s3://m/metal_nut/",
        "metal nut",
        "/d/metal_nut/train/good",
    )


def test_defect_words_may_be_those_of_the_data_set():
    config = EvaluateConfig(**BASE, defect_words=("{types}",))
    assert config.scoring("nut", {"good", "Bent_Edge", "combined", "cut"}).defect_words == ("bent edge", "cut")
    assert config.scoring("nut", {"good", "bad"}).defect_words == ()
    assert EvaluateConfig(**BASE, defect_words=("dent",)).scoring("nut", {"cut"}).defect_words == ("dent",)


def test_the_command_line_knows_both_kinds_of_resolution():
    flags = ["--dataset", "index:/d", "--output", "/o", "--where", "matched=1", "exposure=2", "--resolution"]
    assert parse(EvaluateConfig, [*flags, "128"]).side_px == 128
    native = parse(EvaluateConfig, [*flags, "native"])
    assert native.side_px is None
    assert native.where == ("matched=1", "exposure=2")
