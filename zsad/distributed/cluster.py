"""Reach a Ray cluster, or start one on this machine, and say what it offers."""

import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.utils import read_ray_address

from zsad.errors import ConfigError, ZsadError, causes

LOCAL_OBJECT_STORE_BYTES = 512 * 2**20
START_TRIES = 3
PROBE_S = 5.0
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
    """Join the cluster of `RAY_ADDRESS` or that of `ray start` here; otherwise start one on this machine's cores.

    Another program's `ray.init` on this machine is no cluster to join: it ends with that program.

    Raises:
        ConfigError: if `RAY_ADDRESS` is set and nothing answers there.
    """
    if not ray.is_initialized():
        # Ray's own lines would come behind ours, and the job's last line says how it ended.
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        address = find_cluster()
        if address is None:
            _start_local(quiet)
        else:
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, ValueError) as error:
                raise ConfigError(f"no Ray cluster answers at {address}: {error}") from error
    total = ray.cluster_resources()
    return Resources(
        num_cpus=int(total.get("CPU", 0)),
        num_gpus=int(total.get("GPU", 0)),
        store_bytes=int(total.get("object_store_memory", LOCAL_OBJECT_STORE_BYTES)),
    )


def find_cluster() -> str | None:
    """Address of the cluster to join, if there is one. Asks its port first, for Ray waits for ever for a dead one.

    Raises:
        ConfigError: if `RAY_ADDRESS` is set and nothing answers there.
    """
    told = os.environ.get("RAY_ADDRESS", "auto")
    address = read_ray_address() if told in ("", "auto") else told
    if address is None or address == "local":
        return None
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return address  # of another kind, which Ray explains
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S).close()
    except (OSError, OverflowError) as error:
        if address == told:
            raise ConfigError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}") from error
        log.warning("the cluster that `ray start` noted at %s is gone (%s); starting Ray here", address, error)
        return None
    return address


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
