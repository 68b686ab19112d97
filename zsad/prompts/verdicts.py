"""From a writer's draft to the phrases of a bank: every phrase gets scores, a verdict and, if it is out, a reason.

In this order, each check only on what the ones before left:

1. its text (`zsad.prompts.checks`), and no second phrase with the same words on either side;
2. it fits the text tower's context inside the longest template;
3. all its words were taught to the backbone; otherwise it is flagged "unseen", not scored, and has no vote;
4. contrast: the tower must put it on its own side;
5. separation: telling faults from normal images worse than chance makes it weak;
6. rank: the mean of its rank by separation and, where the writer gave any, by log-probability, within its side;
   from the best down, a phrase too like a kept one of its side (cosine 0.98) is a duplicate, and of the rest the last
   quarter is weak, but three of a side always stay.

Cost: that of `zsad.prompts.clip_scores`.
Source: ALFA (arXiv 2404.09654) scores and filters prompts of a language model; order, limits and ranks are zsad's own.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from zsad.prompts.bank import MAX_CHARS, Phrase, Side, Verdict
from zsad.prompts.checks import text_fault
from zsad.prompts.clip_scores import Reader, Readings
from zsad.prompts.names import one_line
from zsad.prompts.writers.base import DraftPhrase

CHECKS_VERSION = "1"
SAME_COSINE = 0.98
KEPT_SHARE = 0.75
MIN_KEPT = 3
CHANCE = 0.5


def judged(drafted: Sequence[DraftPhrase], reader: Reader, *, object_name: str, language: str) -> tuple[Phrase, ...]:
    """The phrases of a draft with their verdicts, in the draft's order.

    Args:
        drafted: unchecked phrases.
        reader: of the backbone that will use them.
        object_name: the product, as prompts name it.
        language: ISO 639-1 code that was asked for.
    """
    stripped = [replace(draft, text=draft.text.strip().rstrip(".")) for draft in drafted]
    phrases = _by_text(stripped, reader, object_name, language)
    usable = [place for place, phrase in enumerate(phrases) if phrase.verdict == "keep"]
    if not usable:
        return tuple(phrases)
    chosen = [phrases[place] for place in usable]
    readings = reader.read([p.text for p in chosen], [p.side for p in chosen], object_name)
    for place, phrase in zip(usable, _by_scores(chosen, readings), strict=True):
        phrases[place] = phrase
    return tuple(phrases)


def is_usable(phrases: Sequence[Phrase]) -> bool:
    """Whether a draft was more than rubbish: on each side at least one phrase that passed as text."""
    passed = {phrase.side for phrase in phrases if phrase.verdict == "unseen" or "contrast" in phrase.scores}
    return passed == {"normal", "abnormal"}


def _by_text(drafted: Sequence[DraftPhrase], reader: Reader, object_name: str, language: str) -> list[Phrase]:
    seen: set[str] = set()
    phrases = []
    for draft in drafted:
        key = " ".join(draft.text.casefold().split())
        fault = text_fault(draft.text, draft.side, language) or ("said before" if key in seen else "")
        if not fault and not reader.fits(draft.text, object_name):
            fault = "too long for the text tower's context inside the longest template"
        seen.add(key)
        phrases.append(_phrase(draft, fault, reader.backbone.unseen(draft.text) if not fault else ()))
    return phrases


def _phrase(draft: DraftPhrase, fault: str, unseen: Sequence[str]) -> Phrase:
    verdict: Verdict = "keep"
    if fault:
        verdict = "drop"
    elif unseen:
        verdict, fault = "unseen", f"words the backbone was never taught: {', '.join(unseen)}"
    return Phrase(
        text=_storable(draft.text),
        side=draft.side,
        scores={} if draft.log_prob is None else {"log_prob": draft.log_prob},
        verdict=verdict,
        reason=fault,
    )


def _storable(text: str) -> str:
    """A phrase as a bank can hold it; only phrases that are dropped anyway change."""
    return one_line(text, MAX_CHARS) or "(nothing printable)"


def _by_scores(phrases: Sequence[Phrase], readings: Readings) -> list[Phrase]:
    """Verdicts after contrast, separation and rank."""
    scored = [
        replace(phrase, scores={**phrase.scores, "contrast": contrast, "separation": separation})
        for phrase, contrast, separation in zip(phrases, readings.contrast, readings.separation, strict=True)
    ]
    found = [_weak(phrase) for phrase in scored]
    for side in ("normal", "abnormal"):
        members = [n for n, phrase in enumerate(found) if phrase.side == side and phrase.verdict == "keep"]
        _rank(found, members, readings)
    return found


def _weak(phrase: Phrase) -> Phrase:
    if phrase.scores["contrast"] <= 0:
        other: Side = "abnormal" if phrase.side == "normal" else "normal"
        return replace(phrase, verdict="drop", reason=f"the backbone reads it as {other}")
    if phrase.scores["separation"] < CHANCE:
        return replace(phrase, verdict="drop", reason="tells faulty from normal images worse than chance")
    return phrase


def _rank(phrases: list[Phrase], members: Sequence[int], readings: Readings) -> None:
    """Rank the phrases at `members`, all of one side, and drop duplicates and the weakest quarter of the rest."""
    ranks = combined_ranks([phrases[n] for n in members])
    for n, rank in zip(members, ranks, strict=True):
        phrases[n] = replace(phrases[n], scores={**phrases[n].scores, "rank": rank})
    kept: list[int] = []
    for n in sorted(members, key=lambda n: (phrases[n].scores["rank"], phrases[n].text)):
        like = next((k for k in kept if float(readings.units_KD[n] @ readings.units_KD[k]) >= SAME_COSINE), None)
        if like is None:
            kept.append(n)
        else:
            reason = f"to the backbone the same as {phrases[like].text!r}"
            phrases[n] = replace(phrases[n], verdict="drop", reason=reason)
    for n in kept[max(MIN_KEPT, -int(-KEPT_SHARE * len(kept) // 1)) :]:
        phrases[n] = replace(phrases[n], verdict="drop", reason="among the weakest quarter of its side by rank")


def combined_ranks(phrases: Sequence[Phrase]) -> list[float]:
    """Mean rank of each phrase by separation and by log-probability, 1 the best; equal scores share their mean rank.

    A phrase without a log-probability is ranked by separation alone.
    """
    by_separation = _ranks([phrase.scores["separation"] for phrase in phrases])
    known = [n for n, phrase in enumerate(phrases) if "log_prob" in phrase.scores]
    by_words = dict(zip(known, _ranks([phrases[n].scores["log_prob"] for n in known]), strict=True))
    return [(rank + by_words.get(n, rank)) / 2 for n, rank in enumerate(by_separation)]


def _ranks(scores: Sequence[float]) -> list[float]:
    values = np.array(scores)
    return [float((values > value).sum() + ((values == value).sum() + 1) / 2) for value in values]
