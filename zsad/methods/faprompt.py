"""Fine-grained abnormality prompts, refined per image by its own most suspicious patches.

Learned vectors stand in for words: one normal prompt and K abnormal ones that share its beginning. A first pass
compares every patch with the normal prompt and with the mean of the abnormal ones. The M most abnormal patches then
make a bias that is added to the abnormal vectors of this one image, and a second pass compares again. The word for the
product is always "object".

    normal     SOT N1..N5 object .                   abnormal k   SOT N1..N5 A_k1 A_k2 damaged object .

Everything up to N5 is encoded once, as keys and values; of the abnormal prompts only the tokens after it run per image,
those of the whole batch in one call. `Prediction.map_Bhw` is the mean of both passes on the patch grid, before
up-sampling and filter, so `maps.published_map(map_Bhw, size, map_sigma)` is the published map.

Legend: B images, P patches, (h, w) patch grid, D joint width, W text width, K abnormal prompts, M selected patches.
Cost: the tower, plus 10.2 GFLOP per image for 10 prompts of CLIP ViT-L's text tower (2 FLOP per multiplication).
Source: FAPrompt (arXiv 2410.10289) and its released code; `compat="released"` repeats two deviations of the latter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from zsad.backbone import Backbone
from zsad.backbone.prompted_text import Prefix, encode_after, encode_prefix, num_text_layers, text_width, word_vectors
from zsad.backbone.similarity import probability
from zsad.errors import ConfigError, ModelError
from zsad.methods.base import Prediction, Subject

Selection = Literal["topk", "raster10"]
Compat = Literal["", "released"]

NORMAL_WORDS = "object."
ABNORMAL_WORDS = "damaged object."
_DEEP_SHARE = 0.75
_HIDDEN_SHARE = 16  # the prior's hidden layer is this many times narrower than its input
_STD = 0.02
_SIGMA_SIZE = 518  # px, the input size `sigma_px` is meant at


@dataclass(frozen=True, slots=True, kw_only=True)
class FAPromptConfig:
    """Settings of the method.

    Attributes:
        num_prompts: K.
        normal_length: learned vectors at the beginning of every prompt.
        abnormal_length: further ones of each abnormal prompt.
        deep_depth: text blocks with learned vectors, the first included; None: three quarters of the text tower.
        deep_length: vectors that overwrite the first normal ones before each block but the first.
        num_selected: M.
        dap_select: "topk", the most abnormal patches, or "raster10", the first M in raster order. A bundle must be run
            with what it was trained with.
        vv_start: first block of the value-value path; None: the backbone's default.
        temperature: of the softmax between normal and abnormal, in (0, 1].
        sigma_px: of the published map's Gaussian at an input of 518 px; it spans the same share of other inputs.
        compat: "released": the first patches in raster order whatever `dap_select` says, and deep vectors rounded to
            fp16, both as the released code.
    """

    num_prompts: int = 10
    normal_length: int = 5
    abnormal_length: int = 2
    deep_depth: int | None = None
    deep_length: int = 4
    num_selected: int = 10
    dap_select: Selection = "topk"
    vv_start: int | None = None
    temperature: float = 0.07
    sigma_px: float = 10.0
    compat: Compat = ""

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        counts = ("num_prompts", "normal_length", "abnormal_length", "deep_depth", "deep_length", "num_selected")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.deep_length > self.normal_length:
            raise ConfigError(
                f"deep_length is {self.deep_length}; deep vectors overwrite normal ones, of which there are only "
                f"{self.normal_length}: lower it or raise normal_length"
            )
        for name, allowed in (("dap_select", get_args(Selection)), ("compat", get_args(Compat))):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(map(repr, allowed))}"
                )
        if not 0 < self.temperature <= 1:
            raise ConfigError(f"temperature is {self.temperature}; it must lie in (0, 1]")
        if not 0 <= self.sigma_px < float("inf"):
            raise ConfigError(f"sigma_px is {self.sigma_px}; it must be 0 (no filter) or more")

    @property
    def selection(self) -> Selection:
        """The selection in force."""
        return "raster10" if self.compat == "released" else self.dap_select


def expected_shapes(config: FAPromptConfig, backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Shape of every learned tensor over this backbone.

    Raises:
        ConfigError: if `deep_depth` or `vv_start` is more than the backbone has.
        ModelError: if its text tower can't take learned vectors.
    """
    num_layers, width = num_text_layers(backbone.model), text_width(backbone.model)
    depth = max(1, round(_DEEP_SHARE * num_layers)) if config.deep_depth is None else config.deep_depth
    if depth > num_layers:
        raise ConfigError(f"deep_depth is {depth}; the text tower of {backbone.name} has {num_layers} blocks")
    if config.vv_start is not None and not 0 <= config.vv_start < backbone.num_layers:
        raise ConfigError(
            f"vv_start is {config.vv_start}; {backbone.name} has blocks 0 to {backbone.num_layers - 1} to start at"
        )
    selected = config.num_selected * backbone.embed_dim
    hidden = max(1, selected // _HIDDEN_SHARE)
    return {
        "normal_context": (config.normal_length, width),
        "abnormal_context": (config.num_prompts, config.abnormal_length, width),
        "deep_prompts": (depth - 1, config.deep_length, width),
        "prior.linear1.weight": (hidden, selected),
        "prior.linear1.bias": (hidden,),
        "prior.linear2.weight": (width, hidden),
        "prior.linear2.bias": (width,),
    }


def initial_tensors(config: FAPromptConfig, backbone: Backbone, seed: int) -> dict[str, Tensor]:
    """Where training starts: prompt vectors from N(0, 0.02), the prior's layers uniform within 1 / sqrt(inputs).

    The same for a seed on every device; errors as `expected_shapes`.
    """
    shapes = expected_shapes(config, backbone)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        if name.startswith("prior."):
            inputs = shapes[f"{name.rpartition('.')[0]}.weight"][1]
            drawn = (2 * torch.rand(shape, generator=generator) - 1) / inputs**0.5
        else:
            drawn = _STD * torch.randn(shape, generator=generator)
        tensors[name] = drawn.to(backbone.device)
    return tensors


def check_tensors(tensors: Mapping[str, Tensor], config: FAPromptConfig, backbone: Backbone) -> dict[str, Tensor]:
    """`tensors` on the backbone's device in fp32.

    Raises:
        ModelError: if one is missing, unknown, of another shape or not finite.
        ConfigError: as `expected_shapes`.
    """
    shapes = expected_shapes(config, backbone)
    if not tensors:
        raise ModelError(
            f"faprompt over {backbone.name} has no learned tensors; train it first and give the bundle that comes out"
        )
    for what, names in (("missing", shapes.keys() - tensors.keys()), ("unknown", tensors.keys() - shapes.keys())):
        if names:
            raise ModelError(
                f"tensors of faprompt: {what} {', '.join(sorted(names))}; the bundle is for other settings"
            )
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ModelError(
                f"tensors of faprompt: {name} has shape {tuple(tensors[name].shape)}, but these settings over "
                f"{backbone.name} need {shape}"
            )
        if not torch.isfinite(tensors[name]).all():
            raise ModelError(f"tensors of faprompt: {name} holds values that are not finite; train it anew")
    return {name: tensors[name].detach().to(backbone.device, torch.float32) for name in shapes}


@dataclass(frozen=True, slots=True)
class StaticText:
    """What does not depend on the image: raw embeddings and the prompts' shared beginning."""

    normal_D: Tensor
    abnormal_KD: Tensor
    prefix: Prefix


class PromptEncoder:
    """The frozen words around the learned vectors, and the text tower; differentiable in what it is given."""

    def __init__(self, config: FAPromptConfig, backbone: Backbone) -> None:
        self.config = config
        self.model = backbone.model
        tokens_2T = backbone.tokenizer([NORMAL_WORDS, ABNORMAL_WORDS]).to(backbone.device)
        ends = tokens_2T.argmax(dim=-1).tolist()
        with torch.no_grad():
            self.start_1W = word_vectors(self.model, tokens_2T[0, :1])
            self.normal_TW, self.abnormal_TW = (
                word_vectors(self.model, row_T[1 : end + 1]) for row_T, end in zip(tokens_2T, ends, strict=True)
            )

    def static(self, tensors: Mapping[str, Tensor]) -> StaticText:
        """Encode the normal prompt and the K abnormal ones without a prior.

        Raises:
            ModelError: if the prompts do not fit into the text tower's context.
        """
        deep = tensors["deep_prompts"]
        if self.config.compat == "released":
            deep = deep.half().float()
        beginning_TW = torch.cat([self.start_1W, tensors["normal_context"]])
        prefix = encode_prefix(self.model, beginning_TW, deep=tuple(deep))
        abnormal_KTW = self._abnormal(tensors["abnormal_context"])
        filler = abnormal_KTW.shape[1] - len(self.normal_TW)
        both_STW = torch.cat([F.pad(self.normal_TW, (0, 0, 0, filler))[None], abnormal_KTW])
        end_S = torch.full((len(both_STW),), both_STW.shape[1] - 1, device=both_STW.device)
        end_S[0] -= filler
        raw_SD = encode_after(self.model, prefix, both_STW, end_S)
        return StaticText(raw_SD[0], raw_SD[1:], prefix)

    def with_prior(self, tensors: Mapping[str, Tensor], prefix: Prefix, prior_BW: Tensor) -> Tensor:
        """Raw embeddings (B, K, D) of every image's own abnormal prompts, in one call for the batch."""
        context_BKTW = tensors["abnormal_context"] + prior_BW[:, None, None]
        prompts_STW = self._abnormal(context_BKTW.flatten(0, 1))
        end_S = torch.full((len(prompts_STW),), prompts_STW.shape[1] - 1, device=prompts_STW.device)
        return encode_after(self.model, prefix, prompts_STW, end_S).view(*context_BKTW.shape[:2], -1)

    def _abnormal(self, context_STW: Tensor) -> Tensor:
        return torch.cat([context_STW, self.abnormal_TW.expand(len(context_STW), -1, -1)], dim=1)


@dataclass(frozen=True, slots=True)
class Passes:
    """Both passes over a batch: probabilities of being abnormal per patch, and what the second one rests on.

    Attributes:
        first_BP, second_BP: with the shared and with the image's own abnormal direction.
        selected_BMD: the patches behind the prior.
        prior_BW: what is added to the abnormal vectors.
        image_margin_B: logit of the image embedding between normal and its own abnormal direction.
    """

    first_BP: Tensor
    second_BP: Tensor
    selected_BMD: Tensor
    prior_BW: Tensor
    image_margin_B: Tensor

    @property
    def anomaly_map(self) -> Tensor:
        """Anomaly map (B, P), raster order."""
        return (self.first_BP + self.second_BP) / 2

    @property
    def score(self) -> Tensor:
        """Image scores (B,) in (0, 1): the image embedding and the maps' peaks, the first pass counting twice."""
        peaks_B = (2 * self.first_BP.amax(dim=1) + self.second_BP.amax(dim=1)) / 3
        return (probability(self.image_margin_B) + peaks_B) / 2


def run_passes(
    encoder: PromptEncoder, tensors: Mapping[str, Tensor], static: StaticText, image_BD: Tensor, patches_BPD: Tensor
) -> Passes:
    """Score a batch of unit-length features; differentiable in `tensors` and `static`.

    Args:
        encoder: of the same config.
        tensors: learned ones, see `expected_shapes`.
        static: `encoder.static(tensors)`.
        image_BD: class token projected without `ln_post`.
        patches_BPD: value-value patch tokens.

    Raises:
        ModelError: with fewer patches than are to be selected.
    """
    config = encoder.config
    normal_D = F.normalize(static.normal_D, dim=-1)
    shared_D = _mean_direction(static.abnormal_KD)
    first_BP = probability(margin(patches_BPD, shared_D - normal_D, config.temperature))
    selected_BMD = select_patches(patches_BPD, first_BP, config)
    prior_BW = prior(tensors, selected_BMD)
    own_BD = _mean_direction(encoder.with_prior(tensors, static.prefix, prior_BW))
    return Passes(
        first_BP=first_BP,
        second_BP=probability(margin(patches_BPD, (own_BD - normal_D)[:, None], config.temperature)),
        selected_BMD=selected_BMD,
        prior_BW=prior_BW,
        image_margin_B=margin(image_BD, own_BD - normal_D, config.temperature),
    )


def _mean_direction(abnormal_KD: Tensor) -> Tensor:
    """Unit-length mean of the raw, not the normalised, embeddings: (..., K, D) -> (..., D)."""
    return F.normalize(abnormal_KD.mean(dim=-2), dim=-1)


def margin(features: Tensor, difference: Tensor, temperature: float) -> Tensor:
    """Logit of abnormal against normal: features (..., D) along the difference (..., D) of the two directions.

    A product and a sum for the reason told in `zsad.backbone.similarity`; `probability` makes the softmax share of it.
    """
    return (features * difference).sum(dim=-1) / temperature


def select_patches(patches_BPD: Tensor, first_BP: Tensor, config: FAPromptConfig) -> Tensor:
    """The patches (B, M, D) that make the prior, most abnormal first; equal ones in raster order.

    Raises:
        ModelError: with fewer patches than are to be selected.
    """
    wanted, (num_images, num_patches) = config.num_selected, first_BP.shape
    if num_patches < wanted:
        raise ModelError(f"images of {num_patches} patches are too small: faprompt selects {wanted}; use larger ones")
    if config.selection == "raster10":
        return patches_BPD[:, :wanted]
    best_BM = first_BP.argsort(dim=1, descending=True, stable=True)[:, :wanted]
    return patches_BPD[torch.arange(num_images, device=best_BM.device)[:, None], best_BM]


def prior(tensors: Mapping[str, Tensor], selected_BMD: Tensor) -> Tensor:
    """The bias (B, W) that the selected patches give; B is at least 1."""
    hidden = [_linear(tensors, "prior.linear1", row).relu() for row in selected_BMD.flatten(1)]
    return torch.stack([_linear(tensors, "prior.linear2", row) for row in hidden])


def _linear(tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """One layer as a product and a sum: matrix kernels split long sums by the number of threads and of rows."""
    return (tensors[f"{name}.weight"] * x).sum(dim=-1) + tensors[f"{name}.bias"]


class FAPrompt:
    """Learned prompts over one backbone; the product's name plays no part."""

    def __init__(
        self, config: FAPromptConfig, backbone: Backbone, subject: Subject, tensors: Mapping[str, Tensor]
    ) -> None:
        self.config = config
        self.backbone = backbone
        self._tensors = check_tensors(tensors, config, backbone)
        self._encoder = PromptEncoder(config, backbone)
        with torch.no_grad():
            self._static = self._encoder.static(self._tensors)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Prompt vectors and the prior's two layers; see `expected_shapes`."""
        return self._tensors

    @property
    def map_sigma(self) -> float:
        """Of the published map's Gaussian, as a share of its side."""
        return self.config.sigma_px / _SIGMA_SIZE

    @torch.inference_mode()
    def predict(self, pixels_BHWC: Tensor) -> Prediction:
        """Score a batch; see `Method.predict`. Scores and maps are probabilities in (0, 1)."""
        features = self.backbone.encode_image(pixels_BHWC, vv_start=self.config.vv_start, image_ln_post=False)
        passes = run_passes(self._encoder, self._tensors, self._static, features.image_BD, features.patches_BPD)
        return Prediction(
            score_B=passes.score,
            map_Bhw=passes.anomaly_map.view(-1, *features.grid),
            patches_BPD=features.patches_BPD,
        )
