"""How far a training is: worker 0 tells a tiny actor, a thread of the driver shows it.

A bar on a terminal, one log line every 30 s elsewhere; both with the loss terms of the latest step.
"""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from tqdm import tqdm

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
def shown(board: Any, plan: "Plan") -> Iterator[None]:
    """Show the board while the body runs."""
    over = threading.Event()
    thread = threading.Thread(target=_show, args=(board, plan, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _show(board: Any, plan: "Plan", over: threading.Event) -> None:
    is_terminal = sys.stderr.isatty()
    last = ""
    with tqdm(total=plan.config.num_epochs, unit="epoch", disable=not is_terminal) as bar:
        while not over.wait(1.0 if is_terminal else LOG_EVERY_S):
            try:
                standing = ray.get(board.read.remote(), timeout=10)
            except ray.exceptions.RayError:
                return
            bar.n = standing.epoch + (standing.step / standing.steps if standing.step else 0)
            bar.set_description_str(standing.line(plan))
            if not is_terminal and standing.line(plan) != last:
                last = standing.line(plan)
                log.info(last)
