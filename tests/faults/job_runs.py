"""Start `ray_job` as a process, and read what its scorers did; pictures for it."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from fault_table import size
from PIL import Image

from zsad.bundle import SHIPPED
from zsad.report import read_report

SCRIPT = Path(__file__).with_name("ray_job.py")
NUM_PICTURES = 200
SIDE_PX = 256
LIMIT_S = size(280, 900)


def pictures(count=NUM_PICTURES, side_px=SIDE_PX):
    """Different smooth JPEGs."""
    rng = np.random.default_rng(20260301)
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((side_px, side_px), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def with_comment(jpeg, text):
    """The same picture as another file: a comment behind the start mark."""
    comment = text.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def objects(count):
    """Key and content of `count` unique images made of a few pictures."""
    drawn = list(pictures(min(count, NUM_PICTURES)))
    for number in range(count):
        yield f"{number:05d}.jpg", with_comment(drawn[number % len(drawn)], str(number))


class Job:
    """One `ray_job`; a context manager that never leaves a process behind."""

    def __init__(self, ray, source, output, folder, *arguments, env=None, shard_rows=20, bytes_per_image=0):
        self.output = str(output)
        self.log_folder = folder / "scored"
        self.log_folder.mkdir(parents=True, exist_ok=True)
        self._stderr = (folder / "stderr").open("w+")
        spec = {
            "arguments": [
                *("--input", str(source), "--output", str(output), "--detector", str(SHIPPED / "winclip")),
                *("--batch-size", "10", "--maps", "none", "--num-scorers", "2"),
                *arguments,
            ],
            "env": env or {},
            "log": str(self.log_folder),
            "shard_rows": shard_rows,
            "bytes_per_image": bytes_per_image,
        }
        self.began_s = time.time()
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), json.dumps(spec)],
            env={**os.environ, **ray.env},
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.process.kill()
        self.process.wait()
        self._stderr.close()

    def finish(self, timeout_s=LIMIT_S):
        """Wait for its end; returns (exit code, what it said)."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        self._stderr.seek(0)
        said = self._stderr.read()
        assert self.process.poll() is not None, f"the job did not end within {timeout_s:g} s:\n{said}"
        return self.process.returncode, said

    def begun(self):
        """How often each shard was begun, over all jobs with this folder."""
        return Counter(shard for shard, _, _ in self._lines())

    def num_scored(self):
        """Rows of all begun shards."""
        return sum(rows for _, rows, _ in self._lines())

    def first_scored_s(self):
        """When the first shard was begun, seconds since 1970."""
        return min(at_s for _, _, at_s in self._lines())

    def scorers(self):
        """Process ids of scorers that began a shard, the last one last."""
        return [int(path.stem) for path in sorted(self.log_folder.iterdir(), key=lambda path: path.stat().st_mtime)]

    def _lines(self):
        for path in self.log_folder.glob("*.log"):
            for line in path.read_text().splitlines():
                shard, rows, at_s = line.split()
                yield int(shard), int(rows), float(at_s)


def table_bytes(output, limit=None):
    """The published rows, or the first of them, sorted by uri, as bytes; equal tables give equal bytes."""
    rows = read_report(str(output)).to_table().sort_by("uri").to_pylist()
    return repr(rows[:limit]).encode()
