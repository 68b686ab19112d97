"""A scorer that outgrows its memory is ended, and goes on with half of the batch; one object in the output says so.

Two ways lead here: the model itself reports that a batch does not fit (CUDA's or the CPU allocator's error), or the
process grows above `--scorer-memory-gib`, in which case a thread of its own kills it, before a container's limit would
end the whole node. Ray starts another scorer and repeats the shard. Halvings are numbered objects written by
put-if-absent, `runs/<run>/memory/<n>.json`: all scorers of a run, and a run that is resumed, go on with the batch that
fits, and scorers that fail together halve once. At one image nothing is left to halve, and the run ends with a
ModelError. Smaller batches can change the last bits of scores (within 1e-5), which is why a scorer that dies of
something else keeps its batch.

Cost: a look at /proc ten times a second in each scorer, where there is a cap.
"""

import logging
import os
import signal
import threading
import time

from zsad.errors import ModelError
from zsad.report.ledger import canonical_json
from zsad.report.paths import run_key
from zsad.report.stats import heap_bytes
from zsad.storage import Store

LOOK_EVERY_S = 0.1
_log = logging.getLogger(__name__)


def num_halvings(output: Store, run_id: str) -> int:
    """How often the batch of a run was halved for want of memory."""
    number = 0
    while output.exists(_key(run_id, number + 1)):
        number += 1
    return number


def fitting_batch(batch_size: int, halvings: int) -> int:
    """The batch size after so many halvings: at least 1."""
    return max(1, batch_size >> halvings)


class MemoryGuard:
    """Remembers and marks how far a run's batch was halved, for one scorer.

    Args:
        output: the report's store.
        run_id: of the run.
        batch_size: images per forward pass before any halving.
        max_bytes: the scorer's own memory above which it is ended; 0: never.
    """

    def __init__(self, output: Store, run_id: str, batch_size: int, max_bytes: int) -> None:
        self._output, self._run_id = output, run_id
        self._max_bytes = max_bytes
        self._whole_batch = batch_size
        self._halvings = num_halvings(output, run_id)
        self._outgrown_bytes = 0
        if max_bytes:
            threading.Thread(target=self._watch, name="zsad-memory", daemon=True).start()

    @property
    def batch_size(self) -> int:
        """Images per forward pass now."""
        return fitting_batch(self._whole_batch, self._halvings)

    def check(self) -> None:
        """Make sure that one image at a time stays below the cap.

        Raises:
            ModelError: it does not.
        """
        if self._outgrown_bytes:
            raise ModelError(
                f"a scorer needs {self._outgrown_bytes / 2**30:.2f} GiB for one image at a time; the limit is "
                f"{self._max_bytes / 2**30:g} GiB (--scorer-memory-gib): raise it or take a smaller model"
            )

    def halve(self, reason: str) -> None:
        """Mark that the present batch does not fit; another scorer may have done so before."""
        mark = {"batch_size": self.batch_size, "reason": reason, "pid": os.getpid()}
        self._output.put_if_absent(_key(self._run_id, self._halvings + 1), canonical_json(mark))
        _log.warning("a batch of %d images does not fit (%s); going on with half of it", self.batch_size, reason)
        self._halvings += 1

    def _watch(self) -> None:
        while not self._outgrown_bytes:
            used = heap_bytes()
            if used > self._max_bytes and self.batch_size > 1:
                self.halve(f"{used / 2**30:.2f} GiB are above --scorer-memory-gib {self._max_bytes / 2**30:g}")
                os.kill(os.getpid(), signal.SIGKILL)
            elif used > self._max_bytes:
                self._outgrown_bytes = used
            time.sleep(LOOK_EVERY_S)


def _key(run_id: str, number: int) -> str:
    return run_key(run_id, f"memory/{number:03d}.json")
