"""What a run tells the person who started it: a table on the terminal."""

from dataclasses import dataclass

from zsad.report.selection import Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Facts of a published run; times in seconds, instants as UTC ISO 8601, `totals` as in its manifest."""

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

    @property
    def images_per_s(self) -> float | None:
        """Rate of this call, start-up of workers included; None when everything was scored before."""
        return self.num_scored / self.scoring_seconds if self.num_scored and self.scoring_seconds > 0 else None

    def table(self, counts: Counts, gallery_uri: str) -> str:
        """The summary as aligned lines; listed images are always ok plus errors."""
        rate = f" ({self.images_per_s:.1f} images/s with start-up)" if self.images_per_s else ""
        rows = [
            ("run", self.run_id),
            ("input", self.input_url),
            ("detector", self.detector),
            ("listed", f"{counts.listed:,} = {counts.ok:,} ok + {counts.errors:,} errors"),
            ("unchanged", f"{self.num_carried:,} rows taken over from the last run" if self.num_carried else ""),
            ("anomalies", f"{counts.anomalous:,} ({_share(counts.anomalous, counts.ok)} of ok)"),
            ("defects", _listed(counts.by_defect_type)),
            ("errors", _listed(counts.by_error_code)),
            ("time", f"{self.total_seconds:,.0f} s, of them {self.scoring_seconds:,.0f} s scoring{rate}"),
            ("report", self.output_url),
            ("gallery", gallery_uri),
        ]
        return "\n".join(f"{name:<10} {value}" for name, value in rows if value)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items())
