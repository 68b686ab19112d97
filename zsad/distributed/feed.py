"""Score while listing: a thread of the driver writes manifest shards, and the job takes them in waves.

A wave is one execution of the Ray Data pipeline over all shards listed so far, so the first images are scored 2 s after
the first manifest file is there; buckets that are listed in that time are one wave. Listing is usually much faster than
scoring: each wave lasts longer than the one before and finds more shards, so that a run is a few waves, each with at
least 100,000 rows once the listing is ahead.
A wave also bounds what Ray's driver keeps for each block of an execution.

The other way, a data source whose read tasks wait for shards, was tried and not kept; docs/listing.md says why.
"""

import threading
from collections.abc import Callable

from zsad.errors import ZsadError
from zsad.report.manifest import ManifestSummary

MOST_SHARDS = 4096
FEWEST_ROWS = 100_000
FIRST_PATIENCE_S = 2.0
PATIENCE_S = 20.0
_STOP_WAIT_S = 10.0


class ManifestFeed:
    """Runs a listing in a thread and hands out its shards; use it as a context manager.

    Args:
        write: lists, calling its argument with the numbers of shards that can be read and of their rows; what
            `write_manifest` does.
    """

    def __init__(self, write: Callable[[Callable[[int, int], None]], ManifestSummary]) -> None:
        self._write = write
        self._changed = threading.Condition()
        self._num_listed = self._num_listed_rows = 0
        self._num_taken = self._num_taken_rows = 0
        self._summary: ManifestSummary | None = None
        self._error: BaseException | None = None
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="zsad-listing", daemon=True)

    def __enter__(self) -> "ManifestFeed":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_stopped = True
        self._thread.join(_STOP_WAIT_S)

    def take(self) -> range:
        """The next wave: numbers of the shards listed since the last; waits for some; empty when there are no more.

        A wave waits for 100,000 rows or the listing's end, but no longer than 20 s, and the first one 2 s from the
        first manifest file on: so small buckets are one wave, and large ones begin soon.

        Raises:
            BaseException: what the listing raised.
        """
        patience_s = PATIENCE_S if self._num_taken else FIRST_PATIENCE_S
        with self._changed:
            self._changed.wait_for(lambda: self._is_over() or self._num_listed > self._num_taken)
            self._changed.wait_for(lambda: self._is_over() or self._is_full(), timeout=patience_s)
            self.check()
            wave = range(self._num_taken, min(self._num_listed, self._num_taken + MOST_SHARDS))
            self._num_taken, self._num_taken_rows = wave.stop, self._num_listed_rows
        return wave

    def _is_full(self) -> bool:
        """Whether there is a wave that need not wait for more."""
        is_most = self._num_listed - self._num_taken >= MOST_SHARDS
        return is_most or self._num_listed_rows - self._num_taken_rows >= FEWEST_ROWS

    def check(self) -> None:
        """Raise what the listing raised, if it failed."""
        if self._error is not None:
            raise self._error

    def summary(self) -> ManifestSummary:
        """The finished manifest; call it after the last `take`.

        Raises:
            ZsadError: the listing goes on.
        """
        if self._summary is None:
            raise ZsadError("the listing is not finished")
        return self._summary

    def num_listed_rows(self) -> int:
        """Rows to score that are known so far; exact once the listing is finished."""
        return self._num_listed_rows

    def _is_over(self) -> bool:
        return self._summary is not None or self._error is not None

    def _run(self) -> None:
        try:
            summary = self._write(self._announce)
        except BaseException as error:  # noqa: BLE001 - raised again by take
            with self._changed:
                self._error = error
                self._changed.notify_all()
            return
        with self._changed:
            self._num_listed, self._num_listed_rows = summary.num_shards, summary.num_objects
            self._summary = summary
            self._changed.notify_all()

    def _announce(self, num_shards: int, num_rows: int) -> None:
        if self._is_stopped:
            raise ZsadError("the run ended before its listing")
        with self._changed:
            self._num_listed, self._num_listed_rows = num_shards, num_rows
            self._changed.notify_all()
