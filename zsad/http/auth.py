"""Who may ask, and how often: bearer tokens known by their hash, and a token bucket for each.

The server holds SHA-256 digests only (tokens are 256 random bits, so a slow hash would add nothing), from a file or
from the environment, one `NAME sha256:HEX` a line or between commas. `python -m zsad.http.auth NAME` makes a token.
"""

import hmac
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

from zsad.errors import ConfigError
from zsad.http.problems import Problem

TOKENS_VARIABLE = "ZSAD_TOKENS"
ANONYMOUS = "anonymous"
MAX_TOKEN_CHARS = 512
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63})\s+sha256:([0-9a-f]{64})")


def load_tokens(tokens_file: str) -> dict[str, str]:
    """Name -> hex digest of every token, of the file if one is named, else of `ZSAD_TOKENS`; {} where neither is.

    Raises:
        ConfigError: the file can't be read or is empty, or a line is not as it must be; no line is quoted.
    """
    if not tokens_file:
        return parse_tokens(os.environ.get(TOKENS_VARIABLE, ""), TOKENS_VARIABLE)
    try:
        text = Path(tokens_file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokens_file {tokens_file}: {type(error).__name__}; it must be a readable file") from error
    tokens = parse_tokens(text, tokens_file)
    if not tokens:
        raise ConfigError(f"tokens_file {tokens_file} names no token; an endpoint without tokens has no tokens_file")
    return tokens


def parse_tokens(text: str, source: str) -> dict[str, str]:
    """Name -> hex digest; lines that are empty or begin with # are skipped.

    Raises:
        ConfigError: naming the line's number.
    """
    tokens: dict[str, str] = {}
    lines = [line.strip() for line in text.replace(",", "\n").splitlines()]
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None or found[1] in tokens:
            raise ConfigError(f"{source}, line {number}: write NAME sha256:HEX, each name once, never the token itself")
        tokens[found[1]] = found[2]
    return tokens


def digest(token: str) -> str:
    """What the server stores of a token."""
    return sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def authorised(header: str | None, tokens: Mapping[str, str]) -> str:
    """The name of the token in an `Authorization` header; "anonymous" where no token is asked for.

    Every stored digest is compared, each in constant time, so that the time tells nothing about any.

    Raises:
        Problem: there is no such token.
    """
    if not tokens:
        return ANONYMOUS
    scheme, _, token = (header or "").partition(" ")
    presented = digest(token.strip()[:MAX_TOKEN_CHARS])
    names = [name for name, stored in tokens.items() if hmac.compare_digest(stored, presented)]
    if scheme.lower() != "bearer" or not names:
        raise Problem("unauthorized", "send a known token as 'Authorization: Bearer TOKEN'")
    return names[0]


class RateLimiter:
    """A token bucket per name: `burst` at once, `rate` per second in the long run; a rate of 0 limits nothing."""

    def __init__(self, *, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, name: str, count: int = 1) -> None:
        """Take `count` from the bucket of `name`, which must be one of few.

        Raises:
            Problem: there is not enough in it; it says when there will be.
        """
        if not self._rate:
            return
        now_s = self._clock()
        level, since_s = self._levels.get(name, (float(self._burst), now_s))
        level = min(self._burst, level + (now_s - since_s) * self._rate)
        wanted = min(count, self._burst)  # a batch larger than the bucket waits for a full one
        if level < wanted:
            self._levels[name] = (level, now_s)
            raise Problem(
                "rate_limited",
                f"this token may ask for {self._rate:g} images a second; wait as Retry-After says",
                retry_after_s=(wanted - level) / self._rate,
            )
        self._levels[name] = (level - count, now_s)


def main() -> None:
    """Print a new token, and the line that lets it in."""
    name = sys.argv[1] if len(sys.argv) == 2 else "client"
    token = secrets.token_urlsafe(32)
    print(f"token, for the client (it is not stored anywhere): {token}")
    print(f"line, for the server: {name} sha256:{digest(token)}")


if __name__ == "__main__":
    main()
