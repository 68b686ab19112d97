"""Pre-train the embedded backbone `nano` from scratch on procedural defect images.

Four losses on one pass, all in the joint space of images and texts:

- captions: symmetric contrastive loss with several positives, captions that mean the same are never negatives;
- state: the image embedding between normal and abnormal ensembles, as the zero-shot image score asks it;
- dense: every patch token of the value-value path between the same ensembles, as the anomaly map asks it;
- type: defective patch tokens among the defect words.

Stages grow the input (112 px, then 224 px): small inputs buy four times as many samples for the same time. Everything
random derives from (seed, step) and the optimiser's state is saved, so training stopped anywhere goes on bit for bit.

Legend: B images, P patches, D joint width, T texts, G groups.
Cost: about 70 samples/s at 112 px and 22 at 224 px on two CPU cores; see docs/nano.md for the recipe and its figures.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from zsad.backbone import text, vision
from zsad.backbone.load import CONFIG_FILE, WEIGHTS_FILE, build
from zsad.datasets.synthetic import DEFECTS, SyntheticConfig
from zsad.errors import ConfigError
from zsad.learn import wording
from zsad.learn.initial import initialise_vision
from zsad.learn.pool import Batch, Pool, draw_batch, open_pool

log = logging.getLogger(__name__)

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 192,
    "vision_cfg": {"image_size": 224, "layers": 6, "width": 192, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3},
}
VV_START = 5  # the last block: a shallow tower needs all its MLPs on the way to a patch token
PREPROCESS_CFG = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}
TEMPERATURE = 0.07
COVERED = 0.05  # a patch counts as defective from this share on; a thinner sliver is neither


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stretch of training at one input size."""

    size: int
    min_window: int
    max_window: int
    batch_size: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """The whole recipe; stored beside the weights."""

    seed: int = 0
    pool_scenes: int = 8_000
    stages: tuple[Stage, ...] = (
        Stage(size=112, min_window=96, max_window=144, batch_size=64, steps=1400),
        Stage(size=224, min_window=192, max_window=224, batch_size=32, steps=920),
    )
    learning_rate: float = 1.2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        """Refuse impossible recipes."""
        patch = MODEL_CFG["vision_cfg"]["patch_size"]
        for stage in self.stages:
            if stage.size % patch or stage.batch_size % 2 or min(stage.batch_size, stage.steps) < 1:
                raise ConfigError(
                    f"{stage}: size must be a multiple of {patch} px, batch_size even, both counts at least 1"
                )
        if not 0 < self.learning_rate < 1 or self.warmup_steps < 0:
            raise ConfigError("learning_rate must lie in (0, 1) and warmup_steps must not be negative")

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_of(self, step: int) -> Stage:
        """The stage that 0-based `step` belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError(f"step {step} lies behind the last stage")


def pretrain(config: PretrainConfig, work: Path, output: Path) -> None:
    """Train to the end of the recipe, going on from a checkpoint in `work`, and write the backbone folder `output`.

    Args:
        config: the recipe.
        work: pool, checkpoint and log (`log.jsonl`: one line of losses every 20 steps).
        output: gets `open_clip_config.json` and fp16 `open_clip_model.safetensors`.

    Raises:
        ConfigError: if `work` holds a checkpoint of another recipe.
    """
    pool = open_pool(work / "twins", num_scenes=config.pool_scenes, seed=config.seed, config=SyntheticConfig())
    torch.manual_seed(config.seed)
    model = build(MODEL_CFG)
    initialise_vision(model.visual, pool, np.random.default_rng([config.seed, 0]))
    optimiser = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), betas=(0.9, 0.98))
    start = _resume(model, optimiser, config, work)
    bar = tqdm(range(start, config.total_steps), initial=start, total=config.total_steps, unit="step")
    began = time.monotonic()
    for step, inputs in zip(bar, _prepared(pool, config, start), strict=True):
        losses = train_step(model, optimiser, inputs, config, step)
        if step % 20 == 0:
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
            line = {"step": step, "seconds": round(time.monotonic() - began, 1), **losses}
            with (work / "log.jsonl").open("a") as log_file:
                log_file.write(json.dumps(line) + "\n")
        if (step + 1) % config.checkpoint_every == 0:
            _save_checkpoint(model, optimiser, config, step + 1, work)
    export(model, output)


def train_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    inputs: tuple[Batch, wording.Wording],
    config: PretrainConfig,
    step: int,
) -> dict[str, float]:
    """One optimiser step; returns the loss terms."""
    for group in optimiser.param_groups:
        group["lr"] = _learning_rate(config, step)
    terms = losses_of(model, *inputs)
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return {name: round(float(term.detach()), 5) for name, term in terms.items()}


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
    stage = config.stage_of(step)
    batch = draw_batch(
        pool,
        rng,
        batch_size=stage.batch_size,
        size=stage.size,
        windows=(stage.min_window, stage.max_window),
        patch_size=int(MODEL_CFG["vision_cfg"]["patch_size"]),
    )
    return batch, wording.write(rng, batch.kinds, batch.defects, _vocabulary())


def losses_of(model: Any, batch: Batch, words: wording.Wording) -> dict[str, Tensor]:
    """The four loss terms of one batch, each a scalar with its weight applied."""
    image_BD, patches_BPD = encode_pixels(model, batch.pixels_BHWC)
    tokens_TL = _tokenizer()(words.texts)
    texts_TD = F.normalize(text.encode_tokens(model, tokens_TL), dim=-1)
    positives_BC = torch.from_numpy(words.positives_BC)
    scale = model.logit_scale.exp().clamp(max=50)
    captions = contrastive_loss(scale * image_BD @ texts_TD[: len(positives_BC)].T, positives_BC)
    states_GB2D = torch.stack([*_shared_states(words, texts_TD, len(image_BD)), _own_states(words, texts_TD, batch)])
    is_bad_B = torch.tensor([defect != "good" for defect in batch.defects])
    defects_KD = torch.stack([_mean(texts_TD, rows) for rows in words.defects])
    return {
        "captions": captions,
        "state": state_loss(image_BD, states_GB2D, is_bad_B),
        "dense": 2 * dense_loss(patches_BPD, states_GB2D, batch.coverage_BP),
        "type": 0.5 * type_loss(patches_BPD, defects_KD, batch),
    }


def encode_pixels(model: Any, pixels_BHWC: Tensor) -> tuple[Tensor, Tensor]:
    """Unit-length image embeddings (B, D) and value-value patch tokens (B, P, D), with gradients."""
    mean, std = (torch.tensor(PREPROCESS_CFG[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    x_BCHW = (pixels_BHWC.permute(0, 3, 1, 2).float() / 255 - mean) / std
    streams = vision.run_blocks(model.visual, vision.embed(model.visual, x_BCHW), vv_start=VV_START)
    return vision.to_joint(model.visual, streams.h_BNW[:, 0]), vision.to_joint(model.visual, streams.z_BNW[:, 1:])


def contrastive_loss(logits_BC: Tensor, positives_BC: Tensor) -> Tensor:
    """Symmetric contrastive loss in which every positive of a row or column shares the numerator."""

    def one_way(logits: Tensor, positives: Tensor) -> Tensor:
        among_positives = logits.masked_fill(~positives, float("-inf")).logsumexp(dim=-1)
        return (logits.logsumexp(dim=-1) - among_positives).mean()

    return (one_way(logits_BC, positives_BC) + one_way(logits_BC.T, positives_BC.T)) / 2


def state_loss(image_BD: Tensor, states_GB2D: Tensor, is_bad_B: Tensor) -> Tensor:
    """Cross-entropy of the image embedding between its normal and abnormal direction, mean over groups and images."""
    logits_GB2 = torch.einsum("bd,gbsd->gbs", image_BD, states_GB2D) / TEMPERATURE
    target_GB = is_bad_B.long().expand(len(states_GB2D), -1)
    return F.cross_entropy(logits_GB2.flatten(0, 1), target_GB.flatten())


def dense_loss(patches_BPD: Tensor, states_GB2D: Tensor, coverage_BP: Tensor) -> Tensor:
    """Weighted binary cross-entropy plus dice of the patch probabilities against the mask.

    Defective patches weigh five times as much, for they are rare; slivers under `COVERED` weigh nothing.
    """
    logits_GBP2 = torch.einsum("bpd,gbsd->gbps", patches_BPD, states_GB2D) / TEMPERATURE
    margin_GBP = logits_GBP2[..., 1] - logits_GBP2[..., 0]
    target = (coverage_BP >= COVERED).float()
    weight = torch.where(target > 0, 5.0, (coverage_BP == 0).float())
    bce = F.binary_cross_entropy_with_logits(margin_GBP, target.expand_as(margin_GBP), reduction="none")
    bce = (bce * weight).sum(dim=(1, 2)) / weight.sum()
    probability_GBP = margin_GBP.sigmoid() * (weight > 0)
    overlap = (probability_GBP * target).sum(dim=2)
    dice_GB = 1 - (2 * overlap + 1) / (probability_GBP.sum(dim=2) + target.sum(dim=1) + 1)
    return bce.mean() + dice_GB.mean()


def type_loss(patches_BPD: Tensor, defects_KD: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of each image's mean defective patch token among the defect words; 0 without defects."""
    weight_BP = batch.coverage_BP * (batch.coverage_BP >= COVERED)
    rows = [i for i, d in enumerate(batch.defects) if d in DEFECTS and float(weight_BP[i].sum()) > 0]
    if not rows:
        return patches_BPD.sum() * 0
    mean_RD = F.normalize(torch.einsum("bp,bpd->bd", weight_BP[rows], patches_BPD[rows]), dim=-1)
    target = torch.tensor([DEFECTS.index(batch.defects[i]) for i in rows])
    return F.cross_entropy(mean_RD @ defects_KD.T / TEMPERATURE, target)


def export(model: nn.Module, output: Path) -> None:
    """Write the backbone folder: config and fp16 weights."""
    output.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG, "zsad": {"vv_start": VV_START}}
    (output / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    save_file({key: tensor.half().contiguous() for key, tensor in model.state_dict().items()}, output / WEIGHTS_FILE)


def _mean(texts_TD: Tensor, rows: list[int]) -> Tensor:
    return F.normalize(texts_TD[rows].mean(dim=0), dim=0)


def _pair(texts_TD: Tensor, group: wording.Group) -> Tensor:
    return torch.stack([_mean(texts_TD, group.normal), _mean(texts_TD, group.abnormal)])


def _shared_states(words: wording.Wording, texts_TD: Tensor, batch_size: int) -> Iterator[Tensor]:
    for group in words.shared:
        yield _pair(texts_TD, group).expand(batch_size, -1, -1)


def _own_states(words: wording.Wording, texts_TD: Tensor, batch: Batch) -> Tensor:
    pairs = {kind: _pair(texts_TD, group) for kind, group in words.own.items()}
    generic = _pair(texts_TD, words.shared[0])
    return torch.stack([pairs.get(kind, generic) for kind in batch.kinds])


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only; embeddings, norms and biases are left alone."""
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    chosen = {id(p) for p in decayed}
    plain = [p for p in model.parameters() if id(p) not in chosen]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _learning_rate(config: PretrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.total_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + float(np.cos(np.pi * progress)))


@cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@cache
def _vocabulary() -> NDArray[np.str_]:
    """Whole words of the vocabulary, from which unknown names are made."""
    words = (token.removesuffix("</w>") for token in _tokenizer().encoder if token.endswith("</w>"))
    return np.array([word for word in words if word.isalpha() and len(word) > 2])


def _save_checkpoint(
    model: nn.Module, optimiser: torch.optim.Optimizer, config: PretrainConfig, step: int, work: Path
) -> None:
    tensors = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"{key}.{name}"] = optimiser.state[parameter][key]
    metadata = {"step": str(step), "config": json.dumps(asdict(config), sort_keys=True)}
    save_file(tensors, work / "checkpoint.tmp", metadata=metadata)
    (work / "checkpoint.tmp").replace(work / "checkpoint.safetensors")


def _resume(model: nn.Module, optimiser: torch.optim.Optimizer, config: PretrainConfig, work: Path) -> int:
    """Load the checkpoint if there is one; returns the step to go on from."""
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
    if metadata["config"] != json.dumps(asdict(config), sort_keys=True):
        raise ConfigError(f"{path} belongs to another recipe; give another --work folder or remove it")
    tensors = load_file(path)
    step = int(metadata["step"])
    prefix = "model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    for name, parameter in model.named_parameters():
        optimiser.state[parameter] = {
            "step": torch.tensor(float(step)),
            **{key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")},
        }
    log.info("going on from step %d of %d", step, config.total_steps)
    return step
