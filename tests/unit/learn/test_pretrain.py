"""Pre-training: the losses by hand, and a run that is stopped and goes on bit for bit."""

import json
import math

import pytest
import tiny_model
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from zsad.backbone.load import WEIGHTS_FILE, load_open_clip
from zsad.datasets.synthetic import DEFECTS, SyntheticConfig
from zsad.errors import ConfigError
from zsad.learn import initial, pretrain
from zsad.learn import pool as pool_module
from zsad.learn.pool import Batch
from zsad.learn.pretrain import PretrainConfig, Stage


@pytest.fixture
def tiny_recipe(monkeypatch, small_pool):
    """Two stages of two steps with the tiny model and the shared pool."""
    monkeypatch.setattr(pretrain, "MODEL_CFG", tiny_model.MODEL_CFG)
    monkeypatch.setattr(pretrain, "VV_START", 2)
    monkeypatch.setattr(pool_module, "SHARD", 4)
    monkeypatch.setattr(initial, "PCA_PATCHES", 200)
    monkeypatch.setattr(initial, "WHITENED", 48)
    monkeypatch.setattr(pretrain, "open_pool", lambda *_args, **_options: small_pool)
    stages = (
        Stage(size=16, min_window=24, max_window=48, batch_size=4, steps=2),
        Stage(size=32, min_window=32, max_window=64, batch_size=6, steps=2),
    )
    return PretrainConfig(pool_scenes=8, stages=stages, warmup_steps=1, checkpoint_every=2)


def folder(path):
    path.mkdir()
    return path


def stop_at(step, monkeypatch):
    real = pretrain.train_step

    def train_step(*arguments):
        if arguments[-1] == step:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(pretrain, "train_step", train_step)


def test_a_stopped_run_goes_on_bit_for_bit(tiny_recipe, tmp_path):
    pretrain.pretrain(tiny_recipe, folder(tmp_path / "whole"), tmp_path / "whole-out")
    folder(tmp_path / "parts")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(3, patch)  # one step after the checkpoint, so that one step is done twice
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(tiny_recipe, tmp_path / "parts", tmp_path / "parts-out")
    assert not (tmp_path / "parts-out").exists()
    pretrain.pretrain(tiny_recipe, tmp_path / "parts", tmp_path / "parts-out")
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for key in whole:
        assert torch.equal(whole[key], parts[key]), key
    written = [(tmp_path / f"{name}-out" / WEIGHTS_FILE).read_bytes() for name in ("whole", "parts")]
    assert written[0] == written[1]


def test_the_result_is_an_ordinary_backbone_folder(tiny_recipe, tmp_path):
    pretrain.pretrain(tiny_recipe, folder(tmp_path / "work"), tmp_path / "out")
    loaded = load_open_clip(str(tmp_path / "out"))
    assert (loaded.vv_start, loaded.mean, loaded.std) == (2, (0.5,) * 3, (0.25,) * 3)
    trained = load_file(tmp_path / "work" / "checkpoint.safetensors")
    for key, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, trained[f"model.{key}"].half().float()), key
    stored = load_file(tmp_path / "out" / WEIGHTS_FILE)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    line = json.loads((tmp_path / "work" / "log.jsonl").read_text().splitlines()[0])
    assert line["step"] == 0
    assert all(math.isfinite(line[name]) for name in ("captions", "state", "dense", "type"))


def test_a_checkpoint_of_another_recipe_is_refused(tiny_recipe, tmp_path):
    from dataclasses import replace

    pretrain.pretrain(tiny_recipe, folder(tmp_path / "work"), tmp_path / "out")
    with pytest.raises(ConfigError, match="another recipe"):
        pretrain.pretrain(replace(tiny_recipe, seed=1), tmp_path / "work", tmp_path / "out")


def test_training_and_inference_see_the_same_features(monkeypatch, tiny_network):
    monkeypatch.setattr(pretrain, "VV_START", 1)
    monkeypatch.setattr(pretrain, "PREPROCESS_CFG", {"mean": [0.5] * 3, "std": [0.5] * 3})
    image_BD, patches_BPD = pretrain.encode_pixels(tiny_network, tiny_model.pixels(2, 32, 32))
    found = tiny_model.backbone_of(tiny_network, vv_start=1).encode_image(tiny_model.pixels(2, 32, 32))
    torch.testing.assert_close(image_BD, found.image_BD, atol=1e-5, rtol=0)
    torch.testing.assert_close(patches_BPD, found.patches_BPD, atol=1e-5, rtol=0)


def test_contrastive_loss_by_hand():
    """Logits (a, b; c, d) with only the diagonal positive: mean of four cross-entropies."""
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    soft = [math.log(1 + math.exp(-x)) for x in (1, 3, 2, 2)]  # rows 2-1, 3-0; columns 2-0, 3-1
    found = pretrain.contrastive_loss(logits, torch.eye(2, dtype=torch.bool))
    assert float(found) == pytest.approx(sum(soft) / 4)
    assert float(pretrain.contrastive_loss(logits, torch.ones(2, 2, dtype=torch.bool))) == pytest.approx(0, abs=1e-6)


def test_state_loss_by_hand():
    """One image on the abnormal axis: margin 1 / 0.07 for the right and the wrong answer."""
    image, states = torch.tensor([[0.0, 1.0]]), torch.eye(2)[None, None]
    margin = 1 / 0.07
    right, wrong = (float(pretrain.state_loss(image, states, torch.tensor([bad]))) for bad in (True, False))
    assert right == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-6)
    assert wrong == pytest.approx(margin + math.log1p(math.exp(-margin)), rel=1e-6)


def test_dense_loss_by_hand():
    """Patches with probability 1/2: one defective (weight 5), one clean (1), one sliver (0)."""
    patches = torch.zeros(1, 3, 2)
    found = pretrain.dense_loss(patches, torch.eye(2)[None, None], torch.tensor([[0.5, 0.0, 0.04]]))
    dice = 1 - (2 * 0.5 + 1) / (1.0 + 1.0 + 1)
    assert float(found) == pytest.approx(math.log(2) + dice)


def test_type_loss_by_hand():
    """The covered patches lie on the word's own axis; slivers, normal images and other axes do not count."""
    words = torch.eye(len(DEFECTS))
    patches = F.one_hot(torch.tensor([[0, 0, 1], [2, 2, 2]]), len(DEFECTS)).float()
    coverage = torch.tensor([[1.0, 0.5, 0.04], [1.0, 1.0, 1.0]])
    batch = Batch(torch.zeros(0), coverage, [("a", "b")] * 2, [DEFECTS[0], "good"])
    expected = math.log(1 + (len(DEFECTS) - 1) * math.exp(-1 / 0.07))
    assert float(pretrain.type_loss(patches, words, batch)) == pytest.approx(expected, abs=1e-6)
    nothing = Batch(torch.zeros(0), coverage, [("a", "b")] * 2, ["good", "good"])
    assert float(pretrain.type_loss(patches, words, nothing)) == 0


def test_learning_rate_warms_up_and_falls_to_zero():
    stages = (Stage(size=112, min_window=96, max_window=112, batch_size=2, steps=30),)
    config = PretrainConfig(stages=stages, warmup_steps=10, learning_rate=0.1)
    rates = [pretrain._learning_rate(config, step) for step in (0, 4, 9, 10, 20, 30)]
    assert rates == pytest.approx([0.01, 0.05, 0.1, 0.1, 0.05, 0.0])


def test_matrices_decay_and_the_rest_does_not(tiny_network):
    decayed, plain = pretrain._parameter_groups(tiny_network, 0.05)
    names = {id(p): name for name, p in tiny_network.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    found = {names[id(p)] for p in plain["params"]}
    assert {"visual.positional_embedding", "token_embedding.weight", "logit_scale", "ln_final.bias"} <= found
    assert "visual.conv1.weight" not in found
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_stages_follow_each_other():
    config = PretrainConfig()
    first, second = config.stages
    assert config.total_steps == first.steps + second.steps
    assert config.stage_of(0) is config.stage_of(first.steps - 1) is first
    assert config.stage_of(first.steps) is config.stage_of(config.total_steps - 1) is second
    with pytest.raises(IndexError):
        config.stage_of(config.total_steps)


@pytest.mark.parametrize(
    "change",
    [
        {"stages": (Stage(size=100, min_window=96, max_window=112, batch_size=2, steps=1),)},
        {"stages": (Stage(size=112, min_window=96, max_window=112, batch_size=0, steps=1),)},
        {"stages": (Stage(size=112, min_window=96, max_window=112, batch_size=3, steps=1),)},
        {"stages": (Stage(size=112, min_window=96, max_window=112, batch_size=2, steps=0),)},
        {"learning_rate": 0.0},
        {"learning_rate": 1.0},
        {"warmup_steps": -1},
    ],
)
def test_impossible_recipes_are_refused(change):
    with pytest.raises(ConfigError):
        PretrainConfig(**change)


def test_the_pool_is_drawn_by_the_recipe(tmp_path, monkeypatch):
    asked = {}

    def open_pool(folder, **options):
        asked.update(options, folder=folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "open_pool", open_pool)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(PretrainConfig(seed=4, pool_scenes=9), tmp_path, tmp_path / "out")
    assert asked == {"folder": tmp_path / "twins", "num_scenes": 9, "seed": 4, "config": SyntheticConfig()}
