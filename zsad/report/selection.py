"""Choose the images that a person should look at, in one pass over a report of any length.

Groups never share an image: the highest scores, the anomalous images closest to the threshold, the normal ones closest
to it, and other normal images at random. "Random" is the order of a keyed hash of the uri, so that the same report and
seed give the same choice whatever the order of files, row groups and batches.

Cost: one read of nine narrow columns, about 2 us per row; memory depends on the numbers asked for, never on the rows.
A second read fetches the few chosen rows in full.
"""

import hashlib
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from zsad.errors import ConfigError

Row = dict[str, Any]
NUM_BINS = 20
BATCH_ROWS = 32_768
_COLUMNS = ["uri", "status", "score", "raw_score", "threshold", "is_anomaly", "defect_type", "error_code"]
_ERROR_COLUMNS = ["uri", "error_code", "error_message"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many rows a report has of each kind; `listed` is always `ok` + `errors`.

    Attributes:
        by_error_code: images per error code, most frequent first.
        by_defect_type: anomalous images per defect type, most frequent first.
    """

    listed: int
    ok: int
    anomalous: int
    errors: int
    by_error_code: dict[str, int]
    by_defect_type: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The chosen rows by group, as dicts with the report's column names, and the counts of the whole report.

    Attributes:
        top: anomalous images, highest score first.
        above: other anomalous images, smallest distance above their threshold first.
        below: normal images, smallest distance under their threshold first.
        normals: other normal images at random.
        errors: uri, error_code and error_message of images without a score; codes take turns.
        normal_bins, anomalous_bins: images per score in 20 equal bins of [0, 1].
    """

    top: tuple[Row, ...]
    above: tuple[Row, ...]
    below: tuple[Row, ...]
    normals: tuple[Row, ...]
    errors: tuple[Row, ...]
    counts: Counts
    normal_bins: tuple[int, ...]
    anomalous_bins: tuple[int, ...]

    @property
    def uris(self) -> tuple[str, ...]:
        """Every chosen scored image once."""
        return tuple(row["uri"] for group in (self.top, self.above, self.below, self.normals) for row in group)

    @property
    def etags(self) -> dict[str, str | None]:
        """Uri -> etag of every chosen scored image: what to read again to make pictures, and in which version."""
        groups = (self.top, self.above, self.below, self.normals)
        return {row["uri"]: row["etag"] for group in groups for row in group}


def choose(
    rows: ds.Dataset,
    *,
    num_top: int = 48,
    num_near: int = 12,
    num_normal: int = 12,
    num_errors: int = 20,
    seed: int = 0,
) -> Selection:
    """Choose the images of a gallery from a report.

    Args:
        rows: a report as `zsad.read_report` opens it.
        num_top: highest-scored anomalous images.
        num_near: images just above, and as many just under, the threshold.
        num_normal: random normal images.
        num_errors: example rows of images without a score.
        seed: of the random groups.

    Raises:
        ConfigError: if a number is negative.
    """
    wanted = {"num_top": num_top, "num_near": num_near, "num_normal": num_normal, "num_errors": num_errors}
    for name, value in wanted.items():
        if value < 0:
            raise ConfigError(f"{name} is {value}; it can't be negative")
    scan = _Scan(seed=seed, **wanted)
    for batch in _batches(rows):
        scan.add(batch)
    return scan.selection(rows)


class _Smallest:
    """The `size` entries with the smallest (key, tie, uri) of all that were offered."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: list[tuple[float, float, str]] = []

    def offer(self, keys_N: NDArray[np.float64], ties_N: NDArray[np.float64], uris: Sequence[str]) -> None:
        if not self.size or not len(keys_N):
            return
        bound = self.entries[-1][0] if len(self.entries) == self.size else np.inf
        if len(keys_N) > self.size:
            bound = min(bound, float(np.partition(keys_N, self.size - 1)[self.size - 1]))
        for index in np.flatnonzero(keys_N <= bound).tolist():
            insort(self.entries, (float(keys_N[index]), float(ties_N[index]), uris[index]))
            del self.entries[self.size :]

    def uris(self, *, without: Iterable[str] = (), limit: int | None = None) -> list[str]:
        excluded = set(without)
        return [uri for _, _, uri in self.entries if uri not in excluded][:limit]


class _Scan:
    """What one pass keeps."""

    def __init__(self, *, num_top: int, num_near: int, num_normal: int, num_errors: int, seed: int) -> None:
        self.num_near, self.num_normal, self.num_errors = num_near, num_normal, num_errors
        self.hash_key = str(seed).encode()
        self.top = _Smallest(num_top)
        self.above = _Smallest(num_near + num_top if num_near else 0)  # some of the nearest may be in `top` as well
        self.below = _Smallest(num_near)
        self.normals = _Smallest(num_normal + num_near if num_normal else 0)
        self.errors: dict[str, _Smallest] = {}
        self.listed = self.ok = 0
        self.error_codes: Counter[str] = Counter()
        self.defect_types: Counter[str] = Counter()
        self.normal_bins = np.zeros(NUM_BINS, np.int64)
        self.anomalous_bins = np.zeros(NUM_BINS, np.int64)

    def add(self, batch: pa.RecordBatch) -> None:
        self.listed += batch.num_rows
        is_ok = pc.fill_null(pc.equal(batch.column("status"), "ok"), False)
        is_anomaly = pc.and_(is_ok, pc.fill_null(batch.column("is_anomaly"), False))
        self._add_anomalous(batch.filter(is_anomaly))
        self._add_normal(batch.filter(pc.and_not(is_ok, is_anomaly)))
        self._add_errors(batch.filter(pc.invert(is_ok)))

    def _add_anomalous(self, batch: pa.RecordBatch) -> None:
        self.ok += batch.num_rows
        self.defect_types.update(_text_counts(batch.column("defect_type"), "unknown"))
        score_N, threshold_N, raw_N = (_floats(batch, name) for name in ("score", "threshold", "raw_score"))
        self.anomalous_bins += _bins(score_N)
        uris = batch.column("uri").to_pylist()
        self.top.offer(-score_N, -raw_N, uris)
        self.above.offer(score_N - threshold_N, raw_N, uris)

    def _add_normal(self, batch: pa.RecordBatch) -> None:
        self.ok += batch.num_rows
        score_N, threshold_N, raw_N = (_floats(batch, name) for name in ("score", "threshold", "raw_score"))
        self.normal_bins += _bins(score_N)
        uris = batch.column("uri").to_pylist()
        self.below.offer(threshold_N - score_N, -raw_N, uris)
        if self.normals.size:
            self.normals.offer(self._hashes(uris), np.zeros(len(uris)), uris)

    def _add_errors(self, batch: pa.RecordBatch) -> None:
        codes = pc.fill_null(batch.column("error_code"), "unknown")
        counts = _text_counts(codes, "unknown")
        self.error_codes.update(counts)
        for code in counts:
            uris = pc.filter(batch.column("uri"), pc.equal(codes, code)).to_pylist()
            kept = self.errors.setdefault(code, _Smallest(self.num_errors))
            kept.offer(self._hashes(uris), np.zeros(len(uris)), uris)

    def _hashes(self, uris: Sequence[str]) -> NDArray[np.float64]:
        digests = b"".join(hashlib.blake2b(uri.encode(), digest_size=8, key=self.hash_key).digest() for uri in uris)
        return np.frombuffer(digests, ">u8").astype(np.float64)

    def selection(self, rows: ds.Dataset) -> Selection:
        top, below = self.top.uris(), self.below.uris()
        above = self.above.uris(without=top, limit=self.num_near)
        normals = self.normals.uris(without=below, limit=self.num_normal)
        found = _fetch(rows, [*top, *above, *below, *normals], rows.schema.names)
        errors = self._error_uris()
        found_errors = _fetch(rows, errors, _ERROR_COLUMNS)
        return Selection(
            top=tuple(found[uri] for uri in top),
            above=tuple(found[uri] for uri in above),
            below=tuple(found[uri] for uri in below),
            normals=tuple(found[uri] for uri in normals),
            errors=tuple(found_errors[uri] for uri in errors),
            counts=Counts(
                listed=self.listed,
                ok=self.ok,
                anomalous=sum(self.defect_types.values()),
                errors=self.listed - self.ok,
                by_error_code=_ranked(self.error_codes),
                by_defect_type=_ranked(self.defect_types),
            ),
            normal_bins=tuple(self.normal_bins.tolist()),
            anomalous_bins=tuple(self.anomalous_bins.tolist()),
        )

    def _error_uris(self) -> list[str]:
        """Examples of every code: the first of each, then the second of each, as far as the number goes."""
        by_code = [self.errors[code].uris() for code in _ranked(self.error_codes)]
        turns = range(self.num_errors)
        return [uris[turn] for turn in turns for uris in by_code if turn < len(uris)][: self.num_errors]


def _batches(rows: ds.Dataset) -> Iterable[pa.RecordBatch]:
    scanner = rows.scanner(columns=_COLUMNS, batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=1)
    batches: Iterable[pa.RecordBatch] = scanner.to_batches()
    return batches


def _fetch(rows: ds.Dataset, uris: Sequence[str], columns: Sequence[str]) -> dict[str, Row]:
    if not uris:
        return {}
    only = pc.field("uri").isin(list(uris))
    scanner = rows.scanner(
        columns=list(columns), filter=only, batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=1
    )
    return {row["uri"]: row for row in scanner.to_table().to_pylist()}


def _floats(batch: pa.RecordBatch, name: str) -> NDArray[np.float64]:
    """One column; a missing number is -inf for the score and 0 elsewhere, so that ordering stays total."""
    values = pc.cast(batch.column(name), pa.float64())
    array_N = values.to_numpy(zero_copy_only=False)
    missing = -np.inf if name == "score" else 0.0
    return np.where(np.isnan(array_N), missing, array_N)


def _bins(score_N: NDArray[np.float64]) -> NDArray[np.int64]:
    indices_N = (np.clip(score_N, 0, 1) * NUM_BINS).astype(np.int64).clip(0, NUM_BINS - 1)
    return np.bincount(indices_N, minlength=NUM_BINS).astype(np.int64)


def _text_counts(values: pa.Array, missing: str) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(pc.fill_null(values, missing)).to_pylist()}


def _ranked(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
