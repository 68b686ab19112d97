"""DAPO's losses by hand, and its step over tiny towers."""

import math

import pytest
import tiny_model
import torch

from zsad.errors import ConfigError
from zsad.learn import dapo as module
from zsad.learn.dapo import DAPOTrainer, DAPOTraining, TypedBatch, level_loss, losses_of, shrink_types
from zsad.methods import DAPO
from zsad.methods.base import Subject
from zsad.methods.dapo import DAPOConfig, encode_classes, encode_pixels

WORDS = ("scratch", "hole")
CONFIG = DAPOConfig(num_groups=2)


@pytest.fixture
def batch():
    """Two normal images, and the same with a bright square, once a scratch and once a hole."""
    images = tiny_model.pixels(2, 32, 32).repeat(2, 1, 1, 1) // 4
    types = torch.zeros(4, 32, 32, dtype=torch.long)
    types[2, 8:16, 16:24] = 1
    types[3, 16:24, 8:16] = 2
    images[types == 1] = torch.tensor([255, 255, 255], dtype=torch.uint8)
    images[types == 2] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    return TypedBatch(images, types)


def trainer(backbone, config=CONFIG, words=WORDS, seed=0, **training):
    return DAPOTrainer(config, DAPOTraining(**training), backbone, words, seed=seed)


def terms_of(tested, batch):
    return losses_of(tested.config, tested.training, tested.backbone, tested.tensors, tested.words, batch)


def test_image_loss_by_hand(tiny_backbone, batch, monkeypatch):
    """Every image is abnormal by odds of 3: -ln 3/4 for the two that are, -ln 1/4 for the two that are not."""
    margin = 0.07 * math.log(3)
    directions = torch.eye(32)[:3]
    image = torch.zeros(4, 32)
    image[:, 1] = image[:, 2] = margin / math.sqrt(2)  # the mean defect lies between axes 1 and 2
    monkeypatch.setattr(module, "encode_classes", lambda *_a, **_k: directions)
    monkeypatch.setattr(module, "encode_pixels", lambda *_a, **_k: (image, [], (4, 4)))
    found = terms_of(trainer(tiny_backbone), batch)
    assert found.keys() == {"image"}
    assert found["image"].item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2, rel=1e-5)


def test_level_loss_is_focal_and_two_dices_of_the_upsampled_shares():
    """Two patches side by side, all normal and all second word; aligned corners put quarters between five pixels."""
    patches = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    types = torch.tensor([[[0, 0, 2, 2, 2]]])
    found = level_loss(patches, torch.eye(3), types, (1, 2), 0.01)
    focal = (2 * 0.25**2 * math.log(4 / 3) + 0.5**2 * math.log(2)) / 5  # true shares 1, 3/4, 1/2, 3/4, 1
    normal = 1 - (2 * 1.75 + 1) / (2.5 + 2 + 1)
    defect = 1 - (2 * 2.25 + 1) / (2.5 + 3 + 1)
    assert found.item() == pytest.approx(focal + normal + defect, abs=1e-4)


def test_a_type_taken_for_another_costs_focal_loss_only():
    directions, types = torch.eye(3), torch.tensor([[[0, 2]]])
    right, wrong = (level_loss(torch.eye(3)[[0, word]][None], directions, types, (1, 2), 0.01) for word in (2, 1))
    assert right.item() == pytest.approx(0, abs=1e-6)
    p = 1.5e-5
    assert wrong.item() == pytest.approx(-((1 - p) ** 2) * math.log(p) / 2, rel=1e-3)


def test_pixel_terms_weigh_four_times_a_level(tiny_backbone, batch):
    tested = trainer(tiny_backbone, loss_scale=1.0)
    found = terms_of(tested, batch)
    assert list(found) == ["image", "level_0", "level_1", "level_2", "level_3"]
    directions = encode_classes(CONFIG, tiny_backbone, tested.tensors, WORDS)
    _, patches, grid = encode_pixels(CONFIG, tiny_backbone, tested.tensors, batch.pixels_BHWC)
    for number, patches_BPD in enumerate(patches):
        expected = 4 * level_loss(patches_BPD, directions, batch.types_BHW, grid, 0.07)
        torch.testing.assert_close(found[f"level_{number}"], expected)


def test_types_shrink_without_losing_thin_defects():
    types = torch.zeros(1, 4, 6, dtype=torch.long)
    types[0, 0, 0], types[0, 0, 1], types[0, 3, 5] = 1, 3, 2
    assert shrink_types(types, 0.5).tolist() == [[[3, 0, 0], [0, 0, 2]]]
    assert torch.equal(shrink_types(types, 1.0), types)
    assert shrink_types(types, 0.01).tolist() == [[[3]]]


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_few_steps_reduce_the_loss_and_leave_clip_alone(batch, quick_gelu):
    backbone = tiny_model.backbone_of(tiny_model.random_model(tiny_model.model_cfg(quick_gelu=quick_gelu)))
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    tested = trainer(backbone)
    start = tested.learned()
    totals = [sum(tested.step(batch).values()) for _ in range(12)]
    assert totals[-1] < 0.8 * totals[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    assert all(not torch.equal(start[name], tensor) for name, tensor in tested.learned().items())


def test_what_was_learned_finds_and_names_the_defects(tiny_backbone, batch):
    """Overfitted on four images, the method's map peaks in the defect, and the word there is the right one."""
    tested = trainer(tiny_backbone, learning_rate=5e-3)
    for _ in range(40):
        tested.step(batch)
    learned = DAPO(CONFIG, tiny_backbone, Subject(defect_words=WORDS), tested.learned())
    found = learned.predict(batch.pixels_BHWC)
    assert found.map_Bhw[2].argmax() == 1 * 4 + 2
    assert found.map_Bhw[3].argmax() == 2 * 4 + 1
    assert found.type_map_BKhw[2, :, 1, 2].argmax() == 0
    assert found.type_map_BKhw[3, :, 2, 1].argmax() == 1
    assert found.score_B[2:].min() > found.score_B[:2].max()


def test_every_learned_number_gets_a_gradient(tiny_backbone, batch):
    """All tokens of all blocks, all vectors, all adapters."""
    tested = trainer(tiny_backbone)
    torch.stack(list(terms_of(tested, batch).values())).sum().backward()
    for name, tensor in tested.tensors.items():
        rows = tensor.grad.flatten(0, -2) if tensor.ndim > 1 else tensor.grad
        assert rows.abs().amax(dim=-1).min() > 0, name


def test_checkpointing_changes_neither_losses_nor_gradients(tiny_backbone, batch):
    found = []
    for checkpointing in (False, True):
        tested = trainer(tiny_backbone, checkpointing=checkpointing)
        terms = terms_of(tested, batch)
        torch.stack(list(terms.values())).sum().backward()
        found.append((terms, {name: tensor.grad for name, tensor in tested.tensors.items()}))
    for plain, again in zip(*found, strict=True):
        for name, tensor in plain.items():
            torch.testing.assert_close(again[name], tensor, atol=1e-6, rtol=1e-4)


def test_the_published_text_path_trains_too(tiny_backbone, batch):
    tested = trainer(tiny_backbone, config=DAPOConfig(num_groups=1, compat="published"))
    first, *_, last = [sum(tested.step(batch).values()) for _ in range(6)]
    assert last < first


def test_half_precision_towers_train(tiny_network, batch):
    tested = trainer(tiny_model.backbone_of(tiny_network, precision="bf16"))
    first, *_, last = [sum(tested.step(batch).values()) for _ in range(6)]
    assert last < first
    assert {tensor.dtype for tensor in tested.learned().values()} == {torch.float32}


def test_the_seed_decides_a_step(tiny_backbone, batch):
    first, again, other = (trainer(tiny_backbone, seed=seed) for seed in (0, 0, 1))
    assert first.step(batch) == again.step(batch)
    assert all(torch.equal(first.learned()[name], again.learned()[name]) for name in first.tensors)
    assert other.step(batch) != first.step(batch)


def test_types_that_are_no_words_are_refused(tiny_backbone, batch):
    with pytest.raises(ConfigError, match="go from 0 to 2; with 1 defect words: 0 to 1"):
        trainer(tiny_backbone, words=("scratch",)).step(batch)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"betas": (0.5, 1.0)}, "betas are"),
        ({"loss_scale": 0.0}, "loss_scale is 0.0"),
        ({"loss_scale": 1.5}, "loss_scale is 1.5"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        DAPOTraining(**settings)
