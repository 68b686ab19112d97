"""Settle the detectors of a run before anything is registered: resolve references, remember normals, set thresholds.

A stored bundle that needs no change is taken as it is, without torch in the driver. Everything else runs in one Ray
task for each detector (on a GPU where scorers get one), so that a wrong model name or too few normal images end the job
with nothing written. Where each product has its own detector, one that can't be had costs only the rows of its product,
and bundles are copied to `detectors/<fingerprint>/` of the output as they are made: nothing is held in memory, runs
with the same bundle share its copy, and a bundle that is trained anew meanwhile changes nothing.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TypeVar

import ray

from zsad.batch_config import BatchConfig
from zsad.bundle import BundleRef, DetectorConfig, parse_ref, read_config, read_tensors, write_bundle
from zsad.detector_index import DetectorIndex, Entry, Values, filled, list_values
from zsad.distributed.cluster import zsad_cause
from zsad.errors import ConfigError, ErrorCode, ImageError, ModelError, StorageError, ZsadError
from zsad.images import DecodeLimits, RgbImage, decode_image
from zsad.report.ledger import canonical_json, config_hash
from zsad.report.manifest import Lister
from zsad.report.paths import DETECTORS, DETECTORS_JSON, run_key
from zsad.storage import Store, open_store

log = logging.getLogger(__name__)

MAX_NORMALS = 2000
_NUM_THREADS = 8
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A calibrated detector: its description and its tensors as a safetensors file."""

    config: DetectorConfig
    tensors: bytes

    def fingerprint(self) -> str:
        """SHA-256 of all that decides values: the description, and what was learned or remembered."""
        return config_hash({"detector": self.config.fingerprint(), "tensors": sha256(self.tensors).hexdigest()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The detectors of a run that is not registered yet; `single` is the one of a run without fields."""

    index: DetectorIndex
    single: Prepared | None = None

    def write(self, output: Store, run_id: str) -> None:
        """Write `detectors.json`, and the bundle of a run without fields, into the run's folder.

        A run that is resumed keeps the list it began with.
        """
        index = self.index
        if self.single is not None:
            bundle = run_key(run_id, "detector")
            write_bundle(output.uri(bundle), self.single.config, self.single.tensors)
            index = replace(index, entries={(): replace(index.entries[()], bundle=bundle)})
        output.put_if_absent(run_key(run_id, DETECTORS_JSON), canonical_json(index.to_dict()))


def settle_detectors(config: BatchConfig, lister: Lister, output: Store) -> Settled:
    """The detectors that `config` asks for, of the products that `lister` knows.

    Raises:
        ConfigError, ModelError, StorageError: if none can be had.
    """
    if not config.detector_fields:
        single = prepare_detector(config)
        entry = Entry(ref=config.detector, fingerprint=single.fingerprint(), preprocess=single.config.preprocess)
        return Settled(index=DetectorIndex(ref=config.detector, entries={(): entry}), single=single)
    return Settled(index=_settle_many(config, lister, output))


def _settle_many(config: BatchConfig, lister: Lister, output: Store) -> DetectorIndex:
    template, names = config.template(), config.detector_fields
    assert template is not None  # noqa: S101 - fields come from it; for the type checker
    wanted: dict[Values, BatchConfig] = {}
    entries: dict[Values, Entry | ZsadError] = {}
    for values in list_values(lister, template, names, config.listing()):
        try:
            wanted[values] = config.of(dict(zip(names, values, strict=True)))
        except ConfigError as error:
            entries[values] = error
    entries |= prepare_each(wanted, lambda _, prepared: _kept(prepared, output))
    failed = {values: error for values, error in entries.items() if isinstance(error, ZsadError)}
    for values, reason in failed.items():
        log.warning("no detector for %s: %s", ", ".join(values), reason)
    if len(failed) == len(entries):
        values, reason = next(iter(failed.items()))
        what = f"none of {len(failed)} products has a detector; the first, {', '.join(values)}: {reason}"
        raise ModelError(what) from reason
    log.info("%d of %d products have a detector", len(entries) - len(failed), len(entries))
    found = {values: _named(config, names, values, one) for values, one in sorted(entries.items())}
    return DetectorIndex(ref=config.detector, partition=config.partition, fields=names, entries=found)


def _named(config: BatchConfig, names: tuple[str, ...], values: Values, found: Entry | ZsadError) -> Entry:
    """The entry of these values under the reference as the user would have written it for them."""
    if isinstance(found, ZsadError):
        return Entry(ref=config.detector, error=str(found))
    return replace(found, ref=filled(config.detector, dict(zip(names, values, strict=True))))


def _kept(prepared: Prepared, output: Store) -> Entry:
    """Copy a bundle into the output; equal bundles have equal names."""
    fingerprint = prepared.fingerprint()
    bundle = f"{DETECTORS}{fingerprint[:32]}"
    write_bundle(output.uri(bundle), prepared.config, prepared.tensors)
    return Entry(ref="", bundle=bundle, fingerprint=fingerprint, preprocess=prepared.config.preprocess)


def prepare_each(
    wanted: Mapping[K, BatchConfig], keep: Callable[[int, Prepared], V]
) -> dict[K, V | ConfigError | ModelError | StorageError]:
    """Prepare a detector for each key; keys that ask for the same share one.

    Args:
        wanted: what each key asks for.
        keep: gets the number of the detector (from 0) and the detector, from one of several threads.

    Returns:
        What `keep` gave, or why there is no detector.

    Raises:
        StorageError: for what may be well again in a minute, so that an outage is not taken for missing bundles.
    """
    numbers = {asked: number for number, asked in enumerate(dict.fromkeys(wanted.values()))}
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        made = threads.map(lambda asked: _one_of_many(asked, numbers[asked], keep), numbers)
        found = dict(zip(numbers, made, strict=True))
    return {key: found[asked] for key, asked in wanted.items()}


def _one_of_many(
    config: BatchConfig, number: int, keep: Callable[[int, Prepared], V]
) -> V | ConfigError | ModelError | StorageError:
    try:
        return keep(number, prepare_detector(config))
    except (ConfigError, ModelError) as error:
        return error
    except StorageError as error:
        if error.code in (ErrorCode.MISSING, ErrorCode.FORBIDDEN):
            return error
        raise


def prepare_detector(config: BatchConfig) -> Prepared:
    """The one detector that `config` asks for.

    Raises:
        ConfigError, ModelError, StorageError: if it can't be had.
    """
    ref = parse_ref(config.detector)
    prepared = None
    if isinstance(ref, BundleRef):
        stored = read_config(ref.url)
        changes = config.normals or config.prompts or config.settings
        if stored.calibration and not changes and _is_as_asked(stored, config):
            prepared = Prepared(stored, read_tensors(ref.url))
    if prepared is None:
        prepared = _prepare_remotely(config)
    if not config.threshold:
        return prepared
    assert prepared.config.calibration is not None  # noqa: S101 - loading calibrates; for the type checker
    calibration = replace(prepared.config.calibration, threshold=config.threshold)
    return Prepared(replace(prepared.config, calibration=calibration), prepared.tensors)


def _prepare_remotely(config: BatchConfig) -> Prepared:
    log.info("preparing detector %s (prompts, calibration)", config.detector)
    try:
        made: Prepared = ray.get(_load_remotely.options(num_cpus=1, num_gpus=config.num_gpus_per_scorer).remote(config))
    except ray.exceptions.RayError as error:
        raise zsad_cause(error) or error from error
    return made


def _is_as_asked(stored: DetectorConfig, config: BatchConfig) -> bool:
    """Whether a bundle already has the object, the defect words and the resolution of a run."""
    pairs = (
        (config.object, stored.object_name),
        (config.defect_words, stored.defect_words),
        (config.size, stored.preprocess.view_px),
        (config.tiles, stored.preprocess.tiles_per_side),
    )
    return all(not asked or asked == held for asked, held in pairs)


@ray.remote(max_retries=0)
def _load_remotely(config: BatchConfig) -> Prepared:
    from zsad.detector import load_detector

    normals = read_normals(config.normals, config.decode) if config.normals else None
    detector = load_detector(
        config.detector,
        object_name=config.object or None,
        defect_words=config.defect_words or None,
        normals=normals,
        prompts=config.prompts or None,
        settings=config.method_settings(),
        batch_size=config.batch_size,
        size=config.size or None,
        tiles=config.tiles or None,
    )
    return Prepared(detector.config, detector.tensors())


def read_normals(url: str, limits: DecodeLimits) -> Iterator[RgbImage]:
    """Decode the images under `url`, at most 2,000; files that are no images are skipped with a warning.

    Raises:
        ConfigError: if there is nothing under `url`.
        StorageError: if it can't be read.
    """
    store = open_store(url)
    count = 0
    for info in store.list():
        if count == MAX_NORMALS:
            log.warning("--normals %s: only the first %d images are used", url, MAX_NORMALS)
            return
        try:
            image = decode_image(store.get(info.key, max_bytes=limits.max_bytes), limits)
        except ImageError as error:
            log.warning("--normals: %s skipped: %s (%s)", info.uri, error, error.code)
            continue
        except StorageError as error:
            if error.code not in (ErrorCode.MISSING, ErrorCode.FORBIDDEN):
                raise
            log.warning("--normals: %s skipped: %s", info.uri, error)
            continue
        count += 1
        yield image
    if not count:
        raise ConfigError(f"--normals {url}: no usable images there")
