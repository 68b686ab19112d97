"""From a list of labelled images to decoded pixels and checked masks: the CPU half of an evaluation.

A mask is non-zero and opaque where the image is defective (a JPEG, whose compression leaves noise, from 128 on). It
must have the image's size and mark something; one that does not makes an error row of its image, which then counts
nowhere else.

| `error_code` | |
|---|---|
| those of `zsad.errors.ErrorCode` | of the image |
| `mask_` and one of those | of its mask: `mask_missing`, `mask_decode`, ... |
| `mask_size`, `mask_blank` | another size than the image; nothing is marked |

Masks are brought to the resolution compared at by the nearest pixel, as published protocols do; where that loses all of
a small defect, the pixels it touches are taken. They travel as packed bits.

Legend: S model input side px, (H, W) pixels compared, N rows.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from zsad.datasets.labelled import LabelledImage
from zsad.decode_child import DecodeChild
from zsad.errors import ImageError
from zsad.images import DecodeLimits, Preprocess, decode_image
from zsad.scoring import PIXELS, fetched
from zsad.storage import Store

MASK = "mask_bits"
TRUTH_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("defect_type", pa.string(), nullable=False),
        pa.field("mask", pa.string()),
        pa.field("product", pa.string(), nullable=False),
    ]
)


class MaskError(Exception):
    """A mask that can't be used: `code` of the error row, and why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def truth_table(images: list[LabelledImage]) -> pa.Table:
    """The images as a table with `TRUTH_SCHEMA`."""
    rows = [{name: getattr(image, name) for name in TRUTH_SCHEMA.names} for image in images]
    return pa.Table.from_pylist(rows, schema=TRUTH_SCHEMA)


def decoded_schema(size: int) -> pa.Schema:
    """Columns that travel from decoding to comparing, for a model input of `size` px."""
    return pa.schema(
        [
            *TRUTH_SCHEMA,
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field(MASK, pa.binary()),
            pa.field(PIXELS, pa.binary(size * size * 3), nullable=False),
        ]
    )


def decode_truth(
    source: Store,
    truths: pa.Table,
    *,
    limits: DecodeLimits,
    preprocess: Preprocess,
    side_px: int | None,
    child: DecodeChild,
) -> pa.Table:
    """Fetch and decode images and masks.

    Args:
        source: the data set.
        truths: N rows with `TRUTH_SCHEMA`.
        limits: for images and masks.
        preprocess: how images become the model's input.
        side_px: side that masks are brought to; None: the image's own size.
        child: decodes the images.

    Returns:
        N rows in the given order with `decoded_schema`; pixels are zeros where there is an error code.
    """
    listed = truths.to_pylist()
    keys = [key for row in listed for key in (row["key"], row["mask"]) if key is not None]
    contents = fetched(source, [(key, None) for key in keys], limits.max_bytes)
    blank = bytes(preprocess.size**2 * 3)
    rows = []
    for row in listed:
        data = next(contents)
        mask = next(contents) if row["mask"] is not None else None
        outcome: dict[str, Any]
        try:
            outcome = _decode(data, limits, preprocess, child)
            if mask is not None:
                outcome[MASK] = pack(_mask(mask, row["mask"], limits, outcome, side_px))
        except ImageError as error:
            outcome = {"error_code": error.code.value, "error_message": str(error)}
        except MaskError as error:
            outcome = {"error_code": error.code, "error_message": str(error)}
        rows.append({PIXELS: blank, **row, **outcome})
    return pa.Table.from_pylist(rows, schema=decoded_schema(preprocess.size))


def read_mask(data: bytes, key: str, limits: DecodeLimits, *, width: int, height: int) -> NDArray[np.bool_]:
    """Decode a mask and check it against its image.

    Args:
        data: the mask's file.
        key: named in errors.
        limits: as for images.
        width: of the image, px.
        height: of the image, px.

    Returns:
        bool (height, width).

    Raises:
        MaskError: if it can't be decoded, has another size or marks nothing.
    """
    try:
        rgb_HW3 = decode_image(data, limits, backdrop="black")
    except ImageError as error:
        raise MaskError(f"mask_{error.code}", f"mask {key}: {error}") from error
    if rgb_HW3.shape[:2] != (height, width):
        size = f"{rgb_HW3.shape[1]} x {rgb_HW3.shape[0]} px"
        raise MaskError("mask_size", f"mask {key} has {size}, its image {width} x {height} px")
    mask_HW = (rgb_HW3 > (127 if data.startswith(b"\xff\xd8") else 0)).any(axis=2)
    if not mask_HW.any():
        raise MaskError("mask_blank", f"mask {key} marks no pixel (8-bit values above 0, or 16-bit ones from 129 on)")
    return np.asarray(mask_HW, np.bool_)


def at_size(mask_HW: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """The mask at another size by the nearest pixel; the pixels it touches where that leaves nothing."""
    if mask_HW.shape == (height, width):
        return mask_HW
    picture = Image.fromarray(mask_HW.astype(np.uint8))
    near_HW = np.asarray(picture.resize((width, height), Image.Resampling.NEAREST)) > 0
    if near_HW.any() or not mask_HW.any():
        return near_HW
    return np.asarray(picture.convert("F").resize((width, height), Image.Resampling.BOX)) > 0


def pack(mask_HW: NDArray[np.bool_]) -> bytes:
    """Eight pixels a byte."""
    return np.packbits(mask_HW).tobytes()


def unpack(bits: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """Inverse of `pack`."""
    flat = np.unpackbits(np.frombuffer(bits, np.uint8), count=height * width)
    return flat.reshape(height, width).astype(np.bool_)


def _decode(
    data: bytes | ImageError, limits: DecodeLimits, preprocess: Preprocess, child: DecodeChild
) -> dict[str, Any]:
    if isinstance(data, ImageError):
        raise data
    decoded = child.decode(data, limits, preprocess)
    return {"width": decoded.width, "height": decoded.height, PIXELS: decoded.pixels.tobytes()}


def _mask(
    data: bytes | ImageError, key: str, limits: DecodeLimits, image: dict[str, Any], side_px: int | None
) -> NDArray[np.bool_]:
    if isinstance(data, ImageError):
        raise MaskError(f"mask_{data.code}", f"mask {key}: {data}")
    mask_HW = read_mask(data, key, limits, width=image["width"], height=image["height"])
    return at_size(mask_HW, side_px or image["height"], side_px or image["width"])
