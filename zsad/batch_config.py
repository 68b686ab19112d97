"""What the main job is asked to do: one checked dataclass for the command line, TOML files and Python alike."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from zsad.bundle import check_words
from zsad.detector_index import check_reference, field_names, filled
from zsad.errors import ConfigError
from zsad.images import DecodeLimits
from zsad.partition import PartitionTemplate
from zsad.report.manifest import ListingOptions
from zsad.report.paths import check_run_id
from zsad.report.since import LAST, parse_since
from zsad.settings import parse_settings
from zsad.storage import open_store

_WITH_FIELDS = ("detector", "object", "normals", "prompts")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Score every image under `input` and publish a report under `output`.

    The detector, object, normals and prompts may contain fields of the partition template, such as {product}: then
    every product has its own (`zsad.detector_index`).

    Attributes:
        input: folder or s3:// prefix with images.
        output: folder or s3:// prefix for reports, not inside the input.
        detector: bundle URL or folder, or BACKBONE[:METHOD].
        object: word for the product in prompts; empty: the bundle's.
        defect_words: what a defect may be called, each word or phrase an argument of its own; none: the bundle's.
        normals: folder or prefix with normal images that set the thresholds, and that few-shot methods remember
            (winclip and alfa from 1 image on); empty: the bundle's thresholds.
        prompts: prompt bank in JSON, for methods that read one (alfa); empty: the bundle's phrases.
        settings: settings of the method that differ from the bundle's, as NAME=VALUE.
        include: only keys that match one of these globs.
        exclude: no keys that match one of these globs.
        limit: at most this many images; 0: all.
        manifest: list of the images to score instead of all under the input: Parquet, CSV, or an S3 Inventory's
            manifest.json; empty: list the input.
        since: score no images older than this that the last run does not have: a time as in 2026-03-01T22:00:00Z, or
            "last" for when the last published run began; empty: all.
        partition: template of the key whose fields become columns, such as {line}/{camera}/{date}/.
        maps: which anomaly maps to keep as 16-bit PNG on the model's grid.
        rows_per_file: rows of a Parquet file of the published report.
        delta: Delta table that the rows of every published run are appended to once; empty: none.
        threshold: calibrated decision threshold in (0, 1); 0: the bundle's.
        max_error_share: give up, publishing nothing, when more than this share of images can't be scored.
        batch_size: images per forward pass.
        size: side of the model's input in px; 0: the bundle's.
        tiles: tiles along each side of an image, which the model sees besides the whole; 1: none; 0: the bundle's.
        num_scorers: scorer processes; 0: one per GPU, or per CPU where there are no GPUs.
        num_gpus_per_scorer: GPUs each scorer holds.
        scorer_memory_gib: a scorer whose own memory grows above this is ended and goes on with half of the batch; 0: no
            limit.
        dry_run: count, check arguments and estimate, but write nothing.
        sweep: score nothing; delete files of the output that no published or resumable run refers to.
        restart: start anew instead of resuming an unfinished run.
        run_id: name of the run, for schedulers; empty: UTC start time.
        decode: limits on untrusted images.
    """

    input: str
    output: str
    detector: str = "nano"
    object: str = ""
    defect_words: tuple[str, ...] = ()
    normals: str = ""
    prompts: str = ""
    settings: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int = 0
    manifest: str = ""
    since: str = ""
    partition: str = ""
    maps: Literal["none", "anomalous", "all"] = "anomalous"
    rows_per_file: int = 50_000
    delta: str = ""
    threshold: float = 0.0
    max_error_share: float = 0.05
    batch_size: int = 16
    size: int = 0
    tiles: int = 0
    num_scorers: int = 0
    num_gpus_per_scorer: float = 0.0
    scorer_memory_gib: float = 0.0
    dry_run: bool = False
    sweep: bool = False
    restart: bool = False
    run_id: str = ""
    decode: DecodeLimits = field(default_factory=DecodeLimits)

    def __post_init__(self) -> None:
        """Refuse values out of range before anything is touched."""
        for name in ("input", "output"):
            if not getattr(self, name).strip():
                raise ConfigError(f"--{name} is empty; give a folder or an s3:// URL")
        if self.maps not in ("none", "anomalous", "all"):
            raise ConfigError(f"--maps {self.maps!r}: choose none, anomalous or all")
        if self.threshold and not 0 < self.threshold < 1:
            raise ConfigError(f"--threshold {self.threshold}: calibrated thresholds lie between 0 and 1")
        if not 0 <= self.max_error_share <= 1:
            raise ConfigError(f"--max-error-share {self.max_error_share}: a share lies between 0 and 1")
        for name in ("batch_size", "rows_per_file"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
        for name in ("limit", "size", "tiles", "num_scorers", "num_gpus_per_scorer", "scorer_memory_gib"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: must not be negative")
        if self.defect_words:
            check_words(self.defect_words)
        self.method_settings()
        self._check_since()
        template = self.template()
        for name in _WITH_FIELDS:
            check_reference(getattr(self, name), name, template)
        if self.run_id:
            check_run_id(self.run_id)

    def _check_since(self) -> None:
        parse_since(self.since)
        if self.since == LAST and self.restart:
            raise ConfigError("--since last needs the rows of the last run, which --restart drops; give a time")

    def listing(
        self, rows_per_shard: int = 1, later_rows_per_shard: int | None = None, *, newer_than: datetime | None = None
    ) -> ListingOptions:
        """Which objects to list, into which shards; `newer_than` is what `since` means for a run."""
        return ListingOptions(
            include=self.include,
            exclude=self.exclude,
            limit=self.limit or None,
            newer_than=newer_than,
            rows_per_shard=rows_per_shard,
            later_rows_per_shard=later_rows_per_shard,
        )

    def method_settings(self) -> dict[str, Any]:
        """`settings` by name."""
        return parse_settings(self.settings)

    def template(self) -> PartitionTemplate | None:
        """The partition template, if any."""
        return PartitionTemplate(self.partition) if self.partition else None

    @property
    def detector_fields(self) -> tuple[str, ...]:
        """Partition fields that choose a detector, in the template's order."""
        template = self.template()
        used = {field for name in _WITH_FIELDS for field in field_names(getattr(self, name))}
        return tuple(field for field in (template.fields if template else ()) if field in used)

    def of(self, values: Mapping[str, str]) -> "BatchConfig":
        """What would be asked for to score only the objects with these values of `detector_fields`.

        Raises:
            ConfigError: if a value can't be a part of a URL.
        """
        words = {name: value.replace("_", " ") for name, value in values.items()}
        changes: dict[str, Any] = {name: filled(getattr(self, name), values) for name in _WITH_FIELDS}
        changes["object"] = filled(self.object, words)
        if field_names(self.detector) and "://" not in self.detector:  # a missing folder must not pass for a backbone
            changes["detector"] = Path(changes["detector"]).expanduser().absolute().as_uri()
        return replace(self, **changes, partition="")


def absolute(url: str) -> bool:
    """Whether a URL means the same from every working directory."""
    return "://" in url or Path(url).is_absolute()


def result_fields(config: BatchConfig, detector_fingerprint: str | dict[str, str | None]) -> dict[str, Any]:
    """The fields that change a row's values; their hash is the report's `config_hash`.

    Args:
        config: of the run.
        detector_fingerprint: of its bundle, or of each product's.
    """
    limits = asdict(config.decode)
    limits.pop("timeout_s")
    return {
        "detector": detector_fingerprint,
        "batch_size": config.batch_size,
        "partition": config.partition,
        "maps": config.maps,
        "decode": {**limits, "formats": list(config.decode.formats)},
    }


def listing_fields(config: BatchConfig) -> dict[str, Any]:
    """The fields that decide which objects a run has; an unfinished run can't change them."""
    return {
        "input": open_store(config.input).url,
        "include": list(config.include),
        "exclude": list(config.exclude),
        "limit": config.limit,
        "manifest": config.manifest,
        "since": config.since,
    }
