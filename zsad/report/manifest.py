"""A listing, streamed into Parquet shards: what a run will score, fixed before it scores anything.

Memory: one shard of rows, whatever the number of objects. Ray reads the shards, never a list of paths.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

from zsad import failpoints
from zsad.errors import ConfigError, StorageError
from zsad.report.carry import Carrier
from zsad.report.ledger import canonical_json, read_json
from zsad.report.paths import manifest_key, run_key
from zsad.report.schema import table_to_parquet
from zsad.storage import ObjectInfo, Store

MAX_SHARD_BYTES = 256 * 2**20
MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("last_modified", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingOptions:
    """Which objects of the input belong to a run.

    `include` and `exclude` are case-sensitive globs on the key in which `*` also matches `/` (`*.png`, `line1/*`); no
    `include` means everything. `limit` is the largest number of objects, None for all.

    Raises:
        ConfigError: a number is not positive.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None
    rows_per_shard: int = 1000

    def __post_init__(self) -> None:
        if self.rows_per_shard < 1:
            raise ConfigError(f"rows_per_shard must be at least 1, not {self.rows_per_shard}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1, not {self.limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestSummary:
    """What a finished manifest holds; `num_carried` objects were listed but are in no shard (see `write_manifest`)."""

    num_shards: int
    num_objects: int
    num_bytes: int
    num_carried: int = 0


def iter_listing(source: Store, options: ListingOptions) -> Iterator[ObjectInfo]:
    """Yield the objects of a run in key order, each once.

    Raises:
        StorageError: the listing fails, or goes backwards, so that each object once can't be promised.
    """
    included, excluded = _any_glob(options.include), _any_glob(options.exclude)
    count, last = 0, b""
    for info in source.list():
        name = info.key.encode()
        if name == last:
            continue
        if name < last:
            raise StorageError(f"the listing of {source.url} goes backwards at {info.uri}; run again")
        last = name
        if (options.include and not included(info.key)) or excluded(info.key):
            continue
        yield info
        count += 1
        if count == options.limit:
            return


def summarise_listing(source: Store, options: ListingOptions) -> ManifestSummary:
    """Count what a run would score, without writing anything."""
    num_objects = num_bytes = 0
    for info in iter_listing(source, options):
        num_objects += 1
        num_bytes += info.size_bytes
    num_shards = -(-num_objects // options.rows_per_shard)
    return ManifestSummary(num_shards=num_shards, num_objects=num_objects, num_bytes=num_bytes)


def write_manifest(
    source: Store,
    output: Store,
    run_id: str,
    options: ListingOptions,
    *,
    carrier: Carrier | None = None,
    guard: Callable[[], None] = lambda: None,
) -> ManifestSummary:
    """List `source` into manifest shards and close them with `manifest/_DONE.json`.

    Args:
        source: the images.
        output: the report's store, not inside `source`.
        run_id: of the run.
        options: what to list, and how many objects a shard holds.
        carrier: finds the objects whose row of an older run stays valid; they are kept out of the shards, and their
            rows are saved for `publish_run`.
        guard: called before each write; raises when the lease is lost.

    Raises:
        ConfigError: `output` lies inside `source`, so that the report would be listed as images.
        StorageError: listing or writing fails; calling again starts the manifest anew.
    """
    if source.contains(output):
        raise ConfigError(f"the output {output.url} lies inside the input {source.url}; choose one outside")
    counts = {"num_shards": 0, "num_objects": 0, "num_bytes": 0, "num_carried": 0}

    def kept() -> Iterator[ObjectInfo]:
        for info in iter_listing(source, options):
            is_kept = carrier is None or not carrier.is_carried(info)
            counts["num_objects" if is_kept else "num_carried"] += 1
            if is_kept:
                counts["num_bytes"] += info.size_bytes
                yield info

    for shard in _in_groups(kept(), options.rows_per_shard):
        guard()
        output.put(manifest_key(run_id, counts["num_shards"]), table_to_parquet(objects_to_table(shard)))
        counts["num_shards"] += 1
    summary = ManifestSummary(**counts)
    guard()
    if carrier is not None:
        carrier.save(output, run_id)
    with failpoints.around("listing"):
        output.put_if_absent(run_key(run_id, "manifest/_DONE.json"), canonical_json(asdict(summary)))
    return summary


def load_manifest_summary(output: Store, run_id: str) -> ManifestSummary | None:
    """Summary of a finished manifest, or None when the listing was not finished."""
    found = read_json(output, run_key(run_id, "manifest/_DONE.json"))
    return None if found is None else ManifestSummary(**found)


def read_manifest_shard(output: Store, run_id: str, shard: int) -> list[ObjectInfo]:
    """Read the objects of one shard, in key order."""
    data = output.get(manifest_key(run_id, shard), max_bytes=MAX_SHARD_BYTES)
    return [ObjectInfo(**row) for row in pq.read_table(BytesIO(data)).to_pylist()]


def objects_to_table(objects: Iterable[ObjectInfo]) -> pa.Table:
    """Manifest table of `objects`, in their order."""
    rows = list(objects)
    columns = {name: [getattr(info, name) for info in rows] for name in MANIFEST_SCHEMA.names}
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def _in_groups(items: Iterable[ObjectInfo], size: int) -> Iterator[list[ObjectInfo]]:
    group: list[ObjectInfo] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _any_glob(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Test for matching at least one glob; no globs match nothing."""
    compiled = [re.compile(fnmatch.translate(pattern)) for pattern in patterns]
    return lambda key: any(pattern.match(key) for pattern in compiled)
