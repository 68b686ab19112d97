"""Named points where a fault test stops, delays or kills a process; without `ZSAD_FAILPOINTS` they do nothing.

`ZSAD_FAILPOINTS` is a comma-separated list of `POINT=ACTION`, with `@N` behind it to act only from the Nth time on that
the process gets there, and `*N` to act at most N times over all processes:

    ZSAD_FAILPOINTS="before-record=kill@3,score=kill*3" ZSAD_FAILPOINTS_FOLDER=/some/folder

| action | what happens at the point |
|---|---|
| `kill` | SIGKILL to this process: no clean-up of any kind |
| `stop` | SIGSTOP to this process, until somebody sends SIGCONT |
| `wait:S` | sleeps S seconds |
| `note` | nothing |

Each act leaves a file `POINT.NUMBER` with the process id in `ZSAD_FAILPOINTS_FOLDER`, if that is set; `*N` needs it.
Cost where inactive: one look-up in the environment.
"""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from zsad.errors import ConfigError

VARIABLE = "ZSAD_FAILPOINTS"
FOLDER_VARIABLE = "ZSAD_FAILPOINTS_FOLDER"
# The steps of a commit in their order; each has a point before and one behind.
COMMIT_STEPS = ("listing", "data", "record", "manifest", "pointer")
POINTS = (
    *(f"{side}-{step}" for step in COMMIT_STEPS for side in ("before", "after")),
    "decode",  # a decode task begins
    "score",  # a batch goes to the model
)
_RULE = re.compile(r"([a-z-]+)=(kill|stop|note|wait:[0-9.]+)(?:@([0-9]+))?(?:\*([0-9]+))?")
_reached: Counter[str] = Counter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What to do at a point: from the time number `since` (from 1) on, at most `times` times, None for always."""

    action: str
    since: int = 1
    times: int | None = None


def hit(point: str) -> None:
    """Do what the environment asks for at `point`, one of `POINTS`.

    Raises:
        ConfigError: the variable can't be understood.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return
    rule = parse(text).get(point)
    _reached[point] += 1
    if rule is not None and _reached[point] >= rule.since and _claim(point, rule):
        _act(rule.action)


@contextmanager
def around(step: str) -> Iterator[None]:
    """Reach `before-STEP` and, unless the step raises, `after-STEP`."""
    hit(f"before-{step}")
    yield
    hit(f"after-{step}")


@lru_cache(maxsize=8)
def parse(text: str) -> dict[str, Rule]:
    """Rules by point.

    Raises:
        ConfigError: naming the part that is no rule or the point that is unknown.
    """
    rules = {}
    for part in text.split(","):
        found = _RULE.fullmatch(part.strip())
        if found is None or found[1] not in POINTS:
            raise ConfigError(f"{VARIABLE}: {part!r} is no POINT=ACTION; points are {', '.join(POINTS)}")
        times = int(found[4]) if found[4] else None
        rules[found[1]] = Rule(action=found[2], since=int(found[3] or 1), times=times)
    return rules


def _claim(point: str, rule: Rule) -> bool:
    """Leave a file for this act; False when the acts of all processes are used up."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        if rule.times is not None:
            raise ConfigError(f"{VARIABLE}: *{rule.times} needs {FOLDER_VARIABLE}")
        return True
    number = 1
    while rule.times is None or number <= rule.times:
        try:
            with Path(folder, f"{point}.{number}").open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            number += 1
        else:
            return True
    return False


def _act(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action.startswith("wait:"):
        time.sleep(float(action.removeprefix("wait:")))
