"""`make demo`: draw a bucket of three products, score it like any other, and compare with the known truth."""

import sys
from dataclasses import dataclass
from pathlib import Path

from zsad.batch_config import BatchConfig
from zsad.cli import run_job
from zsad.datasets.demo import image_auroc_by_product, write_bucket
from zsad.distributed.batch import score_bucket


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Draw, score and check the demo's bucket.

    Attributes:
        folder: gets images/, truth.csv and report/.
    """

    folder: Path = Path("demo")


def demo(config: DemoConfig) -> None:
    """Run it and print what came out."""
    truths = write_bucket(config.folder)
    output = str(config.folder / "report")
    score_bucket(BatchConfig(input=str(config.folder / "images"), output=output, partition="{product}/", restart=True))
    print("\nimage AUROC against the known truth (1 is perfect, 0.5 is chance)")
    for name, value in image_auroc_by_product(output, truths).items():
        print(f"  {name:<15} {value:.3f}")
    print("\nopen the gallery above in a browser to see what was found")


if __name__ == "__main__":
    sys.exit(run_job(DemoConfig, demo, goes_on=False))
