"""Answers that a language model gave earlier, or a person by hand, replayed from one JSON file.

    {"model": "llama-3.1-8b", "answers": {
        "pill bottle": {"pairs": [
            {"trait": "surface", "good": "a smooth clear wall", "faulty": "a dark stain on it",
             "good_log_prob": -1.2, "faulty_log_prob": -2.1}]},
        "M4 screw": "... the raw text of an answer ..."}}

An answer is read exactly as one that comes from a model now (`zsad.prompts.writers.request.parse`), so a bad one makes
its product fall back. Log-probabilities may be left out. Products are compared as prompts name them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from zsad.errors import ConfigError, ErrorCode, ImageError, StorageError
from zsad.prompts.bank import file_at
from zsad.prompts.names import object_name, one_line
from zsad.prompts.writers.base import Draft, DraftPhrase, WriteRequest
from zsad.prompts.writers.request import SIDES, BadAnswer, parse

MAX_BYTES = 64 * 2**20
_LEAST_LOG_PROB = -1e6


class RecordedWriter:
    """Recorded answers as a `Writer`; made by `read_recording`."""

    name = "recorded"

    def __init__(self, answers: Mapping[str, Any], *, model: str, revision: str) -> None:
        self.model = model
        self.revision = revision
        self._answers = answers

    def write(self, requests: Sequence[WriteRequest]) -> Iterator[Draft]:
        """See `Writer.write`."""
        for request in requests:
            try:
                phrases = self._phrases(request)
            except BadAnswer as error:
                yield Draft(request=request, phrases=(), model=self.model, revision=self.revision, failure=str(error))
            else:
                yield Draft(request=request, phrases=phrases, model=self.model, revision=self.revision)

    def _phrases(self, request: WriteRequest) -> tuple[DraftPhrase, ...]:
        name = object_name(request.product)
        if name not in self._answers:
            raise BadAnswer("the recording has no answer for this product")
        answer = self._answers[name]
        if isinstance(answer, str):
            return tuple(DraftPhrase(text=text, side=side) for text, side in parse(answer, request))
        found = parse(json.dumps(answer), request)
        scored = zip(found, _log_probs(answer["pairs"]), strict=True)
        return tuple(DraftPhrase(text=text, side=side, log_prob=log_prob) for (text, side), log_prob in scored)


def read_recording(url: str) -> RecordedWriter:
    """The recording in the file at `url`.

    Raises:
        ConfigError: if there is no such file, it is too large, or it is no recording.
        StorageError: if storage fails.
    """
    store, key = file_at(url)
    try:
        data = store.get(key, max_bytes=MAX_BYTES)
        stored = json.loads(data)
    except StorageError as error:
        if error.code != ErrorCode.MISSING:
            raise
        raise ConfigError(f"recording {url}: there is no such file") from error
    except ImageError as error:  # the storage's own word for an object that is too large
        raise ConfigError(f"recording {url}: larger than {MAX_BYTES:,} bytes") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"recording {url}: not JSON ({type(error).__name__})") from error
    answers = stored.get("answers") if isinstance(stored, dict) else None
    if not isinstance(answers, dict):
        raise ConfigError(f'recording {url}: it must be an object with "answers", an object of products')
    model = one_line(str(stored.get("model", "recorded")), 200) or "recorded"
    named = {object_name(product): answer for product, answer in answers.items()}
    return RecordedWriter(named, model=model, revision=f"sha256:{sha256(data).hexdigest()[:16]}")


def _log_probs(pairs: Sequence[Mapping[str, Any]]) -> Iterator[float | None]:
    """Log-probabilities of the phrases, in `parse`'s order; None where there is none."""
    keys = {"normal": "good_log_prob", "abnormal": "faulty_log_prob"}
    for place, pair in enumerate(pairs, start=1):
        for side in SIDES:
            value = pair.get(keys[side])
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and _LEAST_LOG_PROB <= value <= 0):
                raise BadAnswer(f"pair {place}: {keys[side]} is {ascii(value)[:40]}; it must be a number up to 0")
            yield None if value is None else float(value)
