"""Untrusted bytes become a checked array or a documented code, whatever they are."""

import io
import json
import random
import struct
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zsad.errors import ConfigError, ErrorCode, ImageError
from zsad.images import DecodeLimits, Preprocess, Tiling, decode_image

LIMITS = DecodeLimits()
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")


def encode(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(width=64, height=48):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def gradient():
    ramp = np.arange(64, dtype=np.uint8)
    return Image.fromarray(np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], 128), axis=2).astype(np.uint8))


def half(data):
    return data[: len(data) // 2]


def zeroed(data):
    return half(data) + bytes(len(data) - len(data) // 2)


def cut(data):
    """The end of a JPEG's pixels replaced by zeros, as an upload that broke off into a file of full length."""
    return data[:-500] + bytes(500)


def with_thumbnail(data):
    """A JPEG with a smaller one in its EXIF data, as cameras write them."""
    thumbnail = encode(noise(16, 16), "JPEG")
    entries = [(0x0201, 14 + 2 + 2 * 12 + 4), (0x0202, len(thumbnail))]  # where it lies and its length, bytes
    exif = b"Exif\0\0II*\0" + struct.pack("<LHLH", 8, 0, 14, len(entries))
    exif += b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in entries) + bytes(4) + thumbnail
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def stereo():
    """Two pictures in one file (MPO), as phones and stereo cameras write them."""
    return encode(gradient(), "MPO", save_all=True, append_images=[noise()])


BAD = {
    "empty": (b"", ErrorCode.EMPTY),
    "one byte": (b"\xff", ErrorCode.UNKNOWN_FORMAT),
    "html error page": (b"<!DOCTYPE html><html><body>403 Forbidden</body></html>", ErrorCode.UNKNOWN_FORMAT),
    "pickle": (b"\x80\x04\x95\x00", ErrorCode.UNKNOWN_FORMAT),
    "gif": (encode(noise(), "GIF"), ErrorCode.UNKNOWN_FORMAT),
    "eps": (encode(noise(), "EPS"), ErrorCode.UNKNOWN_FORMAT),
    "half jpeg": (half(encode(noise(), "JPEG")), ErrorCode.TRUNCATED),
    "half png": (half(encode(noise(), "PNG")), ErrorCode.TRUNCATED),
    "half bmp": (half(encode(noise(), "BMP")), ErrorCode.TRUNCATED),
    "half tiff": (half(encode(noise(), "TIFF")), ErrorCode.TRUNCATED),
    "half webp": (half(encode(noise(), "WEBP")), ErrorCode.TRUNCATED),
    "jpeg then zeros": (zeroed(encode(noise(), "JPEG")), ErrorCode.TRUNCATED),
    "jpeg with a thumbnail, then zeros": (cut(with_thumbnail(encode(noise(), "JPEG"))), ErrorCode.TRUNCATED),
    "progressive jpeg with a thumbnail, then zeros": (
        cut(with_thumbnail(encode(noise(), "JPEG", progressive=True))),
        ErrorCode.TRUNCATED,
    ),
    "mpo then zeros": (stereo()[: stereo().index(b"\xff\xd9")] + bytes(5000), ErrorCode.TRUNCATED),
    "png then zeros": (zeroed(encode(noise(), "PNG")), ErrorCode.DECODE),
    "png magic then zeros": (b"\x89PNG\r\n\x1a\n" + bytes(100), ErrorCode.DECODE),
    "1x1": (encode(noise(1, 1), "PNG"), ErrorCode.TOO_SMALL),
    "1x20000": (encode(noise(1, 20000), "PNG"), ErrorCode.TOO_SMALL),
    "32-bit integers": (encode(Image.fromarray(np.zeros((16, 16), np.int32)), "TIFF"), ErrorCode.DECODE),
    "floats": (encode(Image.fromarray(np.zeros((16, 16), np.float32)), "TIFF"), ErrorCode.DECODE),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_has_its_documented_code(name):
    data, code = BAD[name]
    with pytest.raises(ImageError) as caught:
        decode_image(data, LIMITS)
    assert caught.value.code == code
    assert str(caught.value)


@pytest.mark.parametrize(("width", "height"), [(20000, 12000), (9000, 9000)])
def test_a_bomb_is_refused_from_its_header(width, height):
    data = encode(Image.new("1", (width, height)), "PNG")
    started_s = time.perf_counter()
    with pytest.raises(ImageError, match="50,000,000") as caught:
        decode_image(data, LIMITS)
    assert caught.value.code == ErrorCode.TOO_MANY_PIXELS
    assert time.perf_counter() - started_s < 0.3


def test_too_many_bytes_is_refused_before_decoding():
    with pytest.raises(ImageError, match=r"11 bytes; the limit is 10") as caught:
        decode_image(bytes(11), DecodeLimits(max_bytes=10))
    assert caught.value.code == ErrorCode.TOO_MANY_BYTES


def test_limits_are_inclusive():
    data = encode(noise(8, 8), "PNG")
    limits = DecodeLimits(max_bytes=len(data), max_pixels=64, min_side_px=8)
    assert decode_image(data, limits).shape == (8, 8, 3)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_keep_every_pixel(file_format):
    found = decode_image(encode(noise(), file_format), LIMITS)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(noise()))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_thumbnail_changes_no_pixel_of_a_whole_jpeg(progressive):
    data = encode(noise(), "JPEG", progressive=progressive)
    assert with_thumbnail(data).count(b"\xff\xd9") == 2
    np.testing.assert_array_equal(decode_image(with_thumbnail(data), LIMITS), decode_image(data, LIMITS))


def test_the_first_picture_of_an_mpo_is_used():
    found = decode_image(stereo(), LIMITS)
    assert Image.open(io.BytesIO(stereo())).format == "MPO"
    np.testing.assert_array_equal(found, decode_image(encode(gradient(), "JPEG"), LIMITS))


def test_padding_between_the_segments_of_a_jpeg_is_passed_over():
    data = encode(noise(), "JPEG")
    padded = data[:2] + b"\xff\xff\xff\0\0" + with_thumbnail(data)[2:]
    np.testing.assert_array_equal(decode_image(padded, LIMITS), decode_image(data, LIMITS))
    with pytest.raises(ImageError) as caught:
        decode_image(cut(padded), LIMITS)
    assert caught.value.code == ErrorCode.TRUNCATED


def test_only_listed_formats_are_tried():
    with pytest.raises(ImageError, match="none of JPEG"):
        decode_image(encode(noise(), "PNG"), DecodeLimits(formats=("JPEG",)))


def test_16_bit_grey_is_scaled_to_8_bit():
    grey = np.zeros((8, 8), np.uint16)
    grey[0, :5] = [0, 128, 129, 257 * 100, 65535]
    for file_format in ("PNG", "TIFF"):
        found = decode_image(encode(Image.fromarray(grey), file_format), LIMITS)
        assert found[0, :5].tolist() == [[0] * 3, [0] * 3, [1] * 3, [100] * 3, [255] * 3]


def test_transparency_is_composited_on_white():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[0, 0] = [10, 20, 30, 255]
    rgba[0, 1] = [0, 0, 0, 51]  # a fifth of black over four fifths of white
    found = decode_image(encode(Image.fromarray(rgba), "PNG"), LIMITS)
    assert found[0, 0].tolist() == [10, 20, 30]
    assert found[0, 1].tolist() == [204] * 3
    assert found[1, 1].tolist() == [255] * 3


def test_transparent_palette_colour_is_white():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((0, 0), 0)
    found = decode_image(encode(image, "PNG", transparency=1), LIMITS)
    assert found[0, 0].tolist() == [200, 0, 0]
    assert found[1, 1].tolist() == [255] * 3


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_become_rgb(mode):
    found = decode_image(encode(Image.new(mode, (8, 8), 0), "PNG"), LIMITS)
    assert found.shape == (8, 8, 3)
    assert not found.any()


def test_cmyk_becomes_rgb():
    found = decode_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100), LIMITS)
    assert np.abs(found.astype(int) - [255, 0, 0]).max() <= 3


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be shown turned right by 90 degrees
    stored = noise(64, 48)
    found = decode_image(encode(stored, "PNG", exif=exif), LIMITS)
    np.testing.assert_array_equal(found, np.rot90(np.asarray(stored), -1))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several_is_used(file_format):
    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(first, file_format, save_all=True, append_images=[second], **options)
    assert decode_image(data, LIMITS)[0, 0].tolist() == [255, 0, 0]


def test_flipped_bits_may_decode_so_integrity_is_the_etags_business():
    data = bytearray(encode(gradient(), "JPEG"))
    data[-40] ^= 1
    assert decode_image(bytes(data), LIMITS).shape == (64, 64, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about broken metadata
def test_mutated_files_only_raise_image_errors():
    rng = random.Random(20261122)
    sources = [encode(gradient(), file_format) for file_format in FORMATS]
    for _ in range(400):
        data = bytearray(rng.choice(sources))
        for _ in range(rng.choice([1, 4, 32])):
            data[rng.randrange(min(len(data), rng.choice([64, 10_000])))] = rng.randrange(256)
        cut = rng.choice([len(data), rng.randrange(1, len(data))])
        try:
            found = decode_image(bytes(data[:cut]), LIMITS)
        except ImageError:
            continue
        assert found.dtype == np.uint8
        assert found.ndim == 3


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_random_bytes_only_raise_image_errors(data):
    with pytest.raises(ImageError):
        decode_image(data, LIMITS)


@pytest.mark.parametrize(
    "wrong", [{"max_bytes": 0}, {"max_pixels": -1}, {"timeout_s": 0}, {"min_side_px": 0}, {"formats": ()}]
)
def test_limits_are_checked(wrong):
    with pytest.raises(ConfigError):
        DecodeLimits(**wrong)


def test_preprocess_stretches_to_a_square():
    found = Preprocess(size=32, interpolation="bilinear").apply(np.asarray(noise(64, 48)))
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8


def test_preprocess_averages_when_it_shrinks():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    found = Preprocess(size=16, interpolation="bilinear").apply(stripes)
    assert np.abs(found[4:-4, 4:-4].astype(int) - 100).max() <= 2


def test_preprocess_survives_a_round_trip():
    plain = Preprocess(size=336, interpolation="bilinear")
    in_tiles = Preprocess(size=416, tiling=Tiling(per_side=2, overlap_px=32, tile_px=224))
    twice = Preprocess(size=240, first_px=1024)
    for preprocess in (plain, in_tiles, twice):
        assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize("size", [(48, 64), (5, 7), (301, 16)])
def test_the_first_square_is_sampled_without_antialiasing(size):
    """Larger and smaller than the image; Pillow has nothing left to resize."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = Preprocess(size=32, first_px=32).apply(image)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = F.interpolate(planes, size=(32, 32), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    assert np.abs(found - expected.numpy()).max() <= 0.5 + 1e-3


def test_the_second_resize_starts_from_the_first_square():
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    first = Preprocess(size=64, first_px=64).apply(image)
    twice = Preprocess(size=16, first_px=64).apply(image)
    assert np.array_equal(twice, Preprocess(size=16).apply(first))
    assert not np.array_equal(twice, Preprocess(size=16).apply(image))


def test_without_tiling_nothing_is_written_of_it():
    """Descriptions, and so the hashes of reports made before tiling came, stay the same."""
    assert Preprocess().to_dict() == {"size": 224, "interpolation": "bicubic", "aspect": "stretch"}


def test_what_the_model_sees_is_a_tile_or_the_whole():
    assert (Preprocess(size=336).view_px, Preprocess(size=336).tiles_per_side) == (336, 1)
    in_tiles = Preprocess(size=608, tiling=Tiling(per_side=3, overlap_px=32, tile_px=224))
    assert (in_tiles.view_px, in_tiles.tiles_per_side) == (224, 3)
    assert in_tiles.tiling.step_px == 192
    assert in_tiles.apply(np.asarray(noise())).shape == (608, 608, 3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sise": 224}, "did you mean 'size'"),
        ({"size": 8}, "16 to 4096"),
        ({"interpolation": "nearest"}, "bicubic or bilinear"),
        ({"aspect": "crop"}, "stretch"),
        ({"first_px": 8}, "first_px must be 16 to 4096 px and without tiling, not 8"),
        ({"tiling": {"per_sied": 2}}, "unknown tiling key 'per_sied'; did you mean 'per_side'"),
        ({"tiling": {"per_side": 1, "overlap_px": 0, "tile_px": 224}}, "1 tiles per side; give 2 or more"),
        ({"tiling": {"per_side": 2, "overlap_px": 0, "tile_px": 8}}, "tiles of 8 px; give 16"),
        ({"tiling": {"per_side": 2, "overlap_px": 113, "tile_px": 224}}, "overlap by 113 px; give 0 to 112 px"),
        ({"tiling": {"per_side": 2, "overlap_px": -1, "tile_px": 224}}, "overlap by -1 px"),
        ({"size": 416, "first_px": 99, "tiling": {"per_side": 2, "overlap_px": 32, "tile_px": 224}}, "without tiling"),
        ({"tiling": {"per_side": 2, "overlap_px": 32, "tile_px": 224}}, "covers 416 px, so .* can't be 224 px"),
    ],
)
def test_preprocess_refuses_what_it_does_not_know(values, words):
    with pytest.raises(ConfigError, match=words):
        Preprocess.from_dict(values)
