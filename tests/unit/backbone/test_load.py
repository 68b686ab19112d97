"""Backbone folders and names: what is loaded, and what is refused with which words."""

import json
import os
import pickle
import re

import pytest
import tiny_model
import torch
from safetensors.torch import load_file, save_file

from zsad.backbone import load, load_backbone
from zsad.backbone.load import CONFIG_FILE, WEIGHTS_FILE, build, load_open_clip, weights_sha256
from zsad.backbone.stem import ConvStem
from zsad.errors import ModelError


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def folder(tiny_network, tmp_path):
    """A backbone folder that may be damaged."""
    return tiny_model.write_folder(tmp_path / "backbone", tiny_network)


def change(folder, edit):
    tensors = load_file(folder / WEIGHTS_FILE)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def test_a_folder_gives_the_model_that_was_written(folder, tiny_network):
    loaded = load_open_clip(str(folder))
    for key, tensor in tiny_network.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], tensor), key
    assert (loaded.mean, loaded.std, loaded.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert loaded.vv_start is None
    assert loaded.tokenizer(["x"]).shape == (1, 77)


def test_fp16_files_become_fp32_models(tiny_network, tmp_path):
    loaded = load_open_clip(str(tiny_model.write_folder(tmp_path, tiny_network, half=True)))
    assert {tensor.dtype for tensor in loaded.model.state_dict().values()} == {torch.float32}


def test_the_folder_can_name_the_start_of_the_value_value_path(tiny_network, tmp_path):
    folder = tiny_model.write_folder(tmp_path, tiny_network, zsad={"vv_start": 2})
    assert load_open_clip(str(folder)).vv_start == 2
    assert load_backbone(str(folder)).vv_start == 2


def test_the_folder_can_ask_for_a_convolutional_stem(tmp_path):
    network = build(tiny_model.MODEL_CFG, (8, 16, 64)).eval()
    folder = tiny_model.write_folder(tmp_path, network, zsad={"stem": [8, 16, 64]})
    loaded = load_open_clip(str(folder)).model
    assert isinstance(loaded.visual.conv1, ConvStem)
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in network.state_dict().items())
    found = load_backbone(str(folder)).encode_image(tiny_model.pixels(2, 64, 32))
    assert found.patches_BPD.shape == (2, 8 * 4, 32)


@pytest.mark.parametrize("channels", [[8, 16, 32], [8, 64], [8, 16, 32, 64], [], [8, True, 64], [8, 1, 64], "8", 8])
def test_a_stem_that_does_not_fit_the_tower_is_refused(tiny_network, tmp_path, channels):
    """It must end with width 64 after three halvings, for patches of 8 px."""
    folder = tiny_model.write_folder(tmp_path, tiny_network, zsad={"stem": channels})
    with pytest.raises(ModelError, match=r"zsad\.stem is"):
        load_open_clip(str(folder))


def test_without_preprocessing_open_clips_constants_hold(folder):
    config = json.loads((folder / CONFIG_FILE).read_text())
    del config["preprocess_cfg"]
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    loaded = load_open_clip(str(folder))
    assert loaded.mean == (0.48145466, 0.4578275, 0.40821073)
    assert loaded.std == (0.26862954, 0.26130258, 0.27577711)


def test_a_separate_text_tower_works(tmp_path):
    cfg = tiny_model.model_cfg(custom_text=True)
    folder = tiny_model.write_folder(tmp_path, cfg=cfg)
    backbone = load_backbone(str(folder))
    assert type(backbone.model).__name__ == "CustomTextCLIP"
    tokens = backbone.tokenizer(["a dent"])
    expected = backbone.model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(backbone.encode_text(["a dent"]), expected, atol=1e-5, rtol=0)
    assert backbone.encode_image(tiny_model.pixels(1, 32, 32)).image_BD.shape == (1, 32)


def test_nano_is_the_embedded_folder(folder, monkeypatch):
    monkeypatch.setattr(load, "NANO", folder)
    assert load_open_clip("nano").model.visual.image_size == (32, 32)


@pytest.mark.parametrize("name", ["nonsense", "no/such/folder", "VIT-B-32/openai", ""])
def test_unknown_names(name):
    words = "no open_clip_config.json" if not name else f"unknown backbone '{name}'.*'nano', a folder, or an open_clip"
    with pytest.raises(ModelError, match=words):
        load_open_clip(name)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32/nonsense", "ViT-B-32/"])
def test_unknown_weights_list_the_known_ones(name):
    with pytest.raises(ModelError, match=r"open_clip offers for ViT-B-32 the weights openai, .*laion2b_s34b_b79k"):
        load_open_clip(name)


def test_failed_downloads_name_their_cause(monkeypatch):
    def fail(*_args, **options):
        assert options["precision"] == "fp32"
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.create_model", fail)
    with pytest.raises(ModelError, match=r"OSError: no route to host.*'nano' or a folder") as caught:
        load_open_clip("ViT-B-32/openai")
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_files_are_named(folder, name):
    (folder / name).rename(folder / "elsewhere")
    with pytest.raises(ModelError, match=f"no {name}"):
        load_open_clip(str(folder))


@pytest.mark.parametrize("renamed", [WEIGHTS_FILE, "open_clip_pytorch_model.bin"])
def test_a_pickle_is_never_executed(folder, tmp_path, renamed):
    (folder / WEIGHTS_FILE).unlink()
    (folder / renamed).write_bytes(pickle.dumps(Canary(tmp_path / "sung")))
    with pytest.raises(ModelError, match=WEIGHTS_FILE):
        load_open_clip(str(folder))
    assert not (tmp_path / "sung").exists()
    pickle.loads((folder / renamed).read_bytes())  # noqa: S301 - our own bytes; the canary does sing
    assert (tmp_path / "sung").exists()


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_weights(folder, keep):
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[:keep])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_open_clip(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(folder, value):
    change(folder, lambda tensors: tensors["visual.proj"][3].fill_(value))
    with pytest.raises(ModelError, match=r"visual\.proj holds values that are not finite"):
        load_open_clip(str(folder))


def test_missing_unexpected_and_misshaped_tensors_are_named(folder):
    change(folder, lambda tensors: tensors.pop("visual.conv1.weight"))
    with pytest.raises(ModelError, match=r"misses 1 tensors, such as visual\.conv1\.weight"):
        load_open_clip(str(folder))
    more = {"visual.conv1.weight": torch.zeros(64, 3, 8, 8), "y": torch.ones(1)}
    change(folder, lambda tensors: tensors.update(more))
    with pytest.raises(ModelError, match="has unexpected 1 tensors, such as y"):
        load_open_clip(str(folder))
    change(folder, lambda tensors: (tensors.pop("y"), tensors.update({"visual.proj": torch.zeros(64, 31)})))
    with pytest.raises(ModelError, match=re.escape("visual.proj has shape (64, 31), the config asks (64, 32)")):
        load_open_clip(str(folder))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", "\0", '{"model_cfg": 3}', '{"model_cfg": {"embed_dim": 3}}', '{"model_cfg": {"x": 1}}'],
)
def test_configs_that_are_none(folder, text):
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(ModelError, match="not an open_clip model config"):
        load_open_clip(str(folder))


def test_a_config_that_no_model_can_have(folder):
    """32 columns do not divide into 5 heads."""
    cfg = tiny_model.model_cfg(text={"heads": 5})
    (folder / CONFIG_FILE).write_text(json.dumps({"model_cfg": cfg}))
    with pytest.raises(ModelError, match="not an open_clip model config"):
        load_open_clip(str(folder))


def test_convolutional_towers_are_refused(tmp_path):
    cfg = tiny_model.model_cfg()
    cfg["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 32}
    folder = tiny_model.write_folder(tmp_path, load.build(cfg), cfg=cfg)
    with pytest.raises(ModelError, match="vision tower is a ModifiedResNet; zsad needs an open_clip ViT"):
        load_open_clip(str(folder))


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        ({"pool_type": "avg"}, "not the class token"),
        ({"final_ln_after_pool": True}, "not the class token"),
        ({"attentional_pool": True}, "not the class token"),
        ({"qk_norm": True}, "custom kind"),
    ],
)
def test_unusual_transformers_are_refused(vision, words):
    with pytest.raises(ModelError, match=words):
        load.check_vit("x", load.build(tiny_model.model_cfg(vision=vision)))


def test_the_hash_names_the_values_not_the_file(tiny_network, tmp_path):
    stored = [tiny_model.write_folder(tmp_path / str(half), tiny_network, half=half) for half in (False, True)]
    assert len({weights_sha256(load_open_clip(str(folder)).model) for folder in stored}) == 1


def test_the_hash_notices_one_changed_value(folder, tiny_network):
    change(folder, lambda tensors: tensors["ln_final.bias"][0].add_(1e-3))
    assert weights_sha256(load_open_clip(str(folder)).model) != weights_sha256(tiny_network)
