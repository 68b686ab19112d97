"""A child process decodes like this one, and its hangs and crashes cost one image."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.decode_child import DecodeChild, _child_environment
from zsad.errors import ErrorCode, ImageError, ZsadError
from zsad.images import DecodeLimits, Preprocess, decode_image

LIMITS = DecodeLimits(timeout_s=10)
PREPROCESS = Preprocess(size=32)
# A child whose decoder hangs, dies or asks for too much memory when the bytes say so.
SABOTEUR = """
import ctypes, os, time
import zsad.decode_child as child
real = child.decode_image
def decode(data, limits):
    if data.startswith(b"hang"):
        ctypes.PyDLL(None).sleep(60)  # holds the interpreter lock, like a decoder stuck in C
    if data.startswith(b"crash"):
        os.abort()
    if data.startswith(b"memory"):
        bytearray(5 * 2**30)
    if data.startswith(b"once") and not os.path.exists(data[4:].split(b"|")[0]):
        open(data[4:].split(b"|")[0], "xb").close()
        os.kill(os.getpid(), 9)  # as the kernel does when memory is short
    if data.startswith(b"once"):
        data = data.partition(b"|")[2]
    if data.startswith(b"print"):
        print("x" * 100_000, flush=True)
        data = data[5:]
    return real(data, limits)
child.decode_image = decode
child.main()
"""


def jpeg(width=64, height=48, **options):
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture
def saboteur():
    with DecodeChild((sys.executable, "-c", SABOTEUR)) as child:
        yield child


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pid, limit_s=10):
    deadline_s = time.monotonic() + limit_s
    while is_alive(pid):
        assert time.monotonic() < deadline_s, f"process {pid} still lives"
        time.sleep(0.02)


def test_child_gives_the_pixels_of_this_process():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(exif=exif)
    with DecodeChild() as child:
        for _ in range(3):
            found = child.decode(data, LIMITS, PREPROCESS)
    np.testing.assert_array_equal(found.pixels, PREPROCESS.apply(decode_image(data, LIMITS)))
    assert (found.width, found.height) == (48, 64)


def test_large_inputs_and_outputs_pass_the_pipes():
    data = jpeg(3000, 2000, quality=95)
    assert len(data) > 2**21
    with DecodeChild() as child:
        found = child.decode(data, LIMITS, Preprocess(size=1024))
    assert found.pixels.shape == (1024, 1024, 3)


def test_errors_keep_their_code_and_the_child():
    with DecodeChild() as child:
        for data, code in [
            (b"", ErrorCode.EMPTY),
            (b"<html>", ErrorCode.UNKNOWN_FORMAT),
            (jpeg()[:900], ErrorCode.TRUNCATED),
        ]:
            with pytest.raises(ImageError) as caught:
                child.decode(data, LIMITS, PREPROCESS)
            assert caught.value.code == code
            pid = child._process.pid
        child.decode(jpeg(), LIMITS, PREPROCESS)
        assert child._process.pid == pid


def test_a_hang_is_a_timeout_and_the_child_is_replaced(saboteur):
    saboteur.decode(jpeg(), LIMITS, PREPROCESS)
    stuck = saboteur._process.pid
    started_s = time.monotonic()
    with pytest.raises(ImageError, match=r"longer than 0\.5 s") as caught:
        saboteur.decode(b"hang", DecodeLimits(timeout_s=0.5), PREPROCESS)
    assert time.monotonic() - started_s < 3
    assert caught.value.code == ErrorCode.DECODE_TIMEOUT
    assert not is_alive(stuck)
    assert saboteur.decode(jpeg(), LIMITS, PREPROCESS).width == 64


def test_a_crash_costs_one_image(saboteur):
    with pytest.raises(ImageError, match=f"two decoding processes died .* status -{signal.SIGABRT:d}") as caught:
        saboteur.decode(b"crash", LIMITS, PREPROCESS)
    assert caught.value.code == ErrorCode.DECODE
    assert saboteur.decode(jpeg(), LIMITS, PREPROCESS).width == 64


def test_an_image_whose_child_is_killed_once_is_decoded_by_the_next(saboteur, tmp_path):
    saboteur.decode(jpeg(), LIMITS, PREPROCESS)
    first = saboteur._process.pid
    mark = tmp_path / "killed"
    found = saboteur.decode(b"once%s|" % str(mark).encode() + jpeg(), LIMITS, PREPROCESS)
    assert mark.exists()
    assert saboteur._process.pid != first
    np.testing.assert_array_equal(found.pixels, PREPROCESS.apply(decode_image(jpeg(), LIMITS)))


def test_memory_is_capped(saboteur):
    with pytest.raises(ImageError) as caught:
        saboteur.decode(b"memory", LIMITS, PREPROCESS)
    assert caught.value.code == ErrorCode.DECODE
    assert saboteur.decode(jpeg(), LIMITS, PREPROCESS).width == 64


def test_prints_of_a_decoder_do_not_get_between_the_frames(saboteur):
    assert saboteur.decode(b"print" + jpeg(), LIMITS, PREPROCESS).width == 64


def test_a_child_killed_between_images_is_replaced():
    with DecodeChild() as child:
        child.decode(jpeg(), LIMITS, PREPROCESS)
        child._process.kill()
        child._process.wait()
        assert child.decode(jpeg(), LIMITS, PREPROCESS).width == 64


def test_close_ends_the_child():
    with DecodeChild() as child:
        child.decode(jpeg(), LIMITS, PREPROCESS)
        pid = child._process.pid
    assert not is_alive(pid)


def test_a_child_that_can_not_start_is_no_images_fault():
    with (
        DecodeChild((sys.executable, "-c", "raise SystemExit('no such library')")) as child,
        pytest.raises(ZsadError, match="no such library") as caught,
    ):
        child.decode(jpeg(), LIMITS, PREPROCESS)
    assert not isinstance(caught.value, ImageError)


def test_child_dies_with_its_parent():
    script = """
import sys, os
from zsad.decode_child import DecodeChild
child = DecodeChild()
child._started()
print(child._process.pid, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    wait_until_gone(pid)


def test_child_environment_has_no_secrets():
    given = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "canary", "RAY_AUTH_TOKEN": "canary", "HOME": "/root"}
    found = _child_environment(given)
    assert "canary" not in str(found)
    threads, memory = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}, {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    assert set(found) == {"PATH", "PYTHONPATH"} | threads | memory


def test_child_imports_neither_torch_nor_ray_nor_arrow():
    code = "import sys, zsad.decode_child; print([m for m in ('torch', 'ray', 'pyarrow', 's3fs') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "[]"
