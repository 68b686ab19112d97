"""What a run tells the person who started it: `summary.json` in its folder, and a table on the terminal.

Counts, traffic and stage times are those of the whole run, whatever calls it took (`zsad.report.stats`); seconds,
`num_scored` and the driver's memory are those of the call that published it.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from zsad.errors import ZsadError
from zsad.report.selection import Counts
from zsad.report.stats import Stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of memory that are not any worker's: the driver's peak, and Ray's object store on all machines.

    `store_peak_bytes` is sampled once a second; `spilled_bytes` counts all that Ray wrote to disk since this call
    began. None where Ray does not say.
    """

    driver_peak_bytes: int = 0
    store_bytes: int | None = None
    store_peak_bytes: int | None = None
    spilled_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Facts of a published run; times in seconds, instants as UTC ISO 8601, `totals` as in its manifest.

    Attributes:
        num_scored: rows that this call scored.
        num_carried: rows taken over from the last run.
        num_resumed: rows of this run that were there when the call began.
        error_counts: rows without a score, by code.
        num_files: Parquet files of the report.
        stats: what scoring cost, and the requests of the driver.
        publishing_seconds: putting files together and publishing.
        memory: beside the workers', which is in `stats`.
        num_halvings: how often scorers went on with half of the batch for want of memory.
    """

    run_id: str
    input_url: str
    output_url: str
    detector: str
    started_at: str
    finished_at: str
    scoring_seconds: float
    total_seconds: float
    num_scored: int
    num_carried: int
    totals: dict[str, int]
    num_resumed: int = 0
    error_counts: dict[str, int] = field(default_factory=dict)
    num_files: int = 0
    stats: Stats = field(default_factory=Stats)
    publishing_seconds: float = 0.0
    memory: Memory = field(default_factory=Memory)
    num_halvings: int = 0

    @property
    def images_per_s(self) -> float | None:
        """Rate of this call, start-up of workers included; None when everything was scored before."""
        return self.num_scored / self.scoring_seconds if self.num_scored and self.scoring_seconds > 0 else None

    def check(self, listed: int) -> None:
        """Make sure that the numbers add up.

        Args:
            listed: objects that the listing of this run found.

        Raises:
            ZsadError: saying which do not.
        """
        rows, ok, errors = (self.totals[name] for name in ("rows", "ok", "errors"))
        sums = {
            f"{listed:,} objects listed": rows - listed,
            f"{ok:,} ok + {errors:,} errors": rows - ok - errors,
            f"{self.error_counts} by code": errors - sum(self.error_counts.values()),
            f"{self.num_scored:,} scored now + {self.num_resumed:,} before + {self.num_carried:,} taken over": rows
            - self.num_scored
            - self.num_resumed
            - self.num_carried,
        }
        if wrong := [f"{what} is off by {difference:,}" for what, difference in sums.items() if difference]:
            raise ZsadError(f"the counts of run {self.run_id} do not add up to its {rows:,} rows: {'; '.join(wrong)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `summary.json`."""
        return {**asdict(self), "images_per_s": self.images_per_s}

    def table(self, counts: Counts, gallery_uri: str) -> str:
        """The summary as aligned lines; listed images are always ok plus errors."""
        rate = f" ({self.images_per_s:.1f} images/s with start-up)" if self.images_per_s else ""
        rows = [
            ("run", self.run_id),
            ("input", self.input_url),
            ("detector", self.detector),
            ("listed", f"{counts.listed:,} = {counts.ok:,} ok + {counts.errors:,} errors"),
            ("unchanged", f"{self.num_carried:,} rows taken over from the last run" if self.num_carried else ""),
            ("resumed", f"{self.num_resumed:,} rows were scored by an earlier call" if self.num_resumed else ""),
            ("anomalies", f"{counts.anomalous:,} ({_share(counts.anomalous, counts.ok)} of ok)"),
            ("defects", _listed(counts.by_defect_type)),
            ("errors", _listed(counts.by_error_code)),
            ("time", f"{self.total_seconds:,.0f} s, of them {self.scoring_seconds:,.0f} s scoring{rate}"),
            *self._costs(),
            ("report", self.output_url),
            ("gallery", gallery_uri),
        ]
        return "\n".join(f"{name:<10} {value}" for name, value in rows if value)

    def _costs(self) -> list[tuple[str, str]]:
        """Lines on work, traffic and memory; empty where nothing was measured."""
        stats, memory = self.stats, self.memory
        stages = (("decode", stats.decode_s), ("score", stats.score_s), ("write", stats.write_s))
        work = ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in stages)
        peaks = (("decoder", stats.decode_peak_bytes), ("scorer", stats.score_peak_bytes))
        named = [*peaks, ("driver", memory.driver_peak_bytes)]
        peak = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in named if size)
        store = f"; object store {memory.store_peak_bytes / 1e6:,.0f} MB" if memory.store_peak_bytes is not None else ""
        spilled = f", spilled {memory.spilled_bytes / 1e6:,.1f} MB" if memory.spilled_bytes is not None else ""
        read = f"{stats.bytes_read / 1e6:,.1f} MB read in {stats.requests:,} requests"
        return [
            ("work", f"{work}, summed over workers" if stats.decode_s else ""),
            ("traffic", f"{read}, {stats.retries:,} retries, {stats.throttles:,} throttles" if stats.requests else ""),
            ("memory", f"peaks: {peak}{store}{spilled}" if peak else ""),
            ("batch", f"halved {self.num_halvings} times because memory was used up" if self.num_halvings else ""),
        ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items())
