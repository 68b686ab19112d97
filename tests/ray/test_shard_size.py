"""Shards are bounded by bytes: by Ray's block size, and by what the object store holds."""

import pytest
from batch_runs import config_for

from zsad.distributed.batch import SHARD_BYTES, shard_bytes, shard_rows
from zsad.distributed.cluster import Resources
from zsad.images import Preprocess

MIB = 2**20


@pytest.mark.parametrize(
    ("store_mib", "num_scorers", "expected_mib"),
    [(256, 2, 16), (256, 1, 32), (512, 2, 32), (20_000, 2, 64), (20_000, 64, 39)],
)
def test_the_object_store_holds_eight_shards_for_each_scorer(store_mib, num_scorers, expected_mib):
    resources = Resources(num_cpus=64, num_gpus=0, store_bytes=store_mib * MIB)
    found = shard_bytes(config_for("in", "out", num_scorers=num_scorers), resources)
    assert found // MIB == expected_mib
    assert found <= SHARD_BYTES


@pytest.mark.parametrize(("size", "rows"), [(224, 64), (518, 16), (336, 48), (1036, 8)])
def test_a_shard_is_whole_batches_that_fit(size, rows):
    """16 MiB hold 111 images of 224 px, 20 of 518 px, 49 of 336 px, and 5 of 1,036 px: one batch of 8 all the same."""
    batch_size = 16 if size < 1000 else 8
    config = config_for("in", "out", batch_size=batch_size)
    assert shard_rows(config, Preprocess(size=size), most_bytes=16 * MIB) == rows


def test_later_shards_are_larger_where_they_fit():
    """256 of 224 px are 37 MiB; 16 MiB hold 111 of them, that is 6 batches of 16."""
    config, preprocess = config_for("in", "out", batch_size=16), Preprocess(size=224)
    assert shard_rows(config, preprocess, is_later=True) == 256
    assert shard_rows(config, preprocess, most_bytes=16 * MIB, is_later=True) == 96
