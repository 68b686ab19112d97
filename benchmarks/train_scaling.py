"""How a training scales from one worker to two on this machine: efficiency, and what a step exchanges.

OMP_NUM_THREADS=1 python benchmarks/train_scaling.py [--images 128] [--epochs 3]

The same training over nano by one worker and by two, through Ray Train, rows made before the clock that counts: an
epoch's seconds as its checkpoint records them, the first left out. Efficiency = time of one / (2 x time of two). With
two cores that other work shares it is a lower limit.
"""

import argparse
import tempfile
from pathlib import Path

from zsad.distributed.train import train_from_masks
from zsad.train_config import TrainConfig


def main() -> None:
    """Print one line a method."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["faprompt", "dapo"])
    arguments = parser.parse_args()
    for method in arguments.methods:
        with tempfile.TemporaryDirectory() as folder:
            seconds = [
                seconds_of(method, workers, Path(folder), arguments.images, arguments.epochs) for workers in (1, 2)
            ]
        print(
            f"{method}: {seconds[0]:.2f} s an epoch with one worker, {seconds[1]:.2f} s with two, "
            f"efficiency {seconds[0] / seconds[1] / 2:.2f}",
            flush=True,
        )


def seconds_of(method: str, num_workers: int, folder: Path, images: int, epochs: int) -> float:
    """Median seconds of the epochs after the first."""
    config = TrainConfig(
        method=method,
        dataset="synthetic",
        output=str(folder / str(num_workers)),
        images=images,
        epochs=epochs,
        num_workers=num_workers,
        calibration_images=8,
        validation=0.0,
    )
    state = train_from_masks(config)
    later = sorted(record.seconds for record in state.history[1:])
    return later[len(later) // 2]


if __name__ == "__main__":
    main()
