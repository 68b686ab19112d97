"""The main job in a process of its own on the suite's Ray, with workers that tests can break.

Real: the job from its command line to its exit code, Ray, decoding, committing, publishing. Stand-ins: the model (a
score from a hash of the pixels, see `hash_scorer`), and the gallery, which needs the model.

Usage: ray_job.py SPEC, a JSON object with `arguments` of the job, `env` of its workers, `log` (a folder in which
scorers say which shards they began), `shard_rows`, and `bytes_per_image` that the stand-in takes for each image of a
batch.
"""

import json
import os
import sys
import time
from pathlib import Path

import ray

sys.path.append(str(Path(__file__).resolve().parents[1]))
import hash_scorer
from hash_scorer import HashDetectors, HashScorer

from zsad.batch_config import BatchConfig
from zsad.cli import run_job
from zsad.distributed import batch, finish
from zsad.distributed.stages import Plan


class HungryDetectors(HashDetectors):
    """The stand-in, which takes memory for each image of its batch, as models do."""

    def get(self, url):
        """The detector."""
        detector = super().get(url)
        if BYTES_PER_IMAGE:
            score = type(detector).inspect_pixels

            def inspect_pixels(pixels_BSSC, sizes):
                held = b"1" * (BYTES_PER_IMAGE * detector.batch_size)
                time.sleep(0.5)
                return score(detector, pixels_BSSC, sizes) if held else []

            detector.inspect_pixels = inspect_pixels
        return detector


class LoggingScorer(HashScorer):
    """Says in the log which shard it begins: its rows, and the time."""

    def _load(self, plan):
        super()._load(plan)
        Plan.open_detectors = lambda plan, batch_size=None: HungryDetectors(plan, batch_size)
        self._detectors = plan.open_detectors(self._guard.batch_size)

    def __call__(self, decoded):
        """Score a shard."""
        with Path(LOG, f"{os.getpid()}.log").open("a") as file:
            file.write(f"{decoded['shard'][0].as_py()} {decoded.num_rows} {time.time()}\n")
        return super().__call__(decoded)


def no_gallery(_plan, _summary, _selection):
    """Draw nothing."""
    return "no gallery"


if __name__ == "__main__":
    SPEC = json.loads(sys.argv[1])
    LOG, BYTES_PER_IMAGE = SPEC["log"], SPEC["bytes_per_image"]
    os.environ.update(SPEC["env"])
    ray.cloudpickle.register_pickle_by_value(hash_scorer)
    ray.init("auto", runtime_env={"env_vars": SPEC["env"]}, logging_level="ERROR", log_to_driver=False)
    batch.ShardScorer, finish.write_gallery = LoggingScorer, no_gallery
    batch.CPU_SHARD_ROWS, batch.LATER_CPU_SHARDS = SPEC["shard_rows"], 1
    sys.exit(run_job(BatchConfig, batch.score_bucket, SPEC["arguments"]))
