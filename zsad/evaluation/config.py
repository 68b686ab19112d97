"""What an evaluation is asked to do: one checked dataclass for the command line, TOML files and Python alike."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from zsad.batch_config import BatchConfig
from zsad.datasets.labelled import UNNAMED, as_word
from zsad.datasets.reference import Dataset, parse_dataset
from zsad.errors import ConfigError
from zsad.images import DecodeLimits

PRODUCT = "{product}"
TYPES = "{types}"
_MAX_SIDE_PX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Compare a detector with the truth of labelled images.

    The detector, object, normals and prompts may contain {product}: then every product has its own.

    Attributes:
        dataset: LAYOUT:URL, such as mvtec:s3://bucket/mvtec; layouts are mvtec, visa, mpdd, mad, btad, real_iad, index
            (a folder with index.csv) and folder (good/ beside folders of defects).
        output: folder or s3:// prefix for metrics.json, metrics.md, report.html and the detectors used, not inside
            the data set.
        detector: bundle URL or folder, or BACKBONE[:METHOD].
        split: test, train, what an index says, or all.
        where: only images with COLUMN=VALUE in a further column of an index; several must all hold.
        object: word for the product in prompts; empty: the bundle's.
        defect_words: what a defect may be called; none: the bundle's; {types}: what the data set calls the product's.
        normals: folder or prefix with normal images that set the thresholds, and that few-shot methods remember; empty:
            the bundle's thresholds.
        prompts: prompt bank in JSON, for methods that read one (alfa); empty: the bundle's phrases.
        settings: settings of the method that differ from the bundle's, as NAME=VALUE.
        limit: at most this many images of each product and defect type; 0: all.
        resolution: side in px that maps and masks are brought to and compared at; native: each image's own size.
        size: side of the model's input in px; 0: the bundle's.
        tiles: tiles along each side of an image, which the model sees besides the whole; 1: none; 0: the bundle's.
        batch_size: images per forward pass.
        num_scorers: scorer processes; 0: one per GPU, or per CPU where there are no GPUs.
        num_gpus_per_scorer: GPUs each scorer holds.
        max_error_share: give up, writing no figures, when more than this share of images or masks can't be used.
        decode: limits on untrusted images.
    """

    dataset: str
    output: str
    detector: str = "nano"
    split: str = "test"
    where: tuple[str, ...] = ()
    object: str = ""
    defect_words: tuple[str, ...] = ()
    normals: str = ""
    prompts: str = ""
    settings: tuple[str, ...] = ()
    limit: int = 0
    resolution: int | Literal["native"] = 256
    size: int = 0
    tiles: int = 0
    batch_size: int = 16
    num_scorers: int = 0
    num_gpus_per_scorer: float = 0.0
    max_error_share: float = 0.05
    decode: DecodeLimits = field(default_factory=DecodeLimits)

    def __post_init__(self) -> None:
        """Refuse values out of range before anything is touched."""
        if self.resolution != "native" and not 16 <= int(self.resolution) <= _MAX_SIDE_PX:
            raise ConfigError(f"--resolution {self.resolution}: give 16 to {_MAX_SIDE_PX} px, or native")
        self.labelled()
        self.scoring()

    @property
    def side_px(self) -> int | None:
        """The side to compare at; None: each image's own size."""
        return None if self.resolution == "native" else int(self.resolution)

    def labelled(self) -> Dataset:
        """The data set."""
        return parse_dataset(self.dataset)

    def scoring(self, product: str = "product", types: Collection[str] = ()) -> BatchConfig:
        """What the main job would be asked for to score a product with defects of these types."""
        words = self.defect_words
        if words == (TYPES,):
            words = tuple(sorted({as_word(kind) for kind in types} - UNNAMED))
        return BatchConfig(
            input=self.labelled().url,
            output=self.output,
            detector=self.detector.replace(PRODUCT, product),
            object=self.object.replace(PRODUCT, product.replace("_", " ")),
            defect_words=words,
            normals=self.normals.replace(PRODUCT, product),
            prompts=self.prompts.replace(PRODUCT, product),
            settings=self.settings,
            size=self.size,
            tiles=self.tiles,
            limit=self.limit,
            batch_size=self.batch_size,
            num_scorers=self.num_scorers,
            num_gpus_per_scorer=self.num_gpus_per_scorer,
            max_error_share=self.max_error_share,
            decode=self.decode,
        )
