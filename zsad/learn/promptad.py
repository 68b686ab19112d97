"""Fit PromptAD to one product from one to four normal images: learned prompts, image and pixel task apart.

A normal prompt is [contexts][name]. Joined to a text state ("damaged", "with rust") it becomes a manual abnormal
prompt, joined to a learned vector a learned one, all with the same context vectors. What is learned pulls normal
features to the normal prompts and away from every abnormal one, demands a margin between the two means, and keeps
learned and manual abnormal prompts together. No defective image is needed.

Image features never change, so they are computed once; a step is one short text pass. Prompts that share a context
share its keys and values; a state listed twice is encoded once and counted twice.

Legend: B images, P patches, D joint width, W text width, N contexts, C vectors of a context, U distinct states,
A learned abnormal contexts, R prompts.
Cost: 100 steps of (1 + U + 4) * N prompts; 5 to 6 s of one core of a busy CPU over nano, for 13 states and 4 images.
Source: PromptAD (arXiv 2404.05231) and its code; shared prefixes and weighted states are ours.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsad.backbone import Backbone, ImageFeatures
from zsad.backbone.prompted_text import encode_after, encode_prefix, num_text_layers, text_width, word_vectors
from zsad.backbone.text import text_tower
from zsad.errors import ConfigError, ModelError
from zsad.methods.base import Subject
from zsad.methods.promptad import (
    ABNORMAL_CONTEXT,
    NORMAL_CONTEXT,
    OBJECT_NAME,
    TEXT,
    PromptADConfig,
    encode,
    name_tensor,
    remembered,
)
from zsad.prompts.class_states import class_states

log = logging.getLogger(__name__)

Task = Literal["cls", "seg"]
Watch = Callable[[Task, dict[str, float]], None]
INITIAL_SPREAD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptADTraining:
    """How prompts are learned.

    Attributes:
        seed: of the initial contexts.
        epochs: steps, for all normal images are one batch; the last one is kept.
        learning_rate, final_learning_rate: ends of the cosine.
        momentum, weight_decay: of SGD.
        num_contexts_cls, num_contexts_seg: normal contexts N of the image and the pixel task.
        context_length, abnormal_length: vectors of a normal context, and of a learned abnormal one.
        num_abnormal: learned abnormal contexts A.
        align_weight: of the term that keeps learned and manual abnormal prompts together.
        compat: "released" takes the pixel task's margin over patches channel by channel, as the published code does by
            a slip of axes; "zsad" over the channels of every patch, as its formula says. Its double resize is a matter
            of the bundle: `Preprocess(first_px=1024)`.
    """

    seed: int = 111
    epochs: int = 100
    learning_rate: float = 0.002
    final_learning_rate: float = 1e-5
    momentum: float = 0.9
    weight_decay: float = 5e-4
    num_contexts_cls: int = 3
    num_contexts_seg: int = 1
    context_length: int = 4
    abnormal_length: int = 1
    num_abnormal: int = 4
    align_weight: float = 0.001
    compat: Literal["zsad", "released"] = "zsad"

    def __post_init__(self) -> None:
        """Refuse impossible recipes."""
        counts = ("epochs", "num_contexts_cls", "num_contexts_seg", "context_length", "abnormal_length", "num_abnormal")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.final_learning_rate <= self.learning_rate < 1:
            raise ConfigError(
                f"learning rates go from {self.learning_rate} to {self.final_learning_rate}; they must fall, or stay, "
                "within (0, 1)"
            )
        if not 0 <= self.momentum < 1 or not 0 <= self.weight_decay < 1 or not 0 <= self.align_weight < math.inf:
            raise ConfigError("momentum and weight_decay must lie in [0, 1), and align_weight must not be negative")
        if self.compat not in ("zsad", "released"):
            raise ConfigError(f"compat is {self.compat!r}; it must be 'zsad' or 'released'")

    def num_contexts(self, task: Task) -> int:
        """Normal contexts N of a task."""
        return self.num_contexts_cls if task == "cls" else self.num_contexts_seg


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """Embeddings of all prompts of a learner, not normalised.

    Attributes:
        normal_ND: one row per context.
        manual_RD: states x contexts, state-major.
        learned_RD: row j joins context j mod N with abnormal vector j mod A.
        counts_R: how often each manual row counts.
    """

    normal_ND: Tensor
    manual_RD: Tensor
    learned_RD: Tensor
    counts_R: Tensor

    def directions(self) -> Tensor:
        """Unit-length means (2, D) of the normal and of all abnormal rows."""
        total_D = self.counts_R @ self.manual_RD + self.learned_RD.sum(dim=0)
        abnormal_D = total_D / (self.counts_R.sum() + len(self.learned_RD))
        return F.normalize(torch.stack([self.normal_ND.mean(dim=0), abnormal_D]), dim=-1)


class PromptLearner(nn.Module):
    """The learned vectors of one task, and the prompts they stand in."""

    def __init__(
        self, backbone: Backbone, name: str, states: Sequence[str], normal_NCW: Tensor, abnormal_ACW: Tensor
    ) -> None:
        """Start from given contexts.

        Args:
            backbone: its text tower stays frozen.
            name: the product.
            states: abnormal texts, name included; one listed twice counts twice.
            normal_NCW: normal contexts.
            abnormal_ACW: what stands between a normal context and the name in the learned abnormal prompts.

        Raises:
            ConfigError: if a prompt is too long for the text tower.
            ModelError: if the text tower can't take learned vectors.
        """
        super().__init__()
        self.model = (backbone.model,)  # in a tuple: not a part of this module
        self.normal_NCW = nn.Parameter(normal_NCW.clone())
        self.abnormal_ACW = nn.Parameter(abnormal_ACW.clone())
        counts = Counter(states)
        self.counts_U = torch.tensor(list(counts.values()), dtype=torch.float32, device=backbone.device)
        taken = normal_NCW.shape[1] + abnormal_ACW.shape[1]
        self.tokens_UT = tokenise(backbone, [name, *counts], taken)
        self.end_U = self.tokens_UT.argmax(dim=-1)

    def forward(self) -> TextFeatures:
        """Embeddings of all prompts; differentiable in both contexts."""
        num_contexts, num_texts = len(self.normal_NCW), len(self.tokens_UT)
        words_UTW = word_vectors(self.model[0], self.tokens_UT)
        rows_NRD = torch.stack([self._with_context(n, words_UTW) for n in range(num_contexts)])
        return TextFeatures(
            normal_ND=rows_NRD[:, 0],
            manual_RD=rows_NRD[:, 1:num_texts].transpose(0, 1).flatten(0, 1),
            learned_RD=rows_NRD[:, num_texts:].transpose(0, 1).flatten(0, 1),
            counts_R=self.counts_U.repeat_interleave(num_contexts),
        )

    def _with_context(self, n: int, words_UTW: Tensor) -> Tensor:
        """Rows of context n: the name, every state, and the name after the abnormal vectors it is joined with."""
        prefix = encode_prefix(self.model[0], torch.cat([words_UTW[0, :1], self.normal_NCW[n]]))
        num_contexts, num_abnormal, length = len(self.normal_NCW), *self.abnormal_ACW.shape[:2]
        joined = [j % num_abnormal for j in range(n, num_contexts * num_abnormal, num_contexts)]
        after_UTW = words_UTW[:, 1:]
        learned_ATW = torch.cat([self.abnormal_ACW[joined], after_UTW[:1].expand(num_abnormal, -1, -1)], dim=1)
        x_RTW = torch.cat([F.pad(after_UTW, (0, 0, 0, length)), learned_ATW])
        end_R = torch.cat([self.end_U - 1, (self.end_U[:1] - 1 + length).expand(num_abnormal)])
        longest = int(end_R.max()) + 1
        return encode_after(self.model[0], prefix, x_RTW[:, :longest], end_R)


def tokenise(backbone: Backbone, texts: Sequence[str], taken: int) -> Tensor:
    """Token ids (U, T) of "text .", cut to the longest; the end token has the largest id of its row.

    Raises:
        ConfigError: if `taken` learned vectors and a text do not fit into the text tower's context.
    """
    context = len(text_tower(backbone.model).positional_embedding)
    tokens_UT: Tensor = backbone.tokenizer([f"{text} ." for text in texts]).to(backbone.device)
    longest = int(tokens_UT.argmax(dim=-1).max()) + 1
    if longest + taken > context:
        raise ConfigError(
            f"the prompts of {texts[0]!r} are too long: with {taken} learned vectors they pass the text tower's "
            f"{context} tokens; use a shorter object name"
        )
    return tokens_UT[:, :longest]


def new_learner(
    config: PromptADTraining, backbone: Backbone, name: str, states: Sequence[str], task: Task
) -> PromptLearner:
    """A learner at its random start; the same for the same seed on every device."""
    generator = torch.Generator().manual_seed(config.seed)
    width = text_width(backbone.model)

    def normal(*shape: int) -> Tensor:
        return (INITIAL_SPREAD * torch.randn(*shape, width, generator=generator)).to(backbone.device)

    contexts = normal(config.num_contexts(task), config.context_length)
    return PromptLearner(backbone, name, states, contexts, normal(config.num_abnormal, config.abnormal_length))


def losses(
    texts: TextFeatures, anchors: Tensor, *, logit_scale: float, compat: Literal["zsad", "released"] = "zsad"
) -> dict[str, Tensor]:
    """The three terms, each a scalar, not weighted.

    Args:
        texts: of the task's learner.
        anchors: unit-length features of normal images: (B, D) of the image task, (B, P, D) of the pixel task.
        logit_scale: factor on cosines.
        compat: see `PromptADTraining`; makes no difference for (B, D).
    """
    normal_D, abnormal_D = texts.directions()
    over = 1 if compat == "released" else -1
    to_normal = (anchors - normal_D).square().sum(dim=over)
    to_abnormal = (anchors - abnormal_D).square().sum(dim=over)
    manual_D = texts.counts_R @ F.normalize(texts.manual_RD, dim=-1) / texts.counts_R.sum()
    learned_D = F.normalize(texts.learned_RD, dim=-1).mean(dim=0)
    return {
        "contrastive": _contrastive(texts, normal_D, logit_scale * anchors),
        "margin": (to_normal - to_abnormal).relu().mean(),
        "align": (manual_D - learned_D).square().sum(),
    }


def _contrastive(texts: TextFeatures, normal_D: Tensor, scaled: Tensor) -> Tensor:
    """Cross-entropy of the normal direction against every abnormal prompt, a prompt of count c standing for c."""
    abnormal_RD = F.normalize(torch.cat([texts.manual_RD, texts.learned_RD]), dim=-1)
    counts_R = torch.cat([texts.counts_R, texts.counts_R.new_ones(len(texts.learned_RD))])
    right = scaled @ normal_D
    wrong = scaled @ abnormal_RD.T + counts_R.log()
    return (torch.cat([right[..., None], wrong], dim=-1).logsumexp(dim=-1) - right).mean()


def new_optimiser(config: PromptADTraining, learner: PromptLearner) -> torch.optim.Optimizer:
    """SGD as published."""
    return torch.optim.SGD(
        learner.parameters(), lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )


def learning_rate(config: PromptADTraining, epoch: int) -> float:
    """Cosine from the first rate at epoch 0 towards the final one at epoch `epochs`."""
    share = (1 + math.cos(math.pi * epoch / config.epochs)) / 2
    return config.final_learning_rate + share * (config.learning_rate - config.final_learning_rate)


def step(
    learner: PromptLearner,
    optimiser: torch.optim.Optimizer,
    anchors: Tensor,
    config: PromptADTraining,
    logit_scale: float,
) -> dict[str, float]:
    """One optimiser step at the optimiser's learning rate.

    Returns:
        The loss terms before the step, and their weighted sum as "total".
    """
    terms = losses(learner(), anchors, logit_scale=logit_scale, compat=config.compat)
    terms["total"] = terms["contrastive"] + terms["margin"] + config.align_weight * terms["align"]
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(terms["total"])
    optimiser.step()
    return {name: float(term.detach()) for name, term in terms.items()}


def fit(
    config: PromptADTraining,
    backbone: Backbone,
    subject: Subject,
    normals: Iterable[Tensor],
    *,
    method: PromptADConfig | None = None,
    watch: Watch | None = None,
) -> dict[str, Tensor]:
    """The tensors of a `PromptAD` for one product; arguments and errors as `fit_features` but for the images.

    Args:
        config: how to learn.
        backbone: gives features and stays as it is.
        subject: its object name stands in the prompts.
        normals: batches of uint8 (B, H, W, 3), one to four images in all as published; more are allowed.
        method: settings that the detector will score with; None: the defaults.
        watch: told the loss terms of every step.

    Raises:
        ConfigError: if there are no images.
        ModelError: if the images do not divide into patches.
    """
    num_text_layers(backbone.model)  # refuses towers without the causal CLIP form before images are encoded
    method = method or PromptADConfig()
    features = [encode(backbone, method, batch) for batch in normals]
    return fit_features(config, backbone, subject, features, method=method, watch=watch)


def fit_features(
    config: PromptADTraining,
    backbone: Backbone,
    subject: Subject,
    features: Sequence[ImageFeatures],
    *,
    method: PromptADConfig,
    watch: Watch | None = None,
) -> dict[str, Tensor]:
    """The tensors of a `PromptAD` for one product, from what `encode` gave of its normal images.

    Args:
        config: how to learn.
        backbone: that the features are of; its text tower encodes the prompts.
        subject: its object name stands in the prompts.
        features: of all normal images, by batches.
        method: settings that the detector will score with, and that the features were made by.
        watch: told the loss terms of every step.

    Raises:
        ConfigError: if there are no images, or the object name is too long.
        ModelError: if a loss is not finite, or the text tower can't take learned vectors.
    """
    tensors = {OBJECT_NAME: name_tensor(subject.object_name)}
    tensors |= remembered(features, method.taps(backbone.num_layers))
    for task in ("cls", "seg"):
        anchors = _anchors(features, task)
        learner = _learn(config, backbone, subject.object_name, task, anchors, method.logit_scale, watch)
        with torch.no_grad():
            directions_2D = learner().directions()
        tensors |= {
            f"{task}.{TEXT}": directions_2D,
            f"{task}.{NORMAL_CONTEXT}": learner.normal_NCW.detach(),
            f"{task}.{ABNORMAL_CONTEXT}": learner.abnormal_ACW.detach(),
        }
    return tensors


def _anchors(features: Sequence[ImageFeatures], task: Task) -> Tensor:
    """What a task learns from; a copy, because tensors made in inference mode can't take part in training."""
    return torch.cat([batch.image_BD if task == "cls" else batch.patches_BPD for batch in features]).clone()


def _learn(
    config: PromptADTraining,
    backbone: Backbone,
    name: str,
    task: Task,
    anchors: Tensor,
    logit_scale: float,
    watch: Watch | None,
) -> PromptLearner:
    learner = new_learner(config, backbone, name, class_states(name), task)
    optimiser = new_optimiser(config, learner)
    for epoch in range(config.epochs):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, epoch)
        terms = step(learner, optimiser, anchors, config, logit_scale)
        if not math.isfinite(terms["total"]):
            raise ModelError(f"{name}, task {task}: the loss of step {epoch + 1} is not finite; lower learning_rate")
        if watch is not None:
            watch(task, terms)
    log.info("%s, task %s: last losses %s", name, task, {key: round(value, 4) for key, value in terms.items()})
    return learner
