"""What every reader of labelled images gives: `LabelledImage`, and the few rules that readers share.

Readers look at names and lists only; whether a mask exists and fits its image is found when it is read
(`zsad.evaluation.truth`), where a wrong one becomes an error row that names it. What is wrong with the data set as a
whole (no such folder, a list without its columns, a label that is neither 0 nor 1) is a `ConfigError` here.
"""

import csv
import io
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from zsad.errors import ConfigError, ImageError, StorageError
from zsad.storage import Store
from zsad.storage.base import is_plain_key

GOOD = "good"
ANOMALY = "anomaly"
COMBINED = "combined"
UNNAMED = frozenset({GOOD, ANOMALY, COMBINED, "bad", "ko"})
"""Types that name no defect: what layouts call every one, or several at once."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_MAX_LIST_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImage:
    """One image and its truth.

    Attributes:
        key: of the image in the data set's store.
        uri: its absolute address.
        label: 0 normal, 1 anomalous.
        defect_type: as the data set calls it; "good" for normal images.
        mask: key of the mask, of the image's size, non-zero where defective; None: there is none.
        product: what the image shows; figures are taken per product.
        split: "train" or "test", or what the list says.
        extra: further columns of a list.
    """

    key: str
    uri: str
    label: int
    defect_type: str
    mask: str | None
    product: str
    split: str
    extra: Mapping[str, str] = field(default_factory=dict)


def root_name(store: Store) -> str:
    """The product of a data set that has only one: the last piece of its URL."""
    return store.url.rstrip("/").rsplit("/", 1)[-1]


def as_word(defect_type: str) -> str:
    """A defect type as prompts would say it: small letters, blanks for underscores."""
    return defect_type.replace("_", " ").lower()


def is_image(key: str) -> bool:
    """Whether the name is that of an image; hidden files (`._x.png` of archives made on a Mac) are none."""
    return key.lower().endswith(IMAGE_SUFFIXES) and not key.rpartition("/")[2].startswith(".")


def stem(key: str) -> str:
    """The file's name without folder and ending."""
    return key.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def read_text(store: Store, key: str) -> str:
    """A list that belongs to a data set.

    Raises:
        ConfigError: if it is not there, too large or not UTF-8.
        StorageError: if it can't be read.
    """
    if not store.exists(key):
        raise ConfigError(f"{store.uri(key)} is missing; give the folder that holds it, or another layout")
    try:
        return store.get(key, max_bytes=_MAX_LIST_BYTES).decode("utf-8-sig")
    except (ImageError, UnicodeDecodeError) as error:
        raise ConfigError(f"{store.uri(key)} can't be used: {error}") from error


def read_csv(store: Store, key: str, required: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV file with a head line, each with its place ("index.csv line 2") for messages.

    Raises:
        ConfigError: if a required column is missing or a row has another number of cells.
        StorageError: if it can't be read.
    """
    lines = csv.DictReader(io.StringIO(read_text(store, key)))
    missing = [name for name in required if name not in (lines.fieldnames or ())]
    if missing:
        raise ConfigError(f"{store.uri(key)} has no column {', '.join(missing)}; it needs {', '.join(required)}")
    for row in lines:
        place = f"{store.uri(key)} line {lines.line_num}"
        if None in row or None in row.values():
            raise ConfigError(f"{place} has another number of cells than the head line")
        yield place, row


def checked_key(key: str, place: str) -> str:
    """A key that a list names.

    Raises:
        ConfigError: if it is empty, absolute or leads upwards.
    """
    if not is_plain_key(key):
        raise ConfigError(f"{place}: {key!r} is no path inside the data set")
    return key


def has_folder(store: Store, prefix: str, name: str) -> bool:
    """Whether `name` is a folder right under `prefix` ("" or ending in "/").

    Raises:
        StorageError: if it can't be listed.
    """
    return name in set(store.list_folders(prefix))


def require_listing(store: Store) -> None:
    """Refuse a data set whose root is not there.

    Raises:
        ConfigError: naming it.
    """
    try:
        found = next(store.list(), None)
    except StorageError as error:
        raise ConfigError(f"the data set can't be listed: {error}") from error
    if found is None:
        raise ConfigError(f"there are no objects under {store.url}")
