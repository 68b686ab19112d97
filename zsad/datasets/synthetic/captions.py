"""Words for pictures: names of materials and parts, of defects, and sentences that join them.

Pure functions of a seeded generator, so training may draw many captions for one picture. Sentences about good pictures
never contain a phrase of `DEFECT_PHRASES`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from zsad.datasets.synthetic.noise import Rng, pick

OBJECT_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "woven": ("woven fabric", "textile", "cloth", "canvas", "piece of fabric", "fabric surface"),
        "carpet": ("carpet", "rug", "carpet tile", "piece of carpet", "carpet texture"),
        "leather": ("leather", "leather surface", "piece of leather", "hide", "leather texture"),
        "wood": ("wood", "wooden board", "wood surface", "oak board", "wood panel", "plank"),
        "paper": ("paper", "sheet of paper", "cardboard", "paper label", "carton"),
        "rubber": ("rubber", "rubber sheet", "rubber mat", "rubber surface"),
        "foam": ("foam", "sponge", "foam block", "porous foam surface"),
        "brushed_metal": ("brushed metal", "metal plate", "steel sheet", "aluminium surface", "brushed metal surface"),
        "ground_metal": (
            "ground metal",
            "magnetic tile",
            "ground steel surface",
            "machined metal surface",
            "metal tile",
        ),
        "cast_metal": ("cast metal", "casting", "cast iron surface", "rough metal surface", "metal casting"),
        "mesh": ("metal grid", "wire mesh", "grid", "perforated plate", "grille"),
        "tile": ("tile", "floor tile", "tiled floor", "terrazzo tile", "tile surface"),
        "stone": ("stone", "granite slab", "marble surface", "stone surface", "stone slab"),
        "glass": ("glass", "glass pane", "glass surface", "sheet of glass"),
        "plastic": ("plastic", "plastic surface", "plastic panel", "moulded plastic part", "plastic cover"),
        "concrete": ("concrete", "concrete wall", "cement surface", "concrete surface", "pavement"),
        "ceramic": ("ceramic", "ceramic surface", "glazed ceramic", "porcelain surface", "ceramic plate"),
        "paint": ("painted metal", "painted surface", "coated panel", "lacquered sheet", "car body panel"),
        "circuit": ("circuit board", "printed circuit board", "PCB", "electronic board"),
    }
)
"""Names of each material where it fills the frame."""

MATERIAL_ADJECTIVES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "woven": ("fabric", "textile", "woven"),
        "carpet": ("carpet", "felt"),
        "leather": ("leather",),
        "wood": ("wooden", "wood", "oak"),
        "paper": ("paper", "cardboard"),
        "rubber": ("rubber",),
        "foam": ("foam", "porous"),
        "brushed_metal": ("metal", "steel", "aluminium"),
        "ground_metal": ("metal", "ground steel", "machined"),
        "cast_metal": ("cast iron", "cast metal", "metal"),
        "mesh": ("mesh", "perforated"),
        "tile": ("terrazzo", "tile"),
        "stone": ("stone", "granite", "marble"),
        "glass": ("glass",),
        "plastic": ("plastic", "moulded plastic"),
        "concrete": ("concrete", "cement"),
        "ceramic": ("ceramic", "porcelain"),
        "paint": ("painted", "lacquered"),
        "circuit": ("electronic", "circuit board"),
    }
)
"""Words that stand before the name of a part made of each material."""

SHAPE_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "disc": ("disc", "round plate", "button", "round part"),
        "washer": ("washer", "ring", "gasket"),
        "pill": ("capsule", "pill", "oblong part"),
        "block": ("block", "plate", "rectangular part", "tile piece"),
        "nut": ("nut", "hexagonal part", "hex nut"),
        "cap": ("cap", "bottle cap", "lid"),
        "gear": ("gear", "toothed wheel", "cog"),
        "bracket": ("bracket", "angle bracket", "mounting plate"),
        "screw": ("screw", "bolt", "fastener"),
        "bottle": ("bottle", "vial", "flask"),
        "connector": ("connector", "plug", "pin header"),
        "tablets": ("set of tablets", "group of parts", "tray of parts"),
    }
)
"""Names of each shape of part."""

DEFECT_PHRASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "scratch": ("a scratch", "a thin scratch", "scratches", "scratch marks", "a scratched area"),
        "crack": ("a crack", "a hairline crack", "cracks", "a cracked area", "a fracture"),
        "hole": ("a hole", "a small hole", "a pit", "a blowhole", "a puncture", "pinholes"),
        "stain": ("a stain", "a dark stain", "a spill mark", "a spot", "a smudge"),
        "dent": ("a dent", "a small dent", "a pressed-in spot", "an indentation"),
        "cut": ("a cut", "a slit", "a gash", "a knife cut"),
        "thread": ("a loose thread", "a hair on it", "a stray fibre", "a loose fibre on it"),
        "chip": ("a chip", "a chipped edge", "a broken edge", "a broken corner"),
        "bump": ("a bump", "a bulge", "a blister", "a raised spot"),
        "burn": ("a burn", "a burn mark", "a scorched spot", "a charred area"),
        "contamination": ("contamination", "foreign matter on it", "a foreign particle", "dirt on it", "residue"),
        "missing_part": ("a missing part", "a missing piece", "a piece broken off", "an incomplete area"),
        "misprint": ("a misprint", "a printing error", "a smeared print", "a wrong mark"),
        "fray": ("a frayed edge", "fraying", "torn fibres", "frayed strands"),
        "bend": ("a bend", "a deformation", "a bent area", "a distorted shape"),
        "wear": ("wear", "an abrasion", "a worn patch", "a rough patch", "a scuff"),
        "discolouration": ("discolouration", "a discoloured area", "uneven colour", "a colour fault"),
        "corrosion": ("corrosion", "rust", "oxidation", "a corroded patch"),
        "wrinkle": ("a wrinkle", "a crease", "a fold", "wrinkles"),
    }
)
"""Phrases that follow "with" for each defect."""

NORMAL_STATES: tuple[str, ...] = (
    "{a} flawless {name}",
    "{a} perfect {name}",
    "{a} intact {name}",
    "{a} undamaged {name}",
    "{a} unblemished {name}",
    "{a} normal {name}",
    "{a} good {name}",
    "{a} {name} in perfect condition",
    "{a} {name} without any defect",
    "{a} {name} without damage",
    "{a} {name} with no flaw",
    "{a} {name} that passes inspection",
    "{a} {name} with an undamaged surface",
    "{a} {name} with a flawless surface",
    "{a} {name} with a clean and even surface",
    "{a} {name} with an intact edge",
    "{a} {name} with all parts in their right place",
    "{a} {name} with the normal colour",
    "{a} {name} with no damage on it",
)
"""Good things, with {a} for the article and {name} for the name."""

ABNORMAL_STATES: tuple[str, ...] = (
    "{a} damaged {name}",
    "{a} defective {name}",
    "{a} faulty {name}",
    "{a} flawed {name}",
    "{a} broken {name}",
    "{a} abnormal {name}",
    "{a} {name} with a flaw",
    "{a} {name} with a defect",
    "{a} {name} with damage",
    "{a} {name} that fails inspection",
)
"""Bad things where the kind of defect is left open."""

DEFECT_STATES: tuple[str, ...] = (
    "{a} {name} with {defect}",
    "{a} {name} that has {defect}",
    "{a} {name} showing {defect}",
    "{a} damaged {name} with {defect}",
    "{a} defective {name} with {defect}",
)
"""Bad things with {defect} for one of `DEFECT_PHRASES`."""

FRAMES: tuple[str, ...] = (
    "{state}",
    "a photo of {state}",
    "a close-up photo of {state}",
    "a close-up of {state}",
    "an inspection image of {state}",
    "an industrial photo of {state}",
    "a cropped photo of {state}",
    "a picture of {state}",
)
"""Ways to say that this is a picture."""

_UNCOUNTED = frozenset(
    {
        *(
            "woven fabric",
            "textile",
            "cloth",
            "canvas",
            "leather",
            "hide",
            "wood",
            "paper",
            "cardboard",
            "rubber",
            "foam",
        ),
        *("brushed metal", "ground metal", "cast metal", "painted metal", "glass", "plastic", "concrete", "ceramic"),
        *("glazed ceramic", "stone", "pavement"),
    }
)


def object_names(material: str, shape: str = "surface") -> tuple[str, ...]:
    """Every name of a material that fills the frame, or of a part of some shape made of it."""
    if shape == "surface":
        return OBJECT_NAMES[material]
    parts = SHAPE_NAMES[shape]
    return (*(f"{made_of} {part}" for made_of in MATERIAL_ADJECTIVES[material] for part in parts), *parts)


def _filled(state: str, object_name: str, defect: str = "") -> str:
    """A template with its words filled in; the article follows from the next word, names of matter have none."""
    words = state.replace("{name}", object_name).replace("{defect}", defect).removeprefix("{a} ")
    if object_name in _UNCOUNTED:
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def state(rng: Rng, object_name: str, *, is_anomalous: bool) -> str:
    """A phrase that says only whether a thing is good or bad, such as "a flawless wooden board"."""
    return _filled(pick(rng, ABNORMAL_STATES if is_anomalous else NORMAL_STATES), object_name)


def caption(rng: Rng, object_name: str, defect_type: str) -> str:
    """A sentence about a picture.

    Args:
        rng: source of the wording.
        object_name: what is seen, such as "oak board".
        defect_type: a key of `DEFECT_PHRASES`, which one of its phrases then names, or "good".
    """
    if defect_type == "good":
        said = state(rng, object_name, is_anomalous=False)
    else:
        said = _filled(pick(rng, DEFECT_STATES), object_name, pick(rng, DEFECT_PHRASES[defect_type]))
    return pick(rng, FRAMES).replace("{state}", said)
