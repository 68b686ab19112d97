"""Language models in Ray actors: what a dead, hanging or babbling one costs, with an engine that does so on purpose."""

import dataclasses
import time
from functools import partial

import pytest
import ray
from scripted_engine import FAULTY_TEXTS, ScriptedEngine

from zsad.distributed.prompt_writer import ActorConfig, ActorWriter, Tally, vllm_writer
from zsad.errors import ConfigError, ModelError
from zsad.prompts.writers.base import WriteRequest

pytestmark = pytest.mark.ray

CONFIG = ActorConfig(num_cpus=0, max_in_flight=8, timeout_s=60)


def writer_for(starts=None, **changes):
    return ActorWriter(
        partial(ScriptedEngine, starts),
        name="scripted",
        model="scripted",
        revision="1",
        config=dataclasses.replace(CONFIG, **changes),
        variables={},
    )


def written(writer, *products):
    requests = [WriteRequest(product=product, num_pairs=4) for product in products]
    with writer:
        drafts = list(writer.write(requests))
    assert [draft.request for draft in drafts] == requests
    return drafts


def test_drafts_come_in_the_order_of_the_requests_each_with_its_own_scored_phrases(local_ray):
    products = [f"part {i}" for i in range(50)]
    drafts = written(writer_for(), *products)
    for product, draft in zip(products, drafts, strict=True):
        assert draft.failure is None
        assert [(p.text, p.side, p.log_prob) for p in draft.phrases] == [
            (text, side, -float(len(text) + 1))  # the scripted score: minus the characters after the words before
            for text, side in (
                (f"a smooth edge of {product}", "normal"),
                (f"a chipped edge of {product}", "abnormal"),
                (f"a clean face of {product}", "normal"),
                (f"a scratched face of {product}", "abnormal"),
            )
        ]


def test_a_model_is_loaded_once_for_all_calls_and_never_when_there_is_nothing_to_write(local_ray, tmp_path):
    starts = tmp_path / "starts"
    with writer_for(starts) as writer:
        assert list(writer.write([])) == []
        assert not starts.exists()
        for _ in range(3):
            assert len(list(writer.write([WriteRequest(product=f"part {i}") for i in range(40)]))) == 40
        assert len(starts.read_text().splitlines()) == writer.tally.loads == 1
        assert writer.tally.products == 120


@pytest.mark.parametrize("fault", FAULTY_TEXTS)
def test_an_answer_that_is_none_costs_its_product_and_no_restart(shared_writer, fault):
    drafts = list(shared_writer.write([WriteRequest(product=p, num_pairs=4) for p in ("cap", fault, "lid")]))
    assert [draft.failure is None for draft in drafts] == [True, False, True]
    assert drafts[1].phrases == ()
    assert drafts[1].failure.startswith(("the answer", "pair 1"))
    assert len(drafts[1].failure) < 200
    assert shared_writer.tally.loads == 1


@pytest.fixture(scope="module")
def shared_writer(local_ray):
    with writer_for() as writer:
        yield writer


def test_the_tally_tells_rate_steps_and_share_of_slots():
    tally = Tally(loads=2, products=1_500, steps=4_000, slots_used=190, slots=200, tokens=9_000, seconds=100.0)
    assert tally.told() == (
        "1,500 products by the language model in 100 s, 15.00 products/s; models loaded: 2; "
        "4,000 engine steps with 95% of the slots in use; 9,000 tokens written"
    )
    assert "0.00 products/s" in Tally().told()


def test_the_time_of_writing_is_counted_and_that_between_calls_is_not(local_ray):
    with writer_for() as writer:
        start = time.monotonic()
        list(writer.write([WriteRequest(product="cap")]))
        once = writer.tally.seconds
        assert 0 < once <= time.monotonic() - start
        time.sleep(2)
        list(writer.write([WriteRequest(product="lid")]))
        assert once < writer.tally.seconds < time.monotonic() - start - 2


def test_products_of_a_process_that_died_are_written_after_its_restart(local_ray, tmp_path):
    starts, marker = tmp_path / "starts", tmp_path / "died"
    drafts = written(writer_for(starts), *[f"part {i}" for i in range(20)], f"kills once {marker}", "last")
    assert marker.exists()
    assert len(starts.read_text().splitlines()) == 2
    assert [draft.failure for draft in drafts] == 22 * [None]


def test_products_that_break_their_model_twice_are_given_up_and_their_neighbours_are_not(local_ray):
    products = ["cap", "kills", "lid", "hangs", "raises", *[f"part {i}" for i in range(20)]]
    drafts = written(writer_for(max_restarts=4, timeout_s=5), *products)
    assert {product: draft.failure for product, draft in zip(products, drafts, strict=True) if draft.failure} == {
        "kills": "the language model's process ended, or its machine can't be reached",
        "hangs": "the language model gave nothing for 5 s",
        "raises": "the language model raised RuntimeError: no memory left on the device",
    }


def test_when_restarts_are_used_up_every_product_that_is_left_says_so(local_ray):
    drafts = written(writer_for(max_restarts=0), "cap", "kills", *[f"part {i}" for i in range(30)])
    assert all("no language model is left" in draft.failure for draft in drafts[2:])
    assert "process ended" in drafts[-1].failure


def test_another_actor_goes_on_where_one_is_lost(local_ray):
    drafts = written(writer_for(max_restarts=1, num_actors=2), *[f"part {i}" for i in range(10)], "kills", *["end"] * 1)
    assert [i for i, draft in enumerate(drafts) if draft.failure] == [10]


def test_a_model_that_does_not_load_gives_failures_within_the_time_for_a_start(local_ray):
    def broken():
        raise OSError("no such model")

    writer = ActorWriter(broken, name="x", model="x", revision="1", config=CONFIG, variables={})
    drafts = written(writer, "cap", "lid")
    assert all("did not load: OSError: no such model" in draft.failure for draft in drafts)


def test_an_actor_that_can_not_be_placed_gives_failures_after_the_time_for_a_start(local_ray):
    drafts = written(writer_for(resources={"no such resource": 1}, start_timeout_s=2), "cap")
    assert "gave nothing for 2 s" in drafts[0].failure


def test_a_caller_that_leaves_early_ends_the_actors(local_ray):
    writer = writer_for()
    drafts = writer.write([WriteRequest(product=f"part {i}") for i in range(60)])
    next(drafts)
    actor = writer._lanes[0].actor
    drafts.close()
    with pytest.raises(ray.exceptions.RayActorError):
        _until_dead(actor)
    assert [d.failure for d in writer.write([WriteRequest(product="cap", num_pairs=4)])] == [None]
    writer.close()


def _until_dead(actor):
    for _ in range(100):
        ray.get(actor.advance.remote([(0, WriteRequest(product="cap", num_pairs=4))]))
        time.sleep(0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"num_actors": 0}, {"max_in_flight": 0}, {"max_restarts": -1}, {"timeout_s": 0}, {"num_cpus": -1}],
)
def test_values_that_can_not_be_used_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(CONFIG, **wrong)


def test_a_writer_over_a_folder_is_named_by_it_and_by_its_hash_before_any_model_is_loaded(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    writer = vllm_writer(str(tmp_path))
    assert (writer.name, writer.model, len(writer.revision)) == ("vllm", tmp_path.name, 64)
    assert vllm_writer(str(tmp_path), revision="mine").revision == "mine"


def test_a_model_that_is_no_folder_here_needs_a_revision():
    assert vllm_writer("someone/model", revision="abc").model == "someone/model"
    with pytest.raises(ModelError, match="state its revision"):
        vllm_writer("someone/model")
