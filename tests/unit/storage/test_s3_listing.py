"""Many threads list, one order comes out: each key once, whatever the cuts, and nothing keeps running afterwards."""

import threading
import time
from bisect import bisect_right
from datetime import UTC, datetime
from itertools import islice

import pytest

from zsad.errors import StorageError
from zsad.storage import ObjectInfo, s3_listing
from zsad.storage.s3_listing import Page, list_in_order, split_points

KEYS = sorted(
    [f"{line}/{cam}/{n:03d}.jpg" for line in "abc" for cam in "xyz" for n in range(40)]
    + ["a", "a/x", "b/", "b/y/", "c/x/größe 🔩.jpg", "zz"]
)
PER_PAGE = 10


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch):
    """Cuts after two pages, and room for one page of each range."""
    monkeypatch.setattr(s3_listing, "SEQUENTIAL_PAGES", 2)
    monkeypatch.setattr(s3_listing, "LOOK_AHEAD_PAGES", 1)


class Server:
    """Pages over `KEYS`; counts requests, and fails at the page behind `broken`."""

    def __init__(self, broken: str = "") -> None:
        self.num_pages = 0
        self.broken = broken

    def pages(self, after):
        """Pages behind a key."""
        place = bisect_right(KEYS, after)
        while True:
            found = KEYS[place : place + PER_PAGE]
            self.num_pages += 1
            if self.broken in found:
                raise StorageError(f"no page with {self.broken}")
            moment = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
            infos = [ObjectInfo(key=k, uri=f"s3://b/{k}", size_bytes=1, etag="e", last_modified=moment) for k in found]
            yield Page(infos, found[-1] if found else after)
            place += PER_PAGE
            if place >= len(KEYS):
                return

    @staticmethod
    def folders(folder):
        """Names right under a folder."""
        return sorted(
            {key[len(folder) :].split("/")[0] for key in KEYS if key.startswith(folder) and "/" in key[len(folder) :]}
        )


def listing_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("zsad-list")]


def keys_of(server, after="", prefix=""):
    return [info.key for info in list_in_order(server.pages, server.folders, prefix, after)]


def test_every_key_comes_once_and_in_order():
    server = Server()
    assert keys_of(server) == KEYS
    assert server.num_pages > len(KEYS) / PER_PAGE  # ranges overlap at their ends: it was cut
    assert not listing_threads()


def test_what_is_known_of_an_object_survives_the_wait():
    found = list(list_in_order(Server().pages, Server.folders, "", ""))
    assert {(i.size_bytes, i.etag, i.last_modified.microsecond) for i in found} == {(1, "e", 123456)}
    assert [i.uri for i in found] == [f"s3://b/{key}" for key in KEYS]


@pytest.mark.parametrize("after", ["", "a", "a/x/039.jpg", "b/", "c/z/038.jpg", "zz"])
def test_a_listing_can_begin_behind_any_key(after):
    assert keys_of(Server(), after) == [key for key in KEYS if key > after]


def test_small_listings_are_never_cut(monkeypatch):
    monkeypatch.setattr(s3_listing, "SEQUENTIAL_PAGES", 1000)
    server = Server()
    assert keys_of(server) == KEYS
    assert server.num_pages == -(-len(KEYS) // PER_PAGE)


def test_a_range_that_fails_ends_the_listing_where_it_is_due():
    found = []
    with pytest.raises(StorageError, match=r"no page with c/y/005\.jpg"):
        found.extend(info.key for info in list_in_order(Server("c/y/005.jpg").pages, Server.folders, "", ""))
    assert found == KEYS[: len(found)]
    assert len(found) > KEYS.index("b/x/000.jpg")
    assert not listing_threads()


def test_an_abandoned_listing_leaves_no_thread():
    listing = list_in_order(Server().pages, Server.folders, "", "")
    assert len(list(islice(listing, 50))) == 50
    listing.close()
    deadline = time.monotonic() + 10
    while listing_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not listing_threads()


def test_without_folders_one_chain_goes_on():
    def refuses(_folder):
        raise StorageError("the server repeats its page token")

    found = [info.key for info in list_in_order(Server().pages, refuses, "", "")]
    assert found == KEYS


def test_cuts_are_at_folders_behind_the_key_that_was_reached():
    assert split_points(Server.folders, "", "b/x/005.jpg") == ["b/y/", "b/z/", "c/", "c/x/", "c/y/", "c/z/"]
    assert split_points(Server.folders, "a/", "a/y/000.jpg") == ["a/z/"]
    assert split_points(lambda _folder: [], "", "b") == []
