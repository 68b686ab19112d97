"""The table of measured faults: each test adds the line of what it proved; `make faults` prints and keeps it."""

import os
from dataclasses import dataclass
from pathlib import Path

IS_FULL = os.environ.get("ZSAD_FAULTS") == "full"
IS_REPORTED = "ZSAD_FAULTS" in os.environ
REPORT = Path(__file__).resolve().parents[2] / "build" / "faults.md"


def size(default: int, full: int) -> int:
    """The size of a test: `full` in `make faults` (ZSAD_FAULTS=full), `default` elsewhere (=small for the table)."""
    return full if IS_FULL else default


def seed(default: int) -> int:
    """The seed of a test: ZSAD_FAULTS_SEED, or its own; printed, so that a failure shows it."""
    value = int(os.environ.get("ZSAD_FAULTS_SEED", default))
    print(f"seed {value}: repeat with ZSAD_FAULTS_SEED={value}")
    return value


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table."""

    name: str
    fault: str
    scale: str
    found: str


class Table:
    """Lines in the order of their names."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def add(self, name: str, fault: str, scale: str, found: str) -> None:
        """Add what was measured: id, what was broken, how much, what held."""
        self.lines.append(Line(name, fault, scale, found))

    def markdown(self) -> str:
        """The table."""
        rows = [
            f"| {line.name} | {line.fault} | {line.scale} | {line.found} |" for line in sorted(self.lines, key=_key)
        ]
        return "\n".join(["| id | fault | size | measured |", "|---|---|---|---|", *rows])


def _key(line: Line) -> tuple[str, int, str]:
    return line.name[0], int("".join(filter(str.isdigit, line.name)) or 0), line.fault
