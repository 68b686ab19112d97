"""The training job: from masks on Ray Train, or product by product."""

import os
from dataclasses import replace
from pathlib import Path

import ray

from zsad.batch_config import absolute
from zsad.distributed.cluster import is_submitted_job, zsad_cause
from zsad.errors import ConfigError
from zsad.train_config import SYNTHETIC, TrainConfig

# Workers start in Ray Train's own folder otherwise, and a relative URL would lead elsewhere.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")


def train_prompts(config: TrainConfig) -> None:
    """Run the job of `config`, print what it will need and write bundles (docs/training.md).

    Raises:
        ConfigError: for arguments or data that can't be used.
        TooManyBadImages: if too much of the data can't be used.
        ModelError, StorageError: if a model or storage fails.
    """
    _check_submitted(config)
    if Path(config.backbone).is_dir():  # workers may stand in another folder
        config = replace(config, backbone=str(Path(config.backbone).resolve()))
    try:
        if config.method == "promptad":
            from zsad.distributed.train_products import train_products

            train_products(config)
        else:
            from zsad.distributed.train import train_from_masks

            train_from_masks(config)
    except ray.exceptions.RayError as error:
        raise zsad_cause(error) or error from error


def _check_submitted(config: TrainConfig) -> None:
    if not is_submitted_job():
        return
    urls = {"output": config.output, "work": config.work}
    if config.dataset != SYNTHETIC:
        urls["dataset"] = config.labelled().url if "://" in config.dataset else config.dataset.partition(":")[2]
    for name, url in urls.items():
        if url and not absolute(url):
            raise ConfigError(
                f"--{name} {url}: inside a submitted job a relative path points into the shipped package; "
                "give an absolute path that all nodes share, or an s3:// URL"
            )
