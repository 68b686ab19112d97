"""Readers of folder layouts: what an image is called decides its truth.

```
<product>/train/<normal>/x.png
<product>/test/<normal or defect type>/x.png
<product>/ground_truth/<defect type>/x_mask.png  or  x.png, any image ending
```
MVTec AD, MPDD, MAD (give MAD-Sim or MAD-Real), BTAD and the re-arranged VisA differ only in names: a normal folder is
`good`, `ok` or `normal`, in small or large letters. The root may hold products or be one. A product without any mask
has image figures only; where there are some, every defective image must have one. `plain` reads a folder without
splits and masks: a normal folder and one folder a defect type.

Cost: memory holds the mask names of one product.
"""

from collections.abc import Iterator

from zsad.datasets.labelled import GOOD, LabelledImage, has_folder, is_image, root_name
from zsad.errors import ConfigError
from zsad.storage import Store

NORMAL_NAMES = ("good", "ok", "normal")
_SPLITS = ("train", "test")
_MASKS = "ground_truth/"

Masks = dict[tuple[str, str], str]
"""(defect type, image's path below it without ending) -> key of the mask."""


def read_split_folders(store: Store) -> Iterator[LabelledImage]:
    """Images of all products, sorted by product, split, type and name.

    Raises:
        ConfigError: if there is no product, an image lies in no type's folder or has two masks.
        StorageError: if it can't be listed.
    """
    for prefix, product in _products(store):
        masks = _masks(store, prefix)
        for split in _SPLITS:
            for info in store.list(f"{prefix}{split}/"):
                if not is_image(info.key):
                    continue
                kind, name = _type_and_name(info.uri, info.key.removeprefix(f"{prefix}{split}/"))
                is_good = kind.lower() in NORMAL_NAMES
                yield LabelledImage(
                    key=info.key,
                    uri=info.uri,
                    label=int(not is_good),
                    defect_type=GOOD if is_good else kind,
                    mask=None if is_good or not masks else masks.get((kind, name), _expected_mask(prefix, kind, name)),
                    product=product,
                    split=split,
                )


def read_plain_folder(store: Store) -> Iterator[LabelledImage]:
    """Images of `good/` (or `ok/`, `normal/`) as normal, of every other folder as anomalous; the split is "test".

    Raises:
        ConfigError: if an image lies in no folder.
        StorageError: if it can't be listed.
    """
    for info in store.list():
        if not is_image(info.key):
            continue
        kind, _ = _type_and_name(info.uri, info.key)
        is_good = kind.lower() in NORMAL_NAMES
        yield LabelledImage(
            key=info.key,
            uri=info.uri,
            label=int(not is_good),
            defect_type=GOOD if is_good else kind,
            mask=None,
            product=root_name(store),
            split="test",
        )


def _products(store: Store) -> list[tuple[str, str]]:
    """(prefix, name) of each product.

    Raises:
        ConfigError: if no folder holds `test/`.
    """
    if has_folder(store, "", "test"):
        return [("", root_name(store))]
    names = list(store.list_folders(""))
    products = [(f"{name}/", name) for name in names if has_folder(store, f"{name}/", "test")]
    if not products:
        held = ", ".join(names[:8]) or "no folders"
        raise ConfigError(f"no product under {store.url}: no folder there holds test/ (found {held})")
    return products


def _type_and_name(uri: str, path: str) -> tuple[str, str]:
    """An image's type and its path below the type's folder, without its ending.

    Raises:
        ConfigError: if it lies in no folder.
    """
    kind, separator, name = path.partition("/")
    if not separator:
        raise ConfigError(f"{uri} lies in no folder: its truth is unknown; move it to good/ or to a defect's")
    return kind, name.rpartition(".")[0]


def _masks(store: Store, prefix: str) -> Masks:
    """All masks of a product; one kept a folder deeper than its image (several masks an image) fits no image.

    Raises:
        ConfigError: if two would fit one image.
    """
    masks: Masks = {}
    for info in store.list(f"{prefix}{_MASKS}"):
        if not is_image(info.key):
            continue
        kind, name = _type_and_name(info.uri, info.key.removeprefix(f"{prefix}{_MASKS}"))
        known = masks.setdefault((kind, name.removesuffix("_mask")), info.key)
        if known != info.key:
            raise ConfigError(f"{store.uri(known)} and {info.uri} are masks of one image; keep one of them")
    return masks


def _expected_mask(prefix: str, kind: str, name: str) -> str:
    return f"{prefix}{_MASKS}{kind}/{name}_mask.png"
