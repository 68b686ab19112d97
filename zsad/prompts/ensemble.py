"""The compositional prompt ensemble: states x templates, averaged to one direction per meaning.

A single prompt is a noisy name for "normal" or "defective"; the mean of many wordings is a steadier one. The words are
ours, in the spirit of the published lists.

Legend: S states, D joint width.
Cost: 7 normal + 4 abnormal states + one per defect word, times 16 templates: about 400 short texts, once per detector.
Source: WinCLIP (arXiv 2303.14814), section 4.1; one abnormal state per defect word is zsad's own addition.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from zsad.backbone import Backbone

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ABNORMAL_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a cropped photo of a {}.",
    "a close-up photo of a {}.",
    "a close-up of the {}.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
    "a blurry photo of a {}.",
    "a noisy photo of a {}.",
    "a jpeg corrupted photo of a {}.",
    "a low resolution photo of the {}.",
    "a grey photo of a {}.",
    "a photo of one {}.",
    "a photo of a {} for visual inspection.",
    "a photo of the {} for quality control.",
    "there is a {} in the image.",
)
DEFECT_WORDS = (
    "scratch",
    "crack",
    "hole",
    "stain",
    "dent",
    "cut",
    "thread",
    "chip",
    "bump",
    "burn",
    "contamination",
    "missing part",
    "misprint",
    "fray",
    "bend",
    "wear",
    "discolouration",
    "corrosion",
    "wrinkle",
)


def compose(states: Sequence[str], object_name: str, templates: Sequence[str] = TEMPLATES) -> list[str]:
    """Every state of `object_name` in every template, state-major; braces in the name are ordinary characters."""
    return [fill(template, fill(state, object_name)) for state in states for template in templates]


def fill(pattern: str, text: str) -> str:
    """`pattern` with its first "{}" replaced by `text`; never `str.format`, because users write the words."""
    return pattern.replace("{}", text, 1)


def defect_states(word: str) -> tuple[str, ...]:
    """The abnormal states that name one defect type, such as "{} with a scratch"."""
    article = "an" if word[0] in "aeiou" else "a"
    return (f"{{}} with {article} {word}", f"{{}} with {word}")


def direction(backbone: Backbone, states: Sequence[str], object_name: str) -> Tensor:
    """Unit-length mean embedding (D,) of all prompts made of `states`."""
    rows_SD = backbone.encode_text(compose(states, object_name))
    return F.normalize(rows_SD.mean(dim=0), dim=0)


def encode_units(backbone: Backbone, states: Sequence[str], object_name: str) -> Tensor:
    """Unit-length embeddings (N, D) of states, each the mean over all templates."""
    rows = backbone.encode_text(compose(states, object_name))
    return F.normalize(rows.view(len(states), len(TEMPLATES), -1).mean(dim=1), dim=-1)
