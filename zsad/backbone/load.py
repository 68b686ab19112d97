"""Find and load an open_clip model: the embedded `nano`, a folder, or a name with open_clip's own weights.

A folder holds what open_clip itself writes for a hub: `open_clip_config.json` and `open_clip_model.safetensors`.
Weights of a folder are read from safetensors only; a pickled checkpoint is refused by name, never opened. Named
weights come through open_clip's loader (network or its cache), restricted to tensors (`weights_only`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zsad.backbone.stem import ConvStem
from zsad.errors import ModelError

NANO = Path(__file__).parent.parent / "nano"
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


@dataclass(frozen=True, slots=True)
class Loaded:
    """An open_clip model in fp32 on the CPU, with its tokenizer and preprocessing constants.

    `vv_start` is the first block of the value-value path, and `words` all that its text tower was taught (lower case),
    where the folder's config names them under "zsad".
    """

    model: nn.Module
    tokenizer: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    vv_start: int | None = None
    words: frozenset[str] | None = None


def load_open_clip(name: str) -> Loaded:
    """Load backbone `name`.

    Args:
        name: `nano`, a local folder, or `MODEL/PRETRAINED` as open_clip lists them.

    Raises:
        ModelError: if there is no such model, its weights can't be had, or its vision tower is not a plain ViT.
    """
    folder = NANO if name == "nano" else Path(name)
    loaded = _load_folder(folder) if folder.is_dir() else _load_named(name)
    check_vit(name, loaded.model)
    loaded.model.eval().requires_grad_(False)
    return loaded


def _load_folder(folder: Path) -> Loaded:
    for required in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / required).is_file():
            raise ModelError(f"{folder}: no {required}; a backbone folder holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        model = build(config["model_cfg"], _stem(config))
        vv_start = _vv_start(config, config["model_cfg"]["vision_cfg"]["layers"])
        words = _words(config)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
        raise ModelError(f"{folder / CONFIG_FILE}: not an open_clip model config ({error})") from error
    load_weights(model, folder / WEIGHTS_FILE)
    preprocess = config.get("preprocess_cfg", {})
    return Loaded(
        model, _tokenizer(config["model_cfg"], folder), *_constants(preprocess), vv_start=vv_start, words=words
    )


def _vv_start(config: dict[str, Any], num_layers: int) -> int | None:
    vv_start = config.get("zsad", {}).get("vv_start")
    if vv_start is not None and (type(vv_start) is not int or not 0 <= vv_start <= num_layers):
        raise ValueError(f"zsad.vv_start is {vv_start!r}; it must be a block from 0 to {num_layers}")
    return vv_start


def _stem(config: dict[str, Any]) -> tuple[int, ...] | None:
    channels = config.get("zsad", {}).get("stem")
    if channels is None:
        return None
    vision = config["model_cfg"]["vision_cfg"]
    if not isinstance(channels, list) or not all(type(count) is int and 2 <= count <= 4096 for count in channels):
        raise ValueError(f"zsad.stem is {channels!r}; it must be a list of channel counts from 2 to 4096")
    if not channels or channels[-1] != vision["width"] or 2 ** len(channels) != vision["patch_size"]:
        raise ValueError(
            f"zsad.stem is {channels!r}; it must end with the tower's width {vision['width']} and halve the resolution "
            f"down to patches of {vision['patch_size']} px"
        )
    return tuple(channels)


def _words(config: dict[str, Any]) -> frozenset[str] | None:
    words = config.get("zsad", {}).get("words")
    if words is None:
        return None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("zsad.words must be a list of words")
    return frozenset(words)


def build(model_cfg: dict[str, Any], stem: Sequence[int] | None = None) -> nn.Module:
    """A randomly initialised open_clip model from its `model_cfg`; with `stem`, the channels of a `ConvStem`."""
    from open_clip.model import CLIP, CustomTextCLIP

    cfg = dict(model_cfg)
    custom = cfg.pop("custom_text", False) or "hf_model_name" in cfg.get("text_cfg", {})
    model: nn.Module = CustomTextCLIP(**cfg) if custom else CLIP(**cfg)
    if stem is not None:
        visual: Any = model.visual
        visual.conv1 = ConvStem(stem)
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the tensors of a safetensors file into `model`, whatever their precision on disk.

    Raises:
        ModelError: if the file is damaged, or a tensor is missing, unexpected, of another shape or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error})") from error
    own = model.state_dict()
    for what, keys in (("misses", own.keys() - tensors.keys()), ("has unexpected", tensors.keys() - own.keys())):
        if keys:
            raise ModelError(f"{path}: {what} {len(keys)} tensors, such as {min(keys)}")
    for key, tensor in tensors.items():
        if tensor.shape != own[key].shape:
            raise ModelError(f"{path}: {key} has shape {tuple(tensor.shape)}, the config asks {tuple(own[key].shape)}")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{path}: {key} holds values that are not finite")
    model.load_state_dict(tensors)


def _load_named(name: str) -> Loaded:
    import open_clip

    model_name, slash, pretrained = name.partition("/")
    if model_name not in open_clip.list_models():
        raise ModelError(f"unknown backbone {name!r}: give 'nano', a folder, or an open_clip NAME/PRETRAINED pair")
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if not slash or pretrained not in tags:
        raise ModelError(
            f"backbone {name!r}: open_clip offers for {model_name} the weights {', '.join(tags) or 'none'}"
        )
    try:
        model = open_clip.create_model(model_name, pretrained=pretrained, precision="fp32", device="cpu")
        tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:
        raise ModelError(
            f"backbone {name!r}: open_clip could not get its weights ({type(error).__name__}: {error}); "
            "allow its download, fill its cache, or use 'nano' or a folder"
        ) from error
    return Loaded(model, tokenizer, *_constants(open_clip.get_model_preprocess_cfg(model)))


def _constants(preprocess: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean = tuple(preprocess.get("mean", OPENAI_DATASET_MEAN))
    std = tuple(preprocess.get("std", OPENAI_DATASET_STD))
    return mean, std, preprocess.get("interpolation", "bicubic")


def _tokenizer(model_cfg: dict[str, Any], folder: Path) -> Any:
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    text_cfg = model_cfg["text_cfg"]
    if text_cfg.get("hf_tokenizer_name"):
        return open_clip.get_tokenizer(f"local-dir:{folder}")
    return SimpleTokenizer(context_length=text_cfg.get("context_length", 77))


def check_vit(name: str, model: nn.Module) -> None:
    """Refuse vision towers without the plain ViT form that dense features need.

    Raises:
        ModelError: naming what is different.
    """
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    visual: Any = model.visual
    if not isinstance(visual, VisionTransformer):
        raise ModelError(
            f"backbone {name!r}: its vision tower is a {type(visual).__name__}; zsad needs an open_clip ViT"
        )
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
        raise ModelError(f"backbone {name!r}: its image embedding is not the class token; such ViTs are not supported")
    if not all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks):
        raise ModelError(f"backbone {name!r}: its attention blocks are of a custom kind; such ViTs are not supported")


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over all tensors (name, shape, fp32 bytes), the identity that a detector bundle refers to."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
