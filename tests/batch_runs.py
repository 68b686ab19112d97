"""What the end-to-end tests share: one small bucket with every kind of file; running the job and reading its rows."""

import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zsad.batch_config import BatchConfig
from zsad.datasets.synthetic import SyntheticConfig, generate
from zsad.distributed.batch import open_run
from zsad.distributed.prepare import prepare_detector
from zsad.report import read_report
from zsad.report.lease import Lease
from zsad.storage import open_store

REPOSITORY = Path(__file__).resolve().parents[1]
JOB = REPOSITORY / "jobs" / "score_bucket.py"
IMAGE_PX = 192
NUM_IMAGES = 32
BATCH_SIZE = 8
THRESHOLD = 0.02  # twice the median of normal images, so that some of the bucket are anomalies for any model
RUN_COLUMNS = frozenset({"run_id", "map_uri", "config_hash"})
PLACE_COLUMNS = frozenset({"uri", "etag", "last_modified"})

# Key -> error code; every other object of the bucket has a score.
BAD = {
    "bad/broken.png": "decode",
    "bad/cut_off.jpg": "truncated",
    "bad/empty.jpg": "empty",
    "bad/error_page.jpg": "unknown_format",
    "bad/huge.png": "too_many_pixels",
    "bad/moving.gif": "unknown_format",
    "bad/one_byte.jpg": "unknown_format",
    "bad/tiny.png": "too_small",
}
# Key -> (width, height) in the report.
ODD = {
    "line2/odd/animated.webp": (96, 64),
    "line2/odd/cmyk.jpg": (96, 64),
    "line2/odd/grey16.png": (96, 64),
    "line2/odd/rotated.jpg": (64, 96),
    "line2/odd/transparent.png": (96, 64),
}


def write_bucket(folder: Path) -> None:
    """Write 32 procedural pictures of two cameras, 5 unusual and 8 unusable files under `folder`."""
    for name in ("line1/cam1", "line1/cam2", "line2/odd", "bad"):
        (folder / name).mkdir(parents=True)
    config = SyntheticConfig(size=IMAGE_PX, anomaly_share=0.5)
    for number in range(NUM_IMAGES):
        picture = Image.fromarray(generate(5, number, config).image)
        if number % 2:
            picture.save(folder / "line1/cam2" / f"{number:03d}.jpg", quality=92)
        else:
            picture.save(folder / "line1/cam1" / f"{number:03d}.png")
    _write_odd(folder)
    _write_bad(folder)


def _write_odd(folder: Path) -> None:
    small = Image.open(folder / "line1/cam1/000.png").convert("RGB").resize((96, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    small.save(folder / "line2/odd/rotated.jpg", exif=exif)
    small.convert("CMYK").save(folder / "line2/odd/cmyk.jpg")
    grey16 = np.asarray(small.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey16).save(folder / "line2/odd/grey16.png")
    rgba = small.copy()
    rgba.putalpha(small.convert("L"))
    rgba.save(folder / "line2/odd/transparent.png")
    small.save(folder / "line2/odd/animated.webp", save_all=True, append_images=[small.rotate(180)], lossless=True)


def _write_bad(folder: Path) -> None:
    whole = (folder / "line1/cam2/001.jpg").read_bytes()
    content = {
        "bad/broken.png": b"\x89PNG\r\n\x1a\n" + b"not a header" * 9,
        "bad/cut_off.jpg": whole[: len(whole) // 2],
        "bad/empty.jpg": b"",
        "bad/error_page.jpg": b"<html><body>502 Bad Gateway</body></html>",
        "bad/huge.png": png_header(60_000, 60_000),
        "bad/one_byte.jpg": b"\xff",
    }
    for key, data in content.items():
        (folder / key).write_bytes(data)
    Image.new("RGB", (64, 64)).save(
        folder / "bad/moving.gif", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")]
    )
    Image.new("RGB", (4, 4)).save(folder / "bad/tiny.png")


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises many pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def keys_of(folder: Path) -> list[str]:
    """Keys of all files under `folder`, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def config_for(folder: Path | str, output: Path | str, **changes: Any) -> BatchConfig:
    """The settings that most tests share: small batches, two scorers, a low threshold, no error budget."""
    base = BatchConfig(
        input=str(folder),
        output=str(output),
        batch_size=BATCH_SIZE,
        num_scorers=2,
        max_error_share=1.0,
        threshold=THRESHOLD,
    )
    return replace(base, **changes)


def register_run(config: BatchConfig) -> tuple[str, Lease]:
    """Start a run as a driver does, and hold it without scoring anything; returns its id and the lease."""
    state, lease = open_run(config, open_store(config.output), prepare_detector(config).fingerprint())
    return state.run_id, lease


def rows_by_key(source: Path | str, output: Path | str, run_id: str | None = None) -> dict[str, dict[str, Any]]:
    """Rows of the latest published run by key; fails when an object has two."""
    rows = read_report(str(output), run_id).to_table().to_pylist()
    root = str(source).rstrip("/") + "/"
    by_key = {row["uri"].removeprefix(root): row for row in rows}
    assert len(by_key) == len(rows)
    return by_key


def without(row: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """A row without some of its columns."""
    return {name: value for name, value in row.items() if name not in names}


def map_bytes(row: dict[str, Any]) -> bytes:
    """The stored anomaly map of a row of a local report."""
    return Path(row["map_uri"]).read_bytes()


def run_job(*arguments: str, timeout_s: float = 280, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the job as a user does, in the repository, with `env` on top of this process's environment."""
    return subprocess.run(
        [sys.executable, str(JOB), *arguments],
        env={**os.environ, **env},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def last_line(text: str) -> str:
    """The last line that is not blank."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def is_untouched(output: Path) -> bool:
    """Whether a job wrote nothing there."""
    return not output.exists() or not any(output.iterdir())
