"""What every store offers: `Store`, the frozen `ObjectInfo` of a listing, and the rule for keys."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from zsad.errors import ConfigError, ErrorCode, ImageError, StorageError

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One listed object.

    `key` is relative to the store's root, `uri` is absolute (`s3://bucket/key` or a plain absolute path), `size_bytes`
    is in bytes, `last_modified` is in UTC. `etag` changes when the content does: S3's own without quotes, for a local
    file `<mtime in ns, hex>-<size in bytes, hex>`. Objects of a customer's own list may lack the last three: an empty
    etag, None.
    """

    key: str
    uri: str
    size_bytes: int | None
    etag: str
    last_modified: datetime | None


@dataclass(frozen=True, slots=True)
class Store(ABC):
    """A folder or bucket prefix; equal URLs are equal stores, and a pickled store is its URL.

    Every method raises `StorageError`, whose `code` is FORBIDDEN, MISSING, READ_TIMEOUT or READ_ERROR. Keys use `/`.
    Methods may be called from several threads.
    """

    url: str

    @abstractmethod
    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with `prefix`, recursively, in UTF-8 byte order of their keys, each once.

        Memory does not grow with the number of objects, but for the names of one local folder.

        Args:
            prefix: as in S3, any beginning of a key; it need not end at a `/`.
            after: only keys behind this one in that order; an interrupted listing goes on from its last key.

        Raises:
            StorageError: MISSING when the bucket or the local root does not exist, FORBIDDEN when it can't be listed.
        """

    @abstractmethod
    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """Yield the sorted names of the folders right under `prefix` ("" or ending in `/`); a missing one has none."""

    @abstractmethod
    def get(self, key: str, *, max_bytes: int, etag: str | None = None) -> bytes:
        """Read one whole object.

        Args:
            key: relative to the root.
            max_bytes: a larger object is refused before its content is read.
            etag: what the listing said, to be sure that it is still the same object.

        Raises:
            ImageError: TOO_MANY_BYTES, or CHANGED when the object is not the listed one any more.
            StorageError: MISSING, FORBIDDEN, READ_TIMEOUT or READ_ERROR; retryable causes were retried already.
        """

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write one whole object, over an older one; readers see the old or the new bytes, never a part."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write one whole object unless the key exists.

        Returns:
            True when this call created the object; False when it was there and was left as it is.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is an object with exactly this key."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete one object; deleting what is not there is no error."""

    @abstractmethod
    def uri(self, key: str) -> str:
        """Absolute address of `key`: `s3://bucket/key`, or a plain absolute path."""

    def key(self, uri: str) -> str:
        """The key of an address that `uri` gave.

        Raises:
            ConfigError: it lies outside this store.
        """
        root = self.url.rstrip("/") + "/"
        if not uri.startswith(root):
            raise ConfigError(f"{uri} does not lie under {self.url}")
        return uri.removeprefix(root)

    @abstractmethod
    def arrow_filesystem(self) -> tuple[Any, str]:
        """The `pyarrow.fs.FileSystem` that holds this store, and the root's path in it, for reading data sets."""

    def sub(self, name: str) -> "Self":
        """Return the store of the folder `name`, which may have several pieces.

        Raises:
            ConfigError: a piece is empty, `.` or `..`.
        """
        if not is_plain_key(name):
            raise ConfigError(f"{name!r} can't name a folder under {self.url}: it has an empty, '.' or '..' piece")
        return type(self)(url=self.url.rstrip("/") + "/" + name)

    def contains(self, other: "Store") -> bool:
        """Whether `other` is this store or lies inside it."""
        return (other.url + "/").startswith(self.url.rstrip("/") + "/")

    def check_writable(self) -> None:
        """Write and delete a small probe to prove that writes work and that put-if-absent is enforced.

        Raises:
            StorageError: writing is refused, or the storage ignores `If-None-Match` so that two runs could overwrite
                each other.
        """
        key = f".zsad-probe-{uuid4().hex}"
        is_enforced = self.put_if_absent(key, b"first") and not self.put_if_absent(key, b"second")
        self.delete(key)
        if not is_enforced:
            raise StorageError(
                f"{self.url} ignores the put-if-absent condition (If-None-Match: *), which keeps two runs apart; "
                "use storage that enforces it"
            )


def is_plain_key(key: str) -> bool:
    """Whether `key` has only ordinary pieces: none empty, `.` or `..`, no NUL; the keys that zsad writes."""
    return "\0" not in key and all(piece not in {"", ".", ".."} for piece in key.split("/"))


def require_plain_key(key: str, url: str) -> None:
    """Refuse a key that could lead outside the store at `url`.

    Raises:
        StorageError: FORBIDDEN, never retryable.
    """
    if not is_plain_key(key):
        raise StorageError(
            f"the key {key!r} is refused under {url}: it has an empty, '.' or '..' piece or a NUL character",
            code=ErrorCode.FORBIDDEN,
        )


def require_size(size_bytes: int, max_bytes: int, uri: str) -> None:
    """Refuse an object of more than `max_bytes` bytes.

    Raises:
        ImageError: TOO_MANY_BYTES.
    """
    if size_bytes > max_bytes:
        raise ImageError(
            ErrorCode.TOO_MANY_BYTES, f"{uri} has {size_bytes:,} bytes; the limit is {max_bytes:,} (max_bytes)"
        )


def require_etag(found: str, expected: str | None, uri: str) -> None:
    """Refuse an object that is not the listed one any more; `expected` None or empty accepts anything.

    Raises:
        ImageError: CHANGED.
    """
    if expected and found != expected:
        raise ImageError(
            ErrorCode.CHANGED, f"{uri} changed after it was listed (etag {expected} then, {found} now); run again"
        )
