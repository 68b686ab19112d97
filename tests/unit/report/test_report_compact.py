"""Many shards become few files of the size asked for, each sorted, with every row once."""

from io import BytesIO

import pyarrow.parquet as pq
import pytest
from report_helpers import HASH, score_shard, start_run, whole_run

from zsad.errors import ErrorCode, StorageError, ZsadError
from zsad.report import read_report
from zsad.report.compact import cut, settle_rows_per_file, write_part
from zsad.report.ledger import ShardRecord, load_shard_records
from zsad.report.manifest import ListingOptions, write_manifest
from zsad.report.publish import build_manifest, check_counts, publish_run


def record(shard, rows):
    return ShardRecord(shard=shard, file=f"f{shard}", rows=rows, anomalies=0, sha256="x", config_hash=HASH, fence=1)


def spans(records, rows_per_file):
    return [[(p.file, p.start, p.stop) for p in part] for part in cut(records, rows_per_file)]


@pytest.mark.parametrize(
    ("sizes", "rows_per_file", "expected"),
    [
        ([2, 2, 1], 10, [[("f0", 0, 2), ("f1", 0, 2), ("f2", 0, 1)]]),
        ([2, 2, 1], 2, [[("f0", 0, 2)], [("f1", 0, 2)], [("f2", 0, 1)]]),
        ([2, 2, 1], 3, [[("f0", 0, 2), ("f1", 0, 1)], [("f1", 1, 2), ("f2", 0, 1)]]),
        ([5], 2, [[("f0", 0, 2)], [("f0", 2, 4)], [("f0", 4, 5)]]),
        ([0, 1], 5, [[("f1", 0, 1)]]),
        ([], 5, []),
    ],
)
def test_rows_are_cut_in_order_into_parts_of_the_size_asked_for(sizes, rows_per_file, expected):
    assert spans([record(shard, rows) for shard, rows in enumerate(sizes)], rows_per_file) == expected


@pytest.mark.parametrize("rows_per_file", range(1, 40))
def test_there_are_never_more_files_than_needed(rows_per_file):
    records = [record(shard, rows) for shard, rows in enumerate([7, 1, 13, 0, 2, 9])]
    found = spans(records, rows_per_file)
    assert len(found) == -(-32 // rows_per_file)
    assert sum(stop - start for part in found for _, start, stop in part) == 32


@pytest.fixture
def committed(source, output):
    """A run of five objects in three committed shards; returns its records."""
    start_run(output, "r", source)
    summary = write_manifest(source, output, "r", ListingOptions(rows_per_shard=2))
    for shard in range(summary.num_shards):
        score_shard(output, "r", shard, codes={"c.txt": ErrorCode.UNKNOWN_FORMAT})
    return load_shard_records(output, "r")


def test_the_files_hold_the_rows_of_the_shards_sorted(committed, source, output):
    parts = [write_part(output, "r", number, part, ()) for number, part in enumerate(cut(committed[::-1], 3))]
    publish_run(output, "r", num_shards=3, config_hash=HASH, parts=parts)
    assert [part.rows for part in parts] == [3, 2]
    assert {code for part in parts for code in part.error_counts} == {"unknown_format"}
    for part in parts:
        uris = pq.read_table(BytesIO(output.get(part.file, max_bytes=10**7)))["uri"].to_pylist()
        assert uris == sorted(uris)
    rows = read_report(output.url, "r").to_table()
    assert sorted(rows["uri"].to_pylist()) == [info.uri for info in source.list()]
    assert rows.filter(rows["uri"].to_numpy() == source.uri("c.txt"))["error_code"].to_pylist() == ["unknown_format"]


def test_a_part_that_is_committed_is_not_written_again(committed, output):
    (part,) = cut(committed, 100)
    first = write_part(output, "r", 0, part, ())
    before = {info.key for info in output.list()}
    assert write_part(output, "r", 0, part, ()) == first
    assert {info.key for info in output.list()} == before


def test_a_shard_file_that_is_not_the_committed_one_is_refused(committed, output):
    (part,) = cut(committed, 100)
    other = output.get(committed[1].file, max_bytes=10**7)
    output.put(committed[0].file, other)
    with pytest.raises(StorageError, match="is not the file that was committed"):
        write_part(output, "r", 0, part, ())


def test_the_first_driver_fixes_the_size(output):
    assert settle_rows_per_file(output, "r", 100) == 100
    assert settle_rows_per_file(output, "r", 7) == 100


def test_parts_that_lack_rows_are_not_published(committed, output):
    part, _ = cut(committed, 3)
    short = [write_part(output, "r", 0, part, ())]
    with pytest.raises(ZsadError, match="the files of run r hold"):
        build_manifest("r", committed, num_shards=3, config_hash=HASH, parts=short)


def test_counts_that_do_not_add_up_are_refused(committed, source, output):
    check_counts(committed, [], scored=5, unchanged=0)
    for scored, unchanged in ((6, 0), (4, 0), (5, 1)):
        with pytest.raises(ZsadError, match="nothing was published"):
            check_counts(committed, [], scored=scored, unchanged=unchanged)
    _, manifest = whole_run(source, output, "r2")
    check_counts(committed, manifest.files, scored=5, unchanged=5)
