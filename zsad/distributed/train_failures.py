"""Why a group of workers ended: something was lost, which another group makes good, or a worker raised something.

What a worker raised (a full disk, a GPU without memory, a loss that is not finite) the next group would only raise
again, an epoch later. When a worker is lost, the others raise too, for their connections break; so one loss among
the failures counts more than what the rest raised.
"""

from collections.abc import Iterator

import ray
import ray.train
import torch.distributed as dist

from zsad.errors import StorageError, ZsadError, causes

_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.ObjectLostError,
    ray.train.PreemptionError,
    dist.DistError,  # of NCCL and the rendezvous
)
# Ray Train shows these to nobody, so their names must do.
_LOST_NAMES = frozenset(
    {
        "WorkerHealthCheckFailedError",
        "WorkerHealthCheckTimeoutError",
        "WorkerGroupStartupFailedError",
        "WorkerGroupStartupTimeoutError",
        "BroadcastCollectiveTimeoutError",
    }
)
_OF_GLOO = "gloo/"  # its errors are RuntimeErrors that begin with the place in its source
_MAX_CHARS = 2000


def raised_by_worker(error: BaseException, *, is_last: bool = False) -> ZsadError | None:
    """The error to end the job with, or None where another group of workers may do better.

    Storage that fails for now (`StorageError.retryable`) counts as lost.

    Args:
        error: of Ray Train, which wraps what a worker raised, and may do so twice.
        is_last: there will be no other group, so storage that fails for now ends the job too.
    """
    failures = list(_failures(error))
    for failure in failures:
        for cause in causes(failure):
            if not isinstance(cause, ZsadError) or isinstance(cause, ray.exceptions.RayError):
                continue
            if is_last or not _may_pass(cause):
                return cause
    if any(_is_lost(cause) for failure in failures for cause in causes(failure)):
        return None
    return ZsadError(f"a worker raised {_words(failures[0])}; once that is mended --resume goes on")


def loss(error: BaseException) -> str:
    """What was lost, in a few words."""
    lost = (cause for failure in _failures(error) for cause in causes(failure) if _is_lost(cause))
    return _words(next(lost, error)).splitlines()[0]


def _failures(error: BaseException) -> Iterator[BaseException]:
    """What each worker failed with, or else the group's controller."""
    failures = [*getattr(error, "worker_failures", {}).values()]
    failures = failures or [getattr(error, "controller_failure", None) or error]
    for failure in failures:
        yield getattr(failure, "_base_exc", failure)


def _is_lost(cause: BaseException) -> bool:
    if isinstance(cause, _LOST) or type(cause).__name__ in _LOST_NAMES:
        return True
    return _may_pass(cause) or (isinstance(cause, RuntimeError) and _OF_GLOO in str(cause))


def _may_pass(cause: BaseException) -> bool:
    return isinstance(cause, StorageError) and cause.retryable


def _words(failure: BaseException) -> str:
    """Type and text; Ray's own wrappers, whose text is a traceback, are left out where they wrap something."""
    inner = next((cause for cause in causes(failure) if not isinstance(cause, ray.exceptions.RayError)), failure)
    return f"{type(inner).__name__}: {inner}"[:_MAX_CHARS]
