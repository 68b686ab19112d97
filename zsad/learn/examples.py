"""Training images as rows: what a listed or drawn image becomes, and how rows lie in shards on storage.

A row is one image with its mask at the model's size and either its pixels or its frozen features. A shard is an Arrow
IPC file in which every row is a batch of its own, so that a worker can read any one image without its neighbours: from
a local disk by memory map, from S3 by range. Rows that could not be used keep their place, with an error code in place
of data. Shards are written whole and never changed.

Legend: S side of the model's input px, D joint width, P patches.
Cost: an image's features take D + P * D numbers, in fp32 or fp16 (ViT-L/14 at 518 px: 2.1 MB in fp16), its pixels
3 S^2 bytes, its mask S^2 / 8.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.fs
from numpy.typing import NDArray

from zsad.datasets.labelled import GOOD, UNNAMED, as_word
from zsad.errors import StorageError
from zsad.evaluation.truth import pack, unpack
from zsad.storage import Store

Kept = Literal["pixels", "fp32", "fp16"]
"""What a row holds of its image: uint8 pixels, or frozen features in this precision."""

_EXAMPLE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("defect_type", pa.string(), nullable=False),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("mask", pa.binary()),
        pa.field("image", pa.binary()),
        pa.field("patches", pa.binary()),
    ]
)
_FACTS = ("key", "uri", "label", "defect_type", "error_code", "error_message")
_OTHER_DEFECT = "defect"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One image to learn from.

    Attributes:
        label: 0 normal, 1 anomalous.
        defect_type: as the data set calls it.
        mask_SS: bool, where it is defective.
        pixels_SSC: uint8 RGB, or None.
        image_D, patches_PD: frozen features in fp32, or None.
    """

    label: int
    defect_type: str
    mask_SS: NDArray[np.bool_]
    pixels_SSC: NDArray[np.uint8] | None = None
    image_D: NDArray[np.float32] | None = None
    patches_PD: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What is known of a row without its data.

    Attributes:
        shard, row: where it lies.
        error: why it can't be used, or empty.
    """

    key: str
    uri: str
    label: int
    defect_type: str
    shard: int
    row: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How rows of one training are laid out.

    Attributes:
        size: S.
        kept: see `Kept`.
        num_patches, width: P and D; 0 where pixels are kept.
    """

    size: int
    kept: Kept
    num_patches: int = 0
    width: int = 0

    @property
    def dtype(self) -> Any:
        """Of stored features."""
        return np.float16 if self.kept == "fp16" else np.float32

    @property
    def bytes_per_image(self) -> int:
        """Of data; Arrow adds about 1 kB."""
        mask = -(-self.size * self.size // 8)
        if self.kept == "pixels":
            return mask + 3 * self.size * self.size
        return mask + (1 + self.num_patches) * self.width * int(np.dtype(self.dtype).itemsize)


def word_of(defect_type: str) -> str:
    """The defect word that an image of this type teaches; what a data set does not name is a "defect"."""
    return _OTHER_DEFECT if defect_type in UNNAMED else as_word(defect_type)


def words_of(defect_types: Iterable[str]) -> tuple[str, ...]:
    """All defect words of a training, sorted."""
    return tuple(sorted({word_of(kind) for kind in defect_types if kind != GOOD}))


def write_shard(form: Form, rows: Sequence[dict[str, Any]]) -> bytes:
    """An Arrow IPC file of `rows`, each with the facts of `Fact` and, unless it has an error, its data.

    Args:
        form: says which data.
        rows: `mask_SS`, and `pixels_SSC` or `image_D` and `patches_PD`, as arrays.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _EXAMPLE_SCHEMA) as writer:
        for row in rows:
            stored = {name: row.get(name) for name in _FACTS}
            if not row.get("error_code"):
                stored |= _data(form, row)
            writer.write_batch(pa.RecordBatch.from_pylist([stored], schema=_EXAMPLE_SCHEMA))
    return bytes(sink.getvalue())


def _data(form: Form, row: dict[str, Any]) -> dict[str, bytes]:
    mask = pack(row["mask_SS"])
    if form.kept == "pixels":
        return {"mask": mask, "image": row["pixels_SSC"].tobytes()}
    return {"mask": mask} | {
        name: np.ascontiguousarray(row[array], form.dtype).tobytes()
        for name, array in (("image", "image_D"), ("patches", "patches_PD"))
    }


class Shards:
    """Reads rows of shards in any order and from several threads; keeps the files open."""

    def __init__(self, store: Store, form: Form) -> None:
        self._store = store
        self._form = form
        self._files: dict[int, Any] = {}
        self._lock = Lock()

    def facts(self, shard: int) -> list[Fact]:
        """Of every row of a shard, data unread where storage allows.

        Raises:
            StorageError: if it can't be read.
        """
        found = []
        options = pa.ipc.IpcReadOptions(included_fields=[_EXAMPLE_SCHEMA.get_field_index(name) for name in _FACTS])
        file = _opened(self._store, shard_key(shard), options)
        for number in range(file.num_record_batches):
            row = file.get_batch(number).to_pylist()[0]
            error = f"{row['error_message']} ({row['error_code']})" if row["error_code"] else ""
            facts = {name: row[name] for name in ("key", "uri", "label", "defect_type")}
            found.append(Fact(**facts, shard=shard, row=number, error=error))
        return found

    def read(self, fact: Fact) -> Example:
        """One usable row."""
        row = self._row(fact)
        form, size = self._form, self._form.size
        image = row["image"][0].as_buffer()
        whole = Example(
            label=fact.label, defect_type=fact.defect_type, mask_SS=unpack(row["mask"][0].as_py(), size, size)
        )
        if form.kept == "pixels":
            return replace(whole, pixels_SSC=np.frombuffer(image, np.uint8).reshape(size, size, 3))
        patches = np.frombuffer(row["patches"][0].as_buffer(), form.dtype).reshape(form.num_patches, form.width)
        return replace(
            whole,
            image_D=np.frombuffer(image, form.dtype).astype(np.float32),
            patches_PD=patches.astype(np.float32),
        )

    def _row(self, fact: Fact) -> Any:
        with self._lock:
            if fact.shard not in self._files:
                self._files[fact.shard] = _opened(self._store, shard_key(fact.shard)), Lock()
            file, lock = self._files[fact.shard]
        with lock:  # a reader is not made for several threads; those of different shards read at once
            return file.get_batch(fact.row)


def shard_key(shard: int) -> str:
    """Name of a shard in its cache folder."""
    return f"{shard:06d}.arrow"


def _opened(store: Store, key: str, options: Any = None) -> Any:
    filesystem, root = store.arrow_filesystem()
    try:
        if isinstance(filesystem, pa.fs.LocalFileSystem):
            return pa.ipc.open_file(pa.memory_map(f"{root}/{key}"), options=options)
        return pa.ipc.open_file(filesystem.open_input_file(f"{root}/{key}"), options=options)
    except (OSError, pa.ArrowInvalid) as error:
        raise StorageError(
            f"the rows in {store.uri(key)} can't be read ({error}); --restart makes them anew"
        ) from error
