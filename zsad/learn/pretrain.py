"""Pre-train the embedded backbone `nano` from scratch on procedural defect images.

Stages follow each other: the vision tower against prototypes at 112 px (small inputs buy four times as many samples for
the same time), then at 224 px; the text tower against those prototypes; then both together (see `nano_losses`); and the
last three again with a deeper vision tower.
Matrices of the blocks are trained by Muon, which here needs about two thirds of AdamW's samples; all else by AdamW.
A stage may have fewer blocks than the tower gets in the end: those that join later start as the identity, before the
last block, so that the tower goes on from what it knows and the early stages cost less.
Every stage warms up, stays at its rate and falls to zero over its last part, so that a stage can be made longer without
changing what came before. Everything random derives from (seed, step) and the optimisers' state is saved, so training
stopped anywhere goes on bit for bit.

Legend: B images, P patches, D joint width.
Cost: on two CPU cores about 120 samples/s at 112 px and 23 to 27 at 224 px; docs/nano.md has recipe and figures.
Source: Muon (K. Jordan 2024, as in torch.optim), the rest is zsad's own.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from zsad.backbone import vision
from zsad.backbone.load import CONFIG_FILE, WEIGHTS_FILE, build
from zsad.errors import ConfigError
from zsad.learn import wording
from zsad.learn.initial import initialise_vision, make_identity
from zsad.learn.nano_losses import TYPE_WEIGHT, Prototypes, joint_losses, text_losses, vision_losses, vocabulary
from zsad.learn.pool import Batch, Pool, draw_batch, open_pool
from zsad.learn.styles import training_styles

log = logging.getLogger(__name__)

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 192,
    "vision_cfg": {"image_size": 224, "layers": 7, "width": 192, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3},
}
STEM = (24, 48, 96, 192)
PREPROCESS_CFG = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}
BETAS = (0.9, 0.98)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stretch of training.

    Attributes:
        kind: which parts learn: the vision tower against prototypes, the text tower against them, or both towers.
        size: input side, px.
        min_window, max_window: side of the windows that are cut out of scenes and resized to `size`, px.
        batch_size: images, half of them clean twins.
        steps: optimiser steps.
        learning_rate: of the flat part; the warm-up before it counts `PretrainConfig.warmup_steps`.
        decay: share of the steps, at the end, over which the rate falls to zero.
        part_share: share of scenes that show whole parts; None: as the pool has them.
        type_weight: of the type loss.
        layers: blocks of the vision tower, never fewer than in the stage before; None: all.
    """

    kind: Literal["vision", "text", "joint"] = "vision"
    size: int
    min_window: int
    max_window: int
    batch_size: int
    steps: int
    learning_rate: float = 2e-3
    decay: float = 0.0
    part_share: float | None = None
    type_weight: float = TYPE_WEIGHT
    layers: int | None = None

    @property
    def num_blocks(self) -> int:
        """Blocks of the vision tower in this stage."""
        return int(MODEL_CFG["vision_cfg"]["layers"]) if self.layers is None else self.layers


_WHOLE: dict[str, Any] = {"size": 224, "min_window": 160, "max_window": 224, "batch_size": 32, "type_weight": 1.5}
_TEXT = Stage(kind="text", size=16, min_window=144, max_window=224, batch_size=32, steps=600, decay=0.5)
_JOINT: dict[str, Any] = {"kind": "joint", **_WHOLE, "steps": 250, "learning_rate": 1.5e-4, "decay": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """The whole recipe; stored beside the checkpoint. `compiled` and `bfloat16` as in `Trainee`."""

    seed: int = 0
    pool_scenes: int = 10_000
    stages: tuple[Stage, ...] = (
        Stage(size=112, min_window=64, max_window=160, batch_size=64, steps=1500, layers=4),
        Stage(**_WHOLE, part_share=0.5, steps=4700, learning_rate=1.2e-3, decay=0.7, layers=4),
        replace(_TEXT, layers=4),
        Stage(**_JOINT, part_share=0.5, layers=4),
        Stage(**_WHOLE, part_share=0.65, steps=3000, learning_rate=1e-3, decay=0.8),
        _TEXT,
        Stage(**_JOINT, part_share=0.65),
    )
    warmup_steps: int = 60
    weight_decay: float = 0.05
    checkpoint_every: int = 100
    compiled: bool = True
    bfloat16: bool = True

    def __post_init__(self) -> None:
        """Refuse impossible recipes."""
        patch = MODEL_CFG["vision_cfg"]["patch_size"]
        for stage in self.stages:
            if stage.size % patch or stage.batch_size % 2 or min(stage.batch_size, stage.steps) < 1:
                raise ConfigError(
                    f"{stage}: size must be a multiple of {patch} px, batch_size even, both counts at least 1"
                )
            if not 0 < stage.learning_rate < 1 or not 0 <= stage.decay <= 1:
                raise ConfigError(f"{stage}: learning_rate must lie in (0, 1) and decay in [0, 1]")
        blocks = [stage.num_blocks for stage in self.stages]
        if min(blocks) < 1 or blocks != sorted(blocks) or blocks[-1] != MODEL_CFG["vision_cfg"]["layers"]:
            raise ConfigError(
                f"stages have {blocks} blocks; a tower starts with one at least, never loses one and ends with "
                f"{MODEL_CFG['vision_cfg']['layers']}"
            )
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps is {self.warmup_steps}; it must not be negative")

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def place(self, step: int) -> tuple[int, int]:
        """The stage that 0-based `step` belongs to, and the step within it."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index, step
            step -= stage.steps
        raise IndexError(f"step {step} lies behind the last stage")

    def rate(self, step: int) -> float:
        """Learning rate of 0-based `step`."""
        index, inner = self.place(step)
        stage = self.stages[index]
        warm = min(1.0, (inner + 1) / max(1, self.warmup_steps))
        left = (stage.steps - inner) / max(1.0, stage.decay * stage.steps)
        return stage.learning_rate * min(warm, left, 1.0)


class Trainee(nn.Module):
    """The model and the prototypes it learns against at first.

    `compiled` fuses the vision tower's small operations (torch.compile, which needs a C++ compiler). `bfloat16` has
    its products in that precision: two thirds of the time where the CPU has instructions for it, more elsewhere.
    """

    def __init__(self, model: Any, *, compiled: bool = False, bfloat16: bool = False) -> None:
        super().__init__()
        self.model: Any = model
        self.is_bfloat16 = bfloat16
        self.encode_pixels = torch.compile(encode_pixels, dynamic=False) if compiled else encode_pixels
        self.prototypes = Prototypes(int(MODEL_CFG["embed_dim"]))

    def learning(self, kind: str) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that a stage of this kind changes."""

        def learns(name: str) -> bool:
            if name.startswith("prototypes."):
                return kind == "vision"
            return kind == "joint" or (name.startswith("model.visual.") == (kind == "vision"))

        return [(name, parameter) for name, parameter in self.named_parameters() if learns(name)]


def pretrain(config: PretrainConfig, work: Path, output: Path) -> None:
    """Train to the end of the recipe, going on from a checkpoint in `work`, and write the backbone folder `output`.

    Args:
        config: the recipe.
        work: pool, checkpoint and log (`log.jsonl`: one line of losses every 20 steps).
        output: gets `open_clip_config.json` and fp16 `open_clip_model.safetensors`.

    Raises:
        ConfigError: if `work` holds a checkpoint of another recipe.
    """
    pool = open_pool(work / "pool", num_scenes=config.pool_scenes, seed=config.seed, config=training_styles())
    trainee, start, state = _begin(config, work)
    bar = tqdm(range(start, config.total_steps), initial=start, total=config.total_steps, unit="step")
    began = time.monotonic()
    optimisers: list[torch.optim.Optimizer] = []
    for step, inputs in zip(bar, _prepared(pool, config, start), strict=True):
        if not optimisers or config.place(step)[1] == 0:
            trainee = _deepened(trainee, config, config.stages[config.place(step)[0]].num_blocks)
            optimisers = _optimisers(trainee, config, step, state)
        losses = train_step(trainee, optimisers, inputs, config, step)
        if step % 20 == 0:
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
            line = {"step": step, "seconds": round(time.monotonic() - began, 1), **losses}
            with (work / "log.jsonl").open("a") as log_file:
                log_file.write(json.dumps(line) + "\n")
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.total_steps:
            _save_checkpoint(trainee, optimisers, config, step + 1, work)
    export(trainee.model, output)


def train_step(
    trainee: Trainee,
    optimisers: list[torch.optim.Optimizer],
    inputs: tuple[Batch, wording.Wording],
    config: PretrainConfig,
    step: int,
) -> dict[str, float]:
    """One optimiser step; returns the loss terms."""
    stage = config.stages[config.place(step)[0]]
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = config.rate(step)
    terms = losses_of(trainee, stage, *inputs)
    trainee.zero_grad(set_to_none=True)
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    nn.utils.clip_grad_norm_([parameter for _, parameter in trainee.learning(stage.kind)], 1.0)
    for optimiser in optimisers:
        optimiser.step()
    return {name: round(float(term.detach()), 5) for name, term in terms.items()}


def losses_of(trainee: Trainee, stage: Stage, batch: Batch, words: wording.Wording) -> dict[str, Tensor]:
    """The loss terms of one batch in `stage`, each a scalar with its weight applied."""
    directions = trainee.prototypes.directions()
    if stage.kind == "text":
        fixed = (directions[0].detach(), directions[1].detach())
        return text_losses(trainee.model, fixed, words, batch.defects)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=trainee.is_bfloat16):
        image_BD, patches_BPD = trainee.encode_pixels(trainee.model, batch.pixels_BHWC)
    if stage.kind == "vision":
        return vision_losses(image_BD, patches_BPD, directions, batch, type_weight=stage.type_weight)
    return joint_losses(trainee.model, image_BD, patches_BPD, batch, words, type_weight=stage.type_weight)


def encode_pixels(model: Any, pixels_BHWC: Tensor) -> tuple[Tensor, Tensor]:
    """Unit-length image embeddings (B, D) and value-value patch tokens (B, P, D), with gradients."""
    mean, std = (torch.tensor(PREPROCESS_CFG[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    x_BCHW = (pixels_BHWC.permute(0, 3, 1, 2).float() / 255 - mean) / std
    streams = vision.run_blocks(model.visual, vision.embed(model.visual, x_BCHW), vv_start=_vv_start(model))
    return vision.to_joint(model.visual, streams.h_BNW[:, 0]), vision.to_joint(model.visual, streams.z_BNW[:, 1:])


def _vv_start(model: Any) -> int:
    """The last block: a shallow tower needs all its MLPs on the way to a patch token."""
    return len(model.visual.transformer.resblocks) - 1


def export(model: nn.Module, output: Path) -> None:
    """Write the backbone folder: config and fp16 weights."""
    output.mkdir(parents=True, exist_ok=True)
    own = {"stem": list(STEM), "vv_start": _vv_start(model), "words": sorted(wording.taught_words())}
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG, "zsad": own}
    (output / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    save_file({key: tensor.half().contiguous() for key, tensor in model.state_dict().items()}, output / WEIGHTS_FILE)


def _prepared(pool: Pool, config: PretrainConfig, start: int) -> Iterator[tuple[Batch, wording.Wording]]:
    """Batches and texts from step `start` on, each made in a thread while the step before it trains."""
    with ThreadPoolExecutor(1) as maker:
        ahead = deque[Future[tuple[Batch, wording.Wording]]]()
        for step in range(start, config.total_steps):
            ahead.append(maker.submit(_prepare, pool, config, step))
            if len(ahead) > 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _prepare(pool: Pool, config: PretrainConfig, step: int) -> tuple[Batch, wording.Wording]:
    """What one step trains on; derives from (seed, step) alone."""
    rng = np.random.default_rng([config.seed, 1, step])
    stage = config.stages[config.place(step)[0]]
    batch = draw_batch(
        pool,
        rng,
        batch_size=stage.batch_size,
        size=stage.size,
        windows=(stage.min_window, stage.max_window),
        patch_size=int(MODEL_CFG["vision_cfg"]["patch_size"]),
        part_share=stage.part_share,
    )
    return batch, wording.write(rng, batch.kinds, batch.defects, vocabulary())


def _optimisers(
    trainee: Trainee, config: PretrainConfig, step: int, state: dict[str, Tensor]
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks and AdamW for the rest of what this stage trains, with saved state."""
    index, inner = config.place(step)
    named = trainee.learning(config.stages[index].kind)
    matrices = [p for name, p in named if p.ndim == 2 and "resblocks" in name]
    ids = {id(p) for p in matrices}
    decayed = [p for name, p in named if p.ndim >= 2 and "embedding" not in name and id(p) not in ids]
    ids |= {id(p) for p in decayed}
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if id(p) not in ids], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(matrices, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    optimisers: list[torch.optim.Optimizer] = [muon, torch.optim.AdamW(groups, betas=BETAS)]
    if inner:
        for optimiser in optimisers:
            for name, parameter in named:
                saved = {key.split("|")[1]: value for key, value in state.items() if key.endswith(f"|{name}")}
                if any(parameter is p for group in optimiser.param_groups for p in group["params"]):
                    optimiser.state[parameter] = saved
    return optimisers


def _save_checkpoint(
    trainee: Trainee, optimisers: list[torch.optim.Optimizer], config: PretrainConfig, step: int, work: Path
) -> None:
    tensors = {f"trainee|{key}": tensor for key, tensor in trainee.state_dict().items()}
    for optimiser in optimisers:
        for name, parameter in trainee.named_parameters():
            saved = optimiser.state.get(parameter, {})
            tensors |= {f"optimiser|{key}|{name}": value.contiguous() for key, value in saved.items()}
    metadata = {"step": str(step), "config": json.dumps(asdict(config), sort_keys=True)}
    save_file(tensors, work / "checkpoint.tmp", metadata=metadata)
    (work / "checkpoint.tmp").replace(work / "checkpoint.safetensors")


def _begin(config: PretrainConfig, work: Path) -> tuple[Trainee, int, dict[str, Tensor]]:
    """What to train, the step to go on from and the optimisers' tensors: of the checkpoint if there is one."""
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return _trainee(config, config.stages[0].num_blocks), 0, {}
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
    if metadata["config"] != json.dumps(asdict(config), sort_keys=True):
        raise ConfigError(f"{path} belongs to another recipe; give another --work folder or remove it")
    step, tensors, prefix = int(metadata["step"]), load_file(path), "trainee|"
    trainee = _trainee(config, config.stages[config.place(step - 1)[0]].num_blocks)
    trainee.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    log.info("going on from step %d of %d", step, config.total_steps)
    return trainee, step, {k: v for k, v in tensors.items() if k.startswith("optimiser|")}


def _trainee(config: PretrainConfig, num_blocks: int) -> Trainee:
    """An untrained model with that many vision blocks, and prototypes, of the recipe's seed."""
    torch.manual_seed(config.seed)
    model = build(MODEL_CFG | {"vision_cfg": MODEL_CFG["vision_cfg"] | {"layers": num_blocks}}, STEM)
    initialise_vision(model.visual)
    return Trainee(model, compiled=config.compiled, bfloat16=config.bfloat16)


def _deepened(trainee: Trainee, config: PretrainConfig, num_blocks: int) -> Trainee:
    """The same function with more vision blocks; itself if it has as many.

    New blocks stand before the last one, whose value-value tokens are the patch tokens, and start as the identity.
    """
    before = len(trainee.model.visual.transformer.resblocks)
    if before == num_blocks:
        return trainee
    deep = _trainee(config, num_blocks)
    stack = "model.visual.transformer.resblocks."
    last, moved = f"{stack}{before - 1}.", f"{stack}{num_blocks - 1}."
    known = {key.replace(last, moved): tensor for key, tensor in trainee.state_dict().items()}
    deep.load_state_dict(deep.state_dict() | known)
    for block in deep.model.visual.transformer.resblocks[before - 1 : -1]:
        make_identity(block)
    return deep
