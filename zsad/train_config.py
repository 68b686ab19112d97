"""What a training of prompts is asked to do: one checked dataclass for command line, TOML files and Python alike."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from zsad.datasets.reference import Dataset, parse_dataset
from zsad.errors import ConfigError
from zsad.images import DecodeLimits
from zsad.storage import Store, open_store

SYNTHETIC = "synthetic"
PRODUCT = "{product}"
WORK = "_training"
Method = Literal["faprompt", "dapo", "promptad"]
_EPOCHS = {"faprompt": 7, "dapo": 5, "promptad": 100}
_FREE = (
    "output",
    "work",
    "num_workers",
    "min_workers",
    "use_gpu",
    "await_gpus",
    "resume",
    "restart",
    "dry_run",
    "max_restarts",
    "max_error_share",
)
"""Fields that do not change what is learned, and may differ when a training goes on."""
_UNUSED = {
    "faprompt": ("shots", "object", "checkpointing"),
    "dapo": ("shots", "object", "overlap_weight", "dice_weight", "cache"),
    "promptad": (
        "images",
        "batch_size",
        "overlap_weight",
        "dice_weight",
        "checkpointing",
        "validation",
        "keep",
        "calibration_images",
        "min_workers",
        "max_restarts",
    ),
}
"""Fields that a method makes no use of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Learn prompts and write detector bundles that score_bucket, evaluate and load_detector take.

    faprompt and dapo learn from images with masks of any products and give one bundle at --output. promptad learns from
    --shots normal images a product and gives one bundle a product at OUTPUT/PRODUCT/. An option that the method makes
    no use of is refused.

    Attributes:
        method: faprompt, dapo or promptad.
        dataset: LAYOUT:URL, such as mvtec:s3://bucket/mvtec (layouts as for evaluate), or synthetic: drawn images.
        output: folder or s3:// prefix of the bundle, or of one bundle a product; not inside the data set.
        backbone: nano, an open_clip NAME/PRETRAINED, or a folder.
        products: only these products (folder names); none: all.
        split: of the data set; empty: test for faprompt and dapo, train for promptad.
        where: only images with COLUMN=VALUE in a further column of an index.
        images: how many images of synthetic are drawn.
        shots: normal images a product that promptad learns from.
        object: word for the product in promptad's prompts; {product} is its name.
        epochs: passes over the data (promptad: steps); 0: 7, 5 and 100 as the methods are used.
        batch_size: images of a step on all workers together (faprompt, dapo).
        learning_rate: 0: as published.
        overlap_weight: of faprompt's term that pushes its abnormal prompts apart.
        dice_weight: of faprompt's dice losses, [0, 1]; 1 is published; less serves the ranking of pixels, not areas.
        seed: of starts, orders, splits and drawn shots.
        size: side of the model's input in px; 0: the backbone's.
        cache: how features of the image tower are kept (faprompt, promptad): fp32, fp16, or off (for faprompt the tower
            then runs at every step).
        checkpointing: dapo computes blocks twice to hold less memory.
        validation: share of the images that is only looked at after each epoch (faprompt, dapo).
        keep: the epoch that is shipped: best on the validation images, or last (faprompt, dapo).
        calibration_images: drawn normal images that set a bundle's thresholds (faprompt, dapo).
        num_workers: training processes.
        min_workers: go on with this many when nodes leave, up to num_workers when they come (faprompt, dapo); 0: always
            num_workers.
        use_gpu: one GPU a worker.
        await_gpus: wait for GPUs that the cluster does not have yet: its nodes start on demand.
        work: folder or s3:// prefix for cache and checkpoints that all nodes reach; empty: OUTPUT/_training.
        resume: go on with the training that was stopped here.
        restart: forget what is there, but for promptad's features, and start anew.
        dry_run: say what would be done, and check the arguments.
        max_restarts: how often lost workers are replaced (faprompt, dapo).
        max_error_share: give up when more than this share of images (promptad: products) can't be used.
        decode: limits on untrusted images.
    """

    method: Method
    dataset: str
    output: str
    backbone: str = "nano"
    products: tuple[str, ...] = ()
    split: str = ""
    where: tuple[str, ...] = ()
    images: int = 1600
    shots: int = 4
    object: str = PRODUCT
    epochs: int = 0
    batch_size: int = 8
    learning_rate: float = 0.0
    overlap_weight: float = 0.1
    dice_weight: float = 1.0
    seed: int = 0
    size: int = 0
    cache: Literal["fp32", "fp16", "off"] = "fp32"
    checkpointing: bool = False
    validation: float = 0.1
    keep: Literal["best", "last"] = "best"
    calibration_images: int = 256
    num_workers: int = 1
    min_workers: int = 0
    use_gpu: bool = False
    await_gpus: bool = False
    work: str = ""
    resume: bool = False
    restart: bool = False
    dry_run: bool = False
    max_restarts: int = 3
    max_error_share: float = 0.0
    decode: DecodeLimits = field(default_factory=DecodeLimits)

    def __post_init__(self) -> None:
        """Refuse values out of range before anything is touched."""
        least = {"images": 16, "shots": 1, "epochs": 0, "batch_size": 1, "seed": 0, "size": 0, "calibration_images": 8}
        least |= {"num_workers": 1, "min_workers": 0, "max_restarts": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"--{_flag(name)} {getattr(self, name)}: it must be at least {low}")
        for name in ("learning_rate", "max_error_share", "overlap_weight"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"--{_flag(name)} {getattr(self, name)}: it must lie in [0, 1)")
        for name, high in (("validation", 0.5), ("dice_weight", 1)):
            if not 0 <= getattr(self, name) <= high:
                raise ConfigError(f"--{_flag(name)} {getattr(self, name)}: it must lie in [0, {high}]")
        if self.min_workers > self.num_workers:
            raise ConfigError(
                f"--min-workers {self.min_workers} is more than --num-workers {self.num_workers}; lower it"
            )
        if self.resume and self.restart:
            raise ConfigError("--resume goes on and --restart starts anew: give one of them")
        if not self.object.strip():
            raise ConfigError("--object is empty; give a word, or {product} for the folder's name")
        if self.await_gpus and not self.use_gpu:
            raise ConfigError("--await-gpus waits for GPUs that --use-gpu asks for; give both, or none")
        self._check_method()
        self._check_dataset()
        open_store(self.output)

    def _check_method(self) -> None:
        defaults = {item.name: item.default for item in fields(self)}
        for name in _UNUSED[self.method]:
            if getattr(self, name) != defaults[name]:
                raise ConfigError(
                    f"--{_flag(name)} {getattr(self, name)}: {self.method} makes no use of it; leave it out"
                )

    def check_gpus(self, num_gpus: int) -> None:
        """Refuse to wait for GPUs for ever.

        Args:
            num_gpus: that the cluster has now.

        Raises:
            ConfigError: if there are fewer than the workers that the training starts with, and `await_gpus` is off.
        """
        needed = self.min_workers or self.num_workers
        if self.use_gpu and not self.await_gpus and num_gpus < needed:
            least = "--min-workers" if self.min_workers else "--num-workers"
            raise ConfigError(
                f"each worker asks for a GPU (--use-gpu) and there must be {needed} workers ({least}), the cluster has "
                f"{num_gpus} GPUs; lower it, leave --use-gpu out, or, where nodes start on demand, give --await-gpus"
            )

    def _check_dataset(self) -> None:
        if self.dataset == SYNTHETIC:
            if self.method == "promptad":
                raise ConfigError("promptad fits products of a data set; --dataset synthetic has none")
            if self.products or self.where or self.split:
                raise ConfigError("--products, --where and --split choose among listed images; synthetic has none")
            return
        source, output = self.labelled().store, open_store(self.output)
        if source.contains(output):
            raise ConfigError(f"the output {output.url} lies inside the data set {source.url}; choose one outside")

    def labelled(self) -> Dataset:
        """The data set, which is not synthetic."""
        return parse_dataset(self.dataset)

    @property
    def num_epochs(self) -> int:
        """As asked for, or as the method is used."""
        return self.epochs or _EPOCHS[self.method]

    @property
    def used_split(self) -> str:
        """As asked for, or where the images lie that the method learns from."""
        return self.split or ("train" if self.method == "promptad" else "test")

    @property
    def output_store(self) -> Store:
        """Where bundles go."""
        return open_store(self.output)

    @property
    def work_store(self) -> Store:
        """Where cache and checkpoints go."""
        return open_store(self.work) if self.work else self.output_store.sub(WORK)

    def identity(self) -> dict[str, Any]:
        """The fields that change what is learned."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}


def _flag(name: str) -> str:
    return name.replace("_", "-")
