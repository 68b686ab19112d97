"""How full Ray's object store is, and what it spilled to disk: figures for the run summary.

Ray has no public call for this; what `ray memory --stats-only` prints is asked of the same place. If a later Ray moves
it, the figures are None and the run goes on.
"""

import logging
from typing import Any

import ray

from zsad.report.stats import peak_bytes
from zsad.report.summary import Memory
from zsad.storage import counters
from zsad.storage.counters import Counters

log = logging.getLogger(__name__)


class StoreWatch:
    """Samples the object store of all machines together, and counts the driver's requests; made when a run begins."""

    def __init__(self) -> None:
        self._before = counters.snapshot()
        self._state: Any = None
        self._peak_bytes = 0
        self._first = self._last = self._read()

    def sample(self) -> None:
        """Look once; about 2 ms and one request to one machine, which asks the others."""
        found = self._read()
        if found is not None:
            self._last = found
            self._peak_bytes = max(self._peak_bytes, int(found.object_store_bytes_used))

    def memory(self) -> Memory:
        """What was seen so far, and this process's own peak."""
        self.sample()
        if self._first is None or self._last is None:
            return Memory(driver_peak_bytes=peak_bytes())
        return Memory(
            driver_peak_bytes=peak_bytes(),
            store_bytes=int(self._last.object_store_bytes_avail),
            store_peak_bytes=self._peak_bytes,
            spilled_bytes=int(self._last.spilled_bytes_total - self._first.spilled_bytes_total),
        )

    def traffic(self) -> Counters:
        """What this process asked of storage since the watch began: listing, records, manifests."""
        return counters.snapshot() - self._before

    def _read(self) -> Any:
        """Ray's `StoreStats`, or None."""
        if not ray.is_initialized():  # asking would start one
            return None
        try:
            from ray._private.internal_api import get_memory_info_reply, get_state_from_address

            if self._state is None:
                self._state = get_state_from_address(ray.get_runtime_context().gcs_address)
            return get_memory_info_reply(self._state, timeout_seconds=5.0).store_stats
        except Exception as error:  # noqa: BLE001 - figures are not worth a run, whatever a private call does
            log.debug("Ray does not say how full its object store is: %s", error)
            return None
