"""The main job on a real Ray with the real nano model, from a folder of files to a published report."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from batch_runs import (
    BAD,
    BATCH_SIZE,
    ODD,
    PLACE_COLUMNS,
    RUN_COLUMNS,
    THRESHOLD,
    config_for,
    is_untouched,
    keys_of,
    map_bytes,
    register_run,
    rows_by_key,
    without,
)
from PIL import Image

import zsad
from zsad.bundle import read_config
from zsad.calibration import MIN_NORMALS
from zsad.distributed import batch
from zsad.distributed.batch import score_bucket
from zsad.errors import CommitConflict, ConfigError, StorageError, TooManyBadImages
from zsad.images import DecodeLimits, decode_image
from zsad.prompts.bank import Phrase, PromptBank, write_bank
from zsad.report import ledger, read_report
from zsad.report.publish import load_run_manifest
from zsad.scoring import encode_map
from zsad.storage import open_store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

SCORE_COLUMNS = ("status", "score", "raw_score", "threshold", "is_anomaly", "defect_type", "defect_scores", "regions")


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of one batch, so that a small bucket has several."""
    monkeypatch.setattr(batch, "CPU_SHARD_ROWS", BATCH_SIZE)


def latest(output: Path) -> str:
    found = ledger.latest_published(open_store(str(output)))
    assert found is not None
    return found


# One report, many views


def test_every_listed_object_is_exactly_one_row(scored):
    rows = scored.rows
    assert sorted(rows) == keys_of(scored.folder)
    manifest = load_run_manifest(open_store(str(scored.output)), latest(scored.output))
    assert manifest is not None
    assert len(ledger.load_shard_records(open_store(str(scored.output)), manifest.run_id)) == 3
    assert [file.rows for file in manifest.files] == [len(rows)]
    anomalies = sum(row["is_anomaly"] is True for row in rows.values())
    assert manifest.totals == {
        "rows": len(rows),
        "ok": len(rows) - len(BAD),
        "errors": len(BAD),
        "anomalies": anomalies,
    }
    assert 0 < anomalies < len(rows) - len(BAD)
    for key, row in rows.items():
        stat = (scored.folder / key).stat()
        assert row["size_bytes"] == stat.st_size
        assert row["last_modified"].timestamp() == pytest.approx(stat.st_mtime, abs=1e-5)
        assert (row["run_id"], row["detector"]) == (latest(scored.output), "nano")


def test_unusable_files_are_rows_with_their_error_code(scored):
    rows = scored.rows
    assert {key: row["error_code"] for key, row in rows.items() if row["status"] == "error"} == BAD
    for key in BAD:
        row = rows[key]
        assert row["error_message"]
        names = ("score", "raw_score", "threshold", "is_anomaly", "defect_type", "map_uri", "width", "height")
        assert [row[name] for name in names] == [None] * len(names)


def test_unusual_files_are_scored_and_sized_as_they_are_seen(scored):
    rows = scored.rows
    assert {key: (rows[key]["width"], rows[key]["height"]) for key in ODD} == ODD
    assert {rows[key]["status"] for key in ODD} == {"ok"}


def test_the_notebook_gives_the_same_bits(scored):
    good = [key for key in keys_of(scored.folder) if key not in BAD]
    images = [decode_image((scored.folder / key).read_bytes(), DecodeLimits()) for key in good]
    detector = zsad.load_detector("nano", device="cpu", batch_size=BATCH_SIZE).with_threshold(THRESHOLD)
    findings = detector.inspect(images)
    rows = scored.rows
    for key, finding in zip(good, findings, strict=True):
        row = rows[key]
        assert (row["score"], row["raw_score"]) == (finding.score, finding.raw_score), key
        assert (row["threshold"], row["is_anomaly"]) == (finding.threshold, finding.is_anomaly)
        assert row["defect_type"] == finding.defect_type
        assert {item["name"]: item["score"] for item in row["defect_scores"]} == finding.defect_scores
        assert [region["rle"] for region in row["regions"]] == [region.rle for region in finding.regions]
        if finding.is_anomaly:
            assert map_bytes(row) == encode_map(finding.anomaly_map)


def test_anomalies_have_maps_and_others_have_none(scored):
    for row in scored.rows.values():
        assert (row["map_uri"] is not None) == (row["is_anomaly"] is True)
        if row["map_uri"]:
            with Image.open(io.BytesIO(map_bytes(row))) as picture:
                assert picture.format == "PNG"
                assert picture.mode == "I;16"
                assert picture.size[0] == picture.size[1]
                assert 0 < np.asarray(picture).max() <= 65535
    stored = list(scored.output.glob("runs/*/maps/*/*.png"))
    assert len(stored) == sum(row["map_uri"] is not None for row in scored.rows.values())


def test_parts_of_the_key_are_columns(scored):
    for key, row in scored.rows.items():
        first, second, *rest = key.split("/")
        assert (row["line"], row["camera"]) == ((first, second) if rest else (None, None))
    assert read_report(str(scored.output)).schema.names[-2:] == ["line", "camera"]


def test_there_is_a_gallery_that_names_the_run(scored):
    page = scored.output / "runs" / latest(scored.output) / "gallery.html"
    assert latest(scored.output) in page.read_text()


# What must not change a value


def test_values_do_not_depend_on_names_order_or_workers(scored, tmp_path):
    folder = tmp_path / "renamed"
    keys = keys_of(scored.folder)
    renamed = {key: f"{(7 * place) % len(keys):03d}/{place}{Path(key).suffix}" for place, key in enumerate(keys)}
    for key, new in renamed.items():
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(scored.folder / key, folder / new)
    score_bucket(config_for(folder, tmp_path / "report", num_scorers=1))
    old, new_rows = scored.rows, rows_by_key(folder, tmp_path / "report")
    assert sorted(new_rows) == sorted(renamed.values())
    for key, new in renamed.items():
        dropped = RUN_COLUMNS | PLACE_COLUMNS | {"line", "camera"}
        assert without(new_rows[new], dropped) == without(old[key], dropped)
        if old[key]["map_uri"]:
            assert map_bytes(new_rows[new]) == map_bytes(old[key])


def test_a_threshold_moves_the_decision_and_no_score(scored, tmp_path):
    output = tmp_path / "report"
    chosen = {"include": ("line1/*", "bad/*"), "exclude": ("*.jpg", "bad/*"), "limit": 10}
    score_bucket(config_for(scored.folder, output, threshold=0.001, maps="all", **chosen))
    rows, old = rows_by_key(scored.folder, output), scored.rows
    assert sorted(rows) == [key for key in keys_of(scored.folder) if key.startswith("line1/cam1/")][:10]
    for key, row in rows.items():
        assert (row["score"], row["raw_score"]) == (old[key]["score"], old[key]["raw_score"])
        assert (row["threshold"], row["is_anomaly"]) == (0.001, row["score"] >= 0.001)
        assert map_bytes(row)
        if old[key]["map_uri"]:
            assert map_bytes(row) == map_bytes(old[key])
    assert sum(row["is_anomaly"] for row in rows.values()) >= sum(old[key]["is_anomaly"] for key in rows)


# Stop and go on


@pytest.mark.usefixtures("small_shards")
def test_a_stopped_run_scores_only_what_is_missing(scored, tmp_path, monkeypatch):
    output = tmp_path / "report"
    store = open_store(str(output))
    config = config_for(scored.folder, output, partition="{line}/{camera}/")
    with monkeypatch.context() as patch:
        patch.setattr(batch.publish, "publish_run", _stopped)
        with pytest.raises(StorageError, match="stopped by the test"):
            score_bucket(config)
    run_id = ledger.find_unfinished_run(store)
    assert run_id is not None
    with pytest.raises(ConfigError, match="nothing is published"):
        read_report(str(output))

    before = ledger.load_shard_records(store, run_id)
    assert len(before) == 6
    for record in before[::2]:
        (output / f"runs/{run_id}/shards/{record.shard:08d}.json").unlink()

    for change, field in (
        ({"maps": "all"}, "maps"),
        ({"include": ("*.png",)}, "include"),
        ({"batch_size": 4}, "batch_size"),
    ):
        with pytest.raises(ConfigError, match=rf"{run_id} is unfinished .* another {field}; give --restart"):
            score_bucket(config_for(scored.folder, output, **{"partition": config.partition, **change}))

    score_bucket(config)
    assert latest(output) == run_id
    after = ledger.load_shard_records(store, run_id)
    assert [new == old for new, old in zip(after, before, strict=True)] == [False, True] * 3
    assert {record.fence for record in after[1::2]} == {1}
    assert min(record.fence for record in after[::2]) > 1
    rows, expected = rows_by_key(scored.folder, output), scored.rows
    assert {key: without(row, RUN_COLUMNS) for key, row in rows.items()} == {
        key: without(row, RUN_COLUMNS) for key, row in expected.items()
    }

    score_bucket(config_for(scored.folder, output, partition=config.partition, run_id=run_id))  # a scheduler's retry
    assert latest(output) == run_id
    assert ledger.load_shard_records(store, run_id) == after


def _stopped(*_arguments, **_named):
    raise StorageError("stopped by the test")


def test_the_next_run_scores_only_what_is_new_or_changed(scored, tmp_path):
    folder, output = tmp_path / "images", tmp_path / "report"
    folder.mkdir()
    names = [f"{number:03d}.png" for number in range(0, 12, 2)]
    for name in names[:5]:
        shutil.copy2(scored.folder / "line1/cam1" / name, folder / name)
    (folder / "empty.png").write_bytes(b"")
    score_bucket(config_for(folder, output, maps="all"))
    first_id, first = latest(output), rows_by_key(folder, output)

    (folder / names[0]).unlink()
    shutil.copyfile(scored.folder / "line1/cam2/001.jpg", folder / names[1])
    shutil.copy2(scored.folder / "line1/cam1" / names[5], folder / names[5])
    with pytest.raises(ConfigError, match=rf"{first_id} .*another maps; give --restart"):
        score_bucket(config_for(folder, output, maps="none"))
    score_bucket(config_for(folder, output, maps="all"))
    second_id, second = latest(output), rows_by_key(folder, output)

    assert sorted(second) == keys_of(folder)
    assert {key for key, row in second.items() if row["run_id"] == second_id} == {names[1], names[5]}
    for key in (*names[2:5], "empty.png"):
        assert second[key] == first[key]
    for key, original in ((names[1], "line1/cam2/001.jpg"), (names[5], f"line1/cam1/{names[5]}")):
        assert second[key]["raw_score"] == scored.rows[original]["raw_score"]
    assert rows_by_key(folder, output, first_id) == first


def test_restart_gives_an_unfinished_run_up(scored, tmp_path):
    output = tmp_path / "report"
    store = open_store(str(output))
    old = config_for(scored.folder, output, run_id="20260101T000000Z-old0")
    _, lease = register_run(old)
    lease.release()
    new = config_for(scored.folder, output, include=("line1/cam1/00*",), restart=True)
    score_bucket(new)
    assert latest(output) != old.run_id
    assert not ledger.is_published(store, old.run_id)
    partial = json.loads((output / "runs" / old.run_id / "partial.json").read_text())
    assert "--restart" in partial["reason"]
    rows = rows_by_key(scored.folder, output)
    assert sorted(rows) == [key for key in keys_of(scored.folder) if key.startswith("line1/cam1/00")]


def test_a_named_run_behind_an_unfinished_one_is_made_in_the_same_call(scored, tmp_path):
    output = tmp_path / "report"
    old = config_for(scored.folder, output, run_id="20260101T000000Z-old0", include=("line1/cam1/00*",))
    _, lease = register_run(old)
    lease.release()
    new = replace(old, run_id="20260102T000000Z-new0")
    score_bucket(new)
    store = open_store(str(output))
    assert ledger.published_runs(store) == [old.run_id, new.run_id]
    assert rows_by_key(scored.folder, output, new.run_id) == rows_by_key(scored.folder, output, old.run_id)


def test_one_driver_at_a_time(scored, tmp_path):
    config = config_for(scored.folder, tmp_path / "report", run_id="20260101T000000Z-held")
    _, lease = register_run(config)
    with lease, pytest.raises(CommitConflict, match="held by process"):
        score_bucket(config)
    assert ledger.committed_shards(open_store(config.output), config.run_id) == set()


# Budget, plan, calibration


def test_above_the_error_budget_nothing_is_published(scored, tmp_path):
    output = tmp_path / "report"
    config = config_for(scored.folder, output, include=("bad/*", "line1/cam1/00*"), max_error_share=0.05)
    with pytest.raises(TooManyBadImages, match=rf"{len(BAD)} of 13 images can't be scored; the limit is 5\.0%"):
        score_bucket(config)
    assert ledger.latest_published(open_store(str(output))) is None
    (found,) = output.glob("runs/*/partial.json")
    partial = json.loads(found.read_text())
    assert (partial["rows"], partial["errors"]) == (13, len(BAD))
    assert partial["error_counts"]["unknown_format"] == 3
    assert partial["error_examples"]["empty"] == [str(scored.folder / "bad/empty.jpg")]


def test_a_dry_run_counts_and_writes_nothing(bucket, tmp_path, capsys):
    output = tmp_path / "report"
    score_bucket(config_for(bucket, output, dry_run=True, exclude=("bad/*",), limit=20))
    said = capsys.readouterr().out
    assert "20 objects" in said
    assert "0 of them can't be scored" in said
    assert is_untouched(output)


def test_normal_images_and_the_object_name_are_in_the_stored_detector(scored, tmp_path):
    normals, output = tmp_path / "normals", tmp_path / "report"
    normals.mkdir()
    for number, key in enumerate(keys_of(scored.folder / "line1/cam1")[: MIN_NORMALS + 1]):
        shutil.copyfile(scored.folder / "line1/cam1" / key, normals / f"{number}.png")
    (normals / "broken.png").write_bytes(b"")
    score_bucket(config_for(scored.folder, output, include=("line1/cam1/00*",), object="gearbox", normals=str(normals)))
    stored = read_config(str(output / "runs" / latest(output) / "detector"))
    assert stored.object_name == "gearbox"
    assert stored.calibration is not None
    assert (stored.calibration.source, stored.calibration.num_normals) == ("normal images given by the user", 9)
    rows, old = rows_by_key(scored.folder, output), scored.rows
    assert all(row["raw_score"] != old[key]["raw_score"] for key, row in rows.items())


def test_other_defect_words_name_the_same_anomalies(scored, tmp_path):
    output = tmp_path / "report"
    score_bucket(config_for(scored.folder, output, include=("line1/cam1/00*",), defect_words=("hole", "missing part")))
    rows = rows_by_key(scored.folder, output)
    anomalies = {key: row for key, row in rows.items() if row["is_anomaly"]}
    assert anomalies
    assert all(
        [entry["name"] for entry in row["defect_scores"]] == ["hole", "missing part"] for row in anomalies.values()
    )
    assert all(row["defect_type"] in ("hole", "missing part", "unknown") for row in anomalies.values())
    assert {key: row["score"] for key, row in rows.items()} == {key: scored.rows[key]["score"] for key in rows}


def test_one_normal_image_is_remembered(scored, tmp_path):
    normals, output = tmp_path / "normals", tmp_path / "report"
    normals.mkdir()
    shutil.copyfile(scored.folder / "line1/cam1/000.png", normals / "one.png")
    score_bucket(config_for(scored.folder, output, include=("line1/cam1/00*",), normals=str(normals)))
    stored = read_config(str(output / "runs" / latest(output) / "detector"))
    assert stored.calibration is not None
    assert stored.calibration.num_normals == 1
    assert "in all their orientations" in stored.calibration.source
    rows = rows_by_key(scored.folder, output)
    assert not rows["line1/cam1/000.png"]["is_anomaly"]


def test_alfa_with_a_prompt_bank_explains_every_image(scored, tmp_path):
    normals, output, bank = tmp_path / "normals", tmp_path / "report", str(tmp_path / "bank.json")
    normals.mkdir()
    shutil.copyfile(scored.folder / "line1/cam1/000.png", normals / "one.png")
    phrases = (Phrase(text="an even {} coat", side="normal"), Phrase(text="a scratch", side="abnormal"))
    write_bank(bank, PromptBank(object_name="gearbox", phrases=phrases))
    chosen = {"detector": "nano:alfa", "prompts": bank, "settings": ("mode=topk",), "include": ("line1/cam1/00*",)}
    score_bucket(config_for(scored.folder, output, normals=str(normals), **chosen))
    stored = read_config(str(output / "runs" / latest(output) / "detector"))
    assert stored.object_name == "gearbox"
    assert stored.settings == {"normal": ["an even {} coat"], "abnormal": ["a scratch"], "mode": "topk"}
    for row in rows_by_key(scored.folder, output).values():
        assert [told["side"] for told in row["explanation"]] == ["normal"] * 3 + ["abnormal"] * 3
        assert all("gearbox" in told["prompt"] for told in row["explanation"])


def test_normals_that_are_no_images_end_the_job_with_nothing_written(scored, tmp_path):
    normals, output = tmp_path / "normals", tmp_path / "report"
    normals.mkdir()
    (normals / "one.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="no usable images there"):
        score_bucket(config_for(scored.folder, output, normals=str(normals)))
    assert is_untouched(output)


@pytest.mark.slow
def test_another_object_name_alone_is_calibrated_anew(scored, tmp_path):
    output = tmp_path / "report"
    score_bucket(config_for(scored.folder, output, include=("line1/cam1/00*",), object="gearbox"))
    stored = read_config(str(output / "runs" / latest(output) / "detector"))
    assert stored.object_name == "gearbox"
    assert stored.calibration is not None
    assert stored.calibration.source == "procedural normal images"
