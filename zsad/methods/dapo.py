"""One learned prompt form for every defect word: a binary detector that also says which defect, without new training.

Prompts are partly learned and partly words,

    SOT [W_1 .. W_l] <defect word> anomaly object EOT          one per defect word, the same W for all
    SOT [V_1 .. V_l] flawless object EOT                       the normal state

in E groups whose embeddings are averaged, so a new word is one more text through the tower. Both towers get learned
tokens at every block (`zsad.backbone.progressive`). Patch states of several blocks go through an adapter each into the
joint space, where a softmax over [normal ; defect words] types every patch; what is not normal is anomalous.

1 - p(normal) grows with the number of words, so a calibration holds for one word list only. The prompts say "object"
whatever the product is called: that is how they are trained.

Legend: B images, P patches, (h, w) patch grid, I levels, L blocks, n inserted tokens, W tower width, D joint width,
K defect words, C = 1 + K classes with "normal" first, E groups, l learned vectors, S sequences, T tokens.
Cost: one pass of the tower with n more tokens, and C products of D per patch and level; (1 + K) E texts once per word
list.
Source: DAPO (arXiv 2512.09446). Causal mask kept, end token moved behind the inserted tokens, map as a mean over levels
and the optional peak in the image score are ours; `compat` "published" has the text path of the published code.
"""

import hashlib
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zsad.backbone import Backbone, progressive, text
from zsad.backbone.prompted_text import num_text_layers, text_width, word_vectors
from zsad.backbone.similarity import similarity, total
from zsad.errors import ConfigError, ModelError
from zsad.methods.base import Prediction, Subject
from zsad.prompts.ensemble import fill

NUM_LEVELS = 4
NORMAL_WORDS = "flawless object"
ABNORMAL_WORDS = "{} anomaly object"
_SEQUENCES = 64  # texts encoded at once


@dataclass(frozen=True, slots=True, kw_only=True)
class DAPOConfig:
    """Settings; all but `temperature` and `map_weight` must be those of the training.

    Attributes:
        temperature: of every softmax, in (0, 1].
        carry: share of the inserted tokens that each block hands to the next, [0, 1].
        num_groups: prompts E per state.
        num_vectors: learned vectors l before the words of a prompt.
        num_tokens: tokens n inserted at every block of either tower.
        levels: blocks, counted from 1, whose patch states are compared; None: the four quarters of the tower.
        map_weight: share of the map's peak in the image score, [0, 1]; 0 is the published image score.
        compat: "published" runs the text tower without its causal mask and takes the state n tokens before the end
            token, as the published code does.
    """

    temperature: float = 0.07
    carry: float = 0.01
    num_groups: int = 10
    num_vectors: int = 5
    num_tokens: int = 4
    levels: tuple[int, ...] | None = None
    map_weight: float = 0.0
    compat: Literal["zsad", "published"] = "zsad"

    def __post_init__(self) -> None:
        """Refuse impossible settings; levels read from JSON become a tuple."""
        if not 0 < self.temperature <= 1:
            raise ConfigError(f"temperature is {self.temperature}; it must lie in (0, 1]")
        for name in ("carry", "map_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must lie in [0, 1]")
        for name in ("num_groups", "num_vectors", "num_tokens"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a whole number, at least 1")
        if self.compat not in ("zsad", "published"):
            raise ConfigError(f"compat is {self.compat!r}; it must be 'zsad' or 'published'")
        if self.levels is None:
            return
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.levels or any(type(level) is not int or level < 1 for level in self.levels):
            raise ConfigError(f"levels are {list(self.levels)}; give blocks as whole numbers, counted from 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSizes:
    """What of a backbone decides the shapes of learned tensors."""

    vision_layers: int
    vision_width: int
    text_layers: int
    text_width: int
    joint_width: int


class DAPO:
    """The method over one backbone, for one list of defect words."""

    scores_depend_on_words = True

    def __init__(
        self, config: DAPOConfig, backbone: Backbone, subject: Subject, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        self.config = config
        self.backbone = backbone
        levels_of(config, backbone)
        checked = check_tensors(tensors or {}, tensor_shapes(config, sizes_of(backbone)))
        self._tensors = {name: tensor.to(backbone.device) for name, tensor in checked.items()}
        words = tuple(sorted(subject.defect_words))  # so that their order as given changes no bit
        self._given_order = [words.index(word) for word in subject.defect_words]
        self._directions_CD = _directions_of(_Vocabulary.of(config, backbone, self._tensors, words))

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Prompt vectors, inserted tokens of both towers, and adapters."""
        return self._tensors

    @torch.inference_mode()
    def predict(self, pixels_BHWC: Tensor) -> Prediction:
        """Score a batch; see `Method.predict`. Scores, maps and types are probabilities in (0, 1)."""
        image_BD, patches, grid = encode_pixels(self.config, self.backbone, self._tensors, pixels_BHWC)
        temperature = self.config.temperature
        levels = [probabilities(level_BPD, self._directions_CD, temperature)[..., 1:] for level_BPD in patches]
        types_BKP = (total(levels) / len(levels)).transpose(1, 2)
        types_BKhw = types_BKP.reshape(*types_BKP.shape[:2], *grid)
        map_Bhw = types_BKhw.sum(dim=1)
        image_B = probabilities(image_BD, binary_pair(self._directions_CD), temperature)[:, 1]
        weight = self.config.map_weight
        return Prediction(
            score_B=(1 - weight) * image_B + weight * map_Bhw.amax(dim=(1, 2)),
            map_Bhw=map_Bhw,
            patches_BPD=patches[-1],
            type_map_BKhw=types_BKhw[:, self._given_order],
        )


def default_levels(num_layers: int) -> tuple[int, ...]:
    """The blocks, counted from 1, that end the four quarters of a tower: 6, 12, 18 and 24 of 24."""
    return tuple(max(1, round(i * num_layers / NUM_LEVELS)) for i in range(1, NUM_LEVELS + 1))


def levels_of(config: DAPOConfig, backbone: Backbone) -> tuple[int, ...]:
    """The levels in use.

    Raises:
        ModelError: if one lies beyond the backbone's vision tower.
    """
    levels = config.levels or default_levels(backbone.num_layers)
    if max(levels) > backbone.num_layers:
        raise ModelError(f"dapo takes levels {list(levels)}; {backbone.name} has blocks 1 to {backbone.num_layers}")
    return levels


def sizes_of(backbone: Backbone) -> TowerSizes:
    """Sizes of a backbone.

    Raises:
        ModelError: if its text tower has not the causal CLIP form.
    """
    return TowerSizes(
        vision_layers=backbone.num_layers,
        vision_width=int(backbone.model.visual.positional_embedding.shape[1]),
        text_layers=num_text_layers(backbone.model),
        text_width=text_width(backbone.model),
        joint_width=backbone.embed_dim,
    )


def tensor_shapes(config: DAPOConfig, sizes: TowerSizes) -> dict[str, tuple[int, ...]]:
    """Shape of every learned tensor: 3.36 million numbers for ViT-L/14."""
    vectors = (config.num_groups, config.num_vectors, sizes.text_width)
    num_levels = NUM_LEVELS if config.levels is None else len(config.levels)
    return {
        "abnormal_vectors": vectors,
        "normal_vectors": vectors,
        "text_tokens": (sizes.text_layers, config.num_tokens, sizes.text_width),
        "vision_tokens": (sizes.vision_layers, config.num_tokens, sizes.vision_width),
        "adapter_weights": (num_levels, sizes.joint_width, sizes.vision_width),
        "adapter_biases": (num_levels, sizes.joint_width),
    }


def check_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """`tensors` in fp32.

    Raises:
        ModelError: if one is missing, unexpected, of another shape or not finite.
    """
    if missing := shapes.keys() - tensors.keys():
        raise ModelError(
            f"dapo misses {len(missing)} learned tensors, such as {min(missing)}; it needs a trained bundle"
        )
    if unexpected := tensors.keys() - shapes.keys():
        raise ModelError(f"dapo knows no tensor {min(unexpected)}; the bundle belongs to another method")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape)
            raise ModelError(f"{name} has shape {found}; settings and backbone ask {shape}: use those of training")
        if not torch.isfinite(tensors[name]).all():
            raise ModelError(f"{name} holds values that are not finite; the bundle is damaged, train it anew")
    return {name: tensors[name].float() for name in shapes}


def initial_tensors(config: DAPOConfig, backbone: Backbone, seed: int) -> dict[str, Tensor]:
    """Where training starts, on the CPU.

    Vectors and text tokens are drawn like entries of the token table (mean and spread per dimension), vision tokens
    from U(-v, v) with v = sqrt(6 / (3 patch^2 + W)), adapters from U(-b, b) with b = 1 / sqrt(W).

    Args:
        config: decides the shapes.
        backbone: likewise; its token table is looked at.
        seed: of everything random.
    """
    sizes = sizes_of(backbone)
    generator = torch.Generator().manual_seed(seed)
    table: Tensor = text.text_tower(backbone.model).token_embedding.weight.detach().float().cpu()
    mean_W, spread_W = table.mean(dim=0), table.std(dim=0)
    bounds: dict[str, float] = {
        "vision_tokens": math.sqrt(6 / (3 * backbone.patch_size**2 + sizes.vision_width)),
        "adapter_weights": 1 / math.sqrt(sizes.vision_width),
        "adapter_biases": 1 / math.sqrt(sizes.vision_width),
    }

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        if name in bounds:
            return (2 * torch.rand(shape, generator=generator) - 1) * bounds[name]
        return torch.randn(shape, generator=generator) * spread_W + mean_W

    return {name: draw(name, shape) for name, shape in tensor_shapes(config, sizes).items()}


def encode_pixels(
    config: DAPOConfig,
    backbone: Backbone,
    tensors: Mapping[str, Tensor],
    pixels_BHWC: Tensor,
    *,
    checkpointing: bool = False,
) -> tuple[Tensor, list[Tensor], tuple[int, int]]:
    """Image embeddings (B, D), per level adapted patches (B, P, D), all unit-length, and the grid; differentiable."""
    features = progressive.encode_image(
        backbone,
        pixels_BHWC,
        tensors["vision_tokens"],
        carry=config.carry,
        levels=levels_of(config, backbone),
        checkpointing=checkpointing,
    )
    adapters = zip(features.states, tensors["adapter_weights"], tensors["adapter_biases"], strict=True)
    patches = [F.normalize(F.linear(state_BPW, weight, bias), dim=-1) for state_BPW, weight, bias in adapters]
    return features.image_BD, patches, features.grid


def probabilities(features: Tensor, directions_CD: Tensor, temperature: float) -> Tensor:
    """Softmax (..., C) over the classes of unit-length features (..., D)."""
    return (similarity(features, directions_CD) / temperature).softmax(dim=-1)


def binary_pair(directions_CD: Tensor) -> Tensor:
    """The normal direction and that of the mean defect, unit-length (2, D)."""
    return torch.stack([directions_CD[0], F.normalize(directions_CD[1:].mean(dim=0), dim=0)])


def encode_classes(
    config: DAPOConfig,
    backbone: Backbone,
    tensors: Mapping[str, Tensor],
    words: Sequence[str],
    *,
    checkpointing: bool = False,
) -> Tensor:
    """Unit-length directions (C, D) of "normal" and every defect word; differentiable.

    Raises:
        ConfigError: without words, for one that is given twice, or one too long for the text tower's context.
    """
    if not words or len(set(words)) < len(words):
        raise ConfigError(f"dapo was given the defect words {list(words)}; give at least one, and none twice")
    as_published = config.compat == "published"
    ids_CT, end_C = _prompt_ids(config, backbone, words)
    if not as_published:  # behind the causal mask, what follows the last end token changes nothing
        ids_CT = ids_CT[:, : int(end_C.max()) + 1]
    x_CETW = _fill_in(backbone, ids_CT, tensors["normal_vectors"], tensors["abnormal_vectors"])
    x_STW, end_S = x_CETW.flatten(0, 1), end_C.repeat_interleave(config.num_groups)
    rows = [
        progressive.encode_text(
            backbone.model,
            x_STW[start : start + _SEQUENCES],
            end_S[start : start + _SEQUENCES],
            tensors["text_tokens"],
            carry=config.carry,
            as_published=as_published,
            checkpointing=checkpointing,
        )
        for start in range(0, len(x_STW), _SEQUENCES)
    ]
    mean_CD = torch.cat(rows).view(len(ids_CT), config.num_groups, -1).mean(dim=1)
    return F.normalize(mean_CD.float(), dim=-1)


def _prompt_ids(config: DAPOConfig, backbone: Backbone, words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids (C, T) on the full context, 0 where learned vectors go, and the place of each end token."""
    ids_CT = backbone.tokenizer([NORMAL_WORDS, *(fill(ABNORMAL_WORDS, word) for word in words)])
    end_C = ids_CT.argmax(dim=-1) + config.num_vectors
    context = len(text.text_tower(backbone.model).positional_embedding)
    for word, end in zip([NORMAL_WORDS, *words], end_C.tolist(), strict=True):
        if end >= context:
            raise ConfigError(f"the defect word {word[:40]!r} is too long for prompts of {context} tokens; shorten it")
    gap = torch.zeros(len(ids_CT), config.num_vectors, dtype=ids_CT.dtype)
    spliced = torch.cat([ids_CT[:, :1], gap, ids_CT[:, 1:]], dim=1)[:, :context]
    return spliced.to(backbone.device), end_C.to(backbone.device)


def _fill_in(backbone: Backbone, ids_CT: Tensor, normal_ElW: Tensor, abnormal_ElW: Tensor) -> Tensor:
    """Input vectors (C, E, T, W): word vectors with the learned ones in their places, V for the first row."""
    num_groups, num_vectors = normal_ElW.shape[:2]
    words_CETW = word_vectors(backbone.model, ids_CT)[:, None].expand(-1, num_groups, -1, -1)
    learned_CElW = torch.stack([normal_ElW, *[abnormal_ElW] * (len(ids_CT) - 1)])
    return torch.cat([words_CETW[:, :, :1], learned_CElW, words_CETW[:, :, 1 + num_vectors :]], dim=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vocabulary:
    """A word list under one set of learned prompts; equal where all but the tensor objects is, their hash included.

    It does not keep the backbone, so that no forgotten one stays in memory for the sake of its cached directions.
    """

    config: DAPOConfig
    backbone: "weakref.ref[Backbone]"
    words: tuple[str, ...]
    digest: str
    tensors: Mapping[str, Tensor] = field(compare=False)

    @classmethod
    def of(
        cls, config: DAPOConfig, backbone: Backbone, tensors: Mapping[str, Tensor], words: tuple[str, ...]
    ) -> "_Vocabulary":
        prompts = {name: tensors[name] for name in ("abnormal_vectors", "normal_vectors", "text_tokens")}
        digest = hashlib.sha256()
        for tensor in prompts.values():
            digest.update(tensor.cpu().contiguous().numpy().data)
        return cls(
            config=config, backbone=weakref.ref(backbone), words=words, digest=digest.hexdigest(), tensors=prompts
        )


@lru_cache(maxsize=32)
@torch.inference_mode()
def _directions_of(vocabulary: _Vocabulary) -> Tensor:
    backbone = vocabulary.backbone()
    assert backbone is not None  # noqa: S101 - the caller holds it; for the type checker
    return encode_classes(vocabulary.config, backbone, vocabulary.tensors, vocabulary.words)
