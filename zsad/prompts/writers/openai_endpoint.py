"""Phrases from any server that speaks OpenAI's chat API: a vLLM server, Ray Serve LLM, or a service.

REF is `openai:MODEL@BASE_URL`, such as `openai:llama-3.1-8b@http://gpu7:8000/v1`; the key comes from OPENAI_API_KEY and
is never shown or stored. Time-outs and retries are the library's; several products are asked for at once, and answers
come back in the order of the requests. Where the server tells log-probabilities, a phrase gets the mean of its tokens'.

An answer is a stranger's text: it may be prose, half a JSON, or endless. Whatever is wrong with it costs its product
only. A server that fails for 16 products in a row is not asked any more, so that a dead one costs minutes, not hours.

Cost: one request a product, at most about 100 tokens a pair.
"""

import json
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from zsad.errors import ConfigError
from zsad.prompts.names import one_line
from zsad.prompts.writers.base import Draft, DraftPhrase, WriteRequest
from zsad.prompts.writers.request import BadAnswer, messages, parse, schema

MAX_RETRIES = 2
GIVE_UP_AFTER = 16
_TOKENS_PER_PAIR = 100
_OPTIONAL = ("logprobs", "seed", "temperature")
"""Parameters that some servers refuse, and that an answer can do without."""

_REF = re.compile(r"openai:(?P<model>[^@\s]{1,200})@(?P<url>https?://[^@\s]+)")


class OpenAIWriter:
    """An OpenAI-compatible endpoint as a `Writer`.

    Args:
        ref: `openai:MODEL@BASE_URL`.
        timeout_s: of one try.
        num_parallel: products asked for at once.

    Raises:
        ConfigError: if the reference can't be used.
    """

    name = "openai"

    def __init__(self, ref: str, *, timeout_s: float = 60.0, num_parallel: int = 8) -> None:
        found = _REF.fullmatch(ref)
        if found is None:
            raise ConfigError(f"--llm {ref[:100]!a}: write openai:MODEL@BASE_URL with an http(s) address without user")
        self.model = found["model"]
        self.revision = one_line(f"at {found['url'].partition('?')[0]}", 200)  # a query may hold a key
        self._num_parallel = num_parallel
        self._timeout_s = timeout_s
        self._left_out: frozenset[str] = frozenset()
        self._failures_in_a_row = 0
        key = os.environ.get("OPENAI_API_KEY") or "none"  # a server of one's own asks for none
        self._client = openai.OpenAI(base_url=found["url"], api_key=key, timeout=timeout_s, max_retries=MAX_RETRIES)

    def write(self, requests: Sequence[WriteRequest]) -> Iterator[Draft]:
        """See `Writer.write`."""
        pool = ThreadPoolExecutor(self._num_parallel)
        pending: deque[Future[Draft]] = deque()
        try:
            for request in requests:
                pending.append(pool.submit(self._draft, request))
                if len(pending) > 2 * self._num_parallel:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _draft(self, request: WriteRequest) -> Draft:
        try:
            phrases = self._asked(request)
        except BadAnswer as error:
            failure = str(error)
        else:
            return Draft(request=request, phrases=phrases, model=self.model, revision=self.revision)
        return Draft(request=request, phrases=(), model=self.model, revision=self.revision, failure=failure)

    def _asked(self, request: WriteRequest) -> tuple[DraftPhrase, ...]:
        if self._failures_in_a_row >= GIVE_UP_AFTER:
            raise BadAnswer(f"not asked: the endpoint had failed for {GIVE_UP_AFTER} products in a row")
        try:
            completion = self._complete(request)
        except openai.OpenAIError as error:
            self._failures_in_a_row += 1
            raise BadAnswer(_told(error, self._timeout_s)) from error
        except ValueError as error:  # a body that is not the JSON it claims to be
            self._failures_in_a_row += 1
            raise BadAnswer("the endpoint's reply is not JSON") from error
        self._failures_in_a_row = 0
        text, log_probs = _content(completion)
        found = parse(text, request)
        scored = zip(found, _phrase_log_probs(text, [look for look, _ in found], log_probs), strict=True)
        return tuple(DraftPhrase(text=look, side=side, log_prob=log_prob) for (look, side), log_prob in scored)

    def _complete(self, request: WriteRequest) -> Any:
        """The completion, asked for again without a parameter that the server refuses by name."""
        for _ in _OPTIONAL:
            try:
                return self._client.chat.completions.create(**self._parameters(request))
            except openai.BadRequestError as error:
                refused = {name for name in _OPTIONAL if name in str(error)} - self._left_out
                if not refused:
                    raise
                self._left_out |= refused
        return self._client.chat.completions.create(**self._parameters(request))

    def _parameters(self, request: WriteRequest) -> dict[str, Any]:
        optional = {"logprobs": True, "seed": request.seed, "temperature": 0.0}
        answer = {"name": "phrases", "schema": schema(request), "strict": True}
        return {
            "model": self.model,
            "messages": messages(request),
            "max_tokens": _TOKENS_PER_PAIR * (request.num_pairs + 1),
            "response_format": {"type": "json_schema", "json_schema": answer},
            **{name: value for name, value in optional.items() if name not in self._left_out},
        }


def _told(error: openai.OpenAIError, timeout_s: float) -> str:
    """What went wrong, without the server's own text beyond its first words."""
    if isinstance(error, openai.APITimeoutError):
        return f"no answer within {timeout_s:g} s, {MAX_RETRIES + 1} times"
    if isinstance(error, openai.APIStatusError):
        return f"the endpoint answered {error.status_code}: {one_line(error.message, 100)}"
    return f"the endpoint can't be used ({type(error).__name__}: {one_line(str(error), 100)})"


def _content(completion: Any) -> tuple[str, Sequence[Any]]:
    """The answer's text and its tokens' log-probabilities, if any.

    Raises:
        BadAnswer: if it has none, was cut off, or the reply is no completion.
    """
    choices = completion.choices if isinstance(completion, ChatCompletion) else None
    if not choices:
        raise BadAnswer("the endpoint's reply is no chat completion")
    message = getattr(choices[0], "message", None)
    text = getattr(message, "content", None)
    if not isinstance(text, str):
        raise BadAnswer("the model gave no text")
    if choices[0].finish_reason == "length":
        raise BadAnswer(f"the answer was cut off at its limit of tokens: {text[:40]!a}")
    logprobs = getattr(choices[0], "logprobs", None)
    return text, getattr(logprobs, "content", None) or ()


def _phrase_log_probs(text: str, looks: Sequence[str], tokens: Sequence[Any]) -> tuple[float | None, ...]:
    """Mean log-probability of the tokens that touch each phrase; None where tokens and text do not match.

    Args:
        text: of the answer.
        looks: its phrases, in its order.
        tokens: with `token` and `logprob`.
    """
    ends, end = [], 0
    for token in tokens:
        end += len(token.token)
        ends.append(end)
    if "".join(token.token for token in tokens) != text:
        return (None,) * len(looks)
    found: list[float | None] = []
    position = 0
    for look in looks:
        start = text.find(json.dumps(look, ensure_ascii=False)[1:-1], position)
        if start < 0:
            found.append(None)
            continue
        position = start + len(look)
        touched = [
            min(0.0, token.logprob)
            for token, stop in zip(tokens, ends, strict=True)
            if stop > start and stop - len(token.token) < position
        ]
        found.append(sum(touched) / len(touched))
    return tuple(found)
