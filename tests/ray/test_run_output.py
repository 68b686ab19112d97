"""Promises of a run that need no model: the same values whatever runs it, files as asked, counts that add up."""

import json
import shutil
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq
import pytest
from batch_runs import BAD, PLACE_COLUMNS, RUN_COLUMNS, config_for, keys_of, rows_by_key, without
from deltalake import DeltaTable
from hash_scorer import hash_score
from PIL import Image

from zsad.bundle import parse_ref, read_config
from zsad.detector import load_detector
from zsad.distributed import batch, finish
from zsad.distributed.batch import score_bucket
from zsad.errors import StorageError, ZsadError
from zsad.images import DecodeLimits, decode_image
from zsad.report import ledger
from zsad.report.publish import load_run_manifest
from zsad.storage import open_store

pytest_plugins = ["hash_scorer"]
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray", "hash_scorer")]

VALUES = RUN_COLUMNS | PLACE_COLUMNS


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of at most 8 images, so that a small bucket has several."""
    monkeypatch.setattr(batch, "CPU_SHARD_ROWS", 8)


def summary_of(output):
    """`summary.json` of the latest run."""
    run_id = ledger.latest_published(open_store(str(output)))
    return json.loads((output / "runs" / run_id / "summary.json").read_text())


def files_of(output):
    """Tables of the latest run's files."""
    store = open_store(str(output))
    manifest = load_run_manifest(store, ledger.latest_published(store))
    return [pq.read_table(BytesIO(store.get(file.file, max_bytes=10**8))) for file in manifest.files]


# D1: nothing but the image decides a value


@pytest.mark.usefixtures("small_shards")
def test_values_do_not_depend_on_workers_batches_names_or_restarts(bucket, tmp_path):
    score_bucket(config_for(bucket, tmp_path / "1", num_scorers=1, batch_size=64))
    expected = rows_by_key(bucket, tmp_path / "1")
    assert sorted(expected) == keys_of(bucket)
    preprocess = read_config(parse_ref("nano").url).preprocess
    for key, row in expected.items():
        if key in BAD:
            assert row["error_code"] == BAD[key]
        else:
            image = decode_image((bucket / key).read_bytes(), DecodeLimits())
            assert row["raw_score"] == hash_score(preprocess.apply(image)), key

    score_bucket(config_for(bucket, tmp_path / "7", num_scorers=2, batch_size=7))
    shuffled = tmp_path / "shuffled"
    keys = keys_of(bucket)
    renamed = {key: f"{place * 17 % len(keys):02d}/{key}" for place, key in enumerate(keys)}
    for key, name in renamed.items():
        (shuffled / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(bucket / key, shuffled / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish.publish, "publish_run", _stopped)
        with pytest.raises(StorageError, match="stopped by the test"):
            score_bucket(config_for(shuffled, tmp_path / "s", batch_size=1))
    _forget_every_second_shard(tmp_path / "s")
    score_bucket(config_for(shuffled, tmp_path / "s", batch_size=1))

    sevens, others = rows_by_key(bucket, tmp_path / "7"), rows_by_key(shuffled, tmp_path / "s")
    for key, row in expected.items():
        assert without(sevens[key], RUN_COLUMNS) == without(row, RUN_COLUMNS)
        assert without(others[renamed[key]], VALUES) == without(row, VALUES)
    found = summary_of(tmp_path / "s")
    assert found["num_resumed"] + found["num_scored"] == len(keys)
    assert found["num_resumed"] > 0 < found["num_scored"]


def _stopped(*_arguments, **_named):
    raise StorageError("stopped by the test")


def _forget_every_second_shard(output):
    records = sorted(output.glob("runs/*/shards/*.json"))
    assert len(records) > 4
    for record in records[::2]:
        record.unlink()


def test_the_models_scores_hardly_depend_on_the_batch_size(bucket):
    images = [decode_image(path.read_bytes(), DecodeLimits()) for path in sorted(bucket.glob("line1/cam1/*"))[:7]]
    scores = {}
    for batch_size in (1, 7, 16):
        detector = load_detector("nano", device="cpu", batch_size=batch_size)
        scores[batch_size] = np.array([finding.score for finding in detector.inspect(images)])
    np.testing.assert_allclose(scores[1], scores[16], rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores[7], scores[16], rtol=0, atol=1e-5)


# M2 and the size of files


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("rows_per_file", [7, 1000])
def test_files_are_as_large_as_asked_and_sorted(bucket, tmp_path, rows_per_file):
    output = tmp_path / "report"
    score_bucket(config_for(bucket, output, rows_per_file=rows_per_file, partition="{line}/{camera}/"))
    tables, num_rows = files_of(output), len(keys_of(bucket))
    assert len(tables) == -(-num_rows // rows_per_file)
    assert [table.num_rows for table in tables[:-1]] == [rows_per_file] * (len(tables) - 1)
    for table in tables:
        uris = table["uri"].to_pylist()
        assert uris == sorted(uris, key=str.encode)
        assert table.schema.names[-2:] == ["line", "camera"]
    assert len(rows_by_key(bucket, output)) == num_rows
    assert summary_of(output)["num_files"] == len(tables)


# The summary


@pytest.mark.usefixtures("small_shards")
def test_the_summary_counts_everything_and_the_counts_add_up(bucket, tmp_path, capsys):
    output, table_url = tmp_path / "report", str(tmp_path / "table")
    config = config_for(bucket, output, delta=table_url, maps="all")
    score_bucket(config)
    said, found = capsys.readouterr().out, summary_of(output)
    num_rows = len(keys_of(bucket))
    assert found["totals"] | {"anomalies": 0} == {
        "rows": num_rows,
        "ok": num_rows - len(BAD),
        "errors": len(BAD),
        "anomalies": 0,
    }
    assert found["error_counts"] == {code: list(BAD.values()).count(code) for code in BAD.values()}
    assert (found["num_scored"], found["num_resumed"], found["num_carried"]) == (num_rows, 0, 0)
    stats, memory = found["stats"], found["memory"]
    read = sum((bucket / key).stat().st_size for key in keys_of(bucket))
    assert read <= stats["bytes_read"] <= read + 2_000_000  # and manifest shards, which every task reads
    assert stats["bytes_written"] >= sum(path.stat().st_size for path in output.glob("runs/*/maps/*/*.png"))
    assert stats["requests"] >= 2 * num_rows - len(BAD)
    assert (stats["retries"], stats["throttles"]) == (0, 0)
    assert min(stats["decode_s"], stats["score_s"], stats["write_s"], found["images_per_s"]) > 0
    for name in ("decode_peak_bytes", "score_peak_bytes", "decode_heap_bytes", "score_heap_bytes"):
        assert 20e6 < stats[name] < 2e9, name
    assert memory["store_bytes"] > 200e6
    assert memory["store_peak_bytes"] <= 256 * 2**20
    assert memory["spilled_bytes"] == 0
    assert f"{num_rows} = {num_rows - len(BAD)} ok + {len(BAD)} errors" in said
    assert "0 retries, 0 throttles" in said
    assert "spilled 0.0 MB" in said

    score_bucket(config)  # nothing is new but what failed for a passing reason: nothing
    again = summary_of(output)
    assert (again["num_scored"], again["num_carried"]) == (0, num_rows)
    assert DeltaTable(table_url).to_pyarrow_table().num_rows == num_rows


def test_a_run_whose_counts_do_not_add_up_fails_and_publishes_nothing(bucket, tmp_path, monkeypatch):
    output = tmp_path / "report"
    records = ledger.load_shard_records
    monkeypatch.setattr(finish.ledger, "load_shard_records", lambda *where: records(*where)[:-1])
    with pytest.raises(ZsadError, match="nothing was published"):
        score_bucket(config_for(bucket, output))
    assert not (output / "published").exists()


# Sweeping


@pytest.mark.usefixtures("small_shards")
def test_a_sweep_scores_nothing_and_says_what_it_would_delete(bucket, tmp_path, capsys):
    output = tmp_path / "report"
    score_bucket(config_for(bucket, output))
    before = rows_by_key(bucket, output)
    capsys.readouterr()
    score_bucket(config_for(bucket, output, sweep=True, dry_run=True))
    assert "0 files, 0.0 MB would be deleted" in capsys.readouterr().out
    score_bucket(config_for(bucket, output, sweep=True))
    assert "0 files" in capsys.readouterr().out
    assert rows_by_key(bucket, output) == before


# M1: memory


def write_many(folder, num_images, side_px):
    """JPEGs of 20 distinct pictures, each made unique by a comment."""
    folder.mkdir()
    pictures = []
    for number in range(20):
        coarse = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        sink = BytesIO()
        Image.fromarray(coarse).resize((side_px, side_px)).save(sink, "JPEG")
        pictures.append(sink.getvalue())
    for number in range(num_images):
        data, comment = pictures[number % 20], b"%08d" % number
        (folder / f"{number:06d}.jpg").write_bytes(
            data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
        )


@pytest.mark.full  # processes that earlier tests left behind count in the peaks: run it by itself
def test_memory_is_bounded_with_a_small_object_store(tmp_path):
    _check_memory(tmp_path, 400)


@pytest.mark.full
@pytest.mark.timeout(2400)
def test_memory_is_bounded_with_a_small_object_store_in_full(tmp_path):
    _check_memory(tmp_path, 10_000)


def _check_memory(tmp_path, num_images):
    write_many(tmp_path / "images", num_images, 1024)
    score_bucket(config_for(tmp_path / "images", tmp_path / "report", batch_size=16, maps="none"))
    found = summary_of(tmp_path / "report")
    assert found["totals"]["ok"] == num_images
    stats, memory = found["stats"], found["memory"]
    assert memory["spilled_bytes"] == 0
    assert memory["store_peak_bytes"] <= 256 * 2**20
    workers = 4 * stats["decode_peak_bytes"] + 2 * stats["score_peak_bytes"]  # on two CPUs
    assert workers + memory["driver_peak_bytes"] <= 3 * 2**30
    if num_images < 5000:
        return  # too few shards to tell growth from warming up
    store = open_store(str(tmp_path / "report"))
    records = ledger.load_shard_records(store, ledger.latest_published(store))
    heaps = np.array([record.stats["decode_heap_bytes"] + record.stats["score_heap_bytes"] for record in records])
    assert heaps[: int(0.9 * len(heaps))].max() <= 1.05 * heaps[: int(0.3 * len(heaps))].max()
