"""VisA in both of its forms: as published, with `split_csv/1cls.csv`, and re-arranged into the folders of MVTec AD.

The published form names images by `<object>/Data/Images/...` and says in `<object>/image_anno.csv` which defects each
has; an image with several becomes "combined" and keeps them in its column `types`. The re-arranged form knows the
type "bad" only.
"""

from collections.abc import Iterator

from zsad.datasets.folders import read_split_folders
from zsad.datasets.labelled import ANOMALY, COMBINED, GOOD, LabelledImage, checked_key, read_csv
from zsad.errors import ConfigError
from zsad.storage import Store

SPLIT_FILE = "split_csv/1cls.csv"
_COLUMNS = ("object", "split", "label", "image", "mask")
_NORMAL = "normal"


def read_visa(store: Store) -> Iterator[LabelledImage]:
    """Images in the order of the list, or of the folders where there is no list.

    Raises:
        ConfigError: if a list lacks a column or holds a wrong value, or there is neither list nor product.
        StorageError: if it can't be read.
    """
    if not store.exists(SPLIT_FILE):
        yield from read_split_folders(store)
        return
    types: dict[str, dict[str, str]] = {}
    for place, row in read_csv(store, SPLIT_FILE, _COLUMNS):
        if row["label"] not in (_NORMAL, ANOMALY):
            raise ConfigError(f"{place}: label {row['label']!r} is neither normal nor anomaly")
        product, is_good = row["object"], row["label"] == _NORMAL
        if product not in types:
            types[product] = _types(store, product)
        key = checked_key(row["image"], place)
        found = types[product].get(key, "")
        yield LabelledImage(
            key=key,
            uri=store.uri(key),
            label=int(not is_good),
            defect_type=GOOD if is_good else _one_type(found),
            mask=None if is_good else checked_key(row["mask"], place),
            product=product,
            split=row["split"],
            extra={"types": found},
        )


def _types(store: Store, product: str) -> dict[str, str]:
    """Image -> its defects, separated by commas; empty where the object has no such list."""
    key = f"{product}/image_anno.csv"
    if not store.exists(key):
        return {}
    return {row["image"]: row["label"] for _, row in read_csv(store, key, ("image", "label"))}


def _one_type(types: str) -> str:
    if not types:
        return ANOMALY
    return COMBINED if "," in types else types.strip()
