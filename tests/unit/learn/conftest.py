"""A pool of eight drawn scenes, in shards of four."""

import pytest

from zsad.datasets.synthetic import SyntheticConfig
from zsad.learn import pool as module
from zsad.learn.pool import open_pool

CONFIG = SyntheticConfig(size=64)


@pytest.fixture(scope="session")
def small_pool(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD", 4)
        return open_pool(tmp_path_factory.mktemp("pool"), num_scenes=8, seed=3, config=CONFIG)


@pytest.fixture
def pool(small_pool, monkeypatch):
    """The shared pool, while shards have four scenes."""
    monkeypatch.setattr(module, "SHARD", 4)
    return small_pool
