"""One step shared by several workers is the step of one; two threads stand in for two processes here."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_model
import torch

from zsad.errors import ModelError
from zsad.learn.dapo import DAPOTrainer, DAPOTraining, TypedBatch
from zsad.learn.faprompt import WEIGHTS, Batch, FAPromptLearner, frozen_features, weighted
from zsad.learn.step import alone, bytes_exchanged, reduced_terms, take_step
from zsad.methods.dapo import DAPOConfig
from zsad.methods.faprompt import FAPromptConfig, PromptEncoder, initial_tensors

CONFIG = FAPromptConfig(num_prompts=3, num_selected=4)


class Line:
    """The simplest learner: one number w and the loss mean(w x) over a batch of numbers x."""

    names = ("mean",)

    def __init__(self):
        self.tensors = {"w": torch.tensor([2.0], requires_grad=True)}
        self.optimiser = torch.optim.SGD(self.tensors.values(), lr=0.5)

    def terms(self, batch, share):
        """The mean, as a share of a global batch."""
        return {"mean": share * (self.tensors["w"] * batch).mean()}


def summed_in_pairs():
    """A `reduce` for two threads: both vectors become their sum."""
    meet, vectors = threading.Barrier(2, timeout=60), {}

    def reduce(vector):
        vectors[threading.get_ident()] = vector.clone()
        meet.wait()
        total = sum(vectors[key] for key in sorted(vectors))
        meet.wait()
        vector.copy_(total)

    return reduce


def together(first, second):
    """Run two workers at once; returns what both gave."""
    with ThreadPoolExecutor(2) as pool:
        return [future.result(timeout=120) for future in (pool.submit(first), pool.submit(second))]


def test_step_by_hand():
    """The gradient is mean(x) = 3, the term w mean(x) = 6, and w goes from 2 to 2 - 0.5 * 3."""
    learner = Line()
    assert take_step(learner, torch.tensor([1.0, 5.0])) == {"mean": 6.0}
    assert learner.tensors["w"].item() == 0.5


def test_workers_with_unequal_parts_count_by_their_images():
    """Of x = 1, 5, 9 one worker has two, the other one: the mean is 5 for both, not (3 + 9) / 2."""
    reduce = summed_in_pairs()
    learners = Line(), Line()
    found = together(
        lambda: take_step(learners[0], torch.tensor([1.0, 5.0]), 2 / 3, reduce),
        lambda: take_step(learners[1], torch.tensor([9.0]), 1 / 3, reduce),
    )
    for terms, learner in zip(found, learners, strict=True):
        assert terms["mean"] == pytest.approx(10)
        assert learner.tensors["w"].item() == pytest.approx(2 - 0.5 * 5)


def test_a_worker_without_images_takes_the_same_step():
    reduce = summed_in_pairs()
    learners = Line(), Line()
    found = together(
        lambda: take_step(learners[0], torch.tensor([4.0]), 1.0, reduce),
        lambda: take_step(learners[1], None, 0.0, reduce),
    )
    assert found == [{"mean": 8.0}] * 2
    assert [learner.tensors["w"].item() for learner in learners] == [0.0, 0.0]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_changes_nothing(wrong):
    learner = Line()
    with pytest.raises(ModelError, match="loss terms mean are not finite"):
        take_step(learner, torch.tensor([wrong]))
    assert learner.tensors["w"].item() == 2.0


def test_one_workers_broken_loss_stops_both():
    reduce = summed_in_pairs()
    learners = Line(), Line()

    def stopped(learner, x):
        with pytest.raises(ModelError):
            take_step(learner, torch.tensor([x]), 0.5, reduce)
        return learner.tensors["w"].item()

    assert together(lambda: stopped(learners[0], float("nan")), lambda: stopped(learners[1], 1.0)) == [2.0, 2.0]


def test_validation_gives_terms_and_no_step():
    learner = Line()
    assert reduced_terms(learner, torch.tensor([3.0]), 1.0) == {"mean": 6.0}
    assert learner.tensors["w"].item() == 2.0
    assert learner.tensors["w"].grad is None


def test_bytes_are_four_a_number_and_term():
    assert bytes_exchanged(Line()) == 8


def test_only_the_prior_is_no_share():
    terms = {name: torch.tensor(1.0) for name in WEIGHTS}
    half = weighted(terms, 0.5)
    expected = {name: weight if name == "prior" else weight / 2 for name, weight in WEIGHTS.items()}
    assert {name: pytest.approx(float(term)) for name, term in half.items()} == expected


# The learners, over the tiny towers


@pytest.fixture(scope="module")
def images(tiny_backbone):
    """Features, masks and labels of seven images, four of them defective in their upper half."""
    image_BD, patches_BPD, grid = frozen_features(tiny_backbone, CONFIG, tiny_model.pixels(7, 32, 32))
    is_bad = torch.tensor([True, False, True, False, True, True, False])
    masks = torch.zeros(7, 32, 32, dtype=torch.bool)
    masks[is_bad, :16] = True
    return Batch(image_BD, patches_BPD, grid, masks, is_bad)


def some(images, rows):
    return Batch(
        images.image_BD[rows], images.patches_BPD[rows], images.grid, images.masks_BHW[rows], images.is_bad_B[rows]
    )


def faprompt(backbone):
    return FAPromptLearner.start(PromptEncoder(CONFIG, backbone), initial_tensors(CONFIG, backbone, 0))


def run(learner, parts, reduce):
    """Five epochs of four steps: batches of two, the last one of one image."""
    for _ in range(5):
        for batch, share in parts:
            take_step(learner, batch, share, reduce)
    return learner.tensors


def test_two_workers_learn_faprompt_as_one_does(tiny_backbone, images):
    """Twenty steps; in every fourth, of one image, the first worker has none."""
    whole = [(some(images, slice(start, start + 2)), 1.0) for start in (0, 2, 4, 6)]
    first = [(some(images, slice(start, start + 1)), 0.5) for start in (0, 2, 4)] + [(None, 0.0)]
    second = [(some(images, slice(start, start + 1)), 0.5) for start in (1, 3, 5)] + [(some(images, slice(6, 7)), 1.0)]
    expected = run(faprompt(tiny_backbone), whole, alone)
    reduce = summed_in_pairs()
    one, two = faprompt(tiny_backbone), faprompt(tiny_backbone)
    found = together(lambda: run(one, first, reduce), lambda: run(two, second, reduce))
    for name, tensor in expected.items():
        assert torch.equal(found[0][name], found[1][name])
        torch.testing.assert_close(found[0][name], tensor, atol=1e-4, rtol=0)


def test_two_workers_learn_dapo_as_one_does(tiny_backbone):
    pixels = tiny_model.pixels(3, 32, 32)
    types = torch.zeros(3, 32, 32, dtype=torch.long)
    types[1, 8:16, 8:16] = 1

    def new():
        return DAPOTrainer(DAPOConfig(num_groups=2), DAPOTraining(), tiny_backbone, ("scratch",), seed=0)

    def steps(learner, rows, share, reduce):
        for _ in range(5):
            take_step(learner, TypedBatch(pixels[rows], types[rows]), share, reduce)
        return learner.tensors

    expected = steps(new(), slice(0, 3), 1.0, alone)
    reduce = summed_in_pairs()
    one, two = new(), new()
    found = together(lambda: steps(one, slice(0, 2), 2 / 3, reduce), lambda: steps(two, slice(2, 3), 1 / 3, reduce))
    for name, tensor in expected.items():
        assert torch.equal(found[0][name], found[1][name])
        torch.testing.assert_close(found[0][name], tensor, atol=1e-4, rtol=0)
