"""Makes the fixture `s3` known to the tests of this folder."""

from .fixture import s3

__all__ = ["s3"]
