"""`LAYOUT:URL`, wherever labelled images are named: `mvtec:s3://bucket/mvtec`, `index:../parts`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from zsad.datasets.folders import read_plain_folder, read_split_folders
from zsad.datasets.index import read_index
from zsad.datasets.labelled import LabelledImage, require_listing
from zsad.datasets.real_iad import read_real_iad
from zsad.datasets.visa import read_visa
from zsad.errors import ConfigError
from zsad.storage import Store, open_store

Reader = Callable[[Store], Iterator[LabelledImage]]

READERS: dict[str, Reader] = {
    "mvtec": read_split_folders,
    "visa": read_visa,
    "mpdd": read_split_folders,
    "mad": read_split_folders,
    "btad": read_split_folders,
    "real_iad": read_real_iad,
    "index": read_index,
    "folder": read_plain_folder,
}
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Labelled images at a URL, in a known layout."""

    layout: str
    url: str

    @property
    def store(self) -> Store:
        """Where images and masks are."""
        return open_store(self.url)

    def images(self, *, split: str = ALL, where: Sequence[str] = (), limit: int = 0) -> Iterator[LabelledImage]:
        """The images asked for, in the reader's order.

        Args:
            split: "train", "test", what a list says, or "all".
            where: conditions COLUMN=VALUE on further columns of a list, all of which must hold.
            limit: at most this many of each product and defect type; 0: all.

        Raises:
            ConfigError: if the data set can't be used, a condition has no such column, or nothing is left.
            StorageError: if it can't be listed or read.
        """
        store = self.store
        require_listing(store)
        conditions = [_condition(text) for text in where]
        counts: dict[tuple[str, str], int] = {}
        for image in READERS[self.layout](store):
            if not all(_holds(image, name, value) for name, value in conditions) or split not in (ALL, image.split):
                continue
            group = image.product, image.defect_type
            counts[group] = counts.get(group, 0) + 1
            if not limit or counts[group] <= limit:
                yield image
        if not counts:
            chosen = f" with {' and '.join(where)}" if where else ""
            raise ConfigError(f"{self.layout}:{self.url} has no images of split {split!r}{chosen}")


def parse_dataset(reference: str) -> Dataset:
    """Read `LAYOUT:URL`; nothing is contacted.

    Raises:
        ConfigError: for an unknown layout or an empty URL.
    """
    layout, separator, url = reference.partition(":")
    if layout not in READERS or not separator:
        near = get_close_matches(layout, READERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"data set {reference!r} must be LAYOUT:URL with one of {', '.join(READERS)}{hint}")
    return Dataset(layout=layout, url=open_store(url).url)


def _condition(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError(f"--where {text!r} must be COLUMN=VALUE, such as matched=1")
    return name, value


def _holds(image: LabelledImage, name: str, value: str) -> bool:
    fixed = {"product": image.product, "defect_type": image.defect_type}
    columns = {**image.extra, **fixed}
    if name not in columns:
        raise ConfigError(f"--where {name}={value}: {image.uri} has no column {name!r}, only {', '.join(columns)}")
    return columns[name] == value
