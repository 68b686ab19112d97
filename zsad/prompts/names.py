"""Names of products, as strangers type them: one printable line for prompts, and a file name for the bank.

`--prompts URL/{product}.json` finds a bank by the value of the field `{product}`, so the rule is one that people can do
in their heads: blanks become `_`, everything else that letters, digits, `_`, `-` and `.` can't write becomes `_` too,
and then eight hex digits of the name's SHA-256 follow, so that no two such names share a file.
"""

import re
import unicodedata
from collections.abc import Iterable
from hashlib import sha256

from zsad.errors import ConfigError
from zsad.prompts.bank import MAX_NAME_CHARS

MAX_FILE_BYTES = 120
_UNFIT = re.compile(r"[^\w.-]+")


def one_line(text: str, max_chars: int) -> str:
    """`text` on one line of printable characters, cut to `max_chars`: blanks and controls join to one blank.

    Invisible characters that only steer others, such as those that turn the direction of writing, go without a trace.
    """
    kept = "".join(_printable(character) for character in unicodedata.normalize("NFC", text[: 16 * max_chars]))
    return " ".join(kept.split())[:max_chars].strip()


def object_name(product: str) -> str:
    """How prompts name a product: one line of at most 80 characters, underscores as blanks.

    Raises:
        ConfigError: if nothing printable is left.
    """
    name = one_line(product.replace("_", " "), MAX_NAME_CHARS)
    if not name:
        raise ConfigError(f"the product {product[:40]!a} has no printable name; give it one")
    return name


def bank_file(product: str) -> str:
    """The file of a product's bank, such as "pill_bottle.json"; see this module."""
    plain = re.sub(r"\s+", "_", product.strip())
    fit = _UNFIT.sub("_", unicodedata.normalize("NFC", plain[:MAX_FILE_BYTES])).strip("._")
    while len(fit.encode()) > MAX_FILE_BYTES:
        fit = fit[:-1]
    if fit != plain:
        digest = sha256(product.encode(errors="backslashreplace")).hexdigest()[:8]
        fit = f"{fit}-{digest}".lstrip("-")
    return f"{fit}.json"


def bank_files(products: Iterable[str]) -> dict[str, str]:
    """File name -> product, for distinct products in their order; a name given twice counts once.

    Raises:
        ConfigError: if two products would share a file, on file systems that ignore case too.
    """
    taken: dict[str, str] = {}
    found: dict[str, str] = {}
    for product in dict.fromkeys(products):
        file = bank_file(product)
        other = taken.setdefault(file.casefold(), product)
        if other != product:
            raise ConfigError(
                f"the products {ascii(other)[:100]} and {ascii(product)[:100]} would share the file {file!a}; "
                "rename one, or write their banks to different folders"
            )
        found[file] = product
    return found


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return "" if unicodedata.category(character) == "Cf" else " "
