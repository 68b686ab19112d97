"""Pre-training: a run that is stopped and goes on bit for bit, what each stage changes, and the schedule."""

import json
import math

import pytest
import tiny_model
import torch
from safetensors.torch import load_file

from zsad.backbone.load import WEIGHTS_FILE, load_open_clip
from zsad.errors import ConfigError
from zsad.learn import pool as pool_module
from zsad.learn import pretrain
from zsad.learn.pretrain import PretrainConfig, Stage, Trainee
from zsad.learn.styles import training_styles


@pytest.fixture
def tiny_recipe(monkeypatch, small_pool):
    """Four stages of two steps with the tiny model, which gets its third block in the second, and the shared pool."""
    monkeypatch.setattr(pretrain, "MODEL_CFG", tiny_model.MODEL_CFG)
    monkeypatch.setattr(pretrain, "STEM", (8, 16, 64))
    monkeypatch.setattr(pool_module, "SHARD", 4)
    monkeypatch.setattr(pretrain, "open_pool", lambda *_args, **_options: small_pool)
    stages = (
        Stage(size=16, min_window=24, max_window=48, batch_size=4, steps=2, layers=2),
        Stage(size=32, min_window=32, max_window=64, batch_size=6, steps=2, decay=1.0),
        Stage(kind="text", size=16, min_window=24, max_window=48, batch_size=4, steps=2),
        Stage(kind="joint", size=32, min_window=32, max_window=64, batch_size=6, steps=2),
    )
    return PretrainConfig(pool_scenes=8, stages=stages, warmup_steps=1, checkpoint_every=1, compiled=False)


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


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6, 7])  # within stages and between them
def test_a_stopped_run_goes_on_bit_for_bit(tiny_recipe, tmp_path, stop):
    pretrain.pretrain(tiny_recipe, folder(tmp_path / "whole"), tmp_path / "whole-out")
    folder(tmp_path / "parts")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(stop, patch)
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
        assert torch.equal(tensor, trained[f"trainee|model.{key}"].half().float()), key
    stored = load_file(tmp_path / "out" / WEIGHTS_FILE)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    line = json.loads((tmp_path / "work" / "log.jsonl").read_text().splitlines()[0])
    assert line["step"] == 0
    assert all(math.isfinite(line[name]) for name in ("state", "dense", "type"))
    assert "scratch" in loaded.words
    assert "rust" not in loaded.words


def test_a_checkpoint_of_another_recipe_is_refused(tiny_recipe, tmp_path):
    from dataclasses import replace

    pretrain.pretrain(tiny_recipe, folder(tmp_path / "work"), tmp_path / "out")
    with pytest.raises(ConfigError, match="another recipe"):
        pretrain.pretrain(replace(tiny_recipe, seed=1), tmp_path / "work", tmp_path / "out")


def test_training_and_inference_see_the_same_features(monkeypatch, tiny_network):
    monkeypatch.setattr(pretrain, "PREPROCESS_CFG", {"mean": [0.5] * 3, "std": [0.5] * 3})
    image_BD, patches_BPD = pretrain.encode_pixels(tiny_network, tiny_model.pixels(2, 32, 32))
    found = tiny_model.backbone_of(tiny_network, vv_start=2).encode_image(tiny_model.pixels(2, 32, 32))
    torch.testing.assert_close(image_BD, found.image_BD, atol=1e-5, rtol=0)
    torch.testing.assert_close(patches_BPD, found.patches_BPD, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "changed"),
    [("vision", {"visual", "prototypes"}), ("text", {"text"}), ("joint", {"visual", "text"})],
)
def test_a_stage_changes_its_towers_alone(monkeypatch, tiny_network, kind, changed):
    monkeypatch.setattr(pretrain, "MODEL_CFG", tiny_model.MODEL_CFG)
    parts = {"prototypes": "prototypes.", "visual": "model.visual."}
    found = set()
    for name, _ in Trainee(tiny_network).learning(kind):
        found.add(next((part for part, prefix in parts.items() if name.startswith(prefix)), "text"))
    assert found == changed


def test_matrices_of_blocks_go_to_muon_and_embeddings_do_not_decay(monkeypatch, tiny_network):
    monkeypatch.setattr(pretrain, "MODEL_CFG", tiny_model.MODEL_CFG)
    trainee = Trainee(tiny_network)
    config = PretrainConfig(stages=(Stage(kind="joint", size=32, min_window=24, max_window=32, batch_size=2, steps=1),))
    muon, adam = pretrain._optimisers(trainee, config, 0, {})
    names = {id(p): name for name, p in trainee.named_parameters()}
    matrices, decayed, plain = (
        {names[id(p)] for p in group["params"]} for o in (muon, adam) for group in o.param_groups
    )
    assert "model.visual.transformer.resblocks.0.attn.in_proj_weight" in matrices
    assert "model.transformer.resblocks.1.mlp.c_fc.weight" in matrices
    assert {"model.visual.conv1.weight", "model.visual.proj"} <= decayed
    assert {"model.visual.positional_embedding", "model.token_embedding.weight", "model.logit_scale"} <= plain
    assert [group["weight_decay"] for o in (muon, adam) for group in o.param_groups] == [0.05, 0.05, 0.0]
    assert len(matrices) + len(decayed) + len(plain) == len(trainee.learning("joint"))


def test_blocks_that_join_change_nothing_at_first_and_then_learn(tiny_recipe):
    shallow = pretrain._trainee(tiny_recipe, 2)
    deep = pretrain._deepened(shallow, tiny_recipe, 3)
    assert pretrain._deepened(deep, tiny_recipe, 3) is deep
    pixels_BHWC = tiny_model.pixels(2, 32, 32)
    features = [pretrain.encode_pixels(trainee.model, pixels_BHWC) for trainee in (shallow, deep)]
    for before, after in zip(*features, strict=True):
        torch.testing.assert_close(before, after, atol=1e-6, rtol=0)
    features[1][1].square()[..., 0].sum().backward()
    joined = deep.model.visual.transformer.resblocks[1]
    assert joined.mlp.c_proj.weight.grad.abs().sum() > 0
    assert joined.attn.out_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("layers", [(2, 1, 3), (3, 2), (0, 3), (4,)])
def test_a_tower_never_loses_blocks_and_ends_with_all(monkeypatch, layers):
    monkeypatch.setattr(pretrain, "MODEL_CFG", tiny_model.MODEL_CFG)
    stage = {"size": 32, "min_window": 24, "max_window": 32, "batch_size": 2, "steps": 1}
    with pytest.raises(ConfigError, match="blocks"):
        PretrainConfig(stages=tuple(Stage(**stage, layers=count) for count in layers))


def test_a_rate_warms_up_stays_and_falls_to_zero():
    stage = {"size": 112, "min_window": 96, "max_window": 112, "batch_size": 2, "learning_rate": 0.1}
    config = PretrainConfig(stages=(Stage(**stage, steps=30, decay=0.5), Stage(**stage, steps=20)), warmup_steps=10)
    rates = [config.rate(step) for step in (0, 4, 9, 15, 24, 29, 30, 49)]
    assert rates == pytest.approx([0.01, 0.05, 0.1, 0.1, 0.1 * 6 / 15, 0.1 / 15, 0.01, 0.1])


def test_stages_follow_each_other():
    stage = {"size": 112, "min_window": 96, "max_window": 112, "batch_size": 2}
    config = PretrainConfig(stages=(Stage(**stage, steps=3), Stage(**stage, steps=2)))
    assert config.total_steps == 5
    assert [config.place(step) for step in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    with pytest.raises(IndexError):
        config.place(5)


@pytest.mark.parametrize(
    "change",
    [
        {"stages": (Stage(size=100, min_window=96, max_window=112, batch_size=2, steps=1),)},
        {"stages": (Stage(size=112, min_window=96, max_window=112, batch_size=0, steps=1),)},
        {"stages": (Stage(size=112, min_window=96, max_window=112, batch_size=3, steps=1),)},
        {"stages": (Stage(size=112, min_window=96, max_window=112, batch_size=2, steps=0),)},
        {"stages": (Stage(size=112, min_window=96, max_window=112, batch_size=2, steps=1, learning_rate=0.0),)},
        {"stages": (Stage(size=112, min_window=96, max_window=112, batch_size=2, steps=1, learning_rate=1.0),)},
        {"stages": (Stage(size=112, min_window=96, max_window=112, batch_size=2, steps=1, decay=1.5),)},
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
    assert asked == {"folder": tmp_path / "pool", "num_scenes": 9, "seed": 4, "config": training_styles()}
