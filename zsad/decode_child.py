"""Decode images in a child process, which can be killed: a C decoder that hangs can't be interrupted in its own.

`DecodeChild` owns one child and replaces it after a timeout or a crash, so that such an image costs one row. A child
that ended may have been killed by others for want of memory, so its image is tried once more in a new one; a child that
hung is not asked twice. The child imports Pillow and numpy only, starts with almost no environment (no keys or tokens),
may use `MEMORY_BYTES` of address space and can't write files above 1 MiB. It ends when its input closes, that is with
its parent; if it hangs just then, its own alarm ends it.

Frames on both pipes: 4 bytes (big-endian) header length, a JSON header, then the bytes whose number the header gives.
Measured with a 512 x 512 JPEG of 49 kB to 224 px on one of two shared cores: 5.7 ms an image through the child, 4.5 ms
in-process; 0.33 s to start a child. Pipes that hold an image and memory that is kept took 20 % off since (9.8 to
7.9 ms, side by side on a slower day).
"""

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import IO, Any, BinaryIO

import numpy as np

from zsad.errors import ErrorCode, ImageError, ZsadError
from zsad.images import DecodeLimits, Preprocess, RgbImage, decode_image

MEMORY_BYTES = 3 * 2**30
START_TIMEOUT_S = 60.0
_MAX_HEADER_BYTES = 65_536
_CHUNK_BYTES = 1 << 20
# Pillow frees every image's memory; glibc would give it back to the kernel and fault in each page of the next one anew.
_KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(16 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(32 * 2**20)}
_COMMAND = (sys.executable, "-P", "-m", "zsad.decode_child")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """One image at model size: `pixels` uint8 (size, size, 3); `width`, `height` in px of the upright original."""

    pixels: RgbImage
    width: int
    height: int


class DecodeChild:
    """A child process that decodes one image after another; started by the first call, not thread-safe.

    Use it as a context manager, one per task or thread.
    """

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        self._command = tuple(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> "DecodeChild":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def decode(self, data: bytes, limits: DecodeLimits, preprocess: Preprocess) -> Decoded:
        """Decode and resize one image.

        Args:
            data: the object's whole content.
            limits: `timeout_s` bounds a try, from sending the bytes to receiving the pixels; there are two at most.
            preprocess: the model's input size.

        Raises:
            ImageError: what `zsad.images.decode_image` raises; DECODE_TIMEOUT; DECODE when two children died of it.
            ZsadError: the child could not start at all, which is no image's fault.
        """
        if len(data) > limits.max_bytes:
            raise ImageError(
                ErrorCode.TOO_MANY_BYTES, f"{len(data):,} bytes; the limit is {limits.max_bytes:,} (max_bytes)"
            )
        header = {"limits": asdict(limits), "preprocess": preprocess.to_dict(), "num_bytes": len(data)}
        size = preprocess.size
        try:
            answer, pixels = self._exchanged(_frame(header) + data, limits.timeout_s, size**2 * 3)
        except EOFError as error:
            raise ImageError(ErrorCode.DECODE, f"two decoding processes died of it, the second with {error}") from error
        if "error_code" in answer:
            raise ImageError(ErrorCode(answer["error_code"]), answer["message"])
        array = np.frombuffer(pixels, np.uint8).reshape((size, size, 3))
        return Decoded(pixels=array, width=answer["width"], height=answer["height"])

    def _exchanged(self, message: bytes, timeout_s: float, max_bytes: int) -> tuple[dict[str, Any], bytes]:
        """Send a request and receive its answer; a second child gets it when the first one dies.

        Raises:
            ImageError: DECODE_TIMEOUT, at once: a hang is the image's.
            EOFError: the second child died, too.
        """
        try:
            return self._tried(message, timeout_s, max_bytes)
        except EOFError:  # its own crash, or killed from outside: a second one tells
            return self._tried(message, timeout_s, max_bytes)

    def _tried(self, message: bytes, timeout_s: float, max_bytes: int) -> tuple[dict[str, Any], bytes]:
        process = self._started()
        deadline_s = time.monotonic() + timeout_s
        try:
            _send(process, message, deadline_s)
            return _receive(process, deadline_s, max_bytes)
        except TimeoutError as error:
            self.close()
            raise ImageError(
                ErrorCode.DECODE_TIMEOUT, f"decoding took longer than {timeout_s:g} s (timeout_s)"
            ) from error
        except (EOFError, BrokenPipeError) as error:
            raise EOFError(f"status {self.close()}") from error
        except BaseException:
            self.close()  # an interrupted exchange leaves the pipes out of step
            raise

    def close(self) -> int | None:
        """Kill the child; a later `decode` starts another. Returns its exit status, negative for a signal."""
        process, self._process = self._process, None
        if process is None:
            return None
        status = process.poll()
        if status is None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # a crash that is still being written down
                status = process.wait(0.2) if _is_closed(process) else None
        process.kill()
        final = process.wait()
        for stream in (process.stdin, process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return final if status is None else status

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(  # noqa: S603 - a fixed command
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_child_environment(os.environ),
            bufsize=0,
        )
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                with contextlib.suppress(OSError):  # a whole image in few steps; the user's allowance may be used up
                    fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, _CHUNK_BYTES)
        try:
            _receive(self._process, time.monotonic() + START_TIMEOUT_S, 0)
        except (TimeoutError, EOFError) as error:
            log = self._log
            log.seek(0)
            text = log.read(20_000).decode(errors="replace").strip()[-1000:]
            self.close()
            raise ZsadError(f"the decoding process did not start: {type(error).__name__}: {text}") from error
        return self._process


def _child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What the child needs to import zsad, and nothing that could be a secret."""
    kept = {name: environment[name] for name in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH") if name in environment}
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)  # noqa: PTH100 - "" must become the folder
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | _KEEP_FREED_MEMORY


def _frame(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "big") + text


def _is_closed(process: "subprocess.Popen[bytes]") -> bool:
    if process.stdout is None:
        return True
    ready, _, _ = select.select([process.stdout], [], [], 0)
    return bool(ready)


def _wait(descriptor: int, event: int, deadline_s: float) -> None:
    """Wait until `descriptor` is ready; raises TimeoutError at `deadline_s` of the monotonic clock."""
    poller = select.poll()
    poller.register(descriptor, event)
    if not poller.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
        raise TimeoutError("the decoding process does not answer")


def _send(process: "subprocess.Popen[bytes]", message: bytes, deadline_s: float) -> None:
    descriptor = _stream(process.stdin).fileno()
    rest = memoryview(message)
    while rest:
        _wait(descriptor, select.POLLOUT, deadline_s)
        with contextlib.suppress(BlockingIOError):
            rest = rest[os.write(descriptor, rest[:_CHUNK_BYTES]) :]


def _receive(process: "subprocess.Popen[bytes]", deadline_s: float, max_bytes: int) -> tuple[dict[str, Any], bytes]:
    descriptor = _stream(process.stdout).fileno()
    size = int.from_bytes(_read_exactly(descriptor, 4, deadline_s), "big")
    if size > _MAX_HEADER_BYTES:
        raise EOFError("the decoding process sent no valid frame")
    header: dict[str, Any] = json.loads(_read_exactly(descriptor, size, deadline_s))
    num_bytes = int(header.get("num_bytes", 0))
    if num_bytes > max_bytes:
        raise EOFError("the decoding process sent more than was asked for")
    return header, _read_exactly(descriptor, num_bytes, deadline_s)


def _read_exactly(descriptor: int, num_bytes: int, deadline_s: float) -> bytes:
    chunks = []
    while num_bytes:
        _wait(descriptor, select.POLLIN, deadline_s)
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(descriptor, min(_CHUNK_BYTES, num_bytes))
            if not chunk:
                raise EOFError("the decoding process closed its output")
            chunks.append(chunk)
            num_bytes -= len(chunk)
    return b"".join(chunks)


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ZsadError("the decoding process was started without pipes")
    return stream


def _answer(header: Mapping[str, Any], data: bytes) -> Iterator[bytes]:
    """Decode one request in the child; yields the parts of the answer."""
    limits = DecodeLimits(**header["limits"] | {"formats": tuple(header["limits"]["formats"])})
    try:
        rgb_HW3 = decode_image(data, limits)
        pixels = Preprocess.from_dict(header["preprocess"]).apply(rgb_HW3).tobytes()
    except (ImageError, MemoryError) as error:
        code = error.code if isinstance(error, ImageError) else ErrorCode.DECODE
        yield _frame({"error_code": code.value, "message": str(error) or "not enough memory"})
        return
    height, width = rgb_HW3.shape[:2]
    yield _frame({"width": width, "height": height, "num_bytes": len(pixels)})
    yield pixels


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the input ends; the child's whole life after its limits are set."""
    answers.write(_frame({"num_bytes": 0}))
    answers.flush()
    while size := requests.read(4):
        header = json.loads(requests.read(int.from_bytes(size, "big")))
        signal.alarm(int(header["limits"]["timeout_s"]) + 5)  # the default action ends even a hanging C decoder
        for part in _answer(header, requests.read(header["num_bytes"])):
            answers.write(part)
        answers.flush()
        signal.alarm(0)


def main() -> None:
    """Entry point of the child: limit this process, then serve."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not get between the frames
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
