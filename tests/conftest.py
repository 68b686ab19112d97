"""Fixtures for all tests: one S3 server, one local Ray, one small bucket and its report, each made at first use."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Before other imports: Ray Serve reads its variables when it is imported, and tests should run what `make serve` does.
SERVE_ENV = dict(
    line.split("=", maxsplit=1)
    for line in (Path(__file__).resolve().parents[1] / "serve" / "ray.env").read_text().splitlines()
)
os.environ.update(SERVE_ENV | os.environ)
# A shell starts programs in the background with SIGINT ignored, and whatever they start inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
from batch_runs import config_for, rows_by_key, write_bucket  # noqa: E402
from s3.fixture import s3  # noqa: E402

__all__ = ["s3"]

RAY_START_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRay:
    """The suite's Ray; `env` lets another process join it."""

    env: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The bucket and a finished report of all of it; nobody may write to either."""

    folder: Path
    output: Path

    @property
    def rows(self) -> dict[str, dict]:
        """The report's rows by key."""
        return rows_by_key(self.folder, self.output)


@pytest.fixture(scope="session")
def local_ray(request: pytest.FixtureRequest) -> Iterator[LocalRay]:
    """One real Ray with two CPUs for the whole suite; its workers can reach the S3 server where there is one."""
    with contextlib.suppress(pytest.skip.Exception):
        request.getfixturevalue("s3")  # first, because workers inherit the environment that Ray starts in
    import ray

    _start(ray)
    yield LocalRay(env={"RAY_ADDRESS": ray.get_runtime_context().gcs_address})
    ray.shutdown()


def _start(ray) -> None:
    """Ray gives up when its helpers need more than 15 s to start, as they may on a busy machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for attempt in range(RAY_START_TRIES):
        try:
            ray.init(
                address="local",
                num_cpus=2,
                object_store_memory=256 * 2**20,
                include_dashboard=False,
                log_to_driver=False,
            )
        except Exception:
            ray.shutdown()
            if attempt == RAY_START_TRIES - 1:
                raise
        else:
            return


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 45 files, good, unusual and unusable (see batch_runs); read only by agreement."""
    folder = tmp_path_factory.mktemp("bucket") / "images"
    write_bucket(folder)
    return folder


@pytest.fixture(scope="session")
def scored(local_ray: LocalRay, bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """The whole bucket scored by two scorers in three shards."""
    from zsad.distributed import batch

    output = tmp_path_factory.mktemp("scored") / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "CPU_SHARD_ROWS", 16)
        batch.score_bucket(config_for(bucket, output, partition="{line}/{camera}/"))
    return Scored(folder=bucket, output=output)
