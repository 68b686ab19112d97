"""From products to prompt banks: ask the writer, judge its phrases, keep the bank, and say what became of each product.

Every product ends with a bank. One whose writer fails, times out or returns rubbish gets the built-in lists, and the
bank and the summary say why; one whose file a person has edited keeps it. Banks are written as drafts arrive, so that
an interrupted run has lost nothing: the next one finds what is done in the cache.

Cost: the writer's, and 16 short texts a phrase; memory holds one draft at a time and one line a product.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

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
_MAX_TOLD = 20

Outcome = Literal["written", "cached", "fallback", "edited"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one product.

    Attributes:
        product: as prompts name it.
        file: of its bank.
        outcome: "written" by the writer now, "cached" from an earlier run, "fallback" to the built-in lists, or
            "edited" by a person and left as it is.
        reason: of a fallback or an edited bank.
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
        counts = {outcome: self.count(outcome) for outcome in ("written", "cached", "fallback", "edited")}
        plain = {"version": 1, "products": len(self.rows), **counts, "rows": [asdict(row) for row in self.rows]}
        return (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()

    def table(self) -> str:
        """For the terminal: the counts, and the products that have no bank of the writer's."""
        lines = [
            f"prompt banks of {len(self.rows):,} products: {self.count('written'):,} written, "
            f"{self.count('cached'):,} from the cache, {self.count('fallback'):,} fell back to the built-in lists, "
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
        overwrite: also replace banks that a person has edited.

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
    for file, bank in _made(missing, writer, reader, cache):
        output.put(file, bank_bytes(bank))
        is_fallback = bank.origin is not None and bank.origin.fallback
        rows[file] = _row(file, bank, "fallback" if is_fallback else "written")
    summary = Summary(tuple(rows[file] for file, _ in requests))
    output.put(SUMMARY_FILE, summary.to_json())
    return summary


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
