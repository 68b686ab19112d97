"""`--dry-run`: what a run would do, counted and measured, with nothing written.

The time is an estimate from a few of the real images, decoded and scored by the real detector on this machine's CPU; a
cluster or a GPU is not looked at.
"""

import os
import time
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from zsad.batch_config import BatchConfig
from zsad.bundle import BundleRef, parse_ref, read_config
from zsad.decode_child import DecodeChild
from zsad.detector_index import list_values
from zsad.errors import ConfigError, ModelError
from zsad.report.manifest import Lister, iter_listing, summarise_listing
from zsad.report.since import parse_since
from zsad.scoring import decode_objects
from zsad.storage import ObjectInfo, Store
from zsad.visible import visible

if TYPE_CHECKING:
    from zsad.detector import Detector

_SHOWN = 5


def dry_run(config: BatchConfig, source: Store, lister: Lister) -> str:
    """The plan as text; `lister` knows the objects, `source` has them.

    Raises:
        ConfigError, ModelError, StorageError: what the run itself would raise for input, output and detector; `normals`
            and room for scorers are not looked at.
    """
    from zsad.detector import load_detector

    listed = summarise_listing(lister, config.listing(newer_than=parse_since(config.since)))
    ref = config.detector
    products, config = _first_product(config, lister) if config.detector_fields else ("", config)
    detector = load_detector(
        config.detector,
        object_name=config.object or None,
        defect_words=config.defect_words or None,
        prompts=config.prompts or None,
        settings=config.method_settings(),
        batch_size=config.batch_size,
        size=config.size or None,
        tiles=config.tiles or None,
    )
    sample = list(islice(iter_listing(lister, config.listing()), config.batch_size))
    num_bad, seconds_each = _measure(detector, source, sample, config)
    seen = detector.config.preprocess
    tiles = f", {seen.tiles_per_side} x {seen.tiles_per_side} tiles and the whole" if seen.tiling else ""
    lines = [
        ("input", source.url),
        ("images", f"{listed.num_objects:,} objects, {listed.num_bytes / 1e6:,.1f} MB"),
        ("detector", f"{ref}, {seen.view_px} px{tiles}, {detector.config.precision}"),
        ("products", products),
        ("sample", f"{len(sample)} objects read, {num_bad} of them can't be scored"),
        ("estimate", f"{listed.num_objects * seconds_each:,.0f} s on this machine alone, and about 30 s to start"),
        ("written", "nothing (--dry-run)"),
    ]
    return "\n".join(f"{name:<10} {value}" for name, value in lines if value)


def _first_product(config: BatchConfig, lister: Lister) -> tuple[str, BatchConfig]:
    """How many products there are, and what would be asked for to score the first that has a detector.

    Raises:
        ModelError: if none has one.
    """
    template, names = config.template(), config.detector_fields
    assert template is not None  # noqa: S101 - fields come from it; for the type checker
    found, missing = [], []
    for values in list_values(lister, template, names, config.listing()):
        try:
            asked = config.of(dict(zip(names, values, strict=True)))
            ref = parse_ref(asked.detector)
            if isinstance(ref, BundleRef):
                read_config(ref.url)
            found.append(asked)
        except (ConfigError, ModelError) as error:
            missing.append(visible(f"{', '.join(values)} ({error})"))
    if not found:
        raise ModelError(f"none of {len(missing)} products has a detector; the first: {missing[0]}")
    without = f"; without: {'; '.join(missing[:_SHOWN])}" if missing else ""
    return f"{len(found):,} of {len(found) + len(missing):,} have a detector{without}", found[0]


def _measure(detector: "Detector", source: Store, sample: list[ObjectInfo], config: BatchConfig) -> tuple[int, float]:
    """Images of the sample that can't be scored, and seconds per image with all of this machine's cores."""
    preprocess = detector.config.preprocess
    with DecodeChild() as child:
        decode = partial(decode_objects, source, shard=0, limits=config.decode, preprocess=preprocess, child=child)
        decode(sample[:1])  # starts the child
        began = time.monotonic()
        decoded = decode(sample)
        decode_s = time.monotonic() - began
    blank = np.zeros((detector.batch_size, preprocess.size, preprocess.size, 3), np.uint8)
    sizes = [(preprocess.size, preprocess.size)] * detector.batch_size
    detector.inspect_pixels(blank, sizes)  # the first call allocates
    began = time.monotonic()
    detector.inspect_pixels(blank, sizes)
    score_s = time.monotonic() - began
    num_bad = len(sample) - decoded["error_code"].null_count
    return num_bad, decode_s / len(sample) / (os.cpu_count() or 1) + score_s / detector.batch_size
