"""The defects by name, and on which materials each makes sense."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from zsad.datasets.synthetic import areas, lines, shape_changes
from zsad.datasets.synthetic.edits import Edit
from zsad.datasets.synthetic.noise import Rng
from zsad.datasets.synthetic.scene import Scene

_SOFT = frozenset({"woven", "carpet", "leather", "paper", "rubber", "foam"})
_METAL = frozenset({"brushed_metal", "ground_metal", "cast_metal", "mesh"})
_BRITTLE = frozenset({"tile", "stone", "glass", "ceramic", "concrete"})
_PRINTABLE = frozenset({"paper", "plastic", "ceramic", "circuit", "paint", "glass", "woven", "leather", "tile"})
_OPEN = frozenset({"mesh", "circuit", "tile", "woven", "foam", "wood"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One kind of defect.

    Attributes:
        draw: puts it on a scene.
        only_on: materials that it is found on when they fill the frame; none means all.
        never_on: materials that it is not found on.
        on_objects: whether parts of any material may have it.
        spills: whether it may reach over the outline of the part.
        scalable: whether a faint one may be made stronger by stretching its contrast.
    """

    draw: Callable[[Rng, Scene], Edit]
    only_on: frozenset[str] = frozenset()
    never_on: frozenset[str] = frozenset()
    on_objects: bool = True
    spills: bool = False
    scalable: bool = True

    def suits(self, material: str, *, is_object: bool) -> bool:
        """Whether this defect makes sense on a material, as a part or filling the frame."""
        if material in self.never_on:
            return False
        return not self.only_on or material in self.only_on or (is_object and self.on_objects)


CATALOGUE: Mapping[str, Defect] = MappingProxyType(
    {
        "scratch": Defect(draw=lines.scratch, never_on=frozenset({"carpet", "foam", "mesh"})),
        "crack": Defect(draw=lines.crack, never_on=frozenset({"carpet", "foam", "mesh", "woven"})),
        "hole": Defect(draw=areas.hole),
        "stain": Defect(draw=areas.stain),
        "dent": Defect(draw=areas.dent, never_on=frozenset({"mesh", "carpet"})),
        "cut": Defect(
            draw=lines.cut, only_on=_SOFT | {"wood", "plastic", "circuit", "mesh", "paint"}, on_objects=False
        ),
        "thread": Defect(draw=lines.thread, spills=True),
        "chip": Defect(draw=shape_changes.chip, never_on=frozenset({"carpet", "woven", "mesh"}), spills=True),
        "bump": Defect(draw=areas.bump, never_on=frozenset({"mesh", "carpet"})),
        "burn": Defect(draw=areas.burn, never_on=frozenset({"stone"})),
        "contamination": Defect(draw=areas.contamination),
        "missing_part": Defect(draw=shape_changes.missing_part, only_on=_OPEN, spills=True, scalable=False),
        "misprint": Defect(draw=shape_changes.misprint, only_on=_PRINTABLE),
        "fray": Defect(draw=lines.fray, only_on=_SOFT | _METAL | {"wood"}, on_objects=False, spills=True),
        "bend": Defect(
            draw=shape_changes.bend, only_on=frozenset({"mesh", "woven", "circuit"}), spills=True, scalable=False
        ),
        "wear": Defect(draw=lines.wear),
        "discolouration": Defect(draw=areas.discolouration),
        "corrosion": Defect(draw=areas.corrosion, only_on=_METAL | _BRITTLE | {"wood", "circuit", "paint", "leather"}),
        "wrinkle": Defect(draw=lines.wrinkle, only_on=_SOFT | {"paint", "plastic"}, on_objects=False),
    }
)
DEFECTS: tuple[str, ...] = tuple(CATALOGUE)


def suitable(material: str, *, is_object: bool, allowed: tuple[str, ...] = DEFECTS) -> tuple[str, ...]:
    """The allowed defects that make sense on a material; all of the allowed ones if none does."""
    names = tuple(name for name in allowed if CATALOGUE[name].suits(material, is_object=is_object))
    return names or allowed


def draw(rng: Rng, scene: Scene, defect: str) -> Edit:
    """Puts a defect on a scene and keeps it to the part, except for kinds that lie on top of it."""
    kind = CATALOGUE[defect]
    edit = kind.draw(rng, scene)
    if kind.spills:
        return edit
    image = scene.image + (edit.image - scene.image) * scene.region[..., None]
    return Edit(image=image, extent=edit.extent * scene.region)
