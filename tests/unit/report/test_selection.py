"""Which images a gallery shows."""

import random

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from zsad.errors import ConfigError
from zsad.report import selection
from zsad.report.schema import report_schema
from zsad.report.selection import choose

SCHEMA = report_schema(["line"])


def ok(uri, score, threshold=0.5, **more):
    is_anomaly = score >= threshold
    row = {"status": "ok", "score": score, "raw_score": score / 2, "threshold": threshold, "is_anomaly": is_anomaly}
    row |= {"run_id": "r", "config_hash": "c", "uri": uri, "defect_type": "dent" if is_anomaly else None}
    return row | more


def bad(uri, code):
    return {"run_id": "r", "config_hash": "c", "uri": uri, "status": "error", "error_code": code, "error_message": "m"}


def dataset(rows, rows_per_part=None):
    step = rows_per_part or max(1, len(rows))
    parts = [pa.Table.from_pylist(rows[i : i + step], schema=SCHEMA) for i in range(0, len(rows), step)]
    return ds.dataset(parts or [SCHEMA.empty_table()], schema=SCHEMA)


def names(rows):
    return [row["uri"] for row in rows]


def test_groups_hold_the_nearest_images_and_share_none():
    rows = [ok(f"u{percent:02}", percent / 100) for percent in range(5, 100, 5)]  # 0.05, 0.10 ... 0.95
    chosen = choose(dataset(rows), num_top=3, num_near=2, num_normal=100)
    assert names(chosen.top) == ["u95", "u90", "u85"]
    assert names(chosen.above) == ["u50", "u55"]
    assert names(chosen.below) == ["u45", "u40"]
    assert sorted(names(chosen.normals)) == ["u05", "u10", "u15", "u20", "u25", "u30", "u35"]
    assert len(chosen.uris) == len(set(chosen.uris)) == 3 + 2 + 2 + 7


def test_near_images_already_at_the_top_make_room_for_the_next():
    rows = [ok("a", 0.6), ok("b", 0.7), ok("c", 0.8), ok("d", 0.9)]
    chosen = choose(dataset(rows), num_top=2, num_near=2)
    assert (names(chosen.top), names(chosen.above)) == (["d", "c"], ["a", "b"])
    assert names(choose(dataset(rows), num_top=4, num_near=2).above) == []


def test_distance_is_measured_to_each_rows_own_threshold():
    rows = [ok("strict", 0.62, threshold=0.6), ok("lax", 0.55, threshold=0.3), ok("high", 0.99, threshold=0.3)]
    assert names(choose(dataset(rows), num_top=1, num_near=1).above) == ["strict"]


def test_equal_scores_are_ordered_by_raw_score_and_then_by_uri():
    rows = [ok("b", 1.0), ok("a", 1.0), ok("c", 1.0, raw_score=0.9)]
    assert names(choose(dataset(rows), num_top=3).top) == ["c", "a", "b"]


def test_counts_add_up_and_bins_hold_every_scored_image():
    rows = [ok("n1", 0.0), ok("n2", 0.049), ok("n3", 0.05), ok("a1", 0.5), ok("a2", 1.0, defect_type="crack")]
    rows += [ok("a3", 0.97, defect_type="crack"), bad("e1", "decode"), bad("e2", "decode"), bad("e3", "empty")]
    chosen = choose(dataset(rows))
    counts = chosen.counts
    assert (counts.listed, counts.ok, counts.errors, counts.anomalous) == (9, 6, 3, 3)
    assert list(counts.by_error_code.items()) == [("decode", 2), ("empty", 1)]
    assert list(counts.by_defect_type.items()) == [("crack", 2), ("dent", 1)]
    assert chosen.normal_bins == (2, 1) + (0,) * 18
    assert chosen.anomalous_bins == (0,) * 10 + (1,) + (0,) * 8 + (2,)


def test_error_codes_take_turns_so_that_a_rare_one_is_seen():
    rows = [bad(f"d{i}", "decode") for i in range(50)] + [bad("x", "forbidden")]
    chosen = choose(dataset(rows), num_errors=4)
    assert [row["error_code"] for row in chosen.errors] == ["decode", "forbidden", "decode", "decode"]
    assert chosen.errors[0]["error_message"] == "m"


def many_rows():
    randomly = random.Random(1)
    rows = [ok(f"s3://b/{i:05}.png", round(randomly.random() ** 4, 3)) for i in range(3000)]
    return rows + [bad(f"s3://b/e{i}.png", ["decode", "empty"][i % 2]) for i in range(40)]


def test_choice_does_not_depend_on_the_order_or_the_cut_of_the_rows(monkeypatch):
    rows = many_rows()
    expected = choose(dataset(rows))
    random.Random(2).shuffle(rows)
    monkeypatch.setattr(selection, "BATCH_ROWS", 64)
    assert choose(dataset(rows, rows_per_part=100)) == expected


def test_seed_changes_the_random_normals_only():
    one, other = (choose(dataset(many_rows()), seed=seed) for seed in (0, 1))
    assert names(one.normals) != names(other.normals)
    assert (one.top, one.above, one.below) == (other.top, other.above, other.below)


def test_normals_are_drawn_from_the_whole_report():
    rows = [ok(f"{i:06}", 0.01) for i in range(2000)]
    positions = sorted(int(uri) for uri in names(choose(dataset(rows), num_near=0, num_normal=100).normals))
    assert positions[0] < 200
    assert positions[-1] > 1800
    assert 40 <= sum(position < 1000 for position in positions) <= 60 + 5


def test_what_a_pass_keeps_does_not_grow_with_the_rows(monkeypatch):
    kept = []
    original = selection._Scan.selection

    def spy(scan, rows):
        groups = [scan.top, scan.above, scan.below, scan.normals, *scan.errors.values()]
        kept.append(max(len(group.entries) for group in groups))
        return original(scan, rows)

    monkeypatch.setattr(selection._Scan, "selection", spy)
    monkeypatch.setattr(selection, "BATCH_ROWS", 50)
    choose(dataset(many_rows()), num_top=5, num_near=3, num_normal=4, num_errors=6)
    assert kept == [8]


def test_the_pass_over_all_rows_reads_no_wide_column():
    assert not {"regions", "defect_scores", "explanation", "error_message"} & set(selection._COLUMNS)


def test_chosen_rows_come_with_regions_explanations_and_partition_fields():
    region = {"x": 1, "y": 2, "width": 3, "height": 4, "area_px": 12, "score": 0.9, "defect_type": "dent", "rle": "0"}
    told = [{"prompt": "a nick", "side": "abnormal", "similarity": 0.25}]
    row = choose(dataset([ok("u", 0.9, regions=[region], explanation=told, line="A3")])).top[0]
    assert row["regions"] == [region]
    assert row["line"] == "A3"
    assert row["explanation"] == told


def test_an_empty_report_gives_empty_groups():
    chosen = choose(dataset([]))
    assert chosen.uris == chosen.errors == ()
    assert chosen.counts.listed == 0


def test_a_report_in_parquet_files_is_read_as_well(tmp_path):
    for part in range(3):
        table = pa.Table.from_pylist([ok(f"{part}-{i}", i / 10) for i in range(10)], schema=SCHEMA)
        ds.write_dataset(table, tmp_path, format="parquet", basename_template=f"p{part}-{{i}}.parquet", schema=SCHEMA,
                         existing_data_behavior="overwrite_or_ignore")  # fmt: skip
    assert names(choose(ds.dataset(tmp_path), num_top=3).top) == ["0-9", "1-9", "2-9"]


def test_negative_numbers_are_refused():
    with pytest.raises(ConfigError, match="num_near is -1"):
        choose(dataset([]), num_near=-1)
