"""Exit codes and error codes are a public contract."""

import pytest

from zsad import errors
from zsad.errors import ErrorCode, ImageError, StorageError, ZsadError

EXIT_CODES = {
    "ZsadError": 1,
    "ConfigError": 2,
    "CommitConflict": 3,
    "StorageError": 4,
    "ModelError": 5,
    "TooManyBadImages": 6,
    "ImageError": 1,
}


def test_every_error_has_its_exit_code():
    found = {n: c.exit_code for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, ZsadError)}
    assert found == EXIT_CODES


@pytest.mark.parametrize("code", list(ErrorCode))
def test_codes_are_their_lower_case_names(code):
    assert code == code.name.lower()


def test_a_storage_error_tells_whether_to_try_again():
    plain, full = StorageError("x"), StorageError("x", retryable=True, code=ErrorCode.MISSING)
    assert (plain.retryable, plain.code, str(plain)) == (False, ErrorCode.READ_ERROR, "x")
    assert (full.retryable, full.code) == (True, ErrorCode.MISSING)


def test_an_image_error_reads_as_its_message():
    error = ImageError(ErrorCode.EMPTY, "no bytes")
    assert (str(error), error.code) == ("no bytes", ErrorCode.EMPTY)


def test_image_errors_survive_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(ImageError(ErrorCode.EMPTY, "no bytes")))  # noqa: S301 - our own bytes
    assert (error.code, error.message) == (ErrorCode.EMPTY, "no bytes")
