"""An S3 bucket prefix as a store, through s3fs and botocore.

Keys are sent exactly as listed: odd ones (`a//b`, `../x`, spaces) are other objects than their tidied form. Listings
are read 1,000 keys at a time and continued with `StartAfter`, not with the server's token, so that a page that comes
twice or a token that does not move costs nothing; that needs a server that lists in key order, as S3 and its
compatible servers do (S3 directory buckets do not). Keys ending in `/` with 0 bytes are folder marks and not listed.

Each attempt has 5 s to connect and 10 s without a byte; botocore's and s3fs's own retries are off, ours
(`zsad.storage.retry`) decide by cause. How many requests are under way at once follows what the server says
(`zsad.storage.concurrency`). What Arrow reads (`S3Store.arrow_filesystem`) passes neither: it has a pool of its own, in
which botocore and s3fs do retry.
"""

import asyncio
import hashlib
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync

from zsad.errors import ErrorCode, ImageError, StorageError
from zsad.storage import counters, s3_errors, s3_pages
from zsad.storage.base import ObjectInfo, Store, require_etag, require_plain_key, require_size
from zsad.storage.concurrency import AdaptiveLimit
from zsad.storage.retry import RetryPolicy, ThrottledError, call_with_retries
from zsad.storage.s3_listing import Page, list_in_order

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from s3fs import S3FileSystem

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0
ATTEMPT_TIMEOUT_S = 60.0
KEYS_PER_PAGE = 1000
POLICY = RetryPolicy()
MAX_MD5_RETRIES = 2
ARROW_ATTEMPTS = 6
ARROW_READS = 3
_LIMIT = AdaptiveLimit()
_MD5 = re.compile("[0-9a-f]{32}")
_BUCKETS_WITH_MD5: set[str] = set()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class S3Store(Store):
    """Objects under `s3://bucket[/prefix]`."""

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self.url.removeprefix("s3://").partition("/")[0]

    @property
    def root(self) -> str:
        """What every key of this store starts with in the bucket: "" or a prefix ending in `/`."""
        prefix = self.url.removeprefix("s3://").partition("/")[2]
        return prefix + "/" if prefix else ""

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """Page through the bucket, large prefixes with several threads; see `Store.list`."""
        return list_in_order(partial(self._pages, prefix), self.list_folders, prefix, after)

    def _pages(self, prefix: str, after: str) -> Iterator[Page]:
        """Pages of the keys with `prefix` behind `after`, both relative to the root; folder marks are left out."""
        last, is_last = self.root + after if after else "", False
        while not is_last:
            page = self._retried("list", self.url, partial(self._page, self.root + prefix, last))
            items = [item for item in page.get("Contents", []) if item["Key"].encode() > last.encode()]
            # In key order, so that only a repeated key can equal the one before it.
            once = [
                item for one, item in zip([None, *items], items, strict=False) if not one or one["Key"] != item["Key"]
            ]
            last = once[-1]["Key"] if once else last
            objects = [self._info(item) for item in once if not (item["Key"].endswith("/") and item["Size"] == 0)]
            yield Page(objects, last[len(self.root) :])
            is_last = not page["IsTruncated"]

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """Page through common prefixes; see `Store.list_folders`."""
        start = self.root + prefix
        arguments: dict[str, str] = {"Prefix": start, "Delimiter": "/"}
        while True:
            page = self._call("list", self.url, "list_objects_v2", **arguments)
            for item in page.get("CommonPrefixes", []):
                yield item["Prefix"][len(start) :].rstrip("/")
            if not page.get("IsTruncated"):
                return
            if page["NextContinuationToken"] == arguments.get("ContinuationToken"):
                raise StorageError(f"can't list {self.url}/{prefix}: the server repeats its page token")
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def get(self, key: str, *, max_bytes: int, etag: str | None = None) -> bytes:
        """Read one object; see `Store.get`."""
        uri = self.uri(key)
        return self._retried("read", uri, lambda number: self._read(key, max_bytes, etag, number))

    def put(self, key: str, data: bytes) -> None:
        """Write one object; see `Store.put`."""
        self._call("write", self._checked_uri(key), "put_object", Key=self.root + key, Body=data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write with `If-None-Match: *`; see `Store.put_if_absent`."""

        def attempt(number: int) -> bool:
            try:
                self._call_once("put_object", Key=self.root + key, Body=data, IfNoneMatch="*")
            except OSError as error:
                if not s3_errors.is_refused_condition(error):
                    raise
                # After a broken connection the object found may be the one that the first attempt wrote.
                return number > 0 and self._holds(key, data)
            return True

        return self._retried("write", self._checked_uri(key), attempt)

    def exists(self, key: str) -> bool:
        """Whether HEAD finds the object; see `Store.exists`."""
        try:
            self._call("look up", self.uri(key), "head_object", Key=self.root + key)
        except StorageError as error:
            if error.code != ErrorCode.MISSING:
                raise
            return False
        return True

    def delete(self, key: str) -> None:
        """Delete one object; see `Store.delete`."""
        try:
            self._call("delete", self._checked_uri(key), "delete_object", Key=self.root + key)
        except StorageError as error:
            if error.code != ErrorCode.MISSING:  # S3 itself never says so, some compatible servers do
                raise

    def uri(self, key: str) -> str:
        """Absolute `s3://` address of `key`."""
        return f"s3://{self.bucket}/{self.root}{key}"

    def arrow_filesystem(self) -> tuple[Any, str]:
        """s3fs with retries of its own, seen through Arrow; see `Store.arrow_filesystem`."""
        from pyarrow.fs import PyFileSystem

        from zsad.storage.s3_arrow import PoolHandler

        return PyFileSystem(PoolHandler(partial(_filesystem, is_for_arrow=True))), self.url.removeprefix("s3://")

    def _checked_uri(self, key: str) -> str:
        require_plain_key(key, self.url)
        return self.uri(key)

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self._read(key, len(data), None, 0) == data
        except ImageError:  # more bytes than ours
            return False

    def _call(self, action: str, uri: str, method: str, **arguments: str | bytes) -> dict[str, Any]:
        return self._retried(action, uri, lambda _: self._call_once(method, **arguments))

    def _call_once(self, method: str, **arguments: str | bytes | int) -> dict[str, Any]:
        counters.count(requests=1)
        answer: dict[str, Any] = _filesystem().call_s3(method, Bucket=self.bucket, **arguments)
        body = arguments.get("Body")
        counters.count(bytes_written=len(body) if isinstance(body, bytes) else 0)
        return answer

    def _retried(self, action: str, uri: str, attempt: Callable[[int], T]) -> T:
        """Run `attempt(number)` with the retry policy; its exceptions become `StorageError`."""

        def typed(number: int) -> T:
            try:
                return attempt(number)
            except (OSError, BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError) as error:
                raise s3_errors.storage_error(error, uri, action) from error

        def limited(number: int) -> T:
            try:
                with _LIMIT.slot():
                    result = typed(number)
            except ThrottledError:
                _LIMIT.throttled()
                raise
            _LIMIT.succeeded()
            return result

        return call_with_retries(limited, POLICY)

    def _page(self, start: str, after: str, _number: int) -> dict[str, Any]:
        """One listing page behind the key `after`, checked.

        Raises:
            StorageError: the page is no listing, is out of order, or brings nothing new although there is more.
        """
        behind = {"StartAfter": after} if after else {}
        page = self._call_once("list_objects_v2", Prefix=start, MaxKeys=KEYS_PER_PAGE, **behind)
        if "IsTruncated" not in page:
            raise StorageError(f"can't list {self.url}: the answer is no listing", retryable=True)
        names = [item["Key"].encode() for item in page.get("Contents", [])]
        if names != sorted(names):
            raise StorageError(f"can't list {self.url}: this server does not list in key order, which zsad needs")
        if page["IsTruncated"] and (not names or names[-1] <= after.encode()):
            raise StorageError(f"can't list {self.url}: the page after {after!r} brings nothing new", retryable=True)
        return page

    def _info(self, item: dict[str, Any]) -> ObjectInfo:
        return ObjectInfo(
            key=item["Key"][len(self.root) :],
            uri=f"s3://{self.bucket}/{item['Key']}",
            size_bytes=int(item["Size"]),
            etag=item.get("ETag", "").strip('"'),
            last_modified=item["LastModified"].astimezone(UTC),
        )

    def _read(self, key: str, max_bytes: int, etag: str | None, number: int) -> bytes:
        uri = self.uri(key)
        response = self._call_once("get_object", Key=self.root + key)
        found = response.get("ETag", "").strip('"')
        body = response["Body"]
        try:
            require_size(int(response["ContentLength"]), max_bytes, uri)
            data: bytes = sync(_filesystem().loop, _read_body, body)
        finally:
            body.close()
        counters.count(bytes_read=len(data))
        if len(data) != int(response["ContentLength"]):
            raise StorageError(f"{uri}: {len(data):,} of {response['ContentLength']:,} bytes came", retryable=True)
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        code = s3_errors.hidden_error_code(data)
        # Stored objects come with an etag; an answer without one is no object, whatever the caller expects.
        if code and (not found or found not in {etag, md5}):
            raise s3_errors.error_from_code(code, 200, "inside a success", uri, "read")
        require_etag(found, etag, uri)
        self._check_content(response, found, md5, uri, number)
        return data

    def _check_content(self, response: dict[str, Any], etag: str, md5: str, uri: str, number: int) -> None:
        """Compare the content with an etag that is its MD5: bits may flip on the way, and JPEGs hide it.

        Etags of uploads in parts and of some encryptions are none, and other servers make them as they like; so it
        counts only in a bucket where an etag was seen to be an MD5.

        Raises:
            StorageError: they differ at one of the first attempts; read again.
            ImageError: CHANGED when they still differ.
        """
        if md5 == etag:
            _BUCKETS_WITH_MD5.add(self.bucket)
        elif self.bucket in _BUCKETS_WITH_MD5 and _MD5.fullmatch(etag) and not _is_encrypted_otherwise(response):
            message = f"the content of {uri} has MD5 {md5}, its etag says {etag}"
            if number < MAX_MD5_RETRIES:
                raise StorageError(message, retryable=True)
            raise ImageError(ErrorCode.CHANGED, f"{message}; it was damaged on the way or in the store")


def _is_encrypted_otherwise(response: dict[str, Any]) -> bool:
    """Whether the object is stored under a kind of encryption that makes its etag no MD5."""
    return "SSECustomerAlgorithm" in response or str(response.get("ServerSideEncryption", "")).startswith("aws:kms")


async def _read_body(body: "StreamingBody") -> bytes:
    data: bytes = await asyncio.wait_for(body.read(), ATTEMPT_TIMEOUT_S)
    return data


def _hidden_wait_s(response: tuple[Any, dict[str, Any]] | None, attempts: int, **_named: object) -> float | None:
    """Seconds until botocore asks again when an answer hides an error document in HTTP 200; None for content.

    Stored objects come with an etag. `attempts` counts from 1; after the last, Arrow meets a file that is none.
    """
    if response is None or attempts >= ARROW_ATTEMPTS:
        return None
    _, answer = response
    if answer.get("ETag") or "Body" not in answer or "xml" not in answer.get("ContentType", ""):
        return None
    answer["Body"].close()
    return POLICY.backoff_s(attempts, random.random())


def _filesystem(*, is_for_arrow: bool = False) -> "S3FileSystem":
    """The connection pool of this process for the AWS variables as they are now."""
    variables = frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    return _open_filesystem(os.getpid(), variables, is_for_arrow=is_for_arrow)


@lru_cache(maxsize=8)
def _open_filesystem(_pid: int, _variables: frozenset[tuple[str, str]], *, is_for_arrow: bool) -> "S3FileSystem":
    """Open a pool; the process id in the cache's key makes a forked child open its own.

    Arrow's pool retries inside: botocore what the server refuses, s3fs also a body that breaks off. Not in botocore's
    "adaptive" mode, which a few refusals bring down to one request in two seconds, too few to scan many files.
    """
    import s3fs
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]

    session = AioSession()
    session.register(s3_pages.EVENT, s3_pages.take_entries)
    if is_for_arrow:
        session.register("needs-retry.s3.GetObject", _hidden_wait_s)
    filesystem = s3fs.S3FileSystem(
        session=session,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"total_max_attempts": ARROW_ATTEMPTS if is_for_arrow else 1, "mode": "standard"},
            "max_pool_connections": 32,
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    filesystem.retries = ARROW_READS if is_for_arrow else 1
    return filesystem
