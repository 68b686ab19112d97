"""What a training will need, before anything is started: counts, steps, bytes, and memory as an estimate.

Activations are counted as 34 T W + 5 H T^2 numbers a transformer block and sequence of T tokens, width W and H heads
(Korthikanti et al., arXiv 2205.05198, section 4.1, which counts bytes of half precision: 2 a number, 4 here). That is
an upper estimate: FAPrompt's prompts share keys and values, and checkpointing keeps one block's at a time.
"""

from dataclasses import dataclass

from zsad.backbone import Backbone
from zsad.backbone.prompted_text import num_text_layers, text_width
from zsad.backbone.text import text_tower
from zsad.learn.examples import Form
from zsad.learn.recipes import Recipe
from zsad.learn.step import bytes_exchanged
from zsad.train_config import TrainConfig

_FAPROMPT_TOKENS = 12  # of its longest prompt
_DAPO_TOKENS = 16
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
