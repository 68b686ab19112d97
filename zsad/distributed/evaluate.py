"""Evaluate a detector on labelled images: list -> decode tasks -> fixed pool of comparers -> figures and a page.

A block holds images of one product from end to end. Comparers send back histograms and one short row per image, so
neither pixels nor maps reach the driver; it holds the list and the image scores, about 0.5 kB an image. All sums are
exact, so no figure depends on what the workers do.

Every product can have its own detector (`{product}` in its reference, object or normals); a
comparer keeps the one it used last.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING

import pyarrow as pa
import ray
from ray.data import Dataset
from tqdm import tqdm

from zsad import __version__
from zsad.batch_config import absolute
from zsad.bundle import DetectorConfig, write_bundle
from zsad.datasets.labelled import LabelledImage
from zsad.decode_child import DecodeChild
from zsad.distributed.batch import count_scorers, decode_and_score, shard_rows
from zsad.distributed.cluster import Resources, connect, is_submitted_job, zsad_cause
from zsad.distributed.evaluate_plan import Plan
from zsad.distributed.evaluate_tiles import make_tiles
from zsad.distributed.prepare import Prepared, prepare_each
from zsad.errors import ConfigError, TooManyBadImages, ZsadError
from zsad.evaluation.config import EvaluateConfig
from zsad.evaluation.figures import results
from zsad.evaluation.page import render_page
from zsad.evaluation.summary import EvaluationInfo, markdown, terminal
from zsad.evaluation.tally import Tally
from zsad.evaluation.truth import decode_truth, truth_table
from zsad.storage import Store, open_store

if TYPE_CHECKING:
    from zsad.detector import Detector

log = logging.getLogger(__name__)

METRICS_JSON, METRICS_MD, PAGE, DETECTORS = "metrics.json", "metrics.md", "report.html", "detectors"
_LIST_ROWS = 4096
_BUDGET_ROWS = 1000


def evaluate(config: EvaluateConfig) -> Tally:
    """Run the job of `config`, write its files (docs/evaluation.md) and print a summary.

    Returns:
        Everything that was counted.

    Raises:
        ConfigError: for arguments or data sets that can't be used; nothing was written.
        StorageError, ModelError: if storage or the model fails.
        TooManyBadImages: above `max_error_share`; no figures were written.
    """
    output = _check(config)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    resources = connect()
    try:
        return _run(config, output, resources, started)
    except ray.exceptions.RayError as error:
        raise zsad_cause(error) or error from error


def _check(config: EvaluateConfig) -> Store:
    """Find what is wrong with the arguments before anything starts; writes only a probe.

    Raises:
        ConfigError, StorageError: saying what.
    """
    if is_submitted_job():
        names = ("output", "normals", "prompts")
        urls = {"dataset": config.dataset.partition(":")[2], **{name: getattr(config, name) for name in names}}
        for name, url in urls.items():
            if url and not absolute(url):
                raise ConfigError(
                    f"--{name} {url}: inside a submitted job a relative path points into the shipped package; "
                    "give an absolute path that all nodes share, or an s3:// URL"
                )
    source, output = config.labelled().store, open_store(config.output)
    if source.contains(output):
        raise ConfigError(f"the output {output.url} lies inside the data set {source.url}; choose one outside")
    next(config.labelled().images(split=config.split, where=config.where))
    output.check_writable()
    return output


def _run(config: EvaluateConfig, output: Store, resources: Resources, started: str) -> Tally:
    count_scorers(config.scoring(), resources)
    listed = list_images(config)
    types = {product: set(table["defect_type"].to_pylist()) for product, table in listed.items()}
    log.info("%d images of %d products", sum(table.num_rows for table in listed.values()), len(listed))
    plan = prepare_products(config, types, output)
    tally = compare_all(plan, listed, resources)
    found = results(tally)
    info = _info(plan, started)
    tiles = make_tiles(plan, [*tally.false_alarms, *tally.misses])
    figures = {"info": asdict(info), "results": found.to_dict(), "errors": [asdict(row) for row in tally.errors]}
    output.put(METRICS_JSON, json.dumps(figures, indent=1, allow_nan=False).encode())
    output.put(METRICS_MD, markdown(found, tally.errors, info).encode())
    output.put(PAGE, render_page(found, tally, tiles, info=info).encode())
    print(terminal(found, info, output.uri(PAGE)))
    return tally


def list_images(config: EvaluateConfig) -> dict[str, pa.Table]:
    """The images asked for, as one table with `TRUTH_SCHEMA` per product.

    Raises:
        ConfigError, StorageError: if the data set can't be used.
    """
    tables: dict[str, list[pa.Table]] = {}
    waiting: dict[str, list[LabelledImage]] = {}
    for image in config.labelled().images(split=config.split, where=config.where, limit=config.limit):
        rows = waiting.setdefault(image.product, [])
        rows.append(image)
        if len(rows) == _LIST_ROWS:
            tables.setdefault(image.product, []).append(truth_table(waiting.pop(image.product)))
    for product, rows in waiting.items():
        tables.setdefault(product, []).append(truth_table(rows))
    return {product: pa.concat_tables(parts) for product, parts in sorted(tables.items())}


def prepare_products(config: EvaluateConfig, types_by_product: Mapping[str, set[str]], output: Store) -> Plan:
    """Settle and store the calibrated detector of each product; products that ask for the same share one.

    Raises:
        ConfigError, ModelError, StorageError: if one can't be had.
    """

    def keep(number: int, prepared: Prepared) -> tuple[str, DetectorConfig]:
        url = output.uri(f"{DETECTORS}/{number}")
        write_bundle(url, prepared.config, prepared.tensors)
        return url, prepared.config

    found = prepare_each({product: config.scoring(product, types) for product, types in types_by_product.items()}, keep)
    kept: dict[str, tuple[str, DetectorConfig]] = {}
    for product, one in found.items():
        if isinstance(one, ZsadError):
            raise one
        kept[product] = one
    detectors = {product: detector for product, (_, detector) in kept.items()}
    return Plan(config=config, detectors=detectors, bundles={product: url for product, (url, _) in kept.items()})


def compare_all(plan: Plan, listed: Mapping[str, pa.Table], resources: Resources) -> Tally:
    """Decode, inspect and count every image.

    Raises:
        TooManyBadImages: if the error budget is spent.
        ModelError, StorageError: if a detector can't be loaded.
    """
    tally, looked_at = Tally(), 0
    total = sum(table.num_rows for table in listed.values())
    with tqdm(total=total, unit="img", disable=None) as bar:
        for block in pipeline(plan, listed, resources).iter_batches(batch_size=None, batch_format="pyarrow"):
            tally.add(block)
            bar.update(tally.num_images - bar.n)
            if tally.num_images - looked_at >= _BUDGET_ROWS:
                looked_at = tally.num_images
                _check_budget(tally, plan.config.max_error_share)
    if tally.num_images != total:
        raise ZsadError(f"{total:,} images were listed, but {tally.num_images:,} came back")
    _check_budget(tally, plan.config.max_error_share)
    return tally


def _check_budget(tally: Tally, max_error_share: float) -> None:
    if len(tally.errors) > max_error_share * tally.num_images:
        first = tally.errors[0]
        raise TooManyBadImages(
            f"{len(tally.errors):,} of {tally.num_images:,} images can't be used; the limit is {max_error_share:.1%} "
            f"(--max-error-share); the first: {first.uri}: {first.message} ({first.code})"
        )


def pipeline(plan: Plan, listed: Mapping[str, pa.Table], resources: Resources) -> Dataset:
    """The lazy pipeline from truth to tables with `zsad.evaluation.compare.RESULT_SCHEMA`, in any order."""
    scoring = plan.config.scoring()
    blocks = list(_blocks(plan, listed))
    num_scorers = min(count_scorers(scoring, resources), len(blocks))
    truths, decode, gpus = ray.data.from_arrow(blocks), partial(decode_block, plan), scoring.num_gpus_per_scorer
    return decode_and_score(truths, decode, Comparer, (plan,), num_scorers=num_scorers, gpus_each=gpus)


def _blocks(plan: Plan, listed: Mapping[str, pa.Table]) -> Iterator[pa.Table]:
    for product, table in listed.items():
        rows = shard_rows(plan.config.scoring(product), plan.detectors[product].preprocess)
        for start in range(0, table.num_rows, rows):
            yield table.slice(start, rows).combine_chunks()


@cache
def _decode_child() -> DecodeChild:
    """The decoding process of this worker process; it ends with it."""
    return DecodeChild()


def decode_block(plan: Plan, truths: pa.Table) -> pa.Table:
    """Fetch and decode images and masks of one product."""
    return decode_truth(
        plan.source,
        truths,
        limits=plan.config.decode,
        preprocess=plan.detectors[truths["product"][0].as_py()].preprocess,
        side_px=plan.config.side_px,
        child=_decode_child(),
    )


class Comparer:
    """Actor of the pool: inspects blocks and counts their pixels; loads a product's detector when its block comes."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._product = ""
        self._detector: Detector | None = None
        self._threshold = 0.0

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Counts of one block.

        Raises:
            ModelError: if the detector can't be loaded.
        """
        from zsad.evaluation.compare import compare_table

        product = decoded["product"][0].as_py()
        if self._detector is None or product != self._product:
            self._load(product)
        assert self._detector is not None  # noqa: S101 - for the type checker
        return compare_table(self._detector, decoded, threshold=self._threshold, side_px=self._plan.config.side_px)

    def _load(self, product: str) -> None:
        from zsad.evaluation.compare import ALMOST_ZERO

        detector = self._plan.open_detector(product)
        calibration = detector.config.calibration
        assert calibration is not None  # noqa: S101 - a stored bundle is calibrated; for the type checker
        self._threshold = calibration.threshold
        self._detector = detector.with_threshold(ALMOST_ZERO)
        self._product = product


def _info(plan: Plan, started: str) -> EvaluationInfo:
    config, first = plan.config, next(iter(plan.detectors.values()))
    calibration = first.calibration
    assert calibration is not None  # noqa: S101 - preparing calibrates; for the type checker
    seen = first.preprocess
    tiles = f", {seen.tiles_per_side} x {seen.tiles_per_side} tiles and the whole" if seen.tiling else ""
    conditions = "".join(f", {text}" for text in config.where)
    limit = f", at most {config.limit:,} of each product and type" if config.limit else ""
    size = "each image's own size" if config.side_px is None else f"{config.side_px} x {config.side_px} px"
    return EvaluationInfo(
        dataset=config.dataset,
        layout=config.labelled().layout,
        chosen=f"split {config.split}{conditions}{limit}",
        detector=config.detector,
        model=f"{first.backbone}, {first.method}, {first.precision}, {seen.view_px} px{tiles}",
        object_names=tuple(dict.fromkeys(detector.object_name for detector in plan.detectors.values())),
        calibrated_on=f"{calibration.source} ({calibration.num_normals:,} images)",
        threshold=calibration.threshold,
        compared_at=size,
        started=started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
    )
