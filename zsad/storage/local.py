"""A local folder as a store: atomic whole-file writes, and a walk that never leaves the root.

Rules of the walk: regular files only, in UTF-8 byte order of their keys. A symbolic link to a file inside the root
counts as a file; links that lead out of the root and links to folders are skipped with a warning, so that nothing is
listed twice or from elsewhere. A name of a file or folder that is not UTF-8 is listed with its bytes escaped; reading
that gives MISSING, so that each such file still ends as one row that names it. Times that no `datetime` can hold, as
those after the year 9999, are listed as the nearest that it can.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from zsad.errors import ErrorCode, ImageError, StorageError
from zsad.storage import counters
from zsad.storage.base import ObjectInfo, Store, require_etag, require_plain_key, require_size

_TEMPORARY = ".zsad-tmp-"
_LOG = logging.getLogger(__name__)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST_US = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST_US = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


@dataclass(frozen=True, slots=True)
class LocalStore(Store):
    """Files under the absolute folder `url`; folders are created by the first write."""

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """Walk the folder; see `Store.list`."""
        root = Path(self.url)
        with _typed_errors(self.url, "list"):
            if not root.is_dir():
                raise StorageError(f"no folder {self.url}; check the path", code=ErrorCode.MISSING)
        return _walk(root, str(root), "", prefix, after.encode())

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """Yield sub-folder names; see `Store.list_folders`."""
        folder = Path(self.url, prefix)
        with _typed_errors(str(folder), "list"):
            if not folder.is_dir():
                return
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        yield from names

    def get(self, key: str, *, max_bytes: int, etag: str | None = None) -> bytes:
        """Read one file; see `Store.get`."""
        path = self._path(key)
        with _typed_errors(str(path), "read"), path.open("rb") as file:
            before = os.fstat(file.fileno())
            require_size(before.st_size, max_bytes, str(path))
            require_etag(_etag(before), etag, str(path))
            data = file.read(before.st_size + 1)
            counters.count(bytes_read=len(data))
            if len(data) != before.st_size or _etag(os.fstat(file.fileno())) != _etag(before):
                raise ImageError(ErrorCode.CHANGED, f"{path} changed while it was read; run again")
        return data

    def put(self, key: str, data: bytes) -> None:
        """Write one file by rename; see `Store.put`."""
        path = self._path(key)
        with _typed_errors(str(path), "write"), _temporary_file(path, data) as temporary:
            temporary.replace(path)
            _sync_folder(path.parent)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write one file by hard link, which fails when the name exists; see `Store.put_if_absent`."""
        path = self._path(key)
        with _typed_errors(str(path), "write"):
            if path.exists():
                return False
            with _temporary_file(path, data) as temporary:
                try:
                    path.hardlink_to(temporary)
                except FileExistsError:
                    return False
                _sync_folder(path.parent)
        return True

    def exists(self, key: str) -> bool:
        """Whether the file is there; see `Store.exists`."""
        path = self._path(key)
        with _typed_errors(str(path), "look up"):
            return path.is_file()

    def delete(self, key: str) -> None:
        """Delete one file; see `Store.delete`."""
        path = self._path(key)
        with _typed_errors(str(path), "delete"):
            path.unlink(missing_ok=True)

    def uri(self, key: str) -> str:
        """Absolute path of `key`."""
        return str(Path(self.url, key))

    def arrow_filesystem(self) -> tuple[Any, str]:
        """Arrow's own local file system; see `Store.arrow_filesystem`."""
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), self.url

    def _path(self, key: str) -> Path:
        counters.count(requests=1)
        require_plain_key(key, self.url)
        path = Path(self.url, key)
        with _typed_errors(str(path), "resolve"):
            is_inside = path.resolve().is_relative_to(self.url)
        if not is_inside:
            raise StorageError(f"{path} is refused: a symbolic link leads out of {self.url}", code=ErrorCode.FORBIDDEN)
        return path


def _walk(root: Path, path: str, folder: str, prefix: str, after: bytes) -> Iterator[ObjectInfo]:
    """Yield the files of the folder at `path` whose key is wanted, in byte order.

    `folder` is what their keys start with, "" or ending in "/"; its bytes are not the path's where a name is not UTF-8.
    One folder's names are held as bytes, about 70 each, so that a million files in one folder are 70 MB.
    """
    with _typed_errors(path, "list"), os.scandir(path) as entries:
        # A folder sorts as its name plus "/", which is how its files compare with their neighbours.
        found = [os.fsencode(entry.name) + b"/" * entry.is_dir() for entry in entries]
    found.sort(key=None if all(name.isascii() for name in found) else _key_bytes)
    for name in found:
        key = folder + name.decode("utf-8", "backslashreplace")
        below = os.path.join(path, os.fsdecode(name))  # noqa: PTH118 - a Path for each of millions is slow
        if name.endswith(b"/"):
            if Path(below).is_symlink():
                _LOG.warning("skipped the link to a folder %s: links to folders are not followed", _shown(below[:-1]))
            elif (key.startswith(prefix) or prefix.startswith(key)) and not _is_before(key, after):
                yield from _walk(root, below[:-1], key, prefix, after)
        elif key.startswith(prefix) and key.encode() > after and (info := _file_info(root, below, key)) is not None:
            yield info


def _key_bytes(name: bytes) -> bytes:
    """What a name counts as in the order of keys: where it is not UTF-8, its escaped form."""
    return name.decode("utf-8", "backslashreplace").encode()


def _is_before(folder_key: str, after: bytes) -> bool:
    """Whether every key of a folder lies before `after`."""
    start = folder_key.encode()
    return start < after and not after.startswith(start)


def _file_info(root: Path, path: str, key: str) -> ObjectInfo | None:
    if Path(path).name.startswith(_TEMPORARY):
        return None
    with _typed_errors(path, "list"):
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                if not Path(path).resolve().is_relative_to(root):
                    _LOG.warning("skipped the link %s: it leads out of %s", _shown(path), root)
                    return None
                status = os.stat(path)  # noqa: PTH116 - as above
        except FileNotFoundError:  # deleted since its folder was read, or a link to nothing
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
    return ObjectInfo(
        key=key,
        uri=f"{str(root).rstrip('/')}/{key}",
        size_bytes=status.st_size,
        etag=_etag(status),
        last_modified=_EPOCH + min(max(status.st_mtime_ns // 1000, _FIRST_US), _LAST_US) * _MICROSECOND,
    )


def _shown(path: str) -> str:
    """A path as messages give it, always valid text: what of it is not UTF-8 is escaped."""
    return path.encode("utf-8", "backslashreplace").decode()


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


@contextmanager
def _temporary_file(path: Path, data: bytes) -> Iterator[Path]:
    """A fully written and synced file beside `path`, removed afterwards unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_TEMPORARY}{uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        counters.count(bytes_written=len(data))
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP}
_ADVICE = {
    errno.ENOSPC: "the disk is full: free space or choose another output",
    errno.EDQUOT: "the disk quota is used up: free space or choose another output",
    errno.EOPNOTSUPP: "this file system has no hard links, which put-if-absent needs: choose another output",
}


@contextmanager
def _typed_errors(path: str, action: str) -> Iterator[None]:
    """Turn an `OSError` on `path` into a `StorageError` that names it."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        reason = _ADVICE.get(number, error.strerror or str(error))
        message = f"can't {action} {_shown(path)}: {reason}"
        if number in _FORBIDDEN:
            raise StorageError(f"{message}; check the permissions", code=ErrorCode.FORBIDDEN) from error
        if number in _MISSING:
            raise StorageError(message, code=ErrorCode.MISSING) from error
        if isinstance(error, TimeoutError):
            raise StorageError(message, retryable=True, code=ErrorCode.READ_TIMEOUT) from error
        raise StorageError(message, code=ErrorCode.READ_ERROR) from error
