"""A source of five objects and an empty output."""

import pytest

from zsad.storage import open_store


@pytest.fixture
def source(tmp_path):
    store = open_store(str(tmp_path / "images"))
    for key in ("a/1.png", "a/2-bad.png", "b/1.png", "b/2.png", "c.txt"):
        store.put(key, key.encode())
    return store


@pytest.fixture
def output(tmp_path):
    return open_store(str(tmp_path / "report"))
