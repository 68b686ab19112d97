"""Learn prompts and write detector bundles, on this machine or on a Ray cluster.

python jobs/train_prompts.py --method faprompt|dapo|promptad --dataset LAYOUT:URL --output URL [--backbone REF] [...]
python jobs/train_prompts.py --method faprompt --dataset synthetic --output models/faprompt --num-workers 2
python jobs/train_prompts.py --method promptad --dataset mvtec:s3://bucket/mvtec --shots 4 --output s3://models/promptad
"""

import sys

from zsad.cli import run_job
from zsad.distributed.train_prompts import train_prompts
from zsad.train_config import TrainConfig


def main(config: TrainConfig) -> None:
    """Run it."""
    train_prompts(config)


if __name__ == "__main__":
    sys.exit(run_job(TrainConfig, main))
