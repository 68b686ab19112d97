"""Requests that arrive one by one -> batches for a model that runs one batch at a time.

A batch is closed when the model is free, not before: while one runs, the next one fills. Ray Serve's own `@serve.batch`
closes each after its wait time even when the model is busy, so that many small ones queue up behind it; with a model
whose cost does not depend on how full its batch is, that costs most of the throughput. An idle model waits
`wait_s` for company. One queue per group (detector); the group whose first request waits longest goes next. A request
whose caller has gone is dropped before it costs model time.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    size: int
    since_s: float
    answer: "asyncio.Future[Result]"


class Batcher(Generic[Item, Result]):
    """Collects items of one event loop and calls `run(group, items)`, one call at a time.

    Args:
        run: gives one result per item, in order; what it raises goes to every item of the batch.
        max_items: of one batch.
        max_size: sum of sizes of one batch, whatever unit; a larger single item goes alone.
        wait_s: how long an idle model waits for a batch to fill.
    """

    def __init__(
        self,
        run: Callable[[Hashable, list[Item]], Awaitable[list[Result]]],
        *,
        max_items: int,
        max_size: int,
        wait_s: float,
    ) -> None:
        self._run = run
        self._max_items, self._max_size, self._wait_s = max_items, max_size, wait_s
        self._groups: OrderedDict[Hashable, deque[_Waiting[Item, Result]]] = OrderedDict()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, group: Hashable, item: Item, *, size: int = 1) -> Result:
        """The result of `item`, once a batch with it has run."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        queue = self._groups.setdefault(group, deque())
        queue.append(_Waiting(item, size, time.monotonic(), answer))
        self._arrived.set()
        return await answer

    async def _work(self) -> None:
        is_idle = True
        while True:
            if not self._groups:
                self._arrived.clear()
                await self._arrived.wait()
                is_idle = True
            group = min(self._groups, key=lambda name: self._groups[name][0].since_s)
            if is_idle:
                await self._fill(group)
            batch = self._take(group)
            is_idle = False
            if batch:
                await self._answer(group, batch)

    async def _fill(self, group: Hashable) -> None:
        """Wait until a batch of `group` is full or the wait time is over."""
        deadline_s = self._groups[group][0].since_s + self._wait_s
        while len(self._groups[group]) < self._max_items and (left_s := deadline_s - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left_s)
            except TimeoutError:
                return

    def _take(self, group: Hashable) -> list[_Waiting[Item, Result]]:
        """The next batch of `group`, without what nobody waits for any more."""
        queue, size = self._groups[group], 0
        batch: list[_Waiting[Item, Result]] = []
        while queue and len(batch) < self._max_items:
            if queue[0].answer.done():
                queue.popleft()
                continue
            if batch and size + queue[0].size > self._max_size:
                break
            batch.append(queue.popleft())
            size += batch[-1].size
        if not queue:
            del self._groups[group]
        return batch

    async def _answer(self, group: Hashable, batch: list[_Waiting[Item, Result]]) -> None:
        try:
            results = await self._run(group, [waiting.item for waiting in batch])
        except Exception as error:  # noqa: BLE001 - handed to every caller, who sees it raised
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(result)
