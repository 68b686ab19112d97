"""From listed objects to report rows: fetch and decode (CPU), then score (model). No Ray: the batch job maps these.

Between the two halves travels one Arrow table per manifest shard with uint8 pixels at the model's size, so that
decoding can run on machines without a GPU and only a quarter of the float bytes move. Every object ends as exactly
one row; what goes wrong with one object becomes its error code.

Legend: S model input side px, N rows of a shard.
Cost: S * S * 3 bytes per image in flight; fetching runs `FETCH_AHEAD` objects ahead of decoding.
"""

import io
import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from zsad import failpoints
from zsad.decode_child import DecodeChild
from zsad.errors import ErrorCode, ImageError, StorageError
from zsad.finding import Finding
from zsad.images import DecodeLimits, Preprocess
from zsad.partition import PartitionTemplate
from zsad.report.manifest import MANIFEST_SCHEMA
from zsad.report.paths import map_key
from zsad.report.schema import Row, RunStamp, error_row, ok_row, rows_to_table
from zsad.storage import ObjectInfo, Store

if TYPE_CHECKING:  # decoding workers start often and must not wait seconds for torch
    from zsad.detector import Detector

log = logging.getLogger(__name__)

FETCH_AHEAD = 8
PIXELS = "pixels"
SHARD = "shard"
MAP_PNG = "map_png"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowContext:
    """What all rows of a run share besides the detector.

    Attributes:
        stamp: run id and config hash.
        output: where maps will be put.
        detector_ref: as the user wrote it.
        maps: "none", "anomalous" or "all".
        template: of the partition columns, or None.
    """

    stamp: RunStamp
    output: Store
    detector_ref: str
    maps: str
    template: PartitionTemplate | None


class BatchTooLarge(Exception):
    """A forward pass does not fit in memory, and a smaller batch may."""


def decoded_schema(size: int | None) -> pa.Schema:
    """Columns that travel from decoding to scoring for a model input of `size` px; None: of several sizes."""
    return pa.schema(
        [
            pa.field(SHARD, pa.int32(), nullable=False),
            *MANIFEST_SCHEMA,
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field(PIXELS, pa.binary(size * size * 3) if size else pa.large_binary(), nullable=False),
        ]
    )


def decode_objects(
    source: Store,
    objects: Sequence[ObjectInfo],
    *,
    shard: int,
    limits: DecodeLimits,
    preprocess: Preprocess,
    child: DecodeChild,
) -> pa.Table:
    """Fetch and decode one manifest shard.

    Returns:
        N rows in the given order with `decoded_schema`; pixels are zeros where there is an error code.
    """
    blank = bytes(preprocess.size * preprocess.size * 3)
    rows = []
    keys = [(info.key, info.etag) for info in objects]
    for info, data in zip(objects, fetched(source, keys, limits.max_bytes), strict=True):
        outcome = {PIXELS: blank, **_decode(data, limits, preprocess, child)}
        rows.append({SHARD: shard, **asdict(info), **outcome})
    return pa.Table.from_pylist(rows, schema=decoded_schema(preprocess.size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows of a decoded table that one detector scores.

    Attributes:
        ref: the report's `detector` of these rows.
        places: of the rows in the table.
        detector: None where there is none and no row needs one.
        error: why a detector that should be there is not; becomes the rows' `no_detector`.
    """

    ref: str
    places: Sequence[int]
    detector: "Detector | None" = None
    error: str = ""


def undecoded(objects: Sequence[ObjectInfo], reasons: Sequence[str], *, shard: int) -> pa.Table:
    """Rows of objects that no detector wants, not even fetched, each with why; schema for sizes that differ."""
    told = ({"error_code": ErrorCode.NO_DETECTOR.value, "error_message": reason, PIXELS: b""} for reason in reasons)
    rows = [{SHARD: shard, **asdict(info), **outcome} for info, outcome in zip(objects, told, strict=True)]
    return pa.Table.from_pylist(rows, schema=decoded_schema(None))


def score_table(detector: "Detector", decoded: pa.Table, context: RowContext) -> pa.Table:
    """Score all of what `decode_objects` returned with one detector; see `score_groups`."""
    return score_groups(
        [Group(ref=context.detector_ref, places=range(len(decoded)), detector=detector)], decoded, context
    )


def score_groups(groups: Iterable[Group], decoded: pa.Table, context: RowContext) -> pa.Table:
    """Score what `decode_objects` returned, each group with its own detector and in its own batches.

    Args:
        groups: every row in exactly one; taken one after another, so that a detector may be forgotten behind its group.
        decoded: N rows.
        context: what all rows share.

    Returns:
        N report rows, sorted by uri, with two more columns: `shard`, and `map_png` (bytes or null), which belongs at
        the row's `map_uri`.
    """
    listed = decoded.drop_columns([PIXELS]).to_pylist()
    outcomes: dict[int, Finding | ImageError] = {}
    refs: dict[int, str] = {}
    for group in groups:
        refs.update(dict.fromkeys(group.places, group.ref))
        outcomes.update(_inspect_group(group, decoded, listed))
    rows, maps = [], {}
    for index, row in enumerate(listed):
        report_row, png = _report_row(row, index, outcomes.get(index), replace(context, detector_ref=refs[index]))
        rows.append(report_row)
        maps[row["uri"]] = png
    table = rows_to_table(rows, context.template.fields if context.template else ())
    shards = pa.array([listed[0][SHARD]] * len(rows), pa.int32())
    pngs = pa.array([maps[uri] for uri in table["uri"].to_pylist()], pa.binary())
    return table.append_column(SHARD, shards).append_column(MAP_PNG, pngs)


def _inspect_group(
    group: Group, decoded: pa.Table, listed: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[int, Finding | ImageError]]:
    """Place and outcome of the group's decoded rows, in batches of the detector's size."""
    good = [place for place in group.places if listed[place]["error_code"] is None]
    detector = group.detector
    if detector is None:
        yield from ((place, ImageError(ErrorCode.NO_DETECTOR, group.error)) for place in good)
        return
    if not good:
        return
    is_all = len(group.places) == len(decoded)
    chosen = decoded if is_all else decoded.select([PIXELS]).take(pa.array(good))
    pixels_NSSC = pixel_array(chosen, detector.config.preprocess.size)
    for start in range(0, len(good), detector.batch_size):
        batch = good[start : start + detector.batch_size]
        sizes = [(listed[place]["width"], listed[place]["height"]) for place in batch]
        pixels = pixels_NSSC[batch] if is_all else pixels_NSSC[start : start + detector.batch_size]
        failpoints.hit("score")
        yield from zip(batch, _inspect_batch(detector, pixels, sizes), strict=True)


def encode_map(anomaly_map_hw: NDArray[np.float32]) -> bytes:
    """16-bit grey PNG of a calibrated map on the patch grid: 0 is 0.0, 65535 is 1.0."""
    sink = io.BytesIO()
    Image.fromarray(np.round(anomaly_map_hw * 65535).astype(np.uint16)).save(sink, "PNG")
    return sink.getvalue()


def fetched(source: Store, keys: Iterable[tuple[str, str | None]], max_bytes: int) -> Iterator[bytes | ImageError]:
    """Content of each object in order, or why it has none; a few reads run ahead.

    Args:
        source: where they are.
        keys: (key, etag) of each; no etag: whatever is there.
        max_bytes: of one object.
    """

    def fetch(key: str, etag: str | None) -> bytes | ImageError:
        try:
            return source.get(key, max_bytes=max_bytes, etag=etag)
        except ImageError as error:
            return error
        except StorageError as error:
            return ImageError(error.code, str(error))

    with ThreadPoolExecutor(FETCH_AHEAD) as readers:
        ahead: deque[Future[bytes | ImageError]] = deque()
        for key, etag in keys:
            ahead.append(readers.submit(fetch, key, etag))
            if len(ahead) > FETCH_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _decode(
    data: bytes | ImageError, limits: DecodeLimits, preprocess: Preprocess, child: DecodeChild
) -> dict[str, Any]:
    try:
        if isinstance(data, ImageError):
            raise data
        decoded = child.decode(data, limits, preprocess)
    except ImageError as error:
        return {"error_code": error.code.value, "error_message": str(error)}
    return {"width": decoded.width, "height": decoded.height, PIXELS: decoded.pixels.tobytes()}


def pixel_array(decoded: pa.Table, size: int) -> NDArray[np.uint8]:
    """The pixel column as (N, S, S, 3), without a copy where its type says the size of all rows.

    Raises:
        pyarrow.ArrowInvalid: a row has another number of bytes.
    """
    stride = size * size * 3
    column = decoded[PIXELS].combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_large_binary(array.type):
        array = array.cast(pa.binary(stride))
    buffer = np.frombuffer(array.buffers()[1], np.uint8)
    start = array.offset * stride
    return buffer[start : start + len(array) * stride].reshape(-1, size, size, 3)


def inspect_each(
    detector: "Detector", pixels_BSSC: NDArray[np.uint8], sizes: Sequence[tuple[int, int]]
) -> list[Finding | ImageError]:
    """Findings of a batch; if the batch fails, of each image by itself, so that one image costs one row."""
    try:
        return _checked(detector.inspect_pixels(pixels_BSSC, sizes))
    except RuntimeError as error:
        return _inspect_singly(detector, pixels_BSSC, sizes, error)


def _inspect_batch(
    detector: "Detector", pixels_BSSC: NDArray[np.uint8], sizes: Sequence[tuple[int, int]]
) -> list[Finding | ImageError]:
    """As `inspect_each`, but that a batch does not fit in memory is no image's fault.

    Raises:
        BatchTooLarge: half of the batch may fit.
    """
    try:
        return _checked(detector.inspect_pixels(pixels_BSSC, sizes))
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error) and detector.batch_size > 1:
            raise BatchTooLarge(str(error) or "not enough memory") from error
        return _inspect_singly(detector, pixels_BSSC, sizes, error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, CUDA or torch's CPU allocator say with `error` that memory is used up."""
    words = ("can't allocate memory", "not enough memory")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(word in str(error) for word in words)
    )


def _inspect_singly(
    detector: "Detector", pixels_BSSC: NDArray[np.uint8], sizes: Sequence[tuple[int, int]], error: Exception
) -> list[Finding | ImageError]:
    """Findings one by one of a batch that failed with `error`."""
    if len(sizes) == 1:
        return [ImageError(ErrorCode.MODEL, f"the model failed on this image: {error}")]
    log.warning("a batch of %d images failed (%s); scoring them one by one", len(sizes), error)
    singles = (inspect_each(detector, pixels_BSSC[row : row + 1], sizes[row : row + 1]) for row in range(len(sizes)))
    return [outcome for single in singles for outcome in single]


def _checked(findings: Iterable[Finding]) -> list[Finding | ImageError]:
    not_finite = "the model gave a score that is not a number"
    return [f if math.isfinite(f.raw_score) else ImageError(ErrorCode.MODEL, not_finite) for f in findings]


def _report_row(
    row: Mapping[str, Any], index: int, outcome: Finding | ImageError | None, context: RowContext
) -> tuple[Row, bytes | None]:
    """Report row and map of one object; `index` is its place in the manifest shard."""
    info = ObjectInfo(**{name: row[name] for name in MANIFEST_SCHEMA.names})
    partition = context.template.match(info.key) if context.template else None
    if not isinstance(outcome, Finding):
        code = outcome.code if outcome else ErrorCode(row["error_code"])
        message = str(outcome) if outcome else row["error_message"]
        detector = context.detector_ref
        return error_row(context.stamp, info, code, message, detector=detector, partition=partition), None
    keep = context.maps == "all" or (context.maps == "anomalous" and outcome.is_anomaly)
    map_uri = context.output.uri(map_key(context.stamp.run_id, row[SHARD], index)) if keep else None
    report_row = ok_row(
        context.stamp,
        info,
        outcome,
        size=(outcome.width, outcome.height),
        detector=context.detector_ref,
        map_uri=map_uri,
        partition=partition,
    )
    return report_row, encode_map(outcome.anomaly_map) if keep else None
