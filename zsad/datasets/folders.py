"""Readers of folder layouts: what an image is called decides its truth.

```
<product>/train/<normal>/x.png
<product>/test/<normal or defect type>/x.png
<product>/ground_truth/<defect type>/x_mask.png  or  x.png, any image ending
```
MVTec AD, MPDD, MAD (give MAD-Sim or MAD-Real), BTAD and the re-arranged VisA differ only in names. The root may hold
products or be one. `plain` reads a folder without splits and masks: `good/` and one folder a defect type.

Cost: memory holds the mask names of one product.
"""

from collections.abc import Iterator
from functools import partial

from zsad.datasets.labelled import GOOD, LabelledImage, has_folder, is_image, root_name, stem
from zsad.errors import ConfigError
from zsad.storage import Store

NORMAL_NAMES = ("good", "ok", "normal")
_SPLITS = ("train", "test")


def read_split_folders(store: Store, *, normal: str) -> Iterator[LabelledImage]:
    """Images of all products, sorted by product, split, type and name.

    Args:
        store: the products' folder, or one product's.
        normal: what the layout calls its normal folders.

    Raises:
        ConfigError: if there is no product.
        StorageError: if it can't be listed.
    """
    for prefix, product in _products(store):
        masks = _masks(store, prefix)
        for split in _SPLITS:
            for info in store.list(f"{prefix}{split}/"):
                if not is_image(info.key):
                    continue
                kind = info.key.removeprefix(f"{prefix}{split}/").split("/")[0]
                is_good = kind == normal
                yield LabelledImage(
                    key=info.key,
                    uri=info.uri,
                    label=int(not is_good),
                    defect_type=GOOD if is_good else kind,
                    mask=None if is_good else masks.get((kind, stem(info.key)), _expected_mask(prefix, kind, info.key)),
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
        kind, separator, _ = info.key.partition("/")
        if not separator:
            raise ConfigError(f"{info.uri} lies in no folder: its truth is unknown; move it to good/ or to a defect's")
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


def _masks(store: Store, prefix: str) -> dict[tuple[str, str], str]:
    """(defect type, image's name) -> key of its mask."""
    root = f"{prefix}ground_truth/"
    keys = (info.key for info in store.list(root) if is_image(info.key))
    return {(key.removeprefix(root).split("/")[0], stem(key).removesuffix("_mask")): key for key in keys}


def _expected_mask(prefix: str, kind: str, key: str) -> str:
    return f"{prefix}ground_truth/{kind}/{stem(key)}_mask.png"


read_mvtec = partial(read_split_folders, normal="good")
read_btad = partial(read_split_folders, normal="ok")
