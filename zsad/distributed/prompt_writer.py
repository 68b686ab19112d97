"""Language models in Ray actors, each in an environment of its own, kept full of products.

An actor loads its model once. The driver keeps up to `max_in_flight` products in it and, whenever some are finished,
sends as many new ones, so that answers and scores of all of them share the engine's steps. What finishes and when
depends on the engine's steps alone: with one actor, equal calls give equal bits.

An actor that dies, fails or finishes nothing for `timeout_s` is replaced, up to `max_restarts` times. The products
that it held are tried once more, one at a time; a product that fails again gets a draft that says why, and so does
every product when no actor is left. `write` therefore always gives one draft per product, in order.

The model's environment is an interpreter on the worker's disk (`python`), or a worker group whose image holds vLLM,
chosen by a custom resource (`resources`). Ray and Python must be of the driver's versions in it, and zsad installed.

Cost: one Ray call per eighth of the products in flight, a few KB each.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray

from zsad.errors import ConfigError
from zsad.prompts.writers.backlog import Backlog
from zsad.prompts.writers.base import Draft, WriteRequest
from zsad.prompts.writers.drafting import Drafter, Engine
from zsad.prompts.writers.vllm_engine import EngineConfig, VllmEngine, environment, folder_revision

MAX_TOLD_CHARS = 300
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorConfig:
    """Where and how many actors run.

    Attributes:
        python: interpreter of the model's environment on every worker; empty for the workers' own.
        resources: custom resources that an actor takes, such as {"llm": 1}.
        num_actors: models loaded at a time.
        num_cpus: logical CPUs of an actor.
        num_gpus: GPUs of an actor.
        max_in_flight: products in an actor at a time.
        start_timeout_s: to place an actor and load its model.
        timeout_s: without a finished product.
        max_restarts: new actors in place of one that failed.

    Raises:
        ConfigError: if a value can't be used.
    """

    python: str = ""
    resources: Mapping[str, float] = field(default_factory=dict)
    num_actors: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    max_in_flight: int = 64
    start_timeout_s: float = 900.0
    timeout_s: float = 600.0
    max_restarts: int = 3

    def __post_init__(self) -> None:
        for name, least in (("num_actors", 1), ("max_in_flight", 1), ("max_restarts", 0), ("num_cpus", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.start_timeout_s <= 0 or self.timeout_s <= 0:
            raise ConfigError(
                f"start_timeout_s is {self.start_timeout_s} and timeout_s {self.timeout_s}; both must be above 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What an actor reports with the drafts that it finished.

    Attributes:
        drafts: place and draft of each.
        steps, slots_used, tokens: of the engine since the last report; see `drafting.Work`.
        num_slots: of the engine.
        memory_bytes: resident memory of the actor's process.
    """

    drafts: tuple[tuple[int, Draft], ...]
    steps: int
    slots_used: int
    tokens: int
    num_slots: int
    memory_bytes: int


@dataclass(slots=True)
class Tally:
    """Counts over all actors of a writer.

    Attributes:
        loads: models loaded, restarts included.
        products: drafts finished by an actor.
        steps, slots_used, slots, tokens: of the engines; occupancy is `slots_used / slots`.
        memory_bytes: resident memory of an actor at every report.
        seconds: spent in `write`, loading and the caller's work between drafts included.
    """

    loads: int = 0
    products: int = 0
    steps: int = 0
    slots_used: int = 0
    slots: int = 0
    tokens: int = 0
    memory_bytes: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, progress: Progress) -> None:
        """Count a report."""
        self.products += len(progress.drafts)
        self.steps += progress.steps
        self.slots_used += progress.slots_used
        self.slots += progress.steps * progress.num_slots
        self.tokens += progress.tokens
        self.memory_bytes.append(progress.memory_bytes)

    def told(self) -> str:
        """One line for the log."""
        rate = self.products / self.seconds if self.seconds else 0.0
        share = self.slots_used / self.slots if self.slots else 0.0
        return (
            f"{self.products:,} products by the language model in {self.seconds:,.0f} s, {rate:.2f} products/s; "
            f"models loaded: {self.loads:,}; {self.steps:,} engine steps with {share:.0%} of the slots in use; "
            f"{self.tokens:,} tokens written"
        )


@ray.remote
class PromptActor:
    """One engine in a process of its own."""

    def __init__(self, make_engine: Callable[[], Engine], model: str, revision: str) -> None:
        self._engine = make_engine()
        self._drafter = Drafter(self._engine, model, revision)

    def ready(self) -> int:
        """The process's id, once the model is loaded."""
        return os.getpid()

    def advance(self, new: Sequence[tuple[int, WriteRequest]]) -> Progress:
        """Take new products in, and work until an eighth of all in work is finished."""
        for place, request in new:
            self._drafter.add(place, request)
        wanted = max(1, self._drafter.num_open // 8)
        before, done = self._drafter.work.copy(), list[tuple[int, Draft]]()
        while len(done) < wanted:
            done += self._drafter.step()
        after = self._drafter.work
        return Progress(
            drafts=tuple(done),
            steps=after.steps - before.steps,
            slots_used=after.slots_used - before.slots_used,
            tokens=after.tokens - before.tokens,
            num_slots=self._engine.num_slots,
            memory_bytes=_resident_bytes(),
        )


class ActorWriter:
    """A writer whose engines run in Ray actors; see `zsad.prompts.writers.base.Writer`.

    Actors start with the first product and stay until `close`. Use it as a context manager.

    Args:
        make_engine: called in every actor.
        name: kind of writer.
        model: who writes.
        revision: which state of it.
        config: of the actors.
        variables: environment variables of the actors' processes.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        name: str,
        model: str,
        revision: str,
        config: ActorConfig,
        variables: Mapping[str, str],
    ) -> None:
        self.name, self.model, self.revision = name, model, revision
        self.tally = Tally()
        self._config = config
        self._start = partial(_start_actor, make_engine, model, revision, config, dict(variables))
        self._lanes: list[_Lane] = []

    def __enter__(self) -> "ActorWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors; a later `write` starts new ones."""
        for lane in self._lanes:
            ray.kill(lane.actor)
        self._lanes = []

    def write(self, requests: Sequence[WriteRequest]) -> Iterator[Draft]:
        """One draft per request, in their order, while later ones are still written."""
        window = 2 * self._config.num_actors * self._config.max_in_flight
        backlog = Backlog(requests, self.model, self.revision, window)
        began = time.monotonic()
        try:
            while not backlog.is_done:
                self._advance(backlog)
                yield from backlog.pop()
        except BaseException:  # the caller went away, or an error of ours: what is in work would reach the next call
            self.close()
            raise
        finally:
            self.tally.seconds += time.monotonic() - began

    def _advance(self, backlog: Backlog) -> None:
        """Fill idle actors, and wait until one of them has something to say."""
        if not self._lanes:
            self._lanes = [_Lane(self._start, self._config) for _ in range(self._config.num_actors)]
        for lane in self._lanes:
            lane.fill(backlog)
        busy = {lane.call: lane for lane in self._lanes if lane.call is not None}
        if not busy:
            reasons = "; ".join(sorted({lane.lost for lane in self._lanes}))
            self.close()
            backlog.abandon(f"no language model is left: {reasons}")
            return
        patience = max(0.0, min(lane.deadline for lane in busy.values()) - time.monotonic())
        ready, _ = ray.wait(list(busy), timeout=patience)
        for call in ready:
            busy[call].hear(backlog, self.tally)
        for lane in busy.values():
            lane.check_deadline(backlog)


class _Lane:
    """One model as the driver sees it: starting, idle, in a call, or lost. A model that fails starts as a new actor."""

    def __init__(self, start: Callable[[], Any], config: ActorConfig) -> None:
        self.lost = ""  # why it is out of use
        self.call: Any = None
        self.deadline = 0.0
        self._start = start
        self._config = config
        self._restarts_left = config.max_restarts
        self._open: set[int] = set()
        self._is_starting = False
        self._begin()

    def fill(self, backlog: Backlog) -> None:
        """If it is idle, give it new products or let it go on."""
        if self.call is not None or self.lost:
            return
        new = backlog.take(len(self._open), self._config.max_in_flight)
        self._open |= {place for place, _ in new}
        if self._open:
            self._expect(self.actor.advance.remote(new), self._config.timeout_s)

    def hear(self, backlog: Backlog, tally: Tally) -> None:
        """Its call ended."""
        call, self.call = self.call, None
        try:
            answer = ray.get(call)
        except ray.exceptions.RayError as error:
            log.info("What Ray says of it: %s", error)
            self._fail(backlog, _told(error))
            return
        if self._is_starting:
            self._is_starting = False
            tally.loads += 1
            return
        tally.add(answer)
        for place, draft in answer.drafts:
            self._open.discard(place)
            backlog.finish(place, draft)

    def check_deadline(self, backlog: Backlog) -> None:
        """Give its call up if it took too long."""
        if self.call is not None and time.monotonic() >= self.deadline:
            self.call = None
            limit = self._config.start_timeout_s if self._is_starting else self._config.timeout_s
            self._fail(backlog, f"the language model gave nothing for {limit:g} s")

    def _fail(self, backlog: Backlog, reason: str) -> None:
        log.warning("A language model failed with %d products in work: %s", len(self._open), reason)
        ray.kill(self.actor)
        backlog.lose(sorted(self._open), reason)
        self._open.clear()
        if self._is_starting or not self._restarts_left:  # a model that does not load would not load again
            self.lost = reason
            return
        self._restarts_left -= 1
        self._begin()

    def _begin(self) -> None:
        self.actor = self._start()
        self._is_starting = True
        self._expect(self.actor.ready.remote(), self._config.start_timeout_s)

    def _expect(self, call: Any, patience_s: float) -> None:
        self.call, self.deadline = call, time.monotonic() + patience_s


def vllm_writer(
    model: str, *, revision: str = "", config: ActorConfig | None = None, max_context: int = 0, kv_cache_gib: int = 1
) -> ActorWriter:
    """A writer over vLLM.

    Args:
        model: a folder that the workers see, or a name that vLLM can fetch.
        revision: of the model; may be left out for a folder that this process sees too, whose files are then hashed.
        config: of the actors; its GPUs are the model's.
        max_context: tokens of a question and its answer; 0 for what the model allows.
        kv_cache_gib: memory for attention keys and values, on the CPU only.

    Raises:
        ConfigError: if a value can't be used.
        ModelError: if there is no revision and no folder to hash.
    """
    config = config or ActorConfig()
    is_folder = Path(model).is_dir()
    engine = EngineConfig(
        model=str(Path(model).resolve()) if is_folder else model,
        revision=revision or folder_revision(model),
        num_gpus=config.num_gpus,
        max_context=max_context,
        max_num_seqs=config.max_in_flight,
        kv_cache_gib=kv_cache_gib,
    )
    return ActorWriter(
        partial(VllmEngine, engine),
        name="vllm",
        model=Path(model).name if is_folder else model,
        revision=engine.revision,
        config=config,
        variables=environment(engine),
    )


def _start_actor(
    make_engine: Callable[[], Engine], model: str, revision: str, config: ActorConfig, variables: dict[str, str]
) -> Any:
    runtime_env: dict[str, Any] = {"env_vars": variables}
    if config.python:
        runtime_env["py_executable"] = str(Path(config.python).absolute())  # a link in a venv must stay one
    return PromptActor.options(
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        resources=dict(config.resources),
        max_restarts=0,  # the driver starts new ones: it knows which products were lost, and counts
        max_task_retries=0,
        runtime_env=runtime_env,
    ).remote(make_engine, model, revision)


def _told(error: BaseException) -> str:
    """What happened in an actor, in one sentence that is the same on every machine."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return f"the language model raised {type(cause).__name__}: {str(cause)[:MAX_TOLD_CHARS]}"
    if getattr(error, "actor_init_failed", False):
        return f"the language model did not load: {str(error).strip().splitlines()[-1][:MAX_TOLD_CHARS]}"
    return "the language model's process ended, or its machine can't be reached"


def _resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
