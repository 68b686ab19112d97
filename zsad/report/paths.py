"""Names inside an output store: run ids and the keys of a run."""

import re
import secrets
import string
from datetime import UTC, datetime, timedelta

from zsad.errors import ConfigError

PUBLISHED = "published/"
RUNS = "runs/"
DETECTORS = "detectors/"
DETECTORS_JSON = "detectors.json"
_TIME = "%Y%m%dT%H%M%SZ"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def new_run_id(now: datetime | None = None, after: str | None = None) -> str:
    """UTC start time `YYYYMMDDTHHMMSSZ`, "-" and 4 random characters; greater ids are later runs.

    Args:
        now: the time of the start.
        after: id of the last run. Where the clock has not passed it (two runs within a second, a clock set back), the
            time is that run's plus a second, so that readers never take the older run for the latest.
    """
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    if after is not None and (last := _start_of(after)) is not None:
        moment = max(moment, last + timedelta(seconds=1))
    alphabet = string.ascii_lowercase + string.digits
    return f"{moment:{_TIME}}-" + "".join(secrets.choice(alphabet) for _ in range(4))


def _start_of(run_id: str) -> datetime | None:
    try:
        return datetime.strptime(run_id[:16], _TIME).replace(tzinfo=UTC)
    except ValueError:  # a name somebody chose
        return None


def check_run_id(run_id: str) -> str:
    """Return `run_id` when it can be a folder's name.

    Raises:
        ConfigError: it is empty, longer than 64 characters, or holds others than letters, digits, `_`, `.`, `-`.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ConfigError(f"{run_id!r} can't be a run id: use 1 to 64 letters, digits, '_', '.' or '-'")
    return run_id


def run_key(run_id: str, name: str) -> str:
    """Key of the file `name` of one run: `runs/<run_id>/<name>`."""
    return f"{RUNS}{run_id}/{name}"


def manifest_key(run_id: str, shard: int) -> str:
    """Key of one manifest shard: the listed objects, before scoring."""
    return run_key(run_id, f"manifest/{shard:08d}.parquet")


def data_key(run_id: str, shard: int, attempt: str) -> str:
    """Key of the rows that one attempt made of one shard."""
    return run_key(run_id, f"data/{shard:08d}-{attempt}.parquet")


def record_key(run_id: str, shard: int) -> str:
    """Key of the record that commits one shard."""
    return run_key(run_id, f"shards/{shard:08d}.json")


def map_key(run_id: str, shard: int, row: int) -> str:
    """Key of the anomaly map of row number `row` of the manifest shard."""
    return run_key(run_id, f"maps/{shard:08d}/{row:06d}.png")


def pointer_key(run_id: str) -> str:
    """Key of the pointer that makes a run visible to readers."""
    return f"{PUBLISHED}{run_id}.json"
