"""Listing and scoring at once on a real Ray: nothing lost, doubled or changed, and a second start goes on."""

import io
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from batch_runs import config_for, keys_of, rows_by_key
from PIL import Image

from zsad.batch_config import BatchConfig
from zsad.distributed import batch, feed
from zsad.distributed.batch import score_bucket
from zsad.errors import ConfigError, StorageError
from zsad.report import ledger
from zsad.report.manifest import SHARDS_PER_FILE, load_manifest_summary, read_manifest_shard
from zsad.storage import open_store
from zsad.storage.local import LocalStore

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
NUM_IMAGES = SHARDS_PER_FILE + 8  # with shards of one image, a full manifest file and a short one
WAIT_S = 120


def draw(folder: Path, names: list[str], shade: int = 0) -> None:
    """Small pictures that differ from one another; `shade` makes other ones under the same names."""
    folder.mkdir(exist_ok=True)
    for place, name in enumerate(names):
        sink = io.BytesIO()
        Image.new("RGB", (64, 64), (shade, place % 256, 128)).save(sink, "PNG")
        (folder / name).write_bytes(sink.getvalue())


@pytest.fixture
def images(tmp_path):
    draw(tmp_path / "images", [f"{number:03d}.png" for number in range(NUM_IMAGES)])
    return tmp_path / "images"


@pytest.fixture
def shards_of_one(monkeypatch):
    monkeypatch.setattr(batch, "CPU_SHARD_ROWS", 1)
    monkeypatch.setattr(batch, "LATER_CPU_SHARDS", 1)
    monkeypatch.setattr(feed, "FEWEST_ROWS", 1)


def one_by_one(images: Path, output: Path) -> BatchConfig:
    return config_for(images, output, batch_size=1, maps="none")


def manifest_rows(output: Path) -> list:
    store = open_store(str(output))
    run_id = ledger.latest_published(store)
    shards = load_manifest_summary(store, run_id).num_shards
    return [info for shard in range(shards) for info in read_manifest_shard(store, run_id, shard)]


@pytest.mark.usefixtures("shards_of_one")
def test_the_first_images_are_scored_while_listing_goes_on(images, tmp_path, monkeypatch):
    output, listing = tmp_path / "report", LocalStore.list

    def waits_for_a_record(store, prefix="", after=""):
        for place, info in enumerate(listing(store, prefix, after)):
            deadline = time.monotonic() + WAIT_S
            while (
                store.url == str(images) and place == SHARDS_PER_FILE + 1 and not list(output.glob("runs/*/shards/*"))
            ):
                assert time.monotonic() < deadline, "no shard was committed before the listing ended"
                time.sleep(0.1)
            yield info

    monkeypatch.setattr(LocalStore, "list", waits_for_a_record)
    score_bucket(one_by_one(images, output))
    assert sorted(rows_by_key(images, output)) == keys_of(images)
    assert [info.key for info in manifest_rows(output)] == keys_of(images)


@pytest.mark.usefixtures("shards_of_one")
def test_an_interrupted_listing_goes_on_behind_its_last_file(images, tmp_path, monkeypatch):
    output, listing, starts = tmp_path / "report", LocalStore.list, []

    def breaks(store, prefix="", after=""):
        for place, info in enumerate(listing(store, prefix, after)):
            if store.url == str(images) and place == SHARDS_PER_FILE + 4:
                raise StorageError("the listing broke")
            yield info

    def remembered(store, prefix="", after=""):
        if store.url == str(images):
            starts.append(after)
        return listing(store, prefix, after)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "list", breaks)
        with pytest.raises(StorageError, match="the listing broke"):
            score_bucket(one_by_one(images, output))
    run_id = ledger.find_unfinished_run(open_store(str(output)))
    done = ledger.load_shard_records(open_store(str(output)), run_id)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "list", remembered)
        score_bucket(one_by_one(images, output))
    assert starts == ["", f"{SHARDS_PER_FILE - 1:03d}.png"]  # the check of the arguments, then the listing
    assert [info.key for info in manifest_rows(output)] == keys_of(images)
    assert sorted(rows_by_key(images, output)) == keys_of(images)
    after = ledger.load_shard_records(open_store(str(output)), run_id)
    assert len(after) == NUM_IMAGES
    assert [record for record in after if record.fence == 1] == done


def test_a_second_run_scores_exactly_the_new_and_the_changed(tmp_path):
    images, output = tmp_path / "images", tmp_path / "report"
    draw(images, [f"{number:03d}.png" for number in range(60)])
    config = config_for(images, output, maps="none")
    score_bucket(config)
    first = rows_by_key(images, output)
    changed, new = [f"{number:03d}.png" for number in range(10, 50, 2)], [f"new{number}.png" for number in range(50)]
    draw(images, [*changed, *new], shade=200)
    score_bucket(config)
    second = rows_by_key(images, output)
    assert sorted(second) == keys_of(images)
    run_id = ledger.latest_published(open_store(str(output)))
    assert {key for key, row in second.items() if row["run_id"] == run_id} == {*changed, *new}
    assert sum(record.rows for record in ledger.load_shard_records(open_store(str(output)), run_id)) == 70
    for key in first.keys() - set(changed):
        assert second[key] == first[key]


def test_since_leaves_out_what_is_older_and_has_no_row(images, tmp_path):
    output = tmp_path / "report"
    keys = keys_of(images)
    for number, key in enumerate(keys):
        moment = time.time() - (3600 if number < 30 else 0)
        os.utime(images / key, (moment, moment))
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 1800))
    with pytest.raises(ConfigError, match="--since last: no run is published"):
        score_bucket(config_for(images, output, maps="none", since="last"))
    score_bucket(config_for(images, output, maps="none", since=since))
    assert sorted(rows_by_key(images, output)) == keys[30:]
    score_bucket(config_for(images, output, maps="none", since=since, include=("*5.png",)))
    assert sorted(rows_by_key(images, output)) == [key for key in keys[30:] if key.endswith("5.png")]


def test_a_customers_list_is_scored_row_for_row(images, tmp_path):
    output, listed = tmp_path / "report", tmp_path / "list.csv"
    listed.write_text("key,comment\n005.png,a\n001.png,b\nnot there.png,c\n001.png,d\n../report/x,e\n")
    score_bucket(config_for(images, output, maps="none", manifest=str(listed)))
    rows = rows_by_key(images, output)
    codes = {key: row["error_code"] for key, row in rows.items()}
    assert codes == {"001.png": None, "005.png": None, "not there.png": "missing", "../report/x": "forbidden"}
    assert Counter(row["size_bytes"] for row in rows.values()) == {None: 4}
