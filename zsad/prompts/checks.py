"""What is wrong with a phrase, as far as its text alone tells: pure functions from a text to a reason.

A phrase comes from a language model that read names and notes of strangers, so it may hold anything. It is good if it
has 3 to 12 words of the language asked for, plain characters only, and says nothing but a look: no address, no markup,
no order to anyone. In English a phrase must also keep its side: words of faults, unless negated, do not belong on the
normal side, and praise does not belong on the abnormal one.

Language: short technical phrases are hard to tell. Identification is therefore not asked which language is likeliest,
but whether another one is more than 20 times as likely as the one asked for. Of the 904 built-in English phrases of
three words or more none is refused that way, while 35 have another likeliest language; of 58 phrases in nine other
languages one passes as English (`tests/unit/prompts/test_prompt_checks.py` counts all three).

Cost: 0.1 ms a phrase; the language model of py3langid loads once, in 2 s.
Source: length and contrast after ALFA's request as zsad words it; language by py3langid (langid.py's successor).
"""

import re
import unicodedata
from functools import lru_cache
from typing import Any

from zsad.errors import ConfigError
from zsad.prompts.bank import MAX_CHARS, Side

MIN_WORDS = 3
MAX_WORDS = 12
FOREIGN_ODDS = 20.0
"""Another language must be this many times as likely for a phrase to be taken for it."""

UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my"})
"""Languages written without blanks; two letters count as a word."""

# Among them the apostrophe and the dash of typesetters, and the degree sign.
_MARKS = frozenset(" ,.'\u2019()-\u2013/%\u00b0:&+\"")
_ADDRESS = re.compile(r"://|\bwww\.|\S@\S|\b[\w-]+\.(com|org|net|io|dev|ai|co|html?|php|exe|sh)\b", re.IGNORECASE)
_ORDERS = re.compile(
    r"\b(ignore|disregard|forget|override)\b.*\b(previous|above|prior|all|any|instructions?|rules?|prompts?)\b"
    r"|\b(previous|these|system|new) (instructions?|prompts?)\b|\b(assistant|user|chatbot|language model|jailbreak)\b"
    r"|\b(you|we|your|please|respond|reply|click here|visit|password|as an ai|i (am|can|will|cannot|must))\b"
    r"|^(here (is|are)|sure\b|certainly\b|note\b|role\b)",
    re.IGNORECASE,
)
_NEGATIONS = frozenset({"no", "not", "without", "never", "nor", "free", "lacking", "absent"})
_FRESH = frozenset({"but", "with", "except", "despite"})
_FAULT = re.compile(
    r"(crack|scratch|dent|nick|rust|stain|fray|smear|leak|peel|burr|fracture|blemish|flaw|damage|misprint|wrinkle)"
    r"(s|es|d|ed|y|ing)?|defect(s|ive)?|contaminat(ed|ion)|deform(ed|ation)|corro(ded|sion)|scorched|chipped|broken|torn"
    r"|missing|abnormal|faulty"
)
_PRAISE = re.compile(r"flawless|perfect(ly)?|intact|unblemished|undamaged|unbroken|pristine|faultless|spotless")


def text_fault(text: str, side: Side, language: str) -> str:
    """Why a phrase can't be used, as a plain sentence without a full stop; empty if nothing speaks against it.

    Args:
        text: of the phrase, any string.
        side: it is meant for.
        language: ISO 639-1 code that was asked for.
    """
    return (
        _form_fault(text)
        or _length_fault(text, language)
        or language_fault(text, language)
        or (contrast_fault(text, side) if language == "en" else "")
    )


def _form_fault(text: str) -> str:
    if not text.strip():
        return "empty"
    if len(text) > MAX_CHARS:
        return f"{len(text):,} characters; at most {MAX_CHARS} are allowed"
    if not text.isprintable():
        return "holds control or invisible characters"
    if _ADDRESS.search(text):
        return "holds an address"
    strange = sorted({c for c in text if not (c.isalnum() or c in _MARKS or unicodedata.category(c).startswith("M"))})
    if strange:
        return f"holds {' '.join(strange[:5])}, which looks like markup"
    return "reads as words to a reader or a machine, not as a look" if _ORDERS.search(text) else ""


def _length_fault(text: str, language: str) -> str:
    count = count_words(text, language)
    return "" if MIN_WORDS <= count <= MAX_WORDS else f"{count} words; a phrase has {MIN_WORDS} to {MAX_WORDS}"


def count_words(text: str, language: str) -> int:
    """Words between blanks that hold a letter or digit; for languages without blanks, half the letters."""
    if language in UNSPACED:
        return -(-sum(character.isalnum() for character in text) // 2)
    return sum(any(character.isalnum() for character in word) for word in text.split())


def language_fault(text: str, language: str) -> str:
    """Whether a phrase is in another language than the one asked for; see this module for the rule."""
    odds = dict(_identifier().rank(text))
    best = max(odds, key=lambda code: (odds[code], code))
    if odds[best] <= FOREIGN_ODDS * odds[language]:
        return ""
    return f"reads as language {best!r}, not {language!r}"


def check_language(language: str) -> None:
    """Refuse a language that can't be checked.

    Raises:
        ConfigError: naming it.
    """
    known = _identifier().labels
    if language not in known:
        raise ConfigError(
            f"--language {language!a}: phrases in it can't be checked; choose one of {', '.join(sorted(known))}"
        )


def contrast_fault(text: str, side: Side) -> str:
    """Whether an English phrase says the opposite of its side."""
    faults, denied = _faults(text)
    if side == "normal":
        return f"names a fault on the normal side ({faults[0]})" if faults else ""
    if faults:
        return ""
    praised = [word for word in _words(text) if _PRAISE.fullmatch(word)]
    if denied or praised:
        return f"says on the abnormal side that all is well ({(denied or praised)[0]})"
    return ""


def _faults(text: str) -> tuple[list[str], list[str]]:
    """Words of faults that a phrase states, and those that it denies."""
    words = _words(text)
    stated: list[str] = []
    denied: list[str] = []
    is_negated = False
    for word, following in zip(words, [*words[1:], ""], strict=True):
        is_negated = (is_negated or word in _NEGATIONS) and word not in _FRESH
        if _FAULT.fullmatch(word):
            (denied if is_negated or following == "free" else stated).append(word)
    return stated, denied


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.casefold())


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
