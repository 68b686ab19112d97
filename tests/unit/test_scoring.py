"""From stored objects to report rows: every object one row, whatever goes wrong with it."""

import io
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from zsad.decode_child import DecodeChild
from zsad.detector import Finding
from zsad.errors import ErrorCode, ImageError, StorageError
from zsad.images import DecodeLimits, Preprocess, decode_image
from zsad.partition import PartitionTemplate
from zsad.report.schema import RunStamp, report_schema
from zsad.scoring import (
    MAP_PNG,
    PIXELS,
    SHARD,
    BatchTooLarge,
    RowContext,
    decode_objects,
    decoded_schema,
    encode_map,
    is_out_of_memory,
    score_table,
)
from zsad.storage import open_store

LIMITS = DecodeLimits(max_bytes=50_000)
PREPROCESS = Preprocess(size=32)
STAMP = RunStamp(run_id="r1", config_hash="c1")


def png(seed, width=40, height=24):
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


FILES = {
    "a/0.png": png(0),
    "a/1-empty.png": b"",
    "b/2.png": png(2, 50, 60),
    "b/3-text.png": b"<html>",
    "b/4-cut.png": png(4)[:1000],
    "b/5-large.png": bytes(50_001),
    "b/6-tiny.png": png(6, 4, 4),
    "c/7.png": png(7),
    "c/8-gone.png": png(8),
    "c/9-changed.png": png(9),
}
ERRORS = {
    "a/1-empty.png": "empty",
    "b/3-text.png": "unknown_format",
    "b/4-cut.png": "truncated",
    "b/5-large.png": "too_many_bytes",
    "b/6-tiny.png": "too_small",
    "c/8-gone.png": "missing",
    "c/9-changed.png": "changed",
}


@pytest.fixture(scope="module")
def child():
    with DecodeChild() as process:
        yield process


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    store = open_store(str(tmp_path_factory.mktemp("images")))
    for key, data in FILES.items():
        store.put(key, data)
    return store


@pytest.fixture(scope="module")
def objects(source, tmp_path_factory):
    """The listing, after which one object vanishes and another one changes."""
    listed = sorted(source.list(), key=lambda info: info.key)
    source.put("c/9-changed.png", png(99, 41, 24))
    Path(source.url, "c/8-gone.png").rename(tmp_path_factory.mktemp("elsewhere") / "8.png")
    return listed


@pytest.fixture(scope="module")
def decoded(source, objects, child):
    return decode_objects(source, objects, shard=5, limits=LIMITS, preprocess=PREPROCESS, child=child)


@pytest.fixture
def context(tmp_path):
    output = open_store(str(tmp_path / "report"))
    return RowContext(stamp=STAMP, output=output, detector_ref="tiny", maps="none", template=None)


class StubDetector:
    """Scores an image by its first red value / 255; fails on chosen values."""

    batch_size = 2

    def __init__(self, *, broken=(), nan=()):
        self.broken, self.nan, self.calls = broken, nan, []
        self.config = type("Config", (), {"preprocess": PREPROCESS})

    def inspect_pixels(self, pixels, sizes):  # noqa: D102
        reds = pixels[:, 0, 0, 0].tolist()
        self.calls.append(reds)
        if any(red in self.broken for red in reds):
            raise RuntimeError("out of memory")
        return [self._finding(red, size) for red, size in zip(reds, sizes, strict=True)]

    def _finding(self, red, size):
        score = math.nan if red in self.nan else red / 255
        return Finding(
            score=score,
            raw_score=score,
            threshold=0.5,
            defect_type="dent" if score >= 0.5 else None,
            defect_scores={},
            anomaly_map=np.full((4, 4), red / 255, np.float32),
            raw_map=np.full((4, 4), red / 255, np.float32),
            regions=[],
            width=size[0],
            height=size[1],
        )


def table_of(reds, **columns):
    """Decoded rows of plain images, one per red value; None is an image that could not be decoded."""
    rows = []
    for index, red in enumerate(reds):
        row = {SHARD: 0, "uri": f"/in/{index}.png", "key": f"{index}.png", "etag": "e", "size_bytes": 1}
        row |= {"last_modified": 0, "width": 9, "height": 8, PIXELS: bytes([red or 0, 1, 2] * 32 * 32)}
        if red is None:
            row |= {"width": None, "height": None, "error_code": "empty", "error_message": "no bytes"}
        rows.append(row | columns)
    return pa.Table.from_pylist(rows, schema=decoded_schema(32))


def test_good_and_bad_files_each_become_a_row(decoded, objects):
    assert decoded.schema == decoded_schema(32)
    rows = decoded.to_pylist()
    assert [row["key"] for row in rows] == [info.key for info in objects] == sorted(FILES)
    assert {row["key"]: row["error_code"] for row in rows if row["error_code"]} == ERRORS
    assert all(row["error_message"] for row in rows if row["error_code"])
    assert {row[SHARD] for row in rows} == {5}


def test_pixels_are_the_resized_image_or_zeros(decoded):
    for row in decoded.to_pylist():
        if row["error_code"]:
            assert row[PIXELS] == bytes(32 * 32 * 3)
            assert (row["width"], row["height"]) == (None, None)
        else:
            whole = decode_image(FILES[row["key"]], LIMITS)
            assert row[PIXELS] == PREPROCESS.apply(whole).tobytes()
            assert (row["height"], row["width"]) == whole.shape[:2]


def test_a_storage_failure_costs_one_row(objects, child):
    class Flaky:
        def get(self, key, *, max_bytes, etag):
            if key.startswith("b/2"):
                raise StorageError("timed out", code=ErrorCode.READ_TIMEOUT)
            if key.startswith("c"):
                raise ImageError(ErrorCode.FORBIDDEN, "not yours")
            return FILES[key]

    table = decode_objects(Flaky(), objects, shard=0, limits=LIMITS, preprocess=PREPROCESS, child=child)
    found = {row["key"]: row["error_code"] for row in table.to_pylist()}
    assert found["b/2.png"] == "read_timeout"
    assert found["c/7.png"] == "forbidden"
    assert found["a/0.png"] is None


def test_rows_of_a_real_detector(tiny_detector, decoded, objects, context):
    table = score_table(tiny_detector, decoded, context)
    assert table.schema.names == [*report_schema().names, SHARD, MAP_PNG]
    rows = {row["uri"]: row for row in table.to_pylist()}
    assert list(rows) == sorted(info.uri for info in objects)
    good = [info for info in objects if info.key not in ERRORS]
    expected = tiny_detector.inspect([decode_image(FILES[info.key], LIMITS) for info in good])
    for info, finding in zip(good, expected, strict=True):
        row = rows[info.uri]
        assert (row["status"], row["error_code"], row["etag"]) == ("ok", None, info.etag)
        assert (row["score"], row["raw_score"]) == (finding.score, finding.raw_score)
        assert (row["width"], row["height"]) == (finding.width, finding.height)
        assert row["is_anomaly"] == finding.is_anomaly
        assert len(row["regions"]) == len(finding.regions)
    for info in objects:
        if info.key in ERRORS:
            row = rows[info.uri]
            assert (row["status"], row["error_code"], row["score"]) == ("error", ERRORS[info.key], None)
            assert (row["run_id"], row["config_hash"], row["detector"]) == ("r1", "c1", "tiny")
    assert table[SHARD].to_pylist() == [5] * len(FILES)
    assert table[MAP_PNG].null_count == len(FILES)


def test_good_images_fill_batches_together(context):
    detector = StubDetector()
    score_table(detector, table_of([10, None, 20, 30, None, 40, 50]), context)
    assert detector.calls == [[10, 20], [30, 40], [50]]


def test_a_batch_that_fails_costs_only_the_bad_image(context):
    detector = StubDetector(broken=[20])
    rows = score_table(detector, table_of([10, 20, 30, 40]), context).to_pylist()
    assert [row["error_code"] for row in rows] == [None, "model", None, None]
    assert "the model failed on this image: out of memory" in rows[1]["error_message"]
    assert [row["score"] for row in rows] == [10 / 255, None, 30 / 255, 40 / 255]
    assert detector.calls == [[10, 20], [10], [20], [30, 40]]


def test_a_batch_that_does_not_fit_in_memory_is_no_images_fault(context):
    class Full(StubDetector):
        def inspect_pixels(self, pixels, sizes):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    detector = Full()
    with pytest.raises(BatchTooLarge, match="can't allocate memory"):
        score_table(detector, table_of([10, 20]), context)
    detector.batch_size = 1
    rows = score_table(detector, table_of([10, 20]), context).to_pylist()
    assert [row["error_code"] for row in rows] == ["model", "model"]


def test_a_score_that_is_no_number_is_an_error(context):
    rows = score_table(StubDetector(nan=[20]), table_of([10, 20]), context).to_pylist()
    assert [row["error_code"] for row in rows] == [None, "model"]
    assert "not a number" in rows[1]["error_message"]


def test_other_exceptions_are_not_swallowed(context):
    class Wrong(StubDetector):
        def inspect_pixels(self, pixels, sizes):
            raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        score_table(Wrong(), table_of([10]), context)


def test_a_shard_of_errors_never_calls_the_model(context):
    detector = StubDetector()
    rows = score_table(detector, table_of([None, None]), context).to_pylist()
    assert [row["error_code"] for row in rows] == ["empty", "empty"]
    assert detector.calls == []


@pytest.mark.parametrize(("maps", "kept"), [("none", []), ("anomalous", [1]), ("all", [0, 1])])
def test_which_maps_are_kept(context, maps, kept):
    table = score_table(StubDetector(), table_of([100, 200, None]), replace(context, maps=maps))
    for index, row in enumerate(table.to_pylist()):
        if index in kept:
            assert row["map_uri"] == context.output.uri(f"runs/r1/maps/00000000/{index:06d}.png")
            with Image.open(io.BytesIO(row[MAP_PNG])) as image:
                np.testing.assert_array_equal(np.asarray(image), np.full((4, 4), [100, 200][index] * 257))
        else:
            assert (row["map_uri"], row[MAP_PNG]) == (None, None)


def test_maps_follow_their_rows_when_these_are_sorted(context):
    table = table_of([200, 210])
    uris = pa.array(["/in/z.png", "/in/a.png"])
    table = table.set_column(table.schema.get_field_index("uri"), table.schema.field("uri"), uris)
    rows = score_table(StubDetector(), table, replace(context, maps="all")).to_pylist()
    assert [row["uri"] for row in rows] == ["/in/a.png", "/in/z.png"]
    for row, red, place in zip(rows, (210, 200), ("000001", "000000"), strict=True):
        with Image.open(io.BytesIO(row[MAP_PNG])) as image:
            assert np.asarray(image)[0, 0] == red * 257
        assert row["map_uri"].endswith(f"{place}.png")


def test_a_map_reads_back_to_16_bits():
    grid = np.random.default_rng(0).random((3, 5)).astype(np.float32)
    grid[0, :2] = (0, 1)
    with Image.open(io.BytesIO(encode_map(grid))) as image:
        read = np.asarray(image)
    assert read.dtype == np.uint16
    assert read[0, :2].tolist() == [0, 65535]
    np.testing.assert_allclose(read / 65535, grid, atol=0.5 / 65535 + 1e-7)


def test_partition_fields_become_columns(tiny_detector, decoded, context):
    template = PartitionTemplate("{line}/{part}.png")
    table = score_table(tiny_detector, decoded, replace(context, template=template))
    assert table.schema.names == [*report_schema(("line", "part")).names, SHARD, MAP_PNG]
    assert table["line"].to_pylist() == [key[0] for key in sorted(FILES)]
    assert table["part"].to_pylist()[:2] == ["0", "1-empty"]


def test_a_slice_of_a_table_scores_its_own_pixels(context):
    whole = table_of([10, 20, 30, 40, 50])
    rows = score_table(StubDetector(), whole.slice(2, 2), context).to_pylist()
    assert [row["score"] for row in rows] == [30 / 255, 40 / 255]
    joined = pa.concat_tables([whole.slice(4, 1), whole.slice(1, 2)])
    assert [row["score"] for row in score_table(StubDetector(), joined, context).to_pylist()] == [
        20 / 255,
        30 / 255,
        50 / 255,
    ]


def test_decoding_needs_no_torch():
    """A decode worker that imports it starts two seconds later, and workers start often."""
    code = "import sys, zsad.distributed.stages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_want_of_memory_is_told_from_other_failures(error, is_memory):
    assert is_out_of_memory(error) is is_memory


def test_the_real_allocator_says_it_in_words_that_are_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
