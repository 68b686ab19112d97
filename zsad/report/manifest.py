"""A listing, streamed into Parquet shards: what a run will score, fixed before it scores anything.

A shard is a row group; `SHARDS_PER_FILE` of them are one file, written once, whose metadata says how far the listing
was after its last row. So a second start reads the files that are there and lists on behind their last key, and the
finished manifest is the one that an uninterrupted listing of the same objects gives. Shards may be scored as soon as
their file is there. Those of all files but the first may be larger: a small bucket then feeds all scorers, and a large
one does not pay for many small shards.

Memory: one file of rows (32 shards), whatever the number of objects. Ray reads the shards, never a list of paths.
Cost: one write for each 32 shards; reading one shard reads its file, of which the last two are kept.
"""

import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import lru_cache
from io import BytesIO
from itertools import islice
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from zsad import failpoints
from zsad.errors import CommitConflict, ConfigError, ErrorCode, StorageError
from zsad.report.carry import Carrier, Found
from zsad.report.ledger import canonical_json, read_json
from zsad.report.paths import manifest_key, run_key
from zsad.storage import ObjectInfo, Store

SHARDS_PER_FILE = 32
MAX_FILE_BYTES = 256 * 2**20
MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("last_modified", pa.timestamp("us", tz="UTC")),
    ]
)
_PROGRESS_KEY = b"zsad.listing"


class Lister(Protocol):
    """What can be listed: a `Store`, or a customer's own list (`zsad.report.object_list`)."""

    @property
    def url(self) -> str:
        """What to call it in messages."""

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """Objects in UTF-8 byte order of their keys; see `Store.list`."""

    def contains(self, other: Store) -> bool:
        """Whether `other` lies inside what is listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingOptions:
    """Which objects of the input belong to a run.

    `include` and `exclude` are case-sensitive globs on the key in which `*` also matches `/` (`*.png`, `line1/*`); no
    `include` means everything. Objects modified before `newer_than` and without a row in the last run are left out.
    `limit` is the largest number of objects, None for all. Shards of the first file hold `rows_per_shard` objects,
    those of later ones `later_rows_per_shard`, None for the same.

    Raises:
        ConfigError: a number is not positive.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    newer_than: datetime | None = None
    limit: int | None = None
    rows_per_shard: int = 1000
    later_rows_per_shard: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows_per_shard", "later_rows_per_shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1, not {self.limit}")

    @property
    def later_rows(self) -> int:
        """Objects of a shard behind the first file."""
        return self.later_rows_per_shard or self.rows_per_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestSummary:
    """What a finished manifest holds.

    `num_carried` objects were listed but are in no shard, since their rows of an older run stay valid; `num_older` were
    left out by `newer_than`. Sizes that a list did not tell count as 0 bytes.
    """

    num_shards: int
    num_objects: int
    num_bytes: int
    num_carried: int = 0
    num_older: int = 0


@dataclass(slots=True, kw_only=True)
class _Progress:
    """How far a listing is after a file of `file_rows`; `carried` is `Carrier.progress` since the file before."""

    rows_per_shard: int
    later_rows_per_shard: int
    file_rows: int
    num_files: int = 0
    last_key: str = ""
    num_objects: int = 0
    num_bytes: int = 0
    num_carried: int = 0
    num_older: int = 0
    carried: dict[str, str] = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        """Shards of the files so far, the last of which may be short."""
        if not self.num_files:
            return 0
        return (self.num_files - 1) * SHARDS_PER_FILE + -(-self.file_rows // self.shard_rows(self.num_files - 1))

    @property
    def is_closed(self) -> bool:
        """Whether the last file is not full, so that the listing had ended; what came later is for the next run."""
        return self.num_files > 0 and self.file_rows < self.shard_rows(self.num_files - 1) * SHARDS_PER_FILE

    def shard_rows(self, file: int) -> int:
        """Rows of a full shard of file number `file`."""
        return self.later_rows_per_shard if file else self.rows_per_shard

    def summary(self) -> ManifestSummary:
        names = ("num_shards", "num_objects", "num_bytes", "num_carried", "num_older")
        return ManifestSummary(**{name: getattr(self, name) for name in names})


def iter_listing(source: Lister, options: ListingOptions) -> Iterator[ObjectInfo]:
    """Yield the objects of a run without a predecessor, in key order, each once.

    Raises:
        StorageError: the listing fails, or goes backwards, so that each object once can't be promised.
        ConfigError: `newer_than` meets an object of unknown age.
    """
    count = 0
    for info in _matching(source, options, ""):
        if not _is_older(info, options):
            yield info
            count += 1
            if count == options.limit:
                return


def _matching(source: Lister, options: ListingOptions, after: str) -> Iterator[ObjectInfo]:
    """The objects behind the key `after` that the globs choose."""
    included, excluded = _any_glob(options.include), _any_glob(options.exclude)
    last = after.encode()
    for info in source.list(after=after):
        name = info.key.encode()
        if name == last:
            continue
        if name < last:
            raise StorageError(f"the listing of {source.url} goes backwards at {info.uri}; run again")
        last = name
        if (not options.include or included(info.key)) and not excluded(info.key):
            yield info


def _is_older(info: ObjectInfo, options: ListingOptions) -> bool:
    if options.newer_than is None:
        return False
    if info.last_modified is None:
        raise ConfigError(f"the list does not say when {info.uri} was modified, which --since needs")
    return info.last_modified < options.newer_than


def summarise_listing(source: Lister, options: ListingOptions) -> ManifestSummary:
    """Count what a run would score, without writing anything."""
    num_objects = num_bytes = 0
    for info in iter_listing(source, options):
        num_objects += 1
        num_bytes += info.size_bytes or 0
    first = min(num_objects, options.rows_per_shard * SHARDS_PER_FILE)
    num_shards = -(-first // options.rows_per_shard) + -(-(num_objects - first) // options.later_rows)
    return ManifestSummary(num_shards=num_shards, num_objects=num_objects, num_bytes=num_bytes)


def write_manifest(
    source: Lister,
    output: Store,
    run_id: str,
    options: ListingOptions,
    *,
    carrier: Carrier | None = None,
    guard: Callable[[], None] = lambda: None,
    announce: Callable[[int, int], None] = lambda _num_shards, _num_rows: None,
) -> ManifestSummary:
    """List `source` into manifest shards and close them with `manifest/_DONE.json`; goes on with what is there.

    Args:
        source: the images.
        output: the report's store, not inside `source`.
        run_id: of the run.
        options: what to list, and how many objects a shard holds; an interrupted manifest keeps its shard sizes.
        carrier: a new one that finds the objects whose row of an older run stays valid; they are kept out of the
            shards, and their rows are saved for `publish_run`.
        guard: called before each write; raises when the lease is lost.
        announce: called with the numbers of shards that can be read and of their rows, after each file.

    Raises:
        ConfigError: `output` lies inside `source`, so that the report would be listed as images.
        StorageError: listing or writing fails; calling again goes on behind the last file.
        CommitConflict: another driver wrote a file of this manifest.
    """
    if source.contains(output):
        raise ConfigError(f"the output {output.url} lies inside the input {source.url}; choose one outside")
    progress = _resume(output, run_id, options, carrier)
    announce(progress.num_shards, progress.num_objects)
    kept = _kept(source, options, carrier, progress)
    while rows := list(islice(kept, progress.shard_rows(progress.num_files) * SHARDS_PER_FILE)):
        guard()
        _write_file(output, run_id, rows, progress, carrier)
        announce(progress.num_shards, progress.num_objects)
    guard()
    if carrier is not None:
        carrier.save(output, run_id)
    with failpoints.around("listing"):
        output.put_if_absent(run_key(run_id, "manifest/_DONE.json"), canonical_json(asdict(progress.summary())))
    return progress.summary()


def _kept(
    source: Lister, options: ListingOptions, carrier: Carrier | None, progress: _Progress
) -> Iterator[ObjectInfo]:
    """The objects to score behind `progress.last_key`; counts them and the others in `progress`.

    Nothing is looked at between the last row of a full file and its writing, so that the two agree.
    """
    if progress.is_closed or progress.num_objects + progress.num_carried == options.limit:
        return
    for info in _matching(source, options, progress.last_key):
        progress.last_key = info.key
        found = carrier.find(info) if carrier else None
        if found is None and _is_older(info, options):
            progress.num_older += 1
            continue
        if found is Found.VALID:
            progress.num_carried += 1
        else:
            progress.num_objects += 1
            progress.num_bytes += info.size_bytes or 0
            yield info
        if progress.num_objects + progress.num_carried == options.limit:
            return


def _write_file(
    output: Store, run_id: str, rows: list[ObjectInfo], progress: _Progress, carrier: Carrier | None
) -> None:
    """Write the next file, with the progress after its last row."""
    key = manifest_key(run_id, progress.num_files)
    shard_rows = progress.shard_rows(progress.num_files)
    progress.num_files += 1
    progress.file_rows = len(rows)
    progress.carried = carrier.progress() if carrier else {}
    table = objects_to_table(rows).replace_schema_metadata({_PROGRESS_KEY: canonical_json(asdict(progress))})
    sink = BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=shard_rows)
    if not output.put_if_absent(key, sink.getvalue()):
        raise CommitConflict(f"{output.uri(key)} was written by another driver meanwhile; run again")


def _resume(output: Store, run_id: str, options: ListingOptions, carrier: Carrier | None) -> _Progress:
    """The progress after the last file that is there; `carrier` gets to know what was seen before it."""
    num_files = _count_files(output, run_id)
    if not num_files:
        return _Progress(rows_per_shard=options.rows_per_shard, later_rows_per_shard=options.later_rows, file_rows=0)
    if carrier is not None:
        for number in range(num_files):
            carrier.restore(_read_progress(output, run_id, number).carried)
    return _read_progress(output, run_id, num_files - 1)


def _count_files(output: Store, run_id: str) -> int:
    prefix = run_key(run_id, "manifest/")
    try:
        names = {info.key.removeprefix(prefix) for info in output.list(prefix)}
    except StorageError as error:
        if error.code != ErrorCode.MISSING:
            raise
        return 0
    number = 0
    while manifest_key(run_id, number).removeprefix(prefix) in names:
        number += 1
    return number


def _read_progress(output: Store, run_id: str, number: int) -> _Progress:
    key = manifest_key(run_id, number)
    stored = pq.read_schema(BytesIO(_file(output, key))).metadata or {}
    try:
        return _Progress(**json.loads(stored[_PROGRESS_KEY]))
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{output.uri(key)} does not say how far its listing was; give --restart") from error


def load_manifest_summary(output: Store, run_id: str) -> ManifestSummary | None:
    """Summary of a finished manifest, or None when the listing was not finished."""
    found = read_json(output, run_key(run_id, "manifest/_DONE.json"))
    return None if found is None else ManifestSummary(**found)


def read_manifest_shard(output: Store, run_id: str, shard: int) -> list[ObjectInfo]:
    """Read the objects of one shard, in key order."""
    number, group = divmod(shard, SHARDS_PER_FILE)
    with pq.ParquetFile(BytesIO(_file(output, manifest_key(run_id, number)))) as file:
        return [ObjectInfo(**row) for row in file.read_row_group(group).to_pylist()]


@lru_cache(maxsize=2)
def _file(output: Store, key: str) -> bytes:
    """A manifest file; they never change, and a process reads neighbouring shards."""
    return output.get(key, max_bytes=MAX_FILE_BYTES)


def objects_to_table(objects: Iterable[ObjectInfo]) -> pa.Table:
    """Manifest table of `objects`, in their order."""
    rows = list(objects)
    columns = {name: [getattr(info, name) for info in rows] for name in MANIFEST_SCHEMA.names}
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def _any_glob(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Test for matching at least one glob; no globs match nothing."""
    compiled = [re.compile(fnmatch.translate(pattern)) for pattern in patterns]
    return lambda key: any(pattern.match(key) for pattern in compiled)
