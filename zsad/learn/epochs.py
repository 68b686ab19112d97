"""The epochs of a training, as one of several workers runs them: plain torch, whoever started the workers.

All workers hold the same tensors and know the whole order; each reads its part of every global batch, and `reduce`
makes their step one. So the number of workers may change between two epochs without changing what is learned. After
each epoch worker 0 stores a checkpoint, from which any group of workers goes on.

Rows of the next batch are read while the present one is computed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zsad.errors import ConfigError, TooManyBadImages
from zsad.learn import checkpoints
from zsad.learn.checkpoints import EpochRecord, State
from zsad.learn.examples import Example, Fact, Shards
from zsad.learn.order import Schedule, batches, epoch_order, held_out, part_of
from zsad.learn.recipes import Recipe
from zsad.learn.step import Reduce, alone, reduced_terms, take_step
from zsad.storage import Store

_READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One of the group; the default is a group of one."""

    rank: int = 0
    num_workers: int = 1
    reduce: Reduce = alone


@dataclass(frozen=True, slots=True)
class Rows:
    """Usable rows, those to learn from and those to validate on, in the order of the list."""

    learned: list[Fact]
    validated: list[Fact]


OnStep = Callable[[int, int, dict[str, float]], None]
"""Told epoch, step and loss terms."""
OnEpoch = Callable[[State], None]
"""Told the state after an epoch."""


def usable_rows(facts: Sequence[Fact], schedule: Schedule, max_error_share: float) -> Rows:
    """The rows of a training.

    Raises:
        TooManyBadImages: if a larger share than allowed can't be used.
        ConfigError: if those left have one label only.
    """
    broken = [fact for fact in facts if fact.error]
    if len(broken) > max_error_share * len(facts):
        named = "; ".join(f"{fact.uri}: {fact.error}" for fact in broken[:3])
        raise TooManyBadImages(
            f"{len(broken):,} of {len(facts):,} images can't be learned from; the limit is {max_error_share:.1%} "
            f"(--max-error-share): {named}"
        )
    whole = [fact for fact in facts if not fact.error]
    check_labels([fact.label for fact in whole])
    labels = [fact.label for fact in whole]
    is_kept = held_out([fact.key for fact in whole], labels, schedule.validation, schedule.seed)
    return Rows(
        [fact for fact, kept in zip(whole, is_kept, strict=True) if not kept],
        [fact for fact, kept in zip(whole, is_kept, strict=True) if kept],
    )


def check_labels(labels: Sequence[int]) -> None:
    """Refuse data that can't teach a difference.

    Raises:
        ConfigError: if there are no normal or no anomalous images.
    """
    for label, name in ((0, "normal"), (1, "anomalous")):
        if label not in labels:
            raise ConfigError(
                f"there are no {name} images among the {len(labels):,} to learn from; this method learns from both "
                "kinds: choose another split or more products"
            )


def train(  # noqa: PLR0913 - all that a training depends on
    recipe: Recipe,
    rows: Rows,
    shards: Shards,
    store: Store,
    schedule: Schedule,
    *,
    state: State,
    worker: Worker,
    on_step: OnStep,
    on_epoch: OnEpoch,
) -> State:
    """Run the epochs that `state` lacks.

    Args:
        recipe: its learner stands at `state`.
        rows: the same on all workers.
        shards: where their data is.
        store: for checkpoints.
        schedule: how long.
        state: what is done.
        worker: who this is.
        on_step: called by worker 0 after every step.
        on_epoch: called by every worker after an epoch; worker 0 has stored its checkpoint by then.

    Raises:
        ModelError: if a loss is not finite.
        StorageError: if rows can't be read or a checkpoint can't be written.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        for epoch in range(state.epochs, schedule.epochs):
            record = _epoch(recipe, rows, shards, schedule, epoch, worker=worker, pool=pool, on_step=on_step)
            state = State(epochs=epoch + 1, history=(*state.history, record))
            if worker.rank == 0:
                checkpoints.save(store, recipe.learner, state)
            on_epoch(state)
    return state


def _epoch(
    recipe: Recipe,
    rows: Rows,
    shards: Shards,
    schedule: Schedule,
    epoch: int,
    *,
    worker: Worker,
    pool: ThreadPoolExecutor,
    on_step: OnStep,
) -> EpochRecord:
    started = time.monotonic()
    order = epoch_order(schedule.seed, epoch, len(rows.learned))
    steps: list[dict[str, float]] = []
    for part, share in _parts(rows.learned, order, schedule.batch_size, shards, worker, pool):
        batch = recipe.batch(part) if part else None
        steps.append(take_step(recipe.learner, batch, share, worker.reduce))
        if worker.rank == 0:
            on_step(epoch, len(steps), steps[-1])
    return EpochRecord(
        epoch=epoch,
        steps=steps,
        validation=_validated(recipe, rows.validated, shards, schedule, worker, pool),
        seconds=time.monotonic() - started,
    )


def _validated(
    recipe: Recipe, facts: list[Fact], shards: Shards, schedule: Schedule, worker: Worker, pool: ThreadPoolExecutor
) -> dict[str, float]:
    """Mean loss terms over `facts`, each global batch counting by its images."""
    sums: dict[str, float] = {}
    order = np.arange(len(facts), dtype=np.int64)
    sizes = (len(batch) for batch in batches(order, schedule.batch_size))
    for size, (part, share) in zip(sizes, _parts(facts, order, schedule.batch_size, shards, worker, pool), strict=True):
        batch = recipe.batch(part) if part else None
        for name, value in reduced_terms(recipe.learner, batch, share, worker.reduce).items():
            sums[name] = sums.get(name, 0.0) + value * size / len(facts)
    return sums


def _parts(
    facts: list[Fact],
    order: NDArray[np.int64],
    batch_size: int,
    shards: Shards,
    worker: Worker,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[list[Example], float]]:
    """This worker's examples of each global batch and their share of it; the next ones are being read meanwhile."""

    def reading(batch: NDArray[np.int64]) -> tuple[list[Future[Example]], float]:
        mine = part_of(batch, worker.rank, worker.num_workers)
        return [pool.submit(shards.read, facts[place]) for place in mine], len(mine) / len(batch)

    waiting: tuple[list[Future[Example]], float] | None = None
    for batch in batches(order, batch_size):
        coming = reading(batch)
        if waiting is not None:
            yield [future.result() for future in waiting[0]], waiting[1]
        waiting = coming
    if waiting is not None:
        yield [future.result() for future in waiting[0]], waiting[1]


def learned_tensors(store: Store, state: State, keep: str) -> tuple[int, dict[str, torch.Tensor]]:
    """The epoch to ship, counted from 1, and its tensors: that of the least validation loss ("best") or the "last"."""
    epoch = state.best if keep == "best" else state.epochs - 1
    return epoch + 1, checkpoints.learned_at(store, epoch)
