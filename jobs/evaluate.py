"""Compare a detector with labelled images and write metrics.json, metrics.md and report.html.

python jobs/evaluate.py --dataset LAYOUT:URL --output URL [--detector REF] [--config FILE.toml] [...]
python jobs/evaluate.py --dataset mvtec:s3://bucket/mvtec --detector nano --object "{product}" --output s3://bucket/figures
"""

import sys

from zsad.cli import run_job
from zsad.distributed.evaluate import evaluate
from zsad.evaluation.config import EvaluateConfig


def main(config: EvaluateConfig) -> None:
    """Run it."""
    evaluate(config)


if __name__ == "__main__":
    sys.exit(run_job(EvaluateConfig, main, goes_on=False))
