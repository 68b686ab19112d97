"""The materials by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from zsad.datasets.synthetic import hard, soft
from zsad.datasets.synthetic.noise import Rng
from zsad.datasets.synthetic.soft import Surface

Painter = Callable[[Rng, int, float], Surface]

PAINTERS: Mapping[str, Painter] = MappingProxyType(
    {
        "woven": soft.woven,
        "carpet": soft.carpet,
        "leather": soft.leather,
        "wood": soft.wood,
        "paper": soft.paper,
        "rubber": soft.rubber,
        "foam": soft.foam,
        "brushed_metal": hard.brushed_metal,
        "ground_metal": hard.ground_metal,
        "cast_metal": hard.cast_metal,
        "mesh": hard.mesh,
        "tile": hard.tile,
        "stone": hard.stone,
        "glass": hard.glass,
        "plastic": hard.plastic,
        "concrete": hard.concrete,
        "ceramic": hard.ceramic,
        "paint": hard.paint,
        "circuit": hard.circuit,
    }
)
MATERIALS: tuple[str, ...] = tuple(PAINTERS)


def surface(rng: Rng, material: str, size: int, light: float) -> Surface:
    """An evenly lit picture (size, size, 3) of a material under a lamp at angle `light`."""
    return PAINTERS[material](rng, size, light)
