"""From products to prompt banks: ask the writer, judge its phrases, keep the bank, and say what became of each product.

Every product ends with a bank. One whose writer fails, times out or returns rubbish keeps the bank that a writer wrote
for it before, or gets the built-in lists, and the summary says why; one whose file a person has edited keeps it. Banks
are written as drafts arrive, so that an interrupted run has lost nothing: the next one finds what is done in the cache.

Cost: the writer's, and 16 short texts a phrase; memory holds one draft at a time and one line a product.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

from zsad.errors import ConfigError, ModelError
from zsad.prompts import cache as bank_cache
from zsad.prompts.bank import MAX_PHRASES, MAX_REASON_CHARS, Origin, Phrase, PromptBank, bank_bytes, read_bank_in
from zsad.prompts.clip_scores import Reader
from zsad.prompts.names import one_line
from zsad.prompts.verdicts import CHECKS_VERSION, is_usable, judged
from zsad.prompts.writers import builtin
from zsad.prompts.writers.base import Draft, Writer, WriteRequest
from zsad.prompts.writers.request import REQUEST_VERSION
from zsad.storage import Store

log = logging.getLogger(__name__)

SUMMARY_FILE = "_summary.json"
LOG_EVERY_S = 30.0
_MAX_TOLD = 20

Outcome = Literal["written", "cached", "kept", "fallback", "edited"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one product.

    Attributes:
        product: as prompts name it.
        file: of its bank.
        outcome: "written" by the writer now, "cached" from an earlier run, "kept" as an earlier run left it because the
            writer failed, "fallback" to the built-in lists because it failed and there was nothing to keep, or "edited"
            by a person and left as it is.
        reason: why the writer failed, or an edited bank can't be read.
        normal: phrases in use that tell a good item.
        abnormal: phrases in use that tell a faulty one.
        unseen: phrases with words that the backbone was never taught.
        dropped: phrases that failed a check.
    """

    product: str
    file: str
    outcome: Outcome
    reason: str = ""
    normal: int = 0
    abnormal: int = 0
    unseen: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did, a row a product, in their order."""

    rows: tuple[Row, ...]

    def count(self, outcome: Outcome) -> int:
        """Products with this outcome."""
        return sum(row.outcome == outcome for row in self.rows)

    def to_json(self) -> bytes:
        """The file of the summary."""
        counts = {outcome: self.count(outcome) for outcome in get_args(Outcome)}
        plain = {"version": 1, "products": len(self.rows), **counts, "rows": [asdict(row) for row in self.rows]}
        return (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()

    def table(self) -> str:
        """For the terminal: the counts, and the products that have no bank of the writer's."""
        lines = [
            f"prompt banks of {len(self.rows):,} products: {self.count('written'):,} written, "
            f"{self.count('cached'):,} from the cache, {self.count('fallback'):,} fell back to the built-in lists, "
            f"{self.count('kept'):,} kept the bank of an earlier run because the writer failed, "
            f"{self.count('edited'):,} edited by a person and left alone"
        ]
        told = [row for row in self.rows if row.reason]
        lines += [f"  {row.outcome}: {row.product!a}: {row.reason!a}" for row in told[:_MAX_TOLD]]
        if len(told) > _MAX_TOLD:
            lines.append(f"  and {len(told) - _MAX_TOLD:,} more, see {SUMMARY_FILE}")
        voteless = sum(not row.normal or not row.abnormal for row in self.rows)
        if voteless:
            lines.append(
                f"  {voteless:,} banks have no phrase in use on one side; the ensemble's own states judge there"
            )
        return "\n".join(lines)


def write_banks(
    requests: Sequence[tuple[str, WriteRequest]],
    writer: Writer,
    reader: Reader,
    *,
    output: Store,
    cache: Store,
    overwrite: bool = False,
) -> Summary:
    """Write a bank for every request to `output`, and the summary beside them.

    Args:
        requests: file of the bank, and what to ask; `product` as prompts name it.
        writer: asked for what the cache does not have.
        reader: of the backbone that will use the banks.
        output: gets the banks.
        cache: of earlier banks.
        overwrite: also replace banks that a person has edited, and those of earlier runs where the writer fails now.

    Raises:
        ConfigError: if the images that score phrases can't be used.
        StorageError: if storage fails.
    """
    rows: dict[str, Row] = {}
    missing: dict[str, tuple[str, WriteRequest]] = {}
    for file, request in requests:
        if not overwrite and (kept := _edited(output, file, request)):
            rows[file] = kept
            continue
        key = bank_cache.cache_key(request, writer, reader)
        bank = bank_cache.find(cache, key)
        if bank is None:
            missing[file] = key, request
            continue
        output.put(file, bank_bytes(bank))
        rows[file] = _row(file, bank, "cached")
    for file, bank in _logged(_made(missing, writer, reader, cache), len(missing)):
        rows[file] = _put(output, file, bank, overwrite)
    summary = Summary(tuple(rows[file] for file, _ in requests))
    output.put(SUMMARY_FILE, summary.to_json())
    return summary


def _put(output: Store, file: str, bank: PromptBank, overwrite: bool) -> Row:
    """Write a new bank, unless the built-in lists would replace what a writer wrote."""
    if bank.origin is None or not bank.origin.fallback:
        outcome: Outcome = "written"
    elif not overwrite and (earlier := _written(output, file)):
        return replace(_row(file, earlier, "kept"), reason=bank.origin.fallback)
    else:
        outcome = "fallback"
    output.put(file, bank_bytes(bank))
    return _row(file, bank, outcome)


def _written(output: Store, file: str) -> PromptBank | None:
    """The bank of a writer or a person that is there; None if there is none, or one that fell back."""
    if not output.exists(file):
        return None
    try:
        bank = read_bank_in(output, file)
    except ConfigError:  # such a file was left alone before, unless it came to be like that in this run
        return None
    return None if bank.origin and bank.origin.fallback and not bank.is_edited else bank


def _logged(banks: Iterator[tuple[str, PromptBank]], total: int) -> Iterator[tuple[str, PromptBank]]:
    """The same, with a line in the log at most every 30 s."""
    began = logged = time.monotonic()
    for number, bank in enumerate(banks, start=1):
        yield bank
        now = time.monotonic()
        if now - logged >= LOG_EVERY_S and number < total:
            logged = now
            log.info("%s", progress(number, total, now - began))


def progress(number: int, total: int, seconds: float) -> str:
    """One line: done, rate and time left.

    Args:
        number: banks done, at least 1.
        total: to be done.
        seconds: since the first was begun.
    """
    rate = number / seconds
    left = (total - number) / rate
    return f"{number:,} of {total:,} products ({number / total:.0%}), {rate:.2f} products/s, {left:,.0f} s left"


def make_bank(draft: Draft, writer: Writer, reader: Reader) -> PromptBank:
    """The bank of one draft, or of the built-in lists where the draft is of no use."""
    name = draft.request.product
    language = builtin.LANGUAGE if writer.name == builtin.BuiltinWriter.name else draft.request.language
    phrases = judged(draft.phrases[:MAX_PHRASES], reader, object_name=name, language=language)
    fallback = draft.failure or ("" if is_usable(phrases) else _rubbish(phrases))
    if fallback:
        rejected = [phrase for phrase in phrases if phrase.verdict == "drop"]
        stand_in = judged(builtin.looks(draft.request), reader, object_name=name, language=builtin.LANGUAGE)
        phrases = (*stand_in, *rejected)[:MAX_PHRASES]
    origin = Origin(
        writer=writer.name,
        model=one_line(draft.model, MAX_REASON_CHARS),
        revision=one_line(draft.revision, MAX_REASON_CHARS),
        request_version=REQUEST_VERSION,
        checks_version=CHECKS_VERSION,
        seed=draft.request.seed,
        language=draft.request.language,
        backbone=one_line(reader.backbone.name, MAX_REASON_CHARS),
        backbone_sha256=reader.backbone.sha256,
        images=reader.source.name,
        fallback=one_line(fallback, MAX_REASON_CHARS),
    )
    return PromptBank(object_name=name, phrases=phrases, origin=origin).sealed()


def _made(
    missing: dict[str, tuple[str, WriteRequest]], writer: Writer, reader: Reader, cache: Store
) -> Iterator[tuple[str, PromptBank]]:
    """File and bank of everything that the cache does not have."""
    if not missing:
        return
    _ = reader.pairs  # images that can't be used end the job before a model is asked anything
    drafts = _drafts(writer, [request for _, request in missing.values()])
    for (file, (key, _)), draft in zip(missing.items(), drafts, strict=True):
        bank = make_bank(draft, writer, reader)
        if bank.origin is not None and not bank.origin.fallback:
            bank_cache.keep(cache, key, bank)
        yield file, bank


def _drafts(writer: Writer, requests: Sequence[WriteRequest]) -> Iterator[Draft]:
    """A draft for every request, whatever the writer does."""
    drafts = iter(writer.write(requests))
    broken = ""
    for request in requests:
        draft = None
        if not broken:
            try:
                draft = next(drafts, None)
                broken = "" if draft else "the writer ended before this product"
            except ModelError as error:
                broken = f"the writer broke down: {error}"
        if draft is not None and draft.request == request:
            yield draft
            continue
        reason = broken or "the writer answered for another product"
        yield Draft(request=request, phrases=(), model=writer.model, revision=writer.revision, failure=reason)


def _rubbish(phrases: Sequence[Phrase]) -> str:
    reasons = sorted({phrase.reason for phrase in phrases if phrase.verdict == "drop"})
    return f"no phrase of one side or both passed the checks: {'; '.join(reasons) or 'there was none'}"


def _edited(output: Store, file: str, request: WriteRequest) -> Row | None:
    """The row of a bank that a person made or changed; None if there is none."""
    if not output.exists(file):
        return None
    try:
        bank = read_bank_in(output, file)
    except ConfigError as error:
        reason = one_line(f"can't be read, correct or delete it: {error}", MAX_REASON_CHARS)
        return Row(product=request.product, file=file, outcome="edited", reason=reason)
    return _row(file, bank, "edited") if bank.is_edited else None


def _row(file: str, bank: PromptBank, outcome: Outcome) -> Row:
    verdicts = [phrase.verdict for phrase in bank.phrases]
    return Row(
        product=bank.object_name,
        file=file,
        outcome=outcome,
        reason=bank.origin.fallback if bank.origin and outcome == "fallback" else "",
        normal=len(bank.texts("normal")),
        abnormal=len(bank.texts("abnormal")),
        unseen=verdicts.count("unseen"),
        dropped=verdicts.count("drop"),
    )
