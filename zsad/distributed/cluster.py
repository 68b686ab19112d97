"""Reach a Ray cluster, or start one on this machine, and say what it offers."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import ray

from zsad.errors import ConfigError, ZsadError, causes

LOCAL_OBJECT_STORE_BYTES = 512 * 2**20
START_TRIES = 3
# Ray ends a worker that idles for a second as soon as there are more than CPUs. On a small machine actors use these up,
# so every decode task would start, and import, anew.
KEEP_WORKERS = {"num_workers_soft_limit": 16, "idle_worker_killing_time_threshold_ms": 60_000}
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resources:
    """Logical CPUs and GPUs of the cluster, and bytes of its object store."""

    num_cpus: int
    num_gpus: int
    store_bytes: int = LOCAL_OBJECT_STORE_BYTES


def connect() -> Resources:
    """Join the cluster of `RAY_ADDRESS` or the one running here; otherwise start one on this machine's cores.

    Raises:
        ConfigError: if `RAY_ADDRESS` is set and nothing answers there.
    """
    if not ray.is_initialized():
        # Ray's own lines would come behind ours, and the job's last line says how it ended.
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError as error:
            if "RAY_ADDRESS" in os.environ:
                raise ConfigError(
                    f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']}: {error}"
                ) from error
            _start_local(quiet)
    total = ray.cluster_resources()
    return Resources(
        num_cpus=int(total.get("CPU", 0)),
        num_gpus=int(total.get("GPU", 0)),
        store_bytes=int(total.get("object_store_memory", LOCAL_OBJECT_STORE_BYTES)),
    )


def _start_local(quiet: dict[str, Any]) -> None:
    """Start Ray on this machine, again if it is too busy for Ray's own limit of 15 s.

    Raises:
        ZsadError: if it does not start in three tries.
    """
    for attempt in range(1, START_TRIES + 1):
        try:
            ray.init(
                address="local",
                num_cpus=os.cpu_count(),
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                include_dashboard=False,
                _system_config=KEEP_WORKERS,
                **quiet,
            )
        except Exception as error:
            ray.shutdown()
            if attempt == START_TRIES:
                raise ZsadError(f"Ray did not start on this machine in {START_TRIES} tries: {error}") from error
            log.warning("Ray did not start (%s); trying again", error)
        else:
            return


def is_submitted_job() -> bool:
    """Whether this process was started by `ray job submit`, where relative paths point into the shipped package."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def zsad_cause(error: BaseException) -> ZsadError | None:
    """The zsad error inside what Ray raised, if there is one.

    Ray wraps a task's error once or twice, in a class that also inherits from it and whose text is a whole traceback.
    """
    inner = (e for e in causes(error) if isinstance(e, ZsadError) and not isinstance(e, ray.exceptions.RayError))
    return next(inner, None)
