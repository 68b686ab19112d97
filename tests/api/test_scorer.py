"""A scorer over detectors that cost nothing; no Ray runs."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from zsad.distributed.serving_replicas import Pixels, Scored, Scorer, Stale
from zsad.errors import ModelError, StorageError
from zsad.finding import Finding
from zsad.http.engine import Description, DetectorKey
from zsad.http.problems import Problem
from zsad.images import Preprocess
from zsad.serve_config import ServeConfig

KEY = DetectorKey("nano")
FIRST = Description(
    name="nano", backbone="nano", method="winclip", object_name="object", defect_words=("dent",), threshold=0.5,
    explains=False, config_hash="first", preprocess=Preprocess(size=32),
)  # fmt: skip
PIXELS = Pixels(np.full((32, 32, 3), 7, np.uint8), 8, 8, Preprocess(size=32), 1.0)


class Mean:
    """Scores an image by its mean."""

    def inspect_pixels(self, pixels_BSSC, sizes):
        """As a detector's."""
        blank = np.zeros((1, 1), np.float32)
        return [
            Finding(
                score=0.75, raw_score=float(pixels.mean()), threshold=1e-6, defect_type=None, defect_scores={},
                anomaly_map=blank, raw_map=blank, regions=[], width=8, height=8,
            )
            for pixels in pixels_BSSC
        ]  # fmt: skip


@dataclass
class Held:
    """As `zsad.http.loaded.Loaded`."""

    description: Description
    version: str
    detector: Mean = field(default_factory=Mean)


class Detectors:
    """One stored bundle that tests may replace; counts loads."""

    def __init__(self) -> None:
        self.stored = Held(FIRST, "1")
        self.failure = None
        self.held = {}
        self.num_loads = 0
        self.may_load = threading.Event()
        self.may_load.set()

    def load(self, key):
        """Read what is stored, or fail."""
        self.num_loads += 1
        assert self.may_load.wait(10)
        if self.failure:
            raise self.failure
        return replace(self.stored)

    def keep(self, key, loaded):
        """Hold it."""
        self.held[key] = loaded
        return []

    def get(self, key):
        """What is held."""
        return self.held.get(key)

    peek = get

    def names(self):
        """All that is held."""
        return list(self.held)

    def version(self, key):
        """Of what is stored."""
        return self.stored.version


@pytest.fixture
def hints(monkeypatch) -> list[str]:
    """What routers are told; Ray Serve's own method works in replicas only."""
    told = []

    async def hint(self, model_id):
        told.append(model_id)
        return model_id

    monkeypatch.setattr(Scorer, "_hint", hint)
    return told


def run(scenario, **settings):
    detectors = Detectors()

    async def main():
        scorer = Scorer(ServeConfig(**{"reload_s": 0.02} | settings), lambda config: detectors)
        await scenario(scorer, detectors)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_the_default_detector_is_loaded_before_anything_is_asked():
    async def scenario(scorer, detectors):
        assert detectors.num_loads == 1
        scored = await scorer.score(KEY, PIXELS)
        assert isinstance(scored, Scored)
        assert (scored.finding.raw_score, scored.description) == (7.0, FIRST)
        assert detectors.num_loads == 1

    run(scenario)


def test_a_newer_version_takes_over_while_requests_are_answered():
    async def scenario(scorer, detectors):
        detectors.stored = Held(replace(FIRST, config_hash="second"), "2")
        hashes = []
        while "second" not in hashes:
            hashes.append((await scorer.score(KEY, PIXELS)).description.config_hash)
            await asyncio.sleep(0.005)
        assert set(hashes) == {"first", "second"}

    run(scenario)


def test_a_broken_newer_version_is_looked_at_once_and_the_old_one_stays():
    async def scenario(scorer, detectors):
        detectors.stored, detectors.failure = Held(FIRST, "2"), ModelError("broken")
        await scorer.score(KEY, PIXELS)
        while detectors.num_loads < 2:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        assert detectors.num_loads == 2
        assert (await scorer.score(KEY, PIXELS)).description == FIRST
        detectors.stored, detectors.failure = Held(replace(FIRST, config_hash="third"), "3"), None
        while (await scorer.score(KEY, PIXELS)).description.config_hash != "third":
            await asyncio.sleep(0.005)

    run(scenario)


def test_a_failure_of_storage_is_tried_again():
    async def scenario(scorer, detectors):
        detectors.stored, detectors.failure = Held(FIRST, "2"), StorageError("down", retryable=True)
        await scorer.score(KEY, PIXELS)
        while detectors.num_loads < 4:
            await asyncio.sleep(0.005)

    run(scenario)


def test_pixels_for_another_input_are_stale():
    async def scenario(scorer, detectors):
        other = replace(PIXELS, preprocess=Preprocess(size=32, interpolation="bilinear"))
        assert await scorer.score(KEY, other) == Stale(FIRST)

    run(scenario)


def test_a_version_that_changes_the_input_while_images_wait_sends_them_back():
    async def scenario(scorer, detectors):
        larger = replace(FIRST, preprocess=Preprocess(size=64))
        waiting = asyncio.create_task(scorer.score(KEY, PIXELS))
        await asyncio.sleep(0.01)
        detectors.held[KEY] = Held(larger, "1")
        assert await waiting == Stale(larger)

    run(scenario, batch_wait_ms=100)


@pytest.mark.parametrize(
    ("failure", "code"),
    [(ModelError("x"), "no_detector"), (StorageError("x"), "unavailable")],
    ids=["model", "storage"],
)
def test_a_detector_that_was_forgotten_and_can_not_be_loaded_again_is_a_problem(failure, code, hints):
    async def scenario(scorer, detectors):
        detectors.held.clear()
        detectors.failure = failure
        outcome = await scorer.score(KEY, PIXELS)
        assert isinstance(outcome, Problem)
        assert outcome.code == code
        assert hints == []

    run(scenario)


def named(number: int) -> DetectorKey:
    return DetectorKey("nano", f"object {number}")


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_all_images_that_name_a_new_object_wait_for_one_load(hints):
    async def scenario(scorer, detectors):
        outcomes = await asyncio.gather(*(scorer.score(named(1), PIXELS) for _ in range(32)))
        assert all(isinstance(outcome, Scored) for outcome in outcomes)
        assert detectors.num_loads == 2  # the default's and this one

    run(scenario)


def test_a_fifth_detector_is_refused_while_four_are_loaded(hints):
    async def scenario(scorer, detectors):
        detectors.may_load.clear()
        waiting = [asyncio.create_task(scorer.score(named(number), PIXELS)) for number in (1, 2, 3, 4, 1, 2)]
        await until(lambda: detectors.num_loads == 2)
        refused = await scorer.score(named(5), PIXELS)
        assert isinstance(refused, Problem)
        assert (refused.code, refused.retry_after_s) == ("unavailable", 5)
        assert isinstance(await scorer.score(KEY, PIXELS), Scored)  # what is loaded answers meanwhile
        detectors.may_load.set()
        assert all(isinstance(outcome, Scored) for outcome in await asyncio.gather(*waiting))
        assert isinstance(await scorer.score(named(5), PIXELS), Scored)

    run(scenario)


def test_a_load_that_nobody_waits_for_any_more_is_kept(hints):
    async def scenario(scorer, detectors):
        detectors.may_load.clear()
        left = asyncio.create_task(scorer.score(named(1), PIXELS))
        await until(lambda: detectors.num_loads == 2)
        left.cancel()
        detectors.may_load.set()
        await until(lambda: named(1) in detectors.names())
        assert isinstance(await scorer.score(named(1), PIXELS), Scored)
        assert detectors.num_loads == 2

    run(scenario)


def test_loads_that_hang_hold_up_neither_scoring_nor_storage(hints):
    async def scenario(scorer, detectors):
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        detectors.may_load.clear()
        waiting = asyncio.create_task(scorer.score(named(1), PIXELS))
        await until(lambda: detectors.num_loads == 2)
        assert isinstance(await asyncio.wait_for(scorer.score(KEY, PIXELS), 5), Scored)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "read"), 5) == "read"
        detectors.may_load.set()
        await waiting

    run(scenario)


def test_routers_are_told_a_detectors_name_and_never_a_clients_word(hints):
    async def scenario(scorer, detectors):
        await scorer.score(named(1), PIXELS)
        await scorer.score(named(2), PIXELS)
        assert hints == ["nano", "nano"]

    run(scenario)
