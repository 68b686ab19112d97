"""The engine over handles that fail on purpose; no Ray runs."""

import asyncio

import grpc
import numpy as np
import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from zsad.distributed import serving
from zsad.distributed.serving_engine import ServeEngine
from zsad.distributed.serving_replicas import Pixels, Scored, Stale
from zsad.errors import ConfigError, ErrorCode, ImageError
from zsad.finding import Finding
from zsad.http.engine import Description, DetectorKey, Upload
from zsad.http.problems import Problem
from zsad.images import Preprocess
from zsad.serve_config import ServeConfig

KEY = DetectorKey("nano")
SMALL, LARGE = Preprocess(size=32), Preprocess(size=64)


def described(preprocess: Preprocess = SMALL) -> Description:
    return Description(
        name="nano", backbone="nano", method="winclip", object_name="object", defect_words=("dent",), threshold=0.5,
        explains=False, config_hash="x", preprocess=preprocess,
    )  # fmt: skip


def found(score: float = 0.75) -> Finding:
    blank = np.zeros((1, 1), np.float32)
    return Finding(
        score=score, raw_score=1.0, threshold=1e-6, defect_type="dent", defect_scores={"dent": 1.0},
        anomaly_map=blank, raw_map=blank, regions=[], width=8, height=8,
    )  # fmt: skip


class Response:
    """What a handle's call gives: awaited, it returns, raises or waits for ever."""

    def __init__(self, outcome) -> None:
        self._outcome = outcome
        self.is_cancelled = False

    def __await__(self):
        return self._get().__await__()

    async def _get(self):
        if self._outcome is None:
            await asyncio.Event().wait()
        if isinstance(self._outcome, Exception) and not isinstance(self._outcome, ImageError | Problem):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        """Note it."""
        self.is_cancelled = True


class Method:
    """Gives the scripted outcomes one after another, the last for ever; notes arguments."""

    def __init__(self, *outcomes) -> None:
        self._outcomes = list(outcomes)
        self.calls, self.responses = [], []

    def remote(self, *arguments) -> Response:
        """As a handle's method."""
        self.calls.append(arguments)
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        self.responses.append(Response(outcome(*arguments) if callable(outcome) else outcome))
        return self.responses[-1]


class Handle:
    """A handle whose methods are given."""

    def __init__(self, **methods: Method) -> None:
        self.__dict__ |= methods
        self.wanted_ids = []

    def options(self, *, multiplexed_model_id: str) -> "Handle":
        """Notes which model is asked for."""
        self.wanted_ids.append(multiplexed_model_id)
        return self


def decode(image, preprocess) -> Pixels:
    side = preprocess.size
    return Pixels(np.zeros((side, side, 3), np.uint8), 8, 8, preprocess, 1.0)


def engine_of(*scores, describes=None, decodes=decode, config=None) -> tuple[ServeEngine, Handle, Handle]:
    decoders = Handle(decode=Method(decodes))
    scorers = Handle(describe=Method(*(describes or [described()])), score=Method(*scores))
    return ServeEngine(config or ServeConfig(), decoders, scorers), decoders, scorers


def inspect(engine, key=KEY, threshold=None):
    return asyncio.run(asyncio.wait_for(engine.inspect(Upload(b"x"), key, threshold), 10))


def test_an_image_is_decoded_for_its_detector_and_judged_at_the_asked_threshold():
    engine, decoders, _ = engine_of(Scored(found(), described(), 2.0))
    assert inspect(engine).finding.threshold == 0.5
    judged = inspect(engine, threshold=0.8)
    assert (judged.finding.is_anomaly, judged.finding.defect_type, judged.model_ms) == (False, None, 2.0)
    assert decoders.decode.calls[0] == (Upload(b"x"), SMALL)


def test_pixels_for_an_older_version_are_made_anew():
    engine, decoders, _ = engine_of(Stale(described(LARGE)), Scored(found(), described(LARGE), 2.0))
    assert inspect(engine).detector.preprocess == LARGE
    assert [preprocess for _, preprocess in decoders.decode.calls] == [SMALL, LARGE]


def test_scorers_that_disagree_about_the_input_are_asked_until_one_fits_and_each_input_is_decoded_once():
    disagreeing = [Stale(described(LARGE)), Stale(described(SMALL))] * 3
    engine, decoders, scorers = engine_of(*disagreeing, Scored(found(), described(SMALL), 2.0))
    assert inspect(engine).detector.preprocess == SMALL
    assert [preprocess for _, preprocess in decoders.decode.calls] == [SMALL, LARGE]
    assert [pixels.preprocess for _, pixels in scorers.score.calls] == [SMALL, LARGE] * 3 + [SMALL]


def test_a_detector_that_changes_all_the_time_is_asked_until_the_request_ends():
    engine, _, scorers = engine_of(Stale(described(LARGE)))
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(engine.inspect(Upload(b"x"), KEY, None), 0.2))
    assert len(scorers.score.calls) > 3


def broken_call() -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, nothing, nothing, "message too long")


@pytest.mark.parametrize("loss", [RayActorError(), broken_call()], ids=["died", "broken"])
def test_a_call_whose_replica_was_lost_is_made_once_more(loss):
    engine, _, scorers = engine_of(loss, Scored(found(), described(), 2.0))
    assert inspect(engine).finding.score == 0.75
    assert len(scorers.score.calls) == 2


@pytest.mark.parametrize("loss", [RayActorError(), broken_call()], ids=["died", "broken"])
def test_two_lost_replicas_are_enough(loss):
    engine, _, scorers = engine_of(loss)
    with pytest.raises(Problem) as caught:
        inspect(engine)
    assert (caught.value.status, len(scorers.score.calls)) == (503, 2)


@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        (BackPressureError(9, 8), 503, "unavailable"),
        (Problem("unavailable", "other detectors are being loaded"), 503, "unavailable"),
        (Scored(ImageError(ErrorCode.MODEL, "not a number"), described(), 1.0), 500, "model"),
    ],
    ids=["full", "problem", "model"],
)
def test_what_a_scorer_says_reaches_the_client(outcome, status, code):
    engine, _, _ = engine_of(outcome)
    with pytest.raises(Problem) as caught:
        inspect(engine)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_an_image_that_is_none_costs_no_scorer():
    engine, _, scorers = engine_of(None, decodes=lambda image, preprocess: ImageError(ErrorCode.TRUNCATED, "cut"))
    with pytest.raises(Problem) as caught:
        inspect(engine)
    assert caught.value.code == "truncated"
    assert scorers.score.calls == []


def test_a_request_that_ends_cancels_what_it_waits_for():
    engine, _, scorers = engine_of(None)

    async def scenario():
        task = asyncio.create_task(engine.inspect(Upload(b"x"), KEY, None))
        while not scorers.score.calls:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert scorers.score.responses[0].is_cancelled

    asyncio.run(scenario())


def test_other_detectors_than_the_default_are_routed_to_whoever_holds_them():
    engine, _, scorers = engine_of(Scored(found(), described(), 2.0))
    inspect(engine)
    assert scorers.wanted_ids == []
    inspect(engine, DetectorKey("nano", "metal nut"))
    assert set(scorers.wanted_ids) == {"nano"}  # never the object: what clients write would name series of metrics


def test_a_description_is_asked_for_once_while_it_is_fresh():
    engine, _, scorers = engine_of(Scored(found(), described(), 2.0))
    for _ in range(3):
        inspect(engine)
    assert len(scorers.describe.calls) == 1


def test_ready_means_that_a_scorer_answers_now():
    engine, _, _ = engine_of(None, describes=[RayActorError(), RayActorError(), described()])
    with pytest.raises(Problem):
        asyncio.run(engine.check_ready())
    asyncio.run(engine.check_ready())


def test_bodies_wait_in_the_ingress_when_the_decoders_have_enough():
    config = ServeConfig(num_decoders=2, decode_children=3)
    engine, decoders, _ = engine_of(None, decodes=None, config=config)

    async def scenario():
        tasks = [asyncio.create_task(engine.inspect(Upload(b"x"), KEY, None)) for _ in range(64)]
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(decoders.decode.calls) == 2 * (3 + 2)
        tasks[0].cancel()
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(decoders.decode.calls) == 2 * (3 + 2) + 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


@pytest.mark.parametrize("is_grpc", [True, False])
def test_messages_shorter_than_the_largest_body_are_refused_at_the_start(monkeypatch, is_grpc):
    mib = 2**20
    monkeypatch.setattr(serving.constants, "RAY_SERVE_USE_GRPC_BY_DEFAULT", is_grpc)
    monkeypatch.setattr(serving.constants, "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", 8 * mib)
    serving.check_message_limit(ServeConfig(max_body_bytes=4 * mib, max_batch_bytes=7 * mib))
    for too_much in ({"max_body_bytes": 8 * mib, "max_batch_bytes": mib}, {"max_batch_bytes": 64 * mib}):
        if not is_grpc:
            serving.check_message_limit(ServeConfig(**too_much))
            continue
        with pytest.raises(ConfigError, match="RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH is 8388608"):
            serving.build_graph(ServeConfig(**too_much), {}, {})
