"""How a product may be broken, in words: the manual abnormal prompts of few-shot prompt learning.

Eight states fit anything. The rest depends on what the thing is made of: a word of the product's name ("steel",
"cable") chooses families of defects that such things have, and a name that says nothing gets the family of plain
surfaces. The names are the user's own text, so they are joined to the states and never read as a format.

Cost: none; 12 or 13 states for most products, more for a name with words of several families.
Source: the layout (adjectives before the name, defects after it) is PromptAD's (arXiv 2404.05231); the words are ours.
"""

import re

ADJECTIVES = ("damaged", "flawed", "abnormal", "imperfect", "blemished")
SUFFIXES = ("with flaw", "with defect", "with damage")

FAMILIES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("metal", "steel", "iron", "aluminium", "aluminum", "copper", "brass", "alloy", "casting", "rail", "bearing"): (
        "with scratch",
        "with dent",
        "with rust",
        "with pitting",
        "with burr",
    ),
    ("screw", "bolt", "nut", "thread", "rivet", "fastener", "gear"): (
        "with worn thread",
        "with bent tip",
        "with scratched head",
        "with burr",
    ),
    ("tile", "ceramic", "porcelain", "stone", "concrete", "brick", "marble", "magnet", "magnetic"): (
        "with crack",
        "with chipped edge",
        "with blowhole",
        "with uneven surface",
        "with stain",
    ),
    ("glass", "bottle", "lens", "window", "screen", "display", "vial", "jar"): (
        "with crack",
        "with broken rim",
        "with scratch",
        "with air bubble",
        "with contamination",
    ),
    ("cable", "wire", "cord", "harness", "connector", "plug"): (
        "with cut insulation",
        "with bare wire",
        "with missing strand",
        "with bent wire",
        "with swapped wires",
    ),
    ("circuit", "board", "pcb", "transistor", "chip", "wafer", "electronic", "semiconductor", "solder"): (
        "with missing component",
        "with bent pin",
        "with bad solder joint",
        "with broken trace",
        "with misplaced part",
    ),
    ("fabric", "textile", "cloth", "carpet", "grid", "mesh", "leather", "garment", "rope", "zipper", "toothbrush"): (
        "with hole",
        "with loose thread",
        "with cut",
        "with fold",
        "with stain",
    ),
    ("wood", "wooden", "timber", "plank", "veneer", "bamboo", "paper", "cardboard", "carton"): (
        "with knot hole",
        "with crack",
        "with scratch",
        "with stain",
        "with torn edge",
    ),
    ("pill", "capsule", "tablet", "medicine", "ampoule", "syringe"): (
        "with crack",
        "with misprint",
        "with squeezed shape",
        "with leak",
        "with contamination",
    ),
    (
        "food",
        "hazelnut",
        "peanut",
        "walnut",
        "almond",
        "cashew",
        "fruit",
        "macaroni",
        "pasta",
        "gum",
        "candle",
        "candy",
        "bread",
        "biscuit",
    ): (
        "with broken piece",
        "with burn",
        "with hole",
        "with foreign particle",
        "with different colour spot",
    ),
    ("plastic", "rubber", "foam", "film", "tube", "pipe", "cap", "lid", "package", "bag", "label"): (
        "with deformation",
        "with tear",
        "with scratch",
        "with bubble",
        "with misprint",
    ),
    ("car", "paint", "painted", "coating", "coated", "panel", "door", "body"): (
        "with paint run",
        "with scratch",
        "with dent",
        "with peeling",
        "with dust inclusion",
    ),
}
"""Words of a product's name -> what such products suffer from."""

PLAIN_SURFACE = ("with scratch", "with crack", "with hole", "with stain", "with missing part")


def class_states(object_name: str) -> list[str]:
    """Abnormal states of a product, such as "damaged steel plate" and "steel plate with rust".

    Args:
        object_name: any text; underscores count as blanks.

    Returns:
        Distinct texts: five adjectives, three generic suffixes, then the defects of every family that a word of the
        name belongs to, singular or plural.
    """
    name = object_name.replace("_", " ")
    before = [f"{adjective} {name}" for adjective in ADJECTIVES]
    return before + [f"{name} {suffix}" for suffix in (*SUFFIXES, *family_suffixes(name))]


def family_suffixes(name: str) -> tuple[str, ...]:
    """What things of this name suffer from, such as "with rust": of every family that has a word of it, or plain."""
    words = set(re.findall(r"[^\W\d_]+", name.casefold()))
    words |= {word.removesuffix("s") for word in words}
    chosen = [defects for keys, defects in FAMILIES.items() if words & set(keys)]
    merged = dict.fromkeys(defect for defects in chosen for defect in defects)
    return tuple(merged) or PLAIN_SURFACE
