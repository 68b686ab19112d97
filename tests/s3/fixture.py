"""The session-wide fixture `s3`: one real S3 server for all tests that ask for it, started at first use."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import s3fs

from .server import ServerUnavailableError, SwiftServer


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalS3:
    """A running server; `env` is what another process needs to reach it (already in os.environ of this one)."""

    env: dict[str, str]

    def new_bucket(self) -> str:
        """Create an empty bucket of a fresh name and return its URI, `s3://bucket-...`."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        with contextlib.suppress(FileExistsError):  # a request was repeated whose answer came late; the name is ours
            s3fs.S3FileSystem().mkdir(name)
        return f"s3://{name}"


@contextlib.contextmanager
def aws_environment(env: dict[str, str]) -> Iterator[None]:
    """Replace every AWS_* variable of this process by those of env; put the old ones back at the end."""
    saved = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    _replace_aws_variables(env)
    try:
        yield
    finally:
        _replace_aws_variables(saved)


def _replace_aws_variables(env: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(env)
    s3fs.S3FileSystem.clear_instance_cache()  # cached instances keep the endpoint and the keys they were made with


@pytest.fixture(scope="session")
def s3() -> Iterator[LocalS3]:
    """A real S3 server; skips where it cannot run, fails instead if ZSAD_REQUIRE_S3=1."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(SwiftServer())
        except ServerUnavailableError as error:
            if os.environ.get("ZSAD_REQUIRE_S3") == "1":
                pytest.fail(f"ZSAD_REQUIRE_S3=1, but: {error}", pytrace=False)
            pytest.skip(str(error))
        stack.enter_context(aws_environment(server.env))
        yield LocalS3(env=dict(server.env))
