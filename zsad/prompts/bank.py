"""The prompt bank: how a good and a faulty item of one product look, in phrases, as one JSON file at any storage URL.

    {"version": 2, "object": "bottle cap", "origin": {"writer": "openai", "model": "...", ...}, "phrases": [
        {"text": "a smooth unbroken rim", "side": "normal"},
        {"text": "a crack across the rim", "side": "abnormal", "scores": {"contrast": 0.31}, "verdict": "keep"},
        {"text": "a rim", "side": "abnormal", "verdict": "drop", "reason": "2 words; a phrase has 3 to 12"}]}

A phrase is what follows "bottle cap with ". Phrases come from a language model or from a person, so they are strangers'
text: short, printable, on one line, and never read as a format (braces are ordinary characters). Scores and verdicts
are what checks of the phrases left behind. Only phrases with the verdict "keep" are in use, and of those no two are
alike; the others stay for the record. `Origin` says who wrote a bank and who checked it; a person's own bank has none.
Files of version 1, which had neither origin nor reasons, read as before.

Cost: one small file; at most 1 MiB and 256 phrases are read.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from typing import Any, Literal, get_args

from zsad.errors import ConfigError, ErrorCode, ImageError, StorageError
from zsad.storage import Store, open_store

VERSION = 2
READABLE = (1, 2)
MAX_BYTES = 2**20
MAX_PHRASES = 256
MAX_CHARS = 120
MAX_NAME_CHARS = 80
MAX_SCORES = 16
MAX_REASON_CHARS = 300
_MAX_SCORE = 1e9

Side = Literal["normal", "abnormal"]
Verdict = Literal["keep", "drop", "unseen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """One look of an item.

    Attributes:
        text: what follows "<object> with ", 1 to 120 printable characters.
        side: whether it tells a normal or an abnormal item.
        scores: name of a check -> its number, at most 16.
        verdict: "drop" takes it out of use; so does "unseen", for words that the backbone was never taught.
        reason: why it is out of use, at most 300 characters.

    Raises:
        ConfigError: if a value can't be used.
    """

    text: str
    side: Side
    scores: Mapping[str, float] = field(default_factory=dict)
    verdict: Verdict = "keep"
    reason: str = ""

    def __post_init__(self) -> None:
        check_text(self.text, "a phrase", MAX_CHARS)
        if self.reason != "":
            check_text(self.reason, "a reason", MAX_REASON_CHARS)
        for name, known in (("side", get_args(Side)), ("verdict", get_args(Verdict))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {_shown(getattr(self, name))}; choose {_listed(known)}")
        if not isinstance(self.scores, Mapping) or len(self.scores) > MAX_SCORES:
            raise ConfigError(f"scores must be at most {MAX_SCORES} named numbers, not {_shown(self.scores)}")
        for name, number in self.scores.items():
            check_text(name, "the name of a score", MAX_NAME_CHARS)
            if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= _MAX_SCORE:
                raise ConfigError(f"score {name!r} is {_shown(number)}; it must be a number up to {_MAX_SCORE:,.0f}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who wrote a bank's phrases, and who checked them.

    Attributes:
        writer: kind of writer, such as "vllm" or "builtin".
        model: who wrote.
        revision: which state of it.
        request_version: of the question that was asked.
        checks_version: of the checks.
        seed: of the model's sampling.
        language: ISO 639-1 code that was asked for.
        backbone: whose text tower scored the phrases.
        backbone_sha256: of its weights.
        images: which images the phrases had to tell apart.
        fallback: why the built-in lists stand in for the writer; empty: they do not.
        digest: SHA-256 of object and phrases when they were written; another one tells that a person edited them.

    Raises:
        ConfigError: if a value is of the wrong kind, or a text is too long or not printable.
    """

    writer: str
    model: str
    revision: str
    request_version: str
    checks_version: str
    seed: int
    language: str
    backbone: str
    backbone_sha256: str
    images: str
    fallback: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type is int and type(value) is not int:
                raise ConfigError(f"origin: {item.name} must be a whole number, not {_shown(value)}")
            if item.type is str and value != "":
                check_text(value, f"origin: {item.name}", MAX_REASON_CHARS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBank:
    """The phrases of one product.

    Attributes:
        object_name: the product, as prompts name it.
        phrases: 1 to 256; of those in use no text twice.
        origin: None for a person's own bank.

    Raises:
        ConfigError: if the name can't be used, there are no or too many phrases, or two in use are alike.
    """

    object_name: str
    phrases: tuple[Phrase, ...]
    origin: Origin | None = None

    def __post_init__(self) -> None:
        check_text(self.object_name, "the object", MAX_NAME_CHARS)
        if not 1 <= len(self.phrases) <= MAX_PHRASES:
            raise ConfigError(f"a prompt bank holds 1 to {MAX_PHRASES} phrases, not {len(self.phrases)}")
        check_distinct([phrase.text for phrase in self.phrases if phrase.verdict == "keep"])

    def texts(self, side: Side) -> tuple[str, ...]:
        """The phrases of one side that are in use, in the bank's order."""
        return tuple(p.text for p in self.phrases if p.side == side and p.verdict == "keep")

    @property
    def digest(self) -> str:
        """SHA-256 of object and phrases, scores and verdicts included."""
        plain = [self.object_name, [_plain(phrase) for phrase in self.phrases]]
        return sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    @property
    def is_edited(self) -> bool:
        """Whether a person made or changed this bank since a writer wrote it."""
        return self.origin is None or self.origin.digest != self.digest

    def sealed(self) -> "PromptBank":
        """This bank with its digest in its origin, as a writer leaves it."""
        assert self.origin is not None  # noqa: S101 - writers give one; for the type checker
        return replace(self, origin=replace(self.origin, digest=self.digest))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready dict."""
        head: dict[str, Any] = {"version": VERSION, "object": self.object_name}
        if self.origin is not None:
            head["origin"] = asdict(self.origin)
        return {**head, "phrases": [_plain(phrase) for phrase in self.phrases]}

    @classmethod
    def from_dict(cls, stored: Any) -> "PromptBank":
        """Inverse of `to_dict`; origin, scores, verdict and reason may be left out.

        Raises:
            ConfigError: for another version, or missing, unknown or wrong fields; it names the phrase by its place.
        """
        plain = _object(stored, "a prompt bank", ("version", "object", "phrases"), ("origin",))
        if plain["version"] not in READABLE or isinstance(plain["version"], bool):
            raise ConfigError(f"prompt bank version {_shown(plain['version'])}; this zsad reads versions 1 and 2")
        if not isinstance(plain["phrases"], list):
            raise ConfigError(f"phrases must be a list, not {_shown(plain['phrases'])}")
        if len(plain["phrases"]) > MAX_PHRASES:
            raise ConfigError(f"a prompt bank holds 1 to {MAX_PHRASES} phrases, not {len(plain['phrases'])}")
        phrases = tuple(_phrase(item, place) for place, item in enumerate(plain["phrases"], start=1))
        return cls(object_name=plain["object"], phrases=phrases, origin=_origin(plain.get("origin")))


def read_bank(url: str) -> PromptBank:
    """Read the prompt bank in the file at `url`.

    Raises:
        ConfigError: if there is no such file, it is too large, or it is no valid bank.
        StorageError: if storage fails.
    """
    store, key = file_at(url)
    return read_bank_in(store, key)


def read_bank_in(store: Store, key: str) -> PromptBank:
    """`read_bank` of an object of `store`."""
    url = store.uri(key)
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
    store, key = file_at(url)
    store.put(key, bank_bytes(bank))


def bank_bytes(bank: PromptBank) -> bytes:
    """The file of a bank."""
    return (json.dumps(bank.to_dict(), indent=2, ensure_ascii=False) + "\n").encode()


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


def _plain(phrase: Phrase) -> dict[str, Any]:
    plain = {"text": phrase.text, "side": phrase.side, "scores": dict(phrase.scores), "verdict": phrase.verdict}
    return {**plain, "reason": phrase.reason} if phrase.reason else plain


def _origin(stored: Any) -> Origin | None:
    if stored is None:
        return None
    known = [item.name for item in fields(Origin)]
    optional = ("fallback", "digest")
    needed = tuple(name for name in known if name not in optional)
    return Origin(**_object(stored, "an origin", needed, optional))


def _phrase(item: Any, place: int) -> Phrase:
    try:
        plain = _object(item, "a phrase", ("text", "side"), ("scores", "verdict", "reason"))
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


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _shown(value: Any) -> str:
    """A stranger's value for an error message: escaped, and cut when long."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def file_at(url: str) -> tuple[Store, str]:
    """The store of a file's folder, and the file's name.

    Raises:
        ConfigError: if the URL does not name a file.
    """
    folder, slash, name = url.rpartition("/")
    if not name or name in {".", ".."} or folder.endswith(":/"):
        raise ConfigError(f"{url!r} does not name a file; give the whole address of a prompt bank")
    return open_store(folder or ("/" if slash else ".")), name
