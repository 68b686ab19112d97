"""How far a run is, from committed shards, and whether it may go on.

A tiny actor adds up what the sinks commit; a thread of the driver shows it as a bar on a terminal and as one log line
every 30 s elsewhere. The same actor holds the error budget: it is looked at every 1,000 rows, so that a wrong prefix or
missing permission ends the run early instead of producing a million error rows.
"""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from tqdm import tqdm

from zsad.distributed.store_watch import StoreWatch

log = logging.getLogger(__name__)

CHECK_EVERY_ROWS = 1000
LOG_EVERY_S = 30.0
QUIET_S = 120.0


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows committed so far."""

    rows: int = 0
    errors: int = 0
    anomalies: int = 0


class ShardTally:
    """Adds up committed shards; `reason` says why the run must stop, or is empty."""

    def __init__(self, counts: Counts, max_error_share: float) -> None:
        self.counts = counts
        self.max_error_share = max_error_share
        self.reason = ""
        self._checked_rows = 0
        self._seen = bytearray()  # a bit for each shard
        self._scorers: dict[str, Any] = {}
        self._starts: Counter[str] = Counter()

    def add(self, shard: int, rows: int, errors: int, anomalies: int) -> str:
        """Count a shard, once however often its task is repeated; returns why to stop, or an empty string."""
        place, bit = shard // 8, 1 << shard % 8
        self._seen.extend(bytes(max(0, place + 1 - len(self._seen))))
        if self._seen[place] & bit:
            return self.reason
        self._seen[place] |= bit
        old = self.counts
        self.counts = Counts(old.rows + rows, old.errors + errors, old.anomalies + anomalies)
        if self.counts.rows - self._checked_rows >= CHECK_EVERY_ROWS:
            self._checked_rows = self.counts.rows
            self.reason = self.reason or over_budget(self.counts, self.max_error_share)
        return self.reason

    def stop(self, reason: str) -> None:
        """Make every later `add` say so."""
        self.reason = self.reason or reason

    def read(self) -> tuple[Counts, str]:
        """What is committed, and why to stop."""
        return self.counts, self.reason

    def add_scorer(self, name: str, scorer: Any) -> int:
        """Remember an actor of the scorer pool, which keeps its name when it is restarted; returns its starts."""
        self._scorers[name] = scorer
        self._starts[name] += 1
        return self._starts[name]

    def end_scorers(self) -> int:
        """Kill the scorers and free their CPUs; returns how many there were.

        Ray Data ends the actors of a finished pipeline by forgetting them. The pipeline refers to itself, an
        exception may refer to it, and until both are collected its scorers keep the CPUs that the next wave needs.
        """
        scorers, self._scorers = self._scorers, {}
        for scorer in scorers.values():
            ray.kill(scorer)
        return len(scorers)


Tally = ray.remote(num_cpus=0)(ShardTally)


def over_budget(counts: Counts, max_error_share: float) -> str:
    """Why these counts are too bad to go on, or an empty string."""
    if counts.errors <= max_error_share * counts.rows:
        return ""
    return (
        f"{counts.errors:,} of {counts.rows:,} images can't be scored; the limit is {max_error_share:.1%} "
        "(--max-error-share). If the prefix also holds other files, choose images with --include '*.jpg'"
    )


class ProgressReporter:
    """Context manager that shows a tally until it ends."""

    def __init__(
        self, tally: Any, start: Counts, total: Callable[[], int], check: Callable[[], None], watch: StoreWatch
    ) -> None:
        self._watch = watch
        self._tally = tally
        self._start = start
        self._total = total
        self._check = check
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, name="zsad-progress", daemon=True)

    def __enter__(self) -> "ProgressReporter":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _show(self) -> None:
        is_terminal = sys.stderr.isatty()
        began = logged = moved = time.monotonic()
        with tqdm(total=self._total(), initial=self._start.rows, unit="img", disable=not is_terminal) as bar:
            while not self._stop.wait(1.0):
                counts = self._read()
                self._watch.sample()
                bar.total = total = self._total()
                if counts.rows > bar.n:
                    moved = time.monotonic()
                elif time.monotonic() - moved >= QUIET_S:
                    moved = time.monotonic()
                    log.warning("%s", why_quiet())
                bar.set_postfix({"anomalies": counts.anomalies, "errors": counts.errors}, refresh=False)
                bar.update(counts.rows - bar.n)
                if not is_terminal and time.monotonic() - logged >= LOG_EVERY_S:
                    logged = time.monotonic()
                    log.info("%s", describe(counts, self._start, total, logged - began))

    def _read(self) -> Counts:
        try:
            self._check()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the lease, the run must stop
            self._tally.stop.remote(str(error))
        counts: Counts = ray.get(self._tally.read.remote())[0]
        return counts


def why_quiet() -> str:
    """What may keep a run from getting on, for its log."""
    free, there = ray.available_resources(), ray.cluster_resources()
    held = ", ".join(
        f"{free.get(kind, 0):g} of {there[kind]:g} {kind}s free" for kind in ("CPU", "GPU") if kind in there
    )
    return (
        f"no image was finished for {QUIET_S:g} s ({held}). Scorers wait for room when others hold the cluster, and "
        "storage that does not answer is retried; `ray status` shows what is asked for"
    )


def describe(counts: Counts, start: Counts, total: int, seconds: float) -> str:
    """One line: done, rate and time left."""
    rate = (counts.rows - start.rows) / max(seconds, 1e-9)
    left = f"{(total - counts.rows) / rate:,.0f} s left" if rate > 0 else "no rate yet"
    share = counts.rows / total if total else 1.0
    return (
        f"{counts.rows:,} of {total:,} images ({share:.0%}), {rate:.1f} images/s, {left}; "
        f"{counts.anomalies:,} anomalies, {counts.errors:,} errors"
    )
