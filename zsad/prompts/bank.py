"""The prompt bank: how a good and a faulty item of one product look, in phrases, as one JSON file at any storage URL.

    {"version": 1, "object": "bottle cap", "phrases": [
        {"text": "a smooth unbroken rim", "side": "normal"},
        {"text": "a crack across the rim", "side": "abnormal", "scores": {"contrast": 0.31}, "verdict": "keep"}]}

A phrase is what follows "bottle cap with ". Phrases come from a language model or from a person, so they are strangers'
text: short, printable, on one line, no two alike, and never read as a format (braces are ordinary characters). Scores
and verdicts are what checks of the phrases left behind; phrases with the verdict "drop" are kept for the record only.

Cost: one small file; at most 1 MiB and 256 phrases are read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from zsad.errors import ConfigError, ErrorCode, ImageError, StorageError
from zsad.storage import Store, open_store

VERSION = 1
MAX_BYTES = 2**20
MAX_PHRASES = 256
MAX_CHARS = 120
MAX_NAME_CHARS = 80
MAX_SCORES = 16
_MAX_SCORE = 1e9

Side = Literal["normal", "abnormal"]
Verdict = Literal["keep", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """One look of an item.

    Attributes:
        text: what follows "<object> with ", 1 to 120 printable characters.
        side: whether it tells a normal or an abnormal item.
        scores: name of a check -> its number, at most 16.
        verdict: "drop" takes it out of use.

    Raises:
        ConfigError: if a value can't be used.
    """

    text: str
    side: Side
    scores: Mapping[str, float] = field(default_factory=dict)
    verdict: Verdict = "keep"

    def __post_init__(self) -> None:
        check_text(self.text, "a phrase", MAX_CHARS)
        for name, known in (("side", get_args(Side)), ("verdict", get_args(Verdict))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {_shown(getattr(self, name))}; choose {' or '.join(known)}")
        if not isinstance(self.scores, Mapping) or len(self.scores) > MAX_SCORES:
            raise ConfigError(f"scores must be at most {MAX_SCORES} named numbers, not {_shown(self.scores)}")
        for name, number in self.scores.items():
            check_text(name, "the name of a score", MAX_NAME_CHARS)
            if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= _MAX_SCORE:
                raise ConfigError(f"score {name!r} is {_shown(number)}; it must be a number up to {_MAX_SCORE:,.0f}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBank:
    """The phrases of one product.

    Attributes:
        object_name: the product, as prompts name it.
        phrases: 1 to 256, no text twice.

    Raises:
        ConfigError: if the name can't be used, there are no or too many phrases, or two are alike.
    """

    object_name: str
    phrases: tuple[Phrase, ...]

    def __post_init__(self) -> None:
        check_text(self.object_name, "the object", MAX_NAME_CHARS)
        if not 1 <= len(self.phrases) <= MAX_PHRASES:
            raise ConfigError(f"a prompt bank holds 1 to {MAX_PHRASES} phrases, not {len(self.phrases)}")
        check_distinct([phrase.text for phrase in self.phrases])

    def texts(self, side: Side) -> tuple[str, ...]:
        """The phrases of one side that are in use, in the bank's order."""
        return tuple(p.text for p in self.phrases if p.side == side and p.verdict == "keep")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready dict."""
        phrases = [
            {"text": p.text, "side": p.side, "scores": dict(p.scores), "verdict": p.verdict} for p in self.phrases
        ]
        return {"version": VERSION, "object": self.object_name, "phrases": phrases}

    @classmethod
    def from_dict(cls, stored: Any) -> "PromptBank":
        """Inverse of `to_dict`; scores and verdict may be left out.

        Raises:
            ConfigError: for another version, or missing, unknown or wrong fields; it names the phrase by its place.
        """
        plain = _object(stored, "a prompt bank", ("version", "object", "phrases"))
        if plain["version"] != VERSION or isinstance(plain["version"], bool):
            raise ConfigError(f"prompt bank version {_shown(plain['version'])}; this zsad reads version {VERSION}")
        if not isinstance(plain["phrases"], list):
            raise ConfigError(f"phrases must be a list, not {_shown(plain['phrases'])}")
        if len(plain["phrases"]) > MAX_PHRASES:
            raise ConfigError(f"a prompt bank holds 1 to {MAX_PHRASES} phrases, not {len(plain['phrases'])}")
        phrases = tuple(_phrase(item, place) for place, item in enumerate(plain["phrases"], start=1))
        return cls(object_name=plain["object"], phrases=phrases)


def read_bank(url: str) -> PromptBank:
    """Read the prompt bank in the file at `url`.

    Raises:
        ConfigError: if there is no such file, it is too large, or it is no valid bank.
        StorageError: if storage fails.
    """
    store, key = _place(url)
    try:
        return PromptBank.from_dict(json.loads(store.get(key, max_bytes=MAX_BYTES)))
    except StorageError as error:
        if error.code != ErrorCode.MISSING:
            raise
        raise ConfigError(f"prompt bank {url}: there is no such file") from error
    except ImageError as error:  # the storage's own word for an object that is too large
        raise ConfigError(f"prompt bank {url}: larger than {MAX_BYTES:,} bytes") from error
    except ConfigError as error:
        raise ConfigError(f"prompt bank {url}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"prompt bank {url}: not JSON ({type(error).__name__}: {error})") from error


def write_bank(url: str, bank: PromptBank) -> None:
    """Write a prompt bank to the file at `url`, over an older one; equal banks give equal bytes.

    Raises:
        StorageError: if storage fails.
    """
    store, key = _place(url)
    store.put(key, (json.dumps(bank.to_dict(), indent=2, ensure_ascii=False) + "\n").encode())


def check_text(text: Any, what: str, max_chars: int) -> None:
    """Refuse anything but short printable text on one line.

    Args:
        text: to check.
        what: named in the error.
        max_chars: limit.

    Raises:
        ConfigError: if it is no string, empty, too long, padded with spaces, or holds control characters.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{what} must be text, not {_shown(text)}")
    if not text or text != text.strip() or len(text) > max_chars:
        raise ConfigError(
            f"{what} must have 1 to {max_chars} characters and no spaces at its ends; {_shown(text)} has {len(text)}"
        )
    if not text.isprintable():
        raise ConfigError(f"{what} must be one line of printable characters, not {_shown(text)}")


def check_distinct(texts: list[str]) -> None:
    """Refuse texts of which two differ in case at most; a text on both sides would tell nothing.

    Raises:
        ConfigError: naming the text.
    """
    seen: set[str] = set()
    for text in texts:
        if text.casefold() in seen:
            raise ConfigError(f"the phrase {_shown(text)} occurs twice; every look belongs to one side, once")
        seen.add(text.casefold())


def _phrase(item: Any, place: int) -> Phrase:
    try:
        plain = _object(item, "a phrase", ("text", "side"), ("scores", "verdict"))
        return Phrase(**plain)
    except ConfigError as error:
        raise ConfigError(f"phrase {place}: {error}") from error


def _object(stored: Any, what: str, needed: tuple[str, ...], allowed: tuple[str, ...] = ()) -> dict[str, Any]:
    """A JSON object with all of `needed` and nothing but those and `allowed`."""
    if not isinstance(stored, dict):
        raise ConfigError(f"{what} must be an object, not {_shown(stored)}")
    for name in needed:
        if name not in stored:
            raise ConfigError(f"{what} has no {name!r}")
    for name in stored:
        if name not in (*needed, *allowed):
            raise ConfigError(f"{what} has an unknown key {_shown(name)}; known are {', '.join((*needed, *allowed))}")
    return stored


def _shown(value: Any) -> str:
    """A stranger's value for an error message: escaped, and cut when long."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _place(url: str) -> tuple[Store, str]:
    """The store of a file's folder, and the file's name.

    Raises:
        ConfigError: if the URL does not name a file.
    """
    folder, slash, name = url.rpartition("/")
    if not name or name in {".", ".."} or folder.endswith(":/"):
        raise ConfigError(f"{url!r} does not name a file; give the whole address of a prompt bank")
    return open_store(folder or ("/" if slash else ".")), name
