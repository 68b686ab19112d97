"""Real-IAD: JSON lists beside folders of images in several sizes.

```
realiad_jsons/realiad_jsons/<product>.json      or realiad_jsons/<product>.json
realiad_1024/<product>/...                      the largest size that is there is read
```
Each list has `meta.normal_class`, `meta.prefix` and, per split, `image_path`, `mask_path` (or null) and
`anomaly_class`. A list names camera views; what is normal in one view is labelled so even if the part is not. A defect
without a mask counts for image figures only. Types are codes there; they are spelt out here.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from zsad.datasets.labelled import GOOD, LabelledImage, checked_key, read_text, stem
from zsad.errors import ConfigError
from zsad.storage import Store

_LISTS = "realiad_jsons/"
_SIZE = re.compile(r"realiad_(\d+)")
TYPES = {
    "AK": "pit",
    "BX": "deformation",
    "CH": "abrasion",
    "HS": "scratch",
    "PS": "damage",
    "QS": "missing parts",
    "YW": "foreign objects",
    "ZW": "contamination",
}


def read_real_iad(store: Store) -> Iterator[LabelledImage]:
    """Images of all lists, in their order.

    Raises:
        ConfigError: if there are no lists or no images' folder, or a list has another form.
        StorageError: if it can't be read.
    """
    images = _images_folder(store)
    prefix = f"{_LISTS}realiad_jsons/" if "realiad_jsons" in set(store.list_folders(_LISTS)) else _LISTS
    keys = [info.key for info in store.list(prefix) if info.key.endswith(".json")]
    keys = [key for key in keys if "/" not in key.removeprefix(prefix)]
    if not keys:
        raise ConfigError(
            f"no lists {store.uri(prefix)}/<product>.json; Real-IAD needs realiad_jsons beside its images"
        )
    for key in keys:
        yield from _read_list(store, key, images)


def _images_folder(store: Store) -> str:
    sizes = [int(found[1]) for name in store.list_folders("") if (found := _SIZE.fullmatch(name))]
    if not sizes:
        raise ConfigError(f"no folder realiad_1024, realiad_512 or realiad_256 under {store.url}")
    return f"realiad_{max(sizes)}"


def _read_list(store: Store, key: str, images: str) -> Iterator[LabelledImage]:
    place = store.uri(key)
    try:
        listed: dict[str, Any] = json.loads(read_text(store, key))
        normal, prefix = listed["meta"]["normal_class"], listed["meta"]["prefix"]
        entries = [(split, entry) for split in ("train", "test") for entry in listed[split]]
        rows = [(split, e["image_path"], e.get("mask_path"), e["anomaly_class"]) for split, e in entries]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{place} is no list of Real-IAD: {type(error).__name__} {error}") from error
    for split, image, mask, kind in rows:
        is_good = kind == normal
        image_key = checked_key(f"{images}/{prefix}{image}", place)
        yield LabelledImage(
            key=image_key,
            uri=store.uri(image_key),
            label=int(not is_good),
            defect_type=GOOD if is_good else TYPES.get(kind, kind),
            mask=checked_key(f"{images}/{prefix}{mask}", place) if mask and not is_good else None,
            product=stem(key),
            split=split,
        )
