"""The page's own arithmetic against Python's: maps, colours, masks. Runs the served modules in the browser."""

import struct
import zlib

import numpy as np
import pytest
from pycocotools import mask as coco

from zsad.regions import upsample
from zsad.report import overlay
from zsad.scoring import encode_map


def png16(rows_hw: np.ndarray, filters: list[int]) -> bytes:
    """A 16-bit grey PNG with the given line filters (PNG specification, section 9), by the definition."""
    height, width = rows_hw.shape
    raw = rows_hw.astype(">u2").tobytes()
    lines = [np.frombuffer(raw[y * 2 * width : (y + 1) * 2 * width], np.uint8).astype(int) for y in range(height)]
    out = b""
    for y, line in enumerate(lines):
        above = lines[y - 1] if y else np.zeros_like(line)
        left, corner = (np.concatenate([[0, 0], values[:-2]]) for values in (line, above))
        guesses = [0 * line, left, above, (left + above) // 2, paeth(left, above, corner)]
        out += bytes([filters[y]]) + ((line - guesses[filters[y]]) % 256).astype(np.uint8).tobytes()
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))]
    packed = zlib.compress(out)
    parts += [(b"tEXt", b"a\0b"), (b"IDAT", packed[:7]), (b"IDAT", packed[7:]), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def paeth(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    guess = left + above - corner
    by_left, by_above, by_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
    return np.where(
        (by_left <= by_above) & (by_left <= by_corner), left, np.where(by_above <= by_corner, above, corner)
    )


@pytest.fixture(scope="module")
def call(browser, page_url):
    """Call a function of pixels.js with JSON values."""
    tab = browser.new_page()
    tab.goto(page_url)

    def caller(expression: str, *values):
        module = "await import(new URL('page/pixels.js', location))"
        code = f"async values => {{ const pixels = {module}; return {expression}; }}"
        return tab.evaluate(code, list(values))

    yield caller
    tab.close()


def decoded(call, content: bytes) -> np.ndarray:
    found = call(
        "pixels.decodeMap(Uint8Array.from(values[0])).then(m => [m.h, m.w, Array.from(m.values)])", list(content)
    )
    return np.array(found[2], np.float32).reshape(found[:2])


def test_a_16_bit_map_is_decoded_exactly_whatever_its_line_filters(call):
    rows_hw = np.random.default_rng(5).integers(0, 65536, (10, 7))
    rows_hw[:, 3] = [0, 1, 255, 256, 257, 32768, 65534, 65535, 0, 1]
    content = png16(rows_hw, [0, 1, 2, 3, 4, 4, 3, 2, 1, 0])
    assert (np.rint(decoded(call, content) * 65535) == rows_hw).all()


def test_the_endpoints_own_map_survives_the_way(call):
    map_hw = np.random.default_rng(6).random((14, 14), np.float32)
    np.testing.assert_allclose(decoded(call, encode_map(map_hw)), map_hw, atol=0.5 / 65535 + 1e-7)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"GIF89a" + bytes(60), "not a PNG file"),
        (
            b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 4, 4, 8, 2, 0, 0, 0) + bytes(30),
            "16-bit grey",
        ),
        (
            b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 2**20, 2**20, 16, 0, 0, 0, 0) + bytes(30),
            "samples",
        ),
    ],
)
def test_another_kind_of_file_is_refused_as_a_map(call, content, said):
    assert said in call(
        "pixels.decodeMap(Uint8Array.from(values[0])).then(() => '', error => error.message)", list(content)
    )


def test_a_map_whose_data_is_cut_short_is_refused(call):
    content = png16(np.zeros((4, 4), int), [0] * 4).replace(struct.pack(">II", 4, 4), struct.pack(">II", 4, 9), 1)
    found = call("pixels.decodeMap(Uint8Array.from(values[0])).then(() => '', error => error.message)", list(content))
    assert found == "the map holds 36 bytes instead of 81"


def test_colours_are_those_of_the_reports(call):
    values = np.linspace(0, 1, 257).tolist()
    found = np.array(call("values[0].map(pixels.heat)", values))
    colour, alpha = overlay.heat(values)
    np.testing.assert_allclose(found[:, :3], colour, atol=1e-3)
    np.testing.assert_allclose(found[:, 3], alpha, atol=1e-5)


def test_a_map_is_stretched_as_in_the_reports(call):
    map_hw = np.random.default_rng(7).random((5, 3), np.float32)
    flat = call(
        "Array.from(pixels.stretched({w: 3, h: 5, values: Float32Array.from(values[0])}, 31, 22))",
        map_hw.ravel().tolist(),
    )
    np.testing.assert_allclose(np.reshape(flat, (22, 31)), upsample(map_hw, 22, 31), atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_a_mask_is_read_as_coco_writes_it(call, share):
    mask_HW = (np.random.default_rng(8).random((37, 53)) < share).astype(np.uint8)
    mask_HW[5:20, 10:40] |= share > 0.3
    counts = coco.encode(np.asfortranarray(mask_HW))["counts"].decode("ascii")
    flat = call("Array.from(pixels.mask(values[0], {width: 53, height: 37}, 53, 37))", counts)
    assert (np.reshape(flat, (37, 53)) == mask_HW).all()


def test_a_mask_of_a_large_image_is_sampled_at_pixel_centres(call):
    """An image of 4,000 x 3,000 px whose right half is marked, drawn at 8 x 6: the right four columns."""
    mask_HW = np.zeros((3000, 4000), np.uint8, order="F")
    mask_HW[:, 2000:] = 1
    counts = coco.encode(mask_HW)["counts"].decode("ascii")
    flat = call("Array.from(pixels.mask(values[0], {width: 4000, height: 3000}, 8, 6))", counts)
    assert np.reshape(flat, (6, 8)).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 6


def test_a_rim_is_two_pixels_wide_and_closed_at_the_edge(call):
    inside = np.zeros((8, 8), int)
    inside[0:7, 1:8] = 1
    flat = call("Array.from(pixels.rim(Uint8Array.from(values[0]), 8, 8))", inside.ravel().tolist())
    expected = inside.copy()
    expected[2:5, 3:6] = 0
    assert np.reshape(flat, (8, 8)).tolist() == expected.tolist()
