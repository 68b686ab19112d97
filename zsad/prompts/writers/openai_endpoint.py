"""Phrases from any server that speaks OpenAI's chat API: a vLLM server, Ray Serve LLM, or a service.

REF is `openai:MODEL@BASE_URL`, such as `openai:llama-3.1-8b@http://gpu7:8000/v1`; the key comes from OPENAI_API_KEY and
is never shown or stored. Retries are the library's; several products are asked for at once, in an event loop in a
thread of its own, and answers come back in the order of the requests. Where the server tells log-probabilities, a
phrase gets the mean of its tokens'.

A reply is a stranger's text: it may be prose, half a JSON, endless, or come a byte at a time. Whatever is wrong with it
costs its product only, and each product has a deadline for all its tries. A server that fails for 16 products in a row
is not asked any more, so that a dead one costs minutes, not hours.

Cost: one request a product, at most about 100 tokens a pair; of a reply at most 4 MiB are read.
"""

import asyncio
import json
import logging
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import Any

import openai

from zsad.errors import ConfigError
from zsad.prompts.names import one_line
from zsad.prompts.writers.base import Draft, DraftPhrase, WriteRequest
from zsad.prompts.writers.request import BadAnswer, draft_phrases, messages, parse, schema

log = logging.getLogger(__name__)

MAX_RETRIES = 2
GIVE_UP_AFTER = 16
MAX_REPLY_BYTES = 4 * 2**20
_PAUSE_S = 1.0
"""For the library's pause before a retry."""

_TOKENS_PER_PAIR = 100
_MAX_LOG_PROB = 1e6
"""No token is as unlikely; a bank could not hold much more."""

_OPTIONAL = ("logprobs", "seed", "temperature")
"""Parameters that some servers refuse, and that an answer can do without."""

_REF = re.compile(r"openai:(?P<model>[^@\s]{1,200})@(?P<url>https?://[^@\s]+)")


class OpenAIWriter:
    """An OpenAI-compatible endpoint as a `Writer`.

    Args:
        ref: `openai:MODEL@BASE_URL`.
        timeout_s: longest silence of the server in a try; a product's tries together may take three times this and 3 s.
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
        self._url = found["url"]
        self._num_parallel = num_parallel
        self._timeout_s = timeout_s
        self._deadline_s = (MAX_RETRIES + 1) * (timeout_s + _PAUSE_S)
        self._left_out: frozenset[str] = frozenset()
        self._failures_in_a_row = 0

    def write(self, requests: Sequence[WriteRequest]) -> Iterator[Draft]:
        """See `Writer.write`."""
        pending: deque[Future[Draft]] = deque()
        slots = asyncio.Semaphore(self._num_parallel)
        with _in_a_thread(self._client()) as (client, loop):
            try:
                for request in requests:
                    pending.append(asyncio.run_coroutine_threadsafe(self._draft(client, slots, request), loop))
                    if len(pending) > 2 * self._num_parallel:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:  # what is left when the caller goes away
                for future in pending:
                    future.cancel()

    def _client(self) -> openai.AsyncOpenAI:
        key = os.environ.get("OPENAI_API_KEY") or "none"  # a server of one's own asks for none
        return openai.AsyncOpenAI(base_url=self._url, api_key=key, timeout=self._timeout_s, max_retries=MAX_RETRIES)

    async def _draft(self, client: openai.AsyncOpenAI, slots: asyncio.Semaphore, request: WriteRequest) -> Draft:
        async with slots:
            try:
                phrases = await self._asked(client, request)
            except BadAnswer as error:
                failure = str(error)
            except Exception as error:  # a stranger's reply must not end the work on other products
                log.warning("The reply for %a broke what reads it", request.product[:60], exc_info=True)
                failure = f"the endpoint's reply broke what reads it ({type(error).__name__})"
            else:
                return Draft(request=request, phrases=phrases, model=self.model, revision=self.revision)
        return Draft(request=request, phrases=(), model=self.model, revision=self.revision, failure=failure)

    async def _asked(self, client: openai.AsyncOpenAI, request: WriteRequest) -> tuple[DraftPhrase, ...]:
        if self._failures_in_a_row >= GIVE_UP_AFTER:
            raise BadAnswer(f"not asked: the endpoint had failed for {GIVE_UP_AFTER} products in a row")
        try:
            async with asyncio.timeout(self._deadline_s):
                reply = await self._reply(client, request)
        except BadAnswer:
            raise
        except Exception as error:
            self._failures_in_a_row += 1
            raise BadAnswer(self._told(error)) from error
        self._failures_in_a_row = 0
        text, tokens = _content(reply)
        looks = parse(text, request)
        return draft_phrases(looks, _phrase_log_probs(text, [look for look, _ in looks], tokens))

    async def _reply(self, client: openai.AsyncOpenAI, request: WriteRequest) -> Any:
        """The reply's JSON, asked for again without a parameter that the server refuses by name.

        Raises:
            BadAnswer: if the reply is too large, or the product has no name to ask about.
            ValueError: if it is not JSON; RecursionError: if it is nested too deeply.
            Exception: what the library raises.
        """
        for _ in _OPTIONAL:
            asked = self._parameters(request)
            try:
                return json.loads(await _body(client, asked))
            except openai.BadRequestError as error:
                refused = {name for name in _OPTIONAL if name in asked and name in str(error)}
                if not refused:
                    raise
                self._left_out |= refused
        return json.loads(await _body(client, self._parameters(request)))

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

    def _told(self, error: Exception) -> str:
        """What went wrong, without the server's own text beyond its first words."""
        if isinstance(error, openai.APITimeoutError):
            return f"no answer within {self._timeout_s:g} s, {MAX_RETRIES + 1} times"
        if isinstance(error, TimeoutError):
            return f"no whole answer within {self._deadline_s:g} s"
        if isinstance(error, openai.APIStatusError):
            return f"the endpoint answered {error.status_code}: {one_line(error.message, 100)}"
        if isinstance(error, openai.OpenAIError):
            return f"the endpoint can't be used ({type(error).__name__}: {one_line(str(error), 100)})"
        if isinstance(error, ValueError | RecursionError):
            return "the endpoint's reply is not JSON, or nested too deeply"
        return f"the endpoint's reply broke off ({type(error).__name__})"


@contextmanager
def _in_a_thread(client: openai.AsyncOpenAI) -> Iterator[tuple[openai.AsyncOpenAI, asyncio.AbstractEventLoop]]:
    """The client and the running event loop that it lives in; at the end whatever runs there is cancelled."""
    running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def live() -> None:
        end = asyncio.Event()
        async with client:
            running.set_result((asyncio.get_running_loop(), end))
            await end.wait()

    thread = Thread(target=lambda: asyncio.run(live()), name="zsad-openai", daemon=True)
    thread.start()
    loop, end = running.result()
    try:
        yield client, loop
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()


async def _body(client: openai.AsyncOpenAI, asked: dict[str, Any]) -> bytes:
    """A reply's bytes.

    Raises:
        BadAnswer: if there are more than `MAX_REPLY_BYTES`.
        Exception: what the library raises.
    """
    body = bytearray()
    async with client.chat.completions.with_streaming_response.create(**asked) as response:
        async for part in response.iter_bytes():
            body += part
            if len(body) > MAX_REPLY_BYTES:
                raise BadAnswer(f"the endpoint's reply has more than {MAX_REPLY_BYTES:,} bytes")
    return bytes(body)


def _content(reply: Any) -> tuple[str, Any]:
    """The answer's text, and what the reply gives as its tokens' log-probabilities.

    Raises:
        BadAnswer: if it has none, was cut off, or the reply is no completion.
    """
    choice = _at(reply, "choices", 0)
    if not isinstance(choice, dict):
        raise BadAnswer("the endpoint's reply is no chat completion")
    text = _at(choice, "message", "content")
    if not isinstance(text, str):
        raise BadAnswer("the model gave no text")
    if _at(choice, "finish_reason") == "length":
        raise BadAnswer(f"the answer was cut off at its limit of tokens: {text[:40]!a}")
    return text, _at(choice, "logprobs", "content")


def _at(value: Any, *path: str | int) -> Any:
    """What lies at a path in JSON; None where nothing does."""
    for step in path:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _phrase_log_probs(text: str, looks: Sequence[str], told: Any) -> tuple[float | None, ...]:
    """Mean log-probability of the tokens that touch each phrase; None where tokens and text do not match.

    Args:
        text: of the answer.
        looks: its phrases, in its order.
        told: by the server; if all is well a list of objects with `token` and `logprob`.
    """
    tokens = [(_at(token, "token"), _at(token, "logprob")) for token in (told if isinstance(told, list) else ())]
    if not all(isinstance(token, str) for token, _ in tokens) or "".join(token for token, _ in tokens) != text:
        return (None,) * len(looks)
    spans, end = [], 0
    for token, log_prob in tokens:
        spans.append((end, end + len(token), log_prob))
        end += len(token)
    found: list[float | None] = []
    position = 0
    for look in looks:
        start = text.find(json.dumps(look, ensure_ascii=False)[1:-1], position)
        if start < 0:
            found.append(None)
            continue
        position = start + len(look)
        found.append(_mean([log_prob for first, stop, log_prob in spans if stop > start and first < position]))
    return tuple(found)


def _mean(log_probs: Sequence[Any]) -> float | None:
    """Mean of numbers up to 0; None if one is no number, or no log-probability could be that far from 0."""
    total = 0.0
    for value in log_probs:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= _MAX_LOG_PROB:
            return None
        total += min(0.0, value)
    return total / len(log_probs) if log_probs else None
