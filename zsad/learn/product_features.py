"""PromptAD's frozen features on storage: a product's images pass the tower once, however often prompts are learned.

An Arrow IPC file a product, in a folder that all nodes reach. Its name is a hash of the images' pixels, of the tower's
weights, of all settings that shape features and of zsad's version, so a file never goes stale: a second training with
another rate or number of steps finds it, and so does --restart; a mended image is another file. One that can't be read
is made again.

What is learned from is always what a file holds, read back from its bytes, so that fp16 gives the same tensors whether
the file was there or not.

Legend: B images of a product, P patches, (h, w) patch grid, D joint width, W tower width, S side px.
Cost: D + P (D + 2 W) numbers an image, 15 MB in fp32 for ViT-L/14 at 518 px: about what the bundle's memory takes too.
"""

import hashlib
import json
import logging
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from zsad import __version__
from zsad.backbone import Backbone, ImageFeatures
from zsad.errors import ErrorCode, ImageError, ModelError, StorageError
from zsad.methods.promptad import PromptADConfig, encode, used_vv_start
from zsad.storage import Store

log = logging.getLogger(__name__)

Kept = Literal["fp32", "fp16", "off"]
FOLDER = "features"
_DTYPES: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16}
_HASH_CHARS = 32
_MAX_BYTES = 4 * 2**30
_TAP = "tap "


def features_of(
    backbone: Backbone, method: PromptADConfig, pixels_BSSC: Tensor, work: Store, kept: Kept
) -> ImageFeatures:
    """What `zsad.methods.promptad.encode` gives for these images, from a file of an earlier call where there is one.

    Args:
        backbone: encodes.
        method: says which blocks are tapped.
        pixels_BSSC: uint8, all images of one product.
        work: its folder `FOLDER` holds the files.
        kept: how numbers are stored; off: nothing is read or written.

    Raises:
        ModelError: as `encode`, and as `pack_features`.
        StorageError: if the file can't be written.
    """
    if kept == "off":
        return encode(backbone, method, pixels_BSSC)
    key = f"{FOLDER}/{features_hash(backbone, method, pixels_BSSC, kept)}.arrow"
    found = _stored(work, key, backbone.device)
    if found is None:
        data = pack_features(encode(backbone, method, pixels_BSSC), kept)
        work.put(key, data)
        found = unpack_features(data, backbone.device)
    return found


def bytes_per_image(num_patches: int, width: int, tower_width: int, kept: Kept) -> int:
    """Of a file; Arrow adds about 1 kB a product."""
    if kept == "off":
        return 0
    return (width + num_patches * (width + 2 * tower_width)) * int(np.dtype(_DTYPES[kept]).itemsize)


def features_hash(backbone: Backbone, method: PromptADConfig, pixels_BSSC: Tensor, kept: Kept) -> str:
    """Names what `features_of` gives: pixels count as they enter the tower, by its own mean and spread."""
    facts = {
        "zsad": __version__,
        "backbone": backbone.sha256,
        "precision": backbone.precision,
        "taps": method.taps(backbone.num_layers),
        "vv_start": used_vv_start(backbone, method),
        "kept": kept,
        "shape": tuple(pixels_BSSC.shape),
    }
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    found.update(backbone.normalise(pixels_BSSC).float().cpu().numpy().tobytes())
    return found.hexdigest()[:_HASH_CHARS]


def pack_features(features: ImageFeatures, kept: Kept) -> bytes:
    """An Arrow IPC file, one row an image: `image` (D), `patches` (P D) and one `tap N` (P W) a tapped block.

    Raises:
        ModelError: if a number is not finite, or too large for fp16.
    """
    columns = {"image": features.image_BD, "patches": features.patches_BPD}
    columns |= {f"{_TAP}{number}": tap for number, tap in features.taps.items()}
    arrays = {}
    for name, tensor in columns.items():
        with np.errstate(over="ignore"):
            numbers = tensor.detach().float().cpu().numpy().astype(_DTYPES[kept])
        if not np.isfinite(numbers).all():
            raise ModelError(f"the tower's features ({name}) hold numbers that do not fit {kept}; try --cache fp32")
        arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), tensor[0].numel())
    table = pa.table(arrays).replace_schema_metadata({"grid": json.dumps(features.grid)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpack_features(data: bytes, device: torch.device) -> ImageFeatures:
    """The features of a file, in fp32.

    Raises:
        pa.ArrowInvalid, KeyError, TypeError, ValueError: if it is not one of `pack_features`.
    """
    table = pa.ipc.open_file(data).read_all()
    rows, columns = json.loads((table.schema.metadata or {})[b"grid"])

    def tensor(name: str, *shape: int) -> Tensor:
        column = table[name].combine_chunks()
        if not pa.types.is_fixed_size_list(column.type):
            raise ValueError(f"column {name!r} holds {column.type}, not lists of one length")
        numbers = column.flatten().to_numpy(zero_copy_only=False)
        return torch.from_numpy(numbers.astype(np.float32).reshape(table.num_rows, *shape)).to(device)

    taps = [name for name in table.column_names if name.startswith(_TAP)]
    return ImageFeatures(
        image_BD=tensor("image", -1),
        patches_BPD=tensor("patches", rows * columns, -1),
        grid=(rows, columns),
        taps={int(name.removeprefix(_TAP)): tensor(name, rows * columns, -1) for name in taps},
    )


def _stored(work: Store, key: str, device: torch.device) -> ImageFeatures | None:
    """What a file holds; None: there is none, or it can't be used."""
    try:
        return unpack_features(work.get(key, max_bytes=_MAX_BYTES), device)
    except StorageError as error:
        if error.code == ErrorCode.MISSING:
            return None
        raise
    except (ImageError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        log.warning("%s can't be used (%s); its images are encoded again", work.uri(key), error)
        return None
