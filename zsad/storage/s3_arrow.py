"""Arrow's view of an S3 pool that may be sent to another process, as Ray Train sends it to its workers.

A pool holds connections and hooks and can't be pickled, and its keys should not travel. So only the way to open it
does: the other process opens its own, from its own environment.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyarrow.fs import FSSpecHandler

if TYPE_CHECKING:
    from s3fs import S3FileSystem


class PoolHandler(FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """What `pyarrow.fs.PyFileSystem` calls; `open_pool` is a function of a module, found again by its name."""

    def __init__(self, open_pool: "Callable[[], S3FileSystem]") -> None:
        super().__init__(open_pool())
        self._open_pool = open_pool

    def __reduce__(self) -> "tuple[type[PoolHandler], tuple[Callable[[], S3FileSystem]]]":
        """Travels as the way to open it."""
        return PoolHandler, (self._open_pool,)
