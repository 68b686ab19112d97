"""URLs to stores: listing, whole-object reads and writes, and put-if-absent, with typed errors and retries.

`open_store(url)` is the only way in; a `Store` behaves the same over a local folder and an S3 bucket:

| URL | store | objects |
|---|---|---|
| `/data/images`, `images`, `file:///data/images` | `zsad.storage.local` | regular files |
| `s3://bucket/prefix` | `zsad.storage.s3` | objects; endpoint, region and keys from the usual AWS variables |

A store holds its URL and nothing else, so it is cheap to pickle and every process opens its own connections.
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from zsad.errors import ConfigError
from zsad.storage.base import ObjectInfo, Store

__all__ = ["ObjectInfo", "Store", "open_store"]

_SUPPORTED = "supported are a local path, file:///path and s3://bucket/prefix"


def open_store(url: str) -> Store:
    """Open the folder or bucket prefix at `url`; nothing is contacted until the first call on the store.

    Args:
        url: a local path (a relative one is taken from the current folder), `file://` or `s3://`.

    Returns:
        A store whose `url` is absolute and has no trailing slash.

    Raises:
        ConfigError: the scheme is unknown, the URL has no bucket or path, or its prefix holds `.` or `..` pieces.
    """
    if not url.strip():
        raise ConfigError(f"the URL is empty; {_SUPPORTED}")
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _open_local(url)
    if scheme == "file":
        return _open_file_url(url)
    if scheme == "s3":
        return _open_s3(url, rest)
    # The rest is not repeated: it may hold a password or a signature.
    raise ConfigError(f"can't open a URL of the unknown scheme {scheme!r}; {_SUPPORTED}")


def _open_local(path: str) -> Store:
    from zsad.storage.local import LocalStore

    if "\0" in path:
        raise ConfigError("a local path can't hold a NUL character")
    return LocalStore(url=str(Path(path).expanduser().resolve()))


def _open_file_url(url: str) -> Store:
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path:
        raise ConfigError(f"can't open {url!r}: a file URL has three slashes and an absolute path, file:///data/images")
    return _open_local(unquote(parts.path))


def _open_s3(url: str, rest: str) -> Store:
    from zsad.storage.s3 import S3Store

    bucket, _, prefix = rest.partition("/")
    pieces = prefix.rstrip("/").split("/")
    if "@" in bucket:  # never repeated, for it may be a password
        raise ConfigError("can't open an s3:// URL with '@' before its path: credentials come from the AWS variables")
    if not bucket or any(mark in bucket for mark in "?# "):
        raise ConfigError(f"can't open {url!r}: it needs a bucket name, as in s3://bucket/prefix")
    if any(piece in {".", ".."} for piece in pieces) or (len(pieces) > 1 and "" in pieces):
        raise ConfigError(f"can't open {url!r}: '.', '..' and empty pieces mean nothing in S3; write the prefix out")
    return S3Store(url="s3://" + "/".join([bucket, *pieces]).rstrip("/"))
