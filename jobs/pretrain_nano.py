"""Train the embedded backbone from scratch, ship it, calibrate it and print its held-out figures.

Interrupt it at any time: the same command goes on from the last checkpoint. docs/nano.md logs what was tried.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from zsad.backbone.load import NANO
from zsad.cli import run_job
from zsad.learn.pretrain import PretrainConfig, pretrain
from zsad.learn.ship import held_out, make_shipped_bundle, measure
from zsad.learn.styles import left_out_styles, training_styles


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainJob:
    """Pre-train, calibrate and measure nano.

    Attributes:
        work: image pool, checkpoint and log; keep it to be able to go on.
        held_out_images: how many procedural images of each kind the figures are measured on.
        train: off to calibrate and measure the weights that are there.
    """

    work: Path = Path(".pretrain")
    held_out_images: int = 1000
    train: bool = True


def main(job: PretrainJob) -> None:
    """Run it."""
    if job.train:
        pretrain(PretrainConfig(), job.work, NANO)
    detector = make_shipped_bundle()
    size = detector.config.preprocess.size
    for name, styles in (("trained styles", training_styles(size)), ("left-out styles", left_out_styles(size))):
        figures = measure(detector, held_out(job.held_out_images, styles))
        print(json.dumps({"images": name, **asdict(figures)}, indent=2))


if __name__ == "__main__":
    sys.exit(run_job(PretrainJob, main))
