import asyncio

import pytest

from zsad.http.batcher import Batcher


class Model:
    """Doubles numbers; notes its batches, and runs one only when it is let."""

    def __init__(self, *, is_free: bool = True) -> None:
        self.batches = []
        self.free = asyncio.Event()
        if is_free:
            self.free.set()

    async def run(self, group, items):
        """What the batcher calls."""
        self.batches.append((group, list(items)))
        await self.free.wait()
        if "bug" in items:
            raise ValueError("bug")
        return [2 * item for item in items]

    def batcher(self, **settings):
        """A batcher in front of this model."""
        return Batcher(self.run, **{"max_items": 4, "max_size": 1000, "wait_s": 0.0} | settings)


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_every_item_gets_its_own_result():
    async def scenario():
        batcher = Model().batcher()
        assert await asyncio.gather(*(batcher.submit("a", n) for n in range(10))) == [2 * n for n in range(10)]

    run(scenario)


def test_while_the_model_is_busy_the_next_batch_fills():
    async def scenario():
        model = Model(is_free=False)
        batcher = model.batcher()
        first = asyncio.create_task(batcher.submit("a", 0))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(batcher.submit("a", n)) for n in range(1, 7)]
        await asyncio.sleep(0.01)
        model.free.set()
        await asyncio.gather(first, *others)
        assert model.batches == [("a", [0]), ("a", [1, 2, 3, 4]), ("a", [5, 6])]

    run(scenario)


def test_an_idle_model_waits_for_a_batch_to_fill_and_no_longer_than_that():
    async def scenario():
        model = Model()
        batcher = model.batcher(wait_s=10)  # far beyond this test's own limit of 20 s for two of them
        for number in range(4):
            task = asyncio.create_task(batcher.submit("a", number))
            await asyncio.sleep(0.01)
        await task
        assert model.batches == [("a", [0, 1, 2, 3])]

    run(scenario)


def test_an_idle_model_does_not_wait_for_ever():
    async def scenario():
        model = Model()
        assert await model.batcher(wait_s=0.01).submit("a", 1) == 2

    run(scenario)


def test_a_batch_holds_one_group_and_the_longest_waiting_group_goes_first():
    async def scenario():
        model = Model(is_free=False)
        batcher = model.batcher()
        tasks = [asyncio.create_task(batcher.submit("a", 0))]
        await asyncio.sleep(0.01)
        for group, item in (("b", 1), ("a", 2), ("b", 3)):
            tasks.append(asyncio.create_task(batcher.submit(group, item)))
            await asyncio.sleep(0.01)
        model.free.set()
        await asyncio.gather(*tasks)
        assert model.batches == [("a", [0]), ("b", [1, 3]), ("a", [2])]

    run(scenario)


def test_a_batch_is_bounded_in_bytes_and_a_larger_item_goes_alone():
    async def scenario():
        model = Model(is_free=False)
        batcher = model.batcher(max_size=10)
        tasks = [asyncio.create_task(batcher.submit("a", 0, size=1))]
        await asyncio.sleep(0.01)
        tasks += [
            asyncio.create_task(batcher.submit("a", n, size=size)) for n, size in ((1, 6), (2, 4), (3, 1), (4, 99))
        ]
        await asyncio.sleep(0.01)
        model.free.set()
        await asyncio.gather(*tasks)
        assert [items for _, items in model.batches] == [[0], [1, 2], [3], [4]]

    run(scenario)


def test_the_model_does_nothing_for_callers_that_left():
    async def scenario():
        model = Model(is_free=False)
        batcher = model.batcher()
        first = asyncio.create_task(batcher.submit("a", 0))
        await asyncio.sleep(0.01)
        gone = [asyncio.create_task(batcher.submit("a", n)) for n in (1, 2)]
        stays = asyncio.create_task(batcher.submit("a", 3))
        only = asyncio.create_task(batcher.submit("b", 4))
        await asyncio.sleep(0.01)
        for task in (*gone, only):
            task.cancel()
        await asyncio.sleep(0)
        model.free.set()
        assert await asyncio.gather(first, stays) == [0, 6]
        assert await batcher.submit("a", 5) == 10
        assert [items for _, items in model.batches] == [[0], [3], [5]]

    run(scenario)


def test_a_failed_batch_fails_its_items_and_no_others():
    async def scenario():
        batcher = Model().batcher(max_items=1)
        with pytest.raises(ValueError, match="bug"):
            await batcher.submit("a", "bug")
        assert await batcher.submit("a", 1) == 2

    run(scenario)
