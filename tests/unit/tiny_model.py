"""A random open_clip model small enough to build in milliseconds: 3 blocks of width 64, 4 x 4 patches of 8 px."""

import copy
import json

import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

from zsad.backbone import Backbone
from zsad.backbone.load import CONFIG_FILE, WEIGHTS_FILE, Loaded, build

MODEL_CFG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
HALF = (0.5, 0.5, 0.5)
PREPROCESS_CFG = {"mean": HALF, "std": HALF, "interpolation": "bicubic"}


def model_cfg(*, vision=None, text=None, **top):
    """`MODEL_CFG` with changes."""
    changed = copy.deepcopy(MODEL_CFG) | top
    changed["vision_cfg"] |= vision or {}
    changed["text_cfg"] |= text or {}
    return changed


def random_model(cfg=MODEL_CFG, seed=0):
    """A model whose every tensor, biases and norms included, differs from its neutral value; fp16-representable."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(cfg).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
            parameter.copy_(parameter.half().float())
    return model


def backbone_of(model, *, vv_start=None, precision="fp32", words=None):
    loaded = Loaded(copy.deepcopy(model), SimpleTokenizer(), HALF, HALF, "bicubic", vv_start, words)
    return Backbone("tiny", loaded, device=torch.device("cpu"), precision=precision)


def write_folder(folder, model=None, *, cfg=MODEL_CFG, zsad=None, half=False):
    """Write a backbone folder; returns it."""
    model = random_model(cfg) if model is None else model
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": cfg, "preprocess_cfg": PREPROCESS_CFG} | ({"zsad": zsad} if zsad else {})
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    tensors = {key: (t.half() if half else t).contiguous() for key, t in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def pixels(*shape, seed=0):
    """Random uint8 images (..., 3) as a tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)
