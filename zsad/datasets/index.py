"""A folder with an `index.csv` that says what each image is.

| column | |
|---|---|
| `path` | required; relative to the folder |
| `label` | required; 0 normal, 1 anomalous |
| `defect_type` | "good" for label 0 and only there; "good" and "anomaly" where there is no such column |
| `mask_path` | empty or absent: no mask |
| `product` | the folder's name where there is no such column |
| `split` | "test" where there is no such column |

All other columns are kept and can be filtered by (`--where matched=1`).
"""

from collections.abc import Iterator

from zsad.datasets.labelled import ANOMALY, GOOD, LabelledImage, checked_key, read_csv, root_name
from zsad.errors import ConfigError
from zsad.storage import Store

INDEX = "index.csv"
_KNOWN = ("path", "label", "defect_type", "mask_path", "product", "split")


def read_index(store: Store) -> Iterator[LabelledImage]:
    """Images in the order of the list.

    Raises:
        ConfigError: if the list is missing, lacks a column or holds a wrong value.
        StorageError: if it can't be read.
    """
    for place, row in read_csv(store, INDEX, ("path", "label")):
        if row["label"] not in ("0", "1"):
            raise ConfigError(f"{place}: label {row['label']!r} is neither 0 nor 1")
        is_good = row["label"] == "0"
        kind = row.get("defect_type") or (GOOD if is_good else ANOMALY)
        if is_good != (kind == GOOD):
            raise ConfigError(f"{place}: label {row['label']} does not go with defect_type {kind!r}")
        key = checked_key(row["path"], place)
        mask = row.get("mask_path")
        yield LabelledImage(
            key=key,
            uri=store.uri(key),
            label=int(not is_good),
            defect_type=kind,
            mask=checked_key(mask, place) if mask else None,
            product=row.get("product") or root_name(store),
            split=row.get("split") or "test",
            extra={name: value for name, value in row.items() if name not in _KNOWN},
        )
