"""What a training will need, before anything is started: counts, steps, bytes, and memory as an estimate.

Activations are counted as 34 T W + 5 H T^2 numbers a transformer block and sequence of T tokens, width W and H heads
(Korthikanti et al., arXiv 2205.05198, section 4.1, which counts bytes of half precision: 2 a number, 4 here). That is
an upper estimate: FAPrompt's prompts share keys and values, and checkpointing keeps one block's at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zsad.backbone import Backbone
from zsad.backbone.prompted_text import num_text_layers, text_width
from zsad.backbone.text import text_tower
from zsad.learn.examples import Form
from zsad.learn.product_features import Kept, bytes_per_image
from zsad.learn.recipes import Recipe
from zsad.learn.step import bytes_exchanged
from zsad.prompts.class_states import class_states
from zsad.train_config import TrainConfig

if TYPE_CHECKING:
    from zsad.learn.products import ProductNormals
    from zsad.learn.promptad import PromptADTraining

_FAPROMPT_TOKENS = 12  # of its longest prompt
_DAPO_TOKENS = 16
_PROMPTAD_TOKENS = 16
_OBJECT = "object"
_NAMED = 10
_HEAD_WIDTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of one training.

    Attributes:
        num_images: listed ones.
        num_trainable: learned numbers.
        rows_bytes: of rows on storage, all images.
        kept: what rows hold.
        steps: of all epochs, if every image can be used.
        memory_bytes: of one worker: model, learned state and activations of its part of a batch.
        exchanged_bytes: that every worker puts into one step's all-reduce.
    """

    num_images: int
    num_trainable: int
    rows_bytes: int
    kept: str
    epochs: int
    steps: int
    memory_bytes: int
    exchanged_bytes: int

    def text(self) -> str:
        """For people, one fact a line."""
        what = "pixels and masks" if self.kept == "pixels" else f"features in {self.kept} and masks"
        lines = (
            f"images              {self.num_images:,}",
            f"trainable numbers   {self.num_trainable:,}",
            f"cache               {_size(self.rows_bytes)} of {what}",
            f"steps               {self.steps:,} in {self.epochs:,} epochs",
            f"memory of a worker  about {_size(self.memory_bytes)}",
            f"exchanged a step    {_size(self.exchanged_bytes)} by each worker",
        )
        return "\n".join(lines)


def estimate(config: TrainConfig, form: Form, recipe: Recipe, backbone: Backbone, *, num_images: int) -> Estimate:
    """What the training of `config` will need."""
    learner = recipe.learner
    num_trainable = sum(tensor.numel() for tensor in learner.tensors.values())
    learned_from = num_images - round(config.validation * num_images)
    part = -(-config.batch_size // config.num_workers)
    model = sum(parameter.numel() * parameter.element_size() for parameter in backbone.model.parameters())
    state = 16 * num_trainable  # value, gradient and two moments, fp32
    return Estimate(
        num_images=num_images,
        num_trainable=num_trainable,
        rows_bytes=num_images * form.bytes_per_image,
        kept=form.kept,
        epochs=config.num_epochs,
        steps=config.num_epochs * -(-learned_from // config.batch_size),
        memory_bytes=model + state + part * form.bytes_per_image + _activations(config, form, backbone, part),
        exchanged_bytes=bytes_exchanged(learner),
    )


def _activations(config: TrainConfig, form: Form, backbone: Backbone, part: int) -> int:
    layers, width = num_text_layers(backbone.model), text_width(backbone.model)
    heads = int(text_tower(backbone.model).transformer.resblocks[0].attn.num_heads)
    if config.method == "faprompt":
        return layers * _block((10 * part + 11), _FAPROMPT_TOKENS, width, heads)
    vision = int(backbone.model.visual.conv1.out_channels)
    tokens = (form.size // backbone.patch_size) ** 2 + 5
    blocks = 1 if config.checkpointing else backbone.num_layers
    text_blocks = 1 if config.checkpointing else layers
    return blocks * _block(part, tokens, vision, vision // _HEAD_WIDTH) + text_blocks * _block(
        200, _DAPO_TOKENS, width, heads
    )


def _block(sequences: int, tokens: int, width: int, heads: int) -> int:
    """Bytes of activations that one block keeps."""
    return 2 * sequences * (34 * tokens * width + 5 * heads * tokens**2)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductsEstimate:
    """Of one training product by product.

    Attributes:
        num_images: normal ones that shots are drawn from, of all products.
        shots: used of each.
        short: products that the list gives fewer to, each with how many it has; broken images are found later.
        num_trainable: learned numbers of a product.
        steps: of a product, both tasks.
        cache_bytes: of the features of all products' shots.
        kept: how they are stored.
        num_workers: that fit products at once.
        memory_bytes: of one worker: the model, the shots, and a text step or a pass of the image tower.
    """

    num_products: int
    num_images: int
    shots: int
    short: tuple[str, ...]
    num_trainable: int
    steps: int
    cache_bytes: int
    kept: Kept
    num_workers: int
    memory_bytes: int

    def text(self) -> str:
        """For people, one fact a line."""
        named = ", ".join(self.short[:_NAMED]) + (", ..." if len(self.short) > _NAMED else "")
        lines = (
            f"products            {self.num_products:,}, a bundle each, by {self.num_workers:,} processes",
            f"too few images      {len(self.short):,} products{f': {named}' if named else ''}",
            f"normal images       {self.num_images:,}, of which {self.shots:,} of each product are used",
            f"cache               {_size(self.cache_bytes)} of features ({self.kept})",
            f"trainable numbers   {self.num_trainable:,} a product",
            f"steps               {self.steps:,} a product",
            f"memory of a worker  about {_size(self.memory_bytes)}",
        )
        return "\n".join(lines)


def estimate_products(
    config: TrainConfig,
    training: "PromptADTraining",
    backbone: Backbone,
    products: "Sequence[ProductNormals]",
    *,
    size: int,
) -> ProductsEstimate:
    """What the training of `config` will need.

    Args:
        config: of promptad.
        training: of each product.
        backbone: of all.
        products: listed ones.
        size: S of the model's input.

    Raises:
        ModelError: if the text tower can't take learned vectors.
    """
    layers, width = num_text_layers(backbone.model), text_width(backbone.model)
    heads = int(text_tower(backbone.model).transformer.resblocks[0].attn.num_heads)
    of_a_task = [
        training.num_contexts(task) * training.context_length + training.num_abnormal * training.abnormal_length
        for task in ("cls", "seg")
    ]
    states = len(set(class_states(_OBJECT)))
    prompts = training.num_contexts("cls") * (1 + states + training.num_abnormal)
    vision, tokens = int(backbone.model.visual.conv1.out_channels), (size // backbone.patch_size) ** 2 + 1
    of_an_image = bytes_per_image(tokens - 1, backbone.embed_dim, vision, config.cache)
    step = layers * _block(prompts, _PROMPTAD_TOKENS, width, heads)
    model = sum(parameter.numel() * parameter.element_size() for parameter in backbone.model.parameters())
    return ProductsEstimate(
        num_products=len(products),
        num_images=sum(len(item.keys) for item in products),
        shots=config.shots,
        short=tuple(f"{item.product} ({len(item.keys)})" for item in products if len(item.keys) < config.shots),
        num_trainable=width * sum(of_a_task),
        steps=len(of_a_task) * config.num_epochs,
        cache_bytes=of_an_image * sum(config.shots for item in products if len(item.keys) >= config.shots),
        kept=config.cache,
        num_workers=config.num_workers,
        memory_bytes=model
        + 3 * size**2 * config.shots
        + max(step, _block(config.shots, tokens, vision, vision // _HEAD_WIDTH)),
    )
