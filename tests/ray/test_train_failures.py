"""Which failures of a group of workers another group may do better with, by Ray's own classes."""

import pytest
import ray
import ray.train
from ray.exceptions import ActorDiedError, OwnerDiedError, RayTaskError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from zsad.distributed.train_failures import loss, raised_by_worker
from zsad.errors import ModelError, StorageError, ZsadError

GLOO = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4711")


def group(**failures):
    return ray.train.WorkerGroupError("text", {int(rank.removeprefix("rank")): e for rank, e in failures.items()})


def in_task(error):
    """As an error of a task of Ray Data reaches the worker that takes its blocks."""
    return RayTaskError("decode_block", "Traceback: ...", error).as_instanceof_cause()


@pytest.mark.parametrize(
    "error",
    [
        group(rank1=WorkerHealthCheckFailedError("a worker health check failed", ActorDiedError())),
        group(rank1=WorkerHealthCheckTimeoutError("a worker health check has been hanging")),
        group(rank0=GLOO),
        group(rank0=RuntimeError("odd"), rank1=WorkerHealthCheckFailedError("failed", ActorDiedError())),
        group(rank0=in_task(ActorDiedError())),
        group(rank0=OwnerDiedError("00" * 28, None, "call site")),
        group(rank0=StorageError("no answer", retryable=True)),
        group(rank0=in_task(StorageError("no answer", retryable=True))),
        ray.train.ControllerError(WorkerGroupStartupTimeoutError(2)),
    ],
)
def test_what_was_lost_is_worth_another_group(error):
    assert raised_by_worker(error) is None
    assert loss(error)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (group(rank1=RuntimeError("CUDA out of memory")), "a worker raised RuntimeError: CUDA out of memory; once"),
        (group(rank0=OSError(28, "No space left on device")), r"raised OSError: \[Errno 28\] No space left on device"),
        (group(rank0=in_task(ValueError("strange"))), "a worker raised ValueError: strange;"),
        (ray.train.ControllerError(OSError("no disk")), "raised OSError: no disk"),
    ],
)
def test_what_a_worker_raised_ends_the_job_with_its_type_and_text(error, said):
    with pytest.raises(ZsadError, match=said):
        raise raised_by_worker(error)


@pytest.mark.parametrize("wrapped", [lambda error: error, in_task])
def test_an_error_of_ours_is_raised_as_it_is_even_where_a_worker_was_lost(wrapped):
    own = ModelError("a loss is not finite")
    lost = WorkerHealthCheckFailedError("failed", ActorDiedError())
    found = raised_by_worker(group(rank0=lost, rank1=wrapped(own)))
    assert (type(found), str(found)) == (ModelError, "a loss is not finite")


def test_storage_that_fails_for_now_ends_the_job_after_the_last_try():
    found = raised_by_worker(group(rank0=StorageError("no answer", retryable=True)), is_last=True)
    assert isinstance(found, StorageError)
