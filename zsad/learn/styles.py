"""Which drawn styles nano never sees in training, so that its figures can be taken on something new.

A detector judged on the materials and defects it was trained on is judged on memory. Four materials and three defect
families are left out of every training image; recipes are chosen by the figures on those.
"""

from zsad.datasets.synthetic import DEFECTS, MATERIALS, SyntheticConfig

LEFT_OUT_MATERIALS = ("leather", "tile", "cast_metal", "rubber")
LEFT_OUT_DEFECTS = ("bend", "corrosion", "wrinkle")
TRAINED_MATERIALS = tuple(name for name in MATERIALS if name not in LEFT_OUT_MATERIALS)
TRAINED_DEFECTS = tuple(name for name in DEFECTS if name not in LEFT_OUT_DEFECTS)


def training_styles(size: int = 224) -> SyntheticConfig:
    """What training draws, images of `size` px."""
    return SyntheticConfig(size=size, materials=TRAINED_MATERIALS, defects=TRAINED_DEFECTS)


def left_out_styles(size: int = 224) -> SyntheticConfig:
    """Materials that training never drew, with all defects, the left-out families among them."""
    return SyntheticConfig(size=size, materials=LEFT_OUT_MATERIALS)
