"""How far a training is: worker 0 tells a tiny actor, a thread of the driver shows it.

A bar on a terminal, one log line every 30 s elsewhere; both with the loss terms of the latest step. Every second the
thread also looks whether this driver still holds the lease of the work folder, for the driver waits inside Ray Train.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from tqdm import tqdm

from zsad.errors import CommitConflict, StorageError

if TYPE_CHECKING:
    from zsad.learn.plan import Plan

log = logging.getLogger(__name__)

LOG_EVERY_S = 30.0


@dataclass(slots=True, kw_only=True)
class Standing:
    """What the latest message said.

    Attributes:
        images: rows stored by this group.
        epoch: counted from 0.
        step: of `steps` in the epoch, counted from 1; 0 before the first.
        terms: loss terms of that step.
    """

    images: int = 0
    epoch: int = 0
    step: int = 0
    steps: int = 0
    terms: dict[str, float] = field(default_factory=dict)

    def line(self, plan: "Plan") -> str:
        """In words."""
        if not self.step:
            return f"{self.images:,} of {plan.num_images:,} images prepared"
        terms = " ".join(f"{name} {value:.3g}" for name, value in self.terms.items())
        return (
            f"epoch {self.epoch + 1} of {plan.config.num_epochs}, step {self.step} of {self.steps}: "
            f"loss {sum(self.terms.values()):.4g} ({terms})"
        )


@ray.remote(num_cpus=0)
class Board:
    """Keeps the latest news of one group of workers."""

    def __init__(self) -> None:
        self._standing = Standing()

    def stored(self, images: int) -> None:
        """Rows were written."""
        self._standing.images += images

    def stepped(self, epoch: int, step: int, steps: int, terms: dict[str, float]) -> None:
        """A step was taken."""
        self._standing = Standing(images=self._standing.images, epoch=epoch, step=step, steps=steps, terms=terms)

    def read(self) -> Standing:
        """The latest news."""
        return self._standing


@contextmanager
def shown(board: Any, plan: "Plan", check: Callable[[], None]) -> Iterator[None]:
    """Show the board while the body runs, which is interrupted as by Ctrl-C once `check` finds a lost lease.

    Args:
        board: of the group.
        plan: of the training.
        check: `Lease.check`.

    Raises:
        CommitConflict: another driver took over.
    """
    over = threading.Event()
    lost: list[CommitConflict] = []
    thread = threading.Thread(target=_show, args=(board, plan, partial(_find_lost, check, lost), over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if lost:
            raise lost[0]


def _find_lost(check: Callable[[], None], lost: list[CommitConflict]) -> bool:
    try:
        check()
    except CommitConflict as error:
        lost.append(error)
    except StorageError as error:  # who took over meanwhile is found as soon as storage answers
        log.debug("the lease can't be looked at: %s", error)
    return bool(lost)


def _show(board: Any, plan: "Plan", is_lost: Callable[[], bool], over: threading.Event) -> None:
    is_terminal = sys.stderr.isatty()
    last, logged = "", time.monotonic()
    with tqdm(total=plan.config.num_epochs, unit="epoch", disable=not is_terminal) as bar:
        while not over.wait(1.0):
            if is_lost():
                os.kill(os.getpid(), signal.SIGINT)
                return
            if not is_terminal and time.monotonic() - logged < LOG_EVERY_S:
                continue
            logged = time.monotonic()
            try:
                standing = ray.get(board.read.remote(), timeout=10)
            except ray.exceptions.RayError:  # busy, or lost with its node; the lease must be looked at all the same
                continue
            bar.n = standing.epoch + (standing.step / standing.steps if standing.step else 0)
            bar.set_description_str(standing.line(plan))
            if not is_terminal and standing.line(plan) != last:
                last = standing.line(plan)
                log.info(last)
