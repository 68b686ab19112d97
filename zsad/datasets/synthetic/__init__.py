"""Pictures of materials and parts with drawn defects, exact masks and captions: training data that nobody labels.

`generate` draws one picture from (seed, index). Everything is procedural: no
picture or texture is read from a file.
"""

from zsad.datasets.synthetic.captions import (
    ABNORMAL_STATES,
    DEFECT_PHRASES,
    DEFECT_STATES,
    FRAMES,
    MATERIAL_ADJECTIVES,
    NORMAL_STATES,
    OBJECT_NAMES,
    SHAPE_NAMES,
    caption,
    object_names,
    state,
)
from zsad.datasets.synthetic.defects import DEFECTS
from zsad.datasets.synthetic.generator import Sample, SyntheticConfig, generate, generate_pair
from zsad.datasets.synthetic.materials import MATERIALS
from zsad.datasets.synthetic.objects import SHAPES

__all__ = [
    "ABNORMAL_STATES",
    "DEFECTS",
    "DEFECT_PHRASES",
    "DEFECT_STATES",
    "FRAMES",
    "MATERIALS",
    "MATERIAL_ADJECTIVES",
    "NORMAL_STATES",
    "OBJECT_NAMES",
    "SHAPES",
    "SHAPE_NAMES",
    "Sample",
    "SyntheticConfig",
    "caption",
    "generate",
    "generate_pair",
    "object_names",
    "state",
]
