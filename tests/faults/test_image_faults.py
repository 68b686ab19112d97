"""Bad, odd, broken, bloated and stuck images: each costs its own row, and little time or memory."""

import io
import json
import random
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from batch_runs import png_header
from fault_table import IS_FULL, seed, size
from PIL import Image

from zsad.decode_child import DecodeChild
from zsad.errors import ErrorCode, ImageError
from zsad.images import DecodeLimits, Preprocess, decode_image
from zsad.storage import open_store

LIMITS = DecodeLimits()
PREPROCESS = Preprocess(size=224)
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")


def picture(width=96, height=64):
    """A smooth picture with some structure."""
    rng = np.random.default_rng(7)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(), "JPEG", exif=exif)


def palette_with_alpha():
    return encoded(picture().quantize(16), "PNG", transparency=bytes([0] * 8 + [255] * 8))


JPEG, PNG = encoded(picture(512, 512), "JPEG"), encoded(picture(512, 512), "PNG")
GREY16 = encoded(Image.fromarray(np.arange(96 * 64, dtype=np.uint16).reshape(64, 96) * 10), "PNG")
SECOND = picture().rotate(180)

# What it is -> (content, error code or the (width, height) of the row).
INPUTS = {
    "no bytes": (b"", "empty"),
    "1 byte": (b"\xff", "unknown_format"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "half a PNG": (PNG[: len(PNG) // 2], "truncated"),
    "HTML error page": (b"<html><body>502 Bad Gateway</body></html>", "unknown_format"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "unknown_format"),
    "GIF": (encoded(picture(), "GIF"), "unknown_format"),
    "JPEG header, then zeros": (JPEG[:700] + bytes(20_000), "truncated"),
    "PNG header, then zeros": (PNG[:700] + bytes(20_000), "truncated"),
    "16-bit PNG": (GREY16, (96, 64)),
    "CMYK": (encoded(picture().convert("CMYK"), "JPEG"), (96, 64)),
    "turned by EXIF": (rotated(), (64, 96)),
    "palette with alpha": (palette_with_alpha(), (96, 64)),
    "animated WEBP": (encoded(picture(), "WEBP", save_all=True, append_images=[SECOND]), (96, 64)),
    "1 x 1": (encoded(picture(1, 1), "PNG"), "too_small"),
    "1 x 20,000": (encoded(Image.new("RGB", (1, 20_000)), "PNG"), "too_small"),
    "20,000 x 1": (encoded(Image.new("RGB", (20_000, 1)), "PNG"), "too_small"),
    "PNG named .jpg": (PNG, (512, 512)),
}


# I1


def test_every_bad_or_odd_input_has_its_documented_end(table):
    times_ms = {}
    with DecodeChild() as child:
        child.decode(JPEG, LIMITS, PREPROCESS)
        for name, (data, expected) in INPUTS.items():
            began_s = time.monotonic()
            try:
                decoded = child.decode(data, LIMITS, PREPROCESS)
                found = (decoded.width, decoded.height)
            except ImageError as error:
                found = error.code.value
            times_ms[name] = (time.monotonic() - began_s) * 1000
            assert found == expected, name
    slowest = max(times_ms, key=times_ms.__getitem__)
    table.add("I1", "bad and odd inputs, through the decode child", f"{len(INPUTS)} inputs",
              f"each its code or size, in {min(times_ms.values()):.1f} to {times_ms[slowest]:.0f} ms")  # fmt: skip


# I2

FUZZ = """
import json, resource, sys, time, warnings
sys.path.insert(0, {folder!r})
from test_image_faults import LIMITS, mutants
from zsad.errors import ImageError
from zsad.images import decode_image
warnings.simplefilter("ignore")
data = list(mutants({seed}, {count}))
decode_image(data[0][1], LIMITS)
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before, began, decoded = rss(), time.monotonic(), 0
for _, mutant in data:
    try:
        decode_image(mutant, LIMITS)
        decoded += 1
    except ImageError:
        pass
print(json.dumps([decoded, time.monotonic() - began, rss() - before]))
"""


def mutants(number, count):
    """The unchanged sources first, then files with changed bytes, some of them cut."""
    rng = random.Random(number)
    sources = [encoded(picture(), file_format) for file_format in FORMATS]
    yield from zip(FORMATS, sources, strict=True)
    for _ in range(count):
        file_format, source = rng.choice(list(zip(FORMATS, sources, strict=True)))
        data = bytearray(source)
        for _ in range(rng.choice([1, 4, 32])):
            data[rng.randrange(min(len(data), rng.choice([64, 10_000])))] = rng.randrange(256)
        yield file_format, bytes(data[: rng.choice([len(data), rng.randrange(1, len(data))])])


def test_mutated_files_end_as_a_picture_or_an_image_error(table):
    count, number = size(500, 2000), seed(20261122)
    code = FUZZ.format(folder=str(__file__).rpartition("/")[0], seed=number, count=count)
    folders = [path for path in sys.path if path.endswith("tests")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path += {folders!r}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    decoded, seconds, growth = json.loads(done.stdout.splitlines()[-1])
    assert 5 < decoded < count
    assert seconds <= 10 or not IS_FULL
    assert growth <= 50 * 2**20
    table.add("I2", "mutated JPEG, PNG, BMP, TIFF and WEBP", f"{count:,} files",
              f"no other exception; {decoded:,} still decode; {seconds:.2f} s, +{growth / 2**20:.0f} MB")  # fmt: skip


# I3


def bomb(width, height):
    """A grey PNG of black pixels: many, in few bytes."""
    row = bytes(1 + width)
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = png_header(width, height)
    start = head.index(b"IDAT") - 4
    chunk = len(packed).to_bytes(4, "big") + b"IDAT" + packed + zlib.crc32(b"IDAT" + packed).to_bytes(4, "big")
    return head[:start] + chunk + head[head.index(b"IEND") - 4 :]


@pytest.mark.parametrize(("width", "height"), [(20_000, 12_000), (9_000, 9_000)])
def test_a_bomb_is_refused_from_its_header(width, height, table):
    data = bomb(width, height)
    assert len(data) < width * height / 200
    decode_image(PNG, LIMITS)
    best_ms = 1e9
    for _ in range(3):
        began_s = time.perf_counter()
        with pytest.raises(ImageError, match="pixels") as caught:
            decode_image(data, LIMITS)
        best_ms = min(best_ms, (time.perf_counter() - began_s) * 1000)
    assert caught.value.code == ErrorCode.TOO_MANY_PIXELS
    table.add("I3", f"a bomb of {width:,} x {height:,} pixels", f"{len(data) / 1e6:.2f} MB",
              f"too_many_pixels from the header, {best_ms:.1f} ms")  # fmt: skip


# I4


def test_flipped_bits_decode_and_are_caught_by_the_etag(tmp_path, table):
    store = open_store(str(tmp_path))
    store.put("a.jpg", JPEG)
    (listed,) = store.list()
    flipped = bytearray(JPEG)
    flipped[len(JPEG) // 2] ^= 1
    assert decode_image(bytes(flipped), LIMITS).shape == (512, 512, 3)
    time.sleep(0.01)
    store.put("a.jpg", bytes(flipped))
    with pytest.raises(ImageError) as caught:
        store.get("a.jpg", max_bytes=10**6, etag=listed.etag)
    assert caught.value.code == ErrorCode.CHANGED
    table.add("I4", "one bit flipped inside a JPEG of the same size", "local folder",
              "decodes without a word; changed, because the etag differs from the listing's")  # fmt: skip


@pytest.mark.s3
def test_bits_flipped_on_the_way_from_s3_are_noticed(faulty_s3, s3, table):
    store = open_store(s3.new_bucket())
    store.put("a.jpg", JPEG)
    (listed,) = store.list()
    store.get("a.jpg", max_bytes=10**6)  # from now on etags of this bucket are known to be MD5s
    faulty_s3.restart(lambda request: "flipped" if request.is_object_get and request.number < 2 else None)
    assert store.get("a.jpg", max_bytes=10**6, etag=listed.etag) == JPEG
    assert len(faulty_s3.requests) == 3
    faulty_s3.restart(lambda _request: "flipped")
    with pytest.raises(ImageError) as caught:
        store.get("a.jpg", max_bytes=10**6, etag=listed.etag)
    assert caught.value.code == ErrorCode.CHANGED
    table.add("I4", "one bit flipped on the way, etag as listed", "S3",
              "read again when the content is not the etag's MD5; changed when it never is")  # fmt: skip


# I5

STUCK = """
import ctypes
import zsad.decode_child as child
real = child.decode_image
def decode(data, limits):
    if data.startswith(b"hang"):
        ctypes.PyDLL(None).sleep(600)
    return real(data, limits)
child.decode_image = decode
child.main()
"""


def test_a_decoder_that_hangs_costs_its_time_limit_and_one_row(table):
    limits = DecodeLimits(timeout_s=size(1, 20))
    with DecodeChild((sys.executable, "-c", STUCK)) as child:
        child.decode(JPEG, limits, PREPROCESS)
        began_s = time.monotonic()
        with pytest.raises(ImageError) as caught:
            child.decode(b"hang", limits, PREPROCESS)
        hung_s = time.monotonic() - began_s
        assert caught.value.code == ErrorCode.DECODE_TIMEOUT
        assert limits.timeout_s <= hung_s
        assert hung_s <= limits.timeout_s + 2 or not IS_FULL
        began_s = time.monotonic()
        child.decode(JPEG, limits, PREPROCESS)
        replaced_s = time.monotonic() - began_s
        through_ms = _mean_ms(lambda: child.decode(JPEG, limits, PREPROCESS))
    inside_ms = _mean_ms(lambda: PREPROCESS.apply(decode_image(JPEG, LIMITS)))
    table.add("I5", f"a decoder that hangs, limit {limits.timeout_s:g} s", "512 x 512 JPEG",
              f"decode_timeout after {hung_s:.1f} s, a new child in {replaced_s:.2f} s; {through_ms:.1f} ms an image "
              f"through the child, {inside_ms:.1f} ms in-process")  # fmt: skip


def _mean_ms(call, times=30):
    call()
    began_s = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began_s) / times * 1000
