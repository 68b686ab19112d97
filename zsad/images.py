"""Bytes nobody vouches for -> a checked RGB array, and the resize that every detector shares.

`DecodeLimits` holds every limit on untrusted input. The format is found from the content, never from the name, and
only formats of the allow-list are tried; size and shape are checked from the header, before pixels are allocated.

| input | result |
|---|---|
| no bytes | `empty` |
| text, HTML, a format off the list (GIF, EPS, ...), 1 byte | `unknown_format` |
| more than `max_bytes` bytes | `too_many_bytes` |
| more than `max_pixels` pixels; a side below `min_side_px` px | `too_many_pixels`; `too_small` |
| the data ends early; a JPEG has no end mark behind its pixels (but zeros) | `truncated`; no part of it is used |
| broken data, 32-bit integer or float pixels | `decode` |
| EXIF orientation | applied; width and height are those after it |
| transparency (RGBA, LA, palette with transparent colours) | composited on white |
| 16-bit grey | scaled by 1/257 and rounded, 65535 -> 255; a 12-bit camera's values stay dark |
| 16-bit colour | the high byte, as Pillow reads it |
| CMYK, YCbCr | converted to RGB by Pillow; ICC profiles are not applied |
| grey, 1-bit, palette | converted to RGB |
| animated or several pages | the first frame |
| flipped bits that still decode | not noticed here: integrity comes from the etag |

Cost: decoding a 512 x 512 JPEG and resizing it to 224 takes about 4.5 ms of one core.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from zsad.errors import ConfigError, ErrorCode, ImageError

RgbImage = npt.NDArray[np.uint8]

_MODES_8_BIT = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"})
_MODES_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_TRUNCATED = ("truncated", "not enough image data", "unexpected end", "buffer is not large enough")
# What Pillow's decoders raise on broken data, seen in fuzzing and read in their source.
_DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError, MemoryError,
    NotImplementedError, struct.error, zlib.error,
)  # fmt: skip
_JPEG_FORMATS = frozenset({"JPEG", "MPO"})
_MARKERS_ALONE = frozenset({0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})  # no length follows; as Pillow has it
_MAGIC = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*"),
    "WEBP": (b"RIFF",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimits:
    """Every limit on an untrusted image; sizes in bytes and pixels, `timeout_s` in seconds per image.

    Raises:
        ConfigError: a limit is not positive, or `formats` is empty.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    min_side_px: int = 8
    formats: tuple[str, ...] = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
    timeout_s: float = 20.0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "min_side_px", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"DecodeLimits.{name} must be positive, not {getattr(self, name)!r}")
        if not self.formats:
            raise ConfigError("DecodeLimits.formats must name at least one format, such as JPEG")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How the square image is cut into overlapping square tiles; what becomes of them is `zsad.tiling`'s.

    Attributes:
        per_side: tiles along each side, at least 2.
        overlap_px: px that neighbours share, from 0 to half a tile.
        tile_px: side of a tile, px: the model's input.

    Raises:
        ConfigError: a value is out of range.
    """

    per_side: int
    overlap_px: int
    tile_px: int

    def __post_init__(self) -> None:
        if self.per_side < 2:
            raise ConfigError(f"tiling has {self.per_side} tiles per side; give 2 or more, or no tiling at all")
        if self.tile_px < 16:
            raise ConfigError(f"tiling has tiles of {self.tile_px} px; give 16 px or more")
        if not 0 <= self.overlap_px <= self.tile_px // 2:
            raise ConfigError(
                f"tiles of {self.tile_px} px can't overlap by {self.overlap_px} px; give 0 to {self.tile_px // 2} px"
            )

    @property
    def step_px(self) -> int:
        """From one tile's edge to its neighbour's, px."""
        return self.tile_px - self.overlap_px

    @property
    def size(self) -> int:
        """Side of the square that the tiles cover exactly, px."""
        return self.tile_px + (self.per_side - 1) * self.step_px


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How an image becomes a square of `size` x `size` px for the model.

    `aspect` "stretch" is the only kind: both sides are scaled to `size` on their own. Down-scaling is antialiased and
    works on all pixels (no JPEG draft mode), so that bytes and decoded arrays give equal results. With `tiling` the
    square is larger than the model's input and is cut into tiles later; without, it is the model's input. With
    `first_px` the image is first brought to a square of that side, bilinear and without antialiasing, as PromptAD's
    released code does with 1024 px before it resizes again.

    Raises:
        ConfigError: the size is outside [16, 4096] px or not the tiling's, a value is unknown, or `first_px` is outside
            [16, 4096] px or comes with a tiling.
    """

    size: int = 224
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    aspect: Literal["stretch"] = "stretch"
    tiling: Tiling | None = None
    first_px: int | None = None

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 4096:
            cause = " (smaller or fewer tiles need less)" if self.tiling else ""
            raise ConfigError(f"preprocess size must be 16 to 4096 px, not {self.size}{cause}")
        if self.interpolation not in _RESAMPLING:
            raise ConfigError(f"preprocess interpolation must be bicubic or bilinear, not {self.interpolation!r}")
        if self.aspect != "stretch":
            raise ConfigError(f"preprocess aspect must be stretch, not {self.aspect!r}")
        if self.tiling and self.tiling.size != self.size:
            raise ConfigError(f"the tiling covers {self.tiling.size} px, so preprocess size can't be {self.size} px")
        if self.first_px is not None and (self.tiling or not 16 <= self.first_px <= 4096):
            raise ConfigError(f"preprocess first_px must be 16 to 4096 px and without tiling, not {self.first_px}")

    @property
    def view_px(self) -> int:
        """Side of what the model sees at once, px: a tile, or the whole square."""
        return self.tiling.tile_px if self.tiling else self.size

    @property
    def tiles_per_side(self) -> int:
        """Tiles along each side; 1 without tiling."""
        return self.tiling.per_side if self.tiling else 1

    def apply(self, rgb_HW3: RgbImage) -> RgbImage:
        """Resize to uint8 (size, size, 3)."""
        image = Image.fromarray(rgb_HW3 if self.first_px is None else _bilinear(rgb_HW3, self.first_px))
        return np.asarray(image.resize((self.size, self.size), _RESAMPLING[self.interpolation]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `tiling` and `first_px` only where they are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """Read back `to_dict`; missing keys take their defaults.

        Raises:
            ConfigError: an unknown key, named with the nearest known one, or a value out of range.
        """
        _check_keys(cls, values, "preprocess")
        if values.get("tiling") is None:
            return cls(**values)
        _check_keys(Tiling, values["tiling"], "tiling")
        return cls(**{**values, "tiling": Tiling(**values["tiling"])})


def _check_keys(owner: type[Any], values: Mapping[str, Any], what: str) -> None:
    known = [field.name for field in fields(owner)]
    for key in values:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown {what} key {key!r}; {hint}")


def _bilinear(rgb_HW3: RgbImage, side: int) -> RgbImage:
    """The square (side, side, 3) of bilinear samples at pixel centres; what lies between them is not looked at."""
    values: npt.NDArray[Any] = rgb_HW3
    for axis in (0, 1):
        length = values.shape[axis]
        places = ((np.arange(side) + 0.5) * length / side - 0.5).clip(0, length - 1)
        low = places.astype(np.intp)
        share = np.expand_dims((places - low).astype(np.float32), (1, 2) if axis == 0 else (0, 2))
        high = np.minimum(low + 1, length - 1)
        values = np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
    rounded: RgbImage = np.rint(values).astype(np.uint8)
    return rounded


_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def decode_image(data: bytes, limits: DecodeLimits, *, backdrop: Literal["white", "black"] = "white") -> RgbImage:
    """Decode one image by the table of this module.

    Args:
        data: the object's whole content.
        limits: `timeout_s` is not looked at here: only a process can be stopped (`zsad.decode_child`).
        backdrop: what shows through transparent pixels; black for masks, where it means nothing is marked.

    Returns:
        uint8 (H, W, 3), RGB in [0, 255].

    Raises:
        ImageError: EMPTY, TOO_MANY_BYTES, UNKNOWN_FORMAT, TOO_MANY_PIXELS, TOO_SMALL, TRUNCATED or DECODE.
    """
    if not data:
        raise ImageError(ErrorCode.EMPTY, "the object has no bytes")
    if len(data) > limits.max_bytes:
        raise ImageError(
            ErrorCode.TOO_MANY_BYTES, f"{len(data):,} bytes; the limit is {limits.max_bytes:,} (max_bytes)"
        )
    with _typed_errors(data, limits), Image.open(io.BytesIO(data), formats=limits.formats) as image:
        _check_header(image, limits)
        _check_complete(data, image.format)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), backdrop)


def _check_header(image: Image.Image, limits: DecodeLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError(
            ErrorCode.TOO_MANY_PIXELS,
            f"{width:,} x {height:,} = {width * height:,} pixels; the limit is {limits.max_pixels:,} (max_pixels)",
        )
    if min(width, height) < limits.min_side_px:
        raise ImageError(
            ErrorCode.TOO_SMALL, f"{width} x {height} px; each side needs {limits.min_side_px} px (min_side_px)"
        )


def _check_complete(data: bytes, image_format: str | None) -> None:
    """Refuse what Pillow would decode although its end is missing."""
    if image_format in _JPEG_FORMATS and data.find(b"\xff\xd9", _scan_start(data)) < 0:
        raise ImageError(ErrorCode.TRUNCATED, "the JPEG has no end mark: its upload or copy was cut off")


def _scan_start(data: bytes) -> int:
    """Where the pixels of a JPEG begin: an embedded preview lies in a segment before them, with an end mark of its own.

    Segments are found as Pillow finds them, which has opened the file: junk between them is skipped.
    """
    place = 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 4 <= len(data):
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _MARKERS_ALONE:
            place += 2
        elif marker == 0xDA:
            return place
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return len(data)


def _to_rgb(image: Image.Image, backdrop: str) -> RgbImage:
    """Convert a loaded image of any accepted mode to uint8 (H, W, 3)."""
    if image.mode.startswith("I;16"):
        grey_HW = np.asarray(image).astype(np.uint32)
        return np.repeat(((grey_HW + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in _MODES_ALPHA or (image.mode in {"P", "L", "RGB"} and "transparency" in image.info):
        rgba = image.convert("RGBA")
        behind = Image.new("RGBA", rgba.size, backdrop)
        return np.asarray(Image.alpha_composite(behind, rgba).convert("RGB"))
    if image.mode in _MODES_8_BIT:
        return np.asarray(image.convert("RGB"))
    raise ImageError(
        ErrorCode.DECODE, f"pixels of mode {image.mode} have no defined range; save 8 or 16 bits a channel"
    )


@contextmanager
def _typed_errors(data: bytes, limits: DecodeLimits) -> Iterator[None]:
    """Turn everything that Pillow raises on broken input into an `ImageError`."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            ErrorCode.TOO_MANY_PIXELS, f"{error} The limit is {limits.max_pixels:,} pixels (max_pixels)."
        ) from error
    except UnidentifiedImageError as error:
        raise _unidentified(data, limits) from error
    except _DECODER_ERRORS as error:
        text = f"{type(error).__name__}: {error}"
        code = ErrorCode.TRUNCATED if _is_truncation(error, data) else ErrorCode.DECODE
        raise ImageError(code, f"can't decode the image: {text[:200]}") from error


def _is_truncation(error: Exception, data: bytes) -> bool:
    if data.startswith(b"RIFF") and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return True
    return isinstance(error, EOFError) or any(words in str(error).lower() for words in _TRUNCATED)


def _unidentified(data: bytes, limits: DecodeLimits) -> ImageError:
    for name in limits.formats:
        if data.startswith(_MAGIC.get(name, ())):
            return ImageError(ErrorCode.DECODE, f"it begins like a {name} file, but its header is broken")
    return ImageError(ErrorCode.UNKNOWN_FORMAT, f"the content is none of {', '.join(limits.formats)}")
