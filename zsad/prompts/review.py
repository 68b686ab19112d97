"""Pages of prompt banks for the person who decides which phrases may vote.

Every phrase is shown with its scores, its verdict and the reason; the page says which file to edit and how. Like the
gallery a page holds all it shows, has no script and asks no host for anything. Names and phrases come from strangers
and from language models: they are shown by `zsad.report.gallery`'s environment, which escapes every value.

Cost: about 8 kB a product; 50 products a page.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from zsad import __version__
from zsad.errors import ConfigError
from zsad.prompts.bank import Phrase, PromptBank, Side, read_bank_in
from zsad.prompts.write import Outcome, Row, Summary
from zsad.report.gallery import environment
from zsad.storage import Store

PRODUCTS_PER_PAGE = 50
_OUTCOMES: dict[Outcome, str] = {
    "written": "written now",
    "cached": "from an earlier run",
    "kept": "kept from an earlier run, the writer failed",
    "fallback": "built-in lists stand in",
    "edited": "edited by a person",
}
_SIDES: dict[Side, str] = {"normal": "How a good item looks", "abnormal": "How a faulty item looks"}
_VERDICTS = {"keep": 0, "unseen": 1, "drop": 2}


def write_review(output: Store, summary: Summary) -> str:
    """Write review.html, and review-2.html and so on where there are more than 50 products.

    Args:
        output: with the banks.
        summary: of the run that wrote them.

    Returns:
        Address of the first page.

    Raises:
        StorageError: if storage fails.
    """
    rows = summary.rows
    pages = [rows[start : start + PRODUCTS_PER_PAGE] for start in range(0, len(rows), PRODUCTS_PER_PAGE)]
    for number, part in enumerate(pages, start=1):
        banks = [_read(output, row) for row in part]
        html = render_review(list(zip(part, banks, strict=True)), summary, page=number, num_pages=len(pages))
        output.put(page_name(number), html.encode())
    return output.uri(page_name(1))


def page_name(number: int) -> str:
    """File of a page, counted from 1."""
    return "review.html" if number == 1 else f"review-{number}.html"


def render_review(
    entries: Sequence[tuple[Row, PromptBank | None]], summary: Summary, *, page: int = 1, num_pages: int = 1
) -> str:
    """One page, as an HTML document.

    Args:
        entries: rows of the summary with their banks; None where a bank can't be read.
        summary: of the whole run.
        page: number of this page, from 1.
        num_pages: of the whole review.
    """
    return (
        environment()
        .get_template("review.html")
        .render(
            products=[_product(row, bank, number) for number, (row, bank) in enumerate(entries, start=1)],
            num_products=len(summary.rows),
            num_fallbacks=summary.count("fallback"),
            counts={text: summary.count(name) for name, text in _OUTCOMES.items()},
            pages=[(number, page_name(number)) for number in range(1, num_pages + 1)] if num_pages > 1 else [],
            page=page,
            version=__version__,
        )
    )


def _read(output: Store, row: Row) -> PromptBank | None:
    try:
        return read_bank_in(output, row.file)
    except ConfigError:  # the row says why
        return None


def _product(row: Row, bank: PromptBank | None, number: int) -> dict[str, Any]:
    phrases = bank.phrases if bank else ()
    origin = asdict(bank.origin) if bank and bank.origin else {}
    return {
        "id": f"product-{number}",
        "name": row.product,
        "file": row.file,
        "outcome": _OUTCOMES[row.outcome],
        "tone": "warn" if row.reason else "good",
        "reason": row.reason,
        "counts": f"{row.normal} good and {row.abnormal} faulty looks in use, {row.dropped} dropped"
        + (f", {row.unseen} with words the backbone does not know" if row.unseen else ""),
        "origin": {name.replace("_", " "): value for name, value in origin.items() if value and name != "digest"},
        "sides": [
            {"title": title, "phrases": [_phrase(phrase) for phrase in _sorted(phrases, side)]}
            for side, title in _SIDES.items()
        ],
    }


def _sorted(phrases: Sequence[Phrase], side: Side) -> list[Phrase]:
    """Phrases of one side: those in use first, by rank."""
    mine = [phrase for phrase in phrases if phrase.side == side]
    return sorted(mine, key=lambda phrase: (_VERDICTS[phrase.verdict], phrase.scores.get("rank", 1e9)))


def _phrase(phrase: Phrase) -> dict[str, str]:
    def score(name: str, digits: int) -> str:
        return f"{phrase.scores[name]:.{digits}f}" if name in phrase.scores else ""

    return {
        "text": phrase.text,
        "verdict": phrase.verdict,
        "reason": phrase.reason,
        "log_prob": score("log_prob", 2),
        "separation": score("separation", 2),
        "contrast": score("contrast", 3),
        "rank": score("rank", 1),
    }
