"""A vLLM model as an engine of drafts: structured answers and prompt log-probabilities, in one process.

Runs in the language model's own environment, since vLLM pins its own torch; there it needs vLLM beside the standard
library. Weights are read as safetensors only, and no code that comes with a model is run. Answers are decoded at
temperature 0 under the question's JSON schema by xgrammar, with white space between items switched off for the whole
engine: a weak model would otherwise write blanks until the limit. The prefix cache is off, so that a second run takes
the same steps as the first and gives the same bits.

The score of a phrase is read from `prompt_logprobs`: one forward pass over the text, no sampling.

Cost: on a CPU about 20 s to import and start, 1.7 GB of memory with a tiny model; a step is one forward pass.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zsad.errors import ConfigError, ModelError
from zsad.prompts.writers.base import WriteRequest
from zsad.prompts.writers.drafting import Answer, Score
from zsad.prompts.writers.request import BadAnswer, messages, schema

TOKENS_PER_PAIR = 256
HASHED_SUFFIXES = {".json", ".safetensors", ".model", ".jinja", ".txt"}
GPU_MEMORY_SHARE = 0.9
"""Of the share of a GPU that a model takes; the rest is for what vLLM does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How the model is loaded.

    Attributes:
        model: a folder, or a name that vLLM can fetch.
        revision: of a model that is fetched; of a folder, what `folder_revision` says.
        num_gpus: 0 for the CPU; a share of one GPU and of its memory, or several that hold the model together.
        max_context: tokens of a question and its answer; 0 for what the model allows.
        max_num_seqs: requests in one step.
        kv_cache_gib: memory for attention keys and values, on the CPU only.

    Raises:
        ConfigError: if a value can't be used.
    """

    model: str
    revision: str
    num_gpus: float = 0.0
    max_context: int = 0
    max_num_seqs: int = 64
    kv_cache_gib: int = 1

    def __post_init__(self) -> None:
        if not self.model or not self.revision:
            raise ConfigError("a language model needs a name or folder, and a revision: what it wrote is kept by them")
        if self.num_gpus < 0 or (self.num_gpus > 1 and self.num_gpus != int(self.num_gpus)):
            raise ConfigError(f"num_gpus is {self.num_gpus}; it must be 0, a share of one GPU, or a whole number")
        if self.max_context < 0 or self.max_num_seqs < 1 or self.kv_cache_gib < 1:
            raise ConfigError(
                f"max_context is {self.max_context}, max_num_seqs {self.max_num_seqs} and kv_cache_gib "
                f"{self.kv_cache_gib}; they must be at least 0, 1 and 1"
            )


def folder_revision(folder: str) -> str:
    """Hash of a model's folder: names and contents of its configuration, tokenizer and weights; about 1 s per GB.

    Raises:
        ModelError: if there is no folder with safetensors weights.
    """
    files = sorted(path for path in Path(folder).glob("*") if path.suffix in HASHED_SUFFIXES)
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelError(
            f"{folder} holds no safetensors weights; give the folder of a language model, or state its revision"
        )
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as opened:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def environment(config: EngineConfig) -> dict[str, str]:
    """Variables that vLLM reads when it is imported: one process, no reports home, and on the CPU no compiler."""
    variables = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if Path(config.model).is_dir():
        variables["HF_HUB_OFFLINE"] = "1"
    if not config.num_gpus:
        variables |= {
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # oneDNN keeps a compiled product for each number of tokens that a step ever had, up to 1,024 of them.
            "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
            "LRU_CACHE_CAPACITY": "32",
        }
    return variables


class VllmEngine:
    """A loaded model; see `zsad.prompts.writers.drafting.Engine`."""

    def __init__(self, config: EngineConfig) -> None:
        from vllm import LLM  # type: ignore[import-not-found]  # in the language model's environment only

        self.num_slots = config.max_num_seqs
        self._llm = LLM(**engine_arguments(config))
        self._tokenizer = self._llm.get_tokenizer()
        self._context: int = self._llm.model_config.max_model_len
        self._lengths: dict[tuple[int, int], int] = {}  # of a scored text's unscored beginning, in tokens

    @property
    def num_open(self) -> int:
        """Requests that are not finished."""
        return int(self._llm.llm_engine.get_num_unfinished_requests())

    def ask(self, place: int, request: WriteRequest) -> None:
        """Take a question in.

        Raises:
            BadAnswer: if it leaves no room for an answer in the model's context, the product has no name to show, or
                the model's chat template refuses the question.
        """
        from vllm.sampling_params import SamplingParams, StructuredOutputsParams  # type: ignore[import-not-found]

        ids = question_ids(self._tokenizer, request)
        room = self._context - len(ids)
        if room < 1:
            raise BadAnswer(f"the question takes {len(ids):,} tokens; the model's context is {self._context:,}")
        parameters = SamplingParams(
            max_tokens=min(room, TOKENS_PER_PAIR * request.num_pairs),
            temperature=0,
            seed=request.seed,
            structured_outputs=StructuredOutputsParams(json=schema(request)),
        )
        self._add(f"{place}", ids, parameters)

    def score(self, place: int, index: int, before: str, text: str) -> None:
        """Take in a text whose tokens beyond those that it shares with `before` are to be scored.

        Raises:
            BadAnswer: if it does not fit the model's context.
        """
        from vllm.sampling_params import SamplingParams

        ids, num_before = scored_ids(self._tokenizer, before, text)
        if len(ids) >= self._context:
            raise BadAnswer(f"a phrase takes {len(ids):,} tokens; the model's context is {self._context:,}")
        self._lengths[place, index] = num_before
        self._add(f"{place} {index}", ids, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0))

    def step(self) -> Sequence[Answer | Score]:
        """One forward pass over the open requests; gives what finished in it."""
        return [self._result(output) for output in self._llm.llm_engine.step() if output.finished]

    def _add(self, name: str, ids: list[int], parameters: Any) -> None:
        from vllm.sampling_params import RequestOutputKind

        parameters.output_kind = RequestOutputKind.FINAL_ONLY
        engine = self._llm.llm_engine
        (prompt,) = engine.renderer.render_cmpl([{"prompt_token_ids": ids}])
        engine.add_request(name, prompt, parameters)

    def _result(self, output: Any) -> Answer | Score:
        place, _, index = output.request_id.partition(" ")
        if not index:
            done = output.outputs[0]
            is_complete = done.finish_reason == "stop"
            return Answer(place=int(place), text=done.text, is_complete=is_complete, num_tokens=len(done.token_ids))
        num_before = self._lengths.pop((int(place), int(index)))
        pairs = list(zip(output.prompt_token_ids, output.prompt_logprobs, strict=True))[num_before:]
        log_prob = sum(row[token].logprob for token, row in pairs) / len(pairs)
        return Score(place=int(place), index=int(index), log_prob=log_prob)


def question_ids(tokenizer: Any, request: WriteRequest) -> list[int]:
    """Tokens of the question, by the model's chat template if it has one.

    Raises:
        BadAnswer: if the product has no name to show, or the template refuses the question also without a system role.
    """
    chat = messages(request)
    system, user = (message["content"] for message in chat)
    as_one = f"{system}\n\n{user}"
    if not getattr(tokenizer, "chat_template", None):
        return list(tokenizer.encode(f"{as_one}\n\n"))
    try:
        return _templated(tokenizer, chat)
    except Exception:  # noqa: BLE001 - Gemma 2 and early Mistral refuse a system role, by errors of their own
        chat = [{"role": "user", "content": as_one}]
    try:
        return _templated(tokenizer, chat)
    except Exception as error:
        raise BadAnswer(f"the model's chat template refuses the question: {error!r}"[:200]) from error


def _templated(tokenizer: Any, chat: Sequence[dict[str, str]]) -> list[int]:
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


def scored_ids(tokenizer: Any, before: str, text: str) -> tuple[list[int], int]:
    """Tokens of `text`, and how many of them, at least one, also begin `before`.

    A tokenizer may join the last letters of `before` with what follows; such a token counts as the phrase's.
    """
    ids, start = list(tokenizer.encode(text)), list(tokenizer.encode(before))
    num_before = next(
        (i for i, (a, b) in enumerate(zip(ids, start, strict=False)) if a != b), min(len(ids), len(start))
    )
    return ids, max(1, min(num_before, len(ids) - 1))


def engine_arguments(config: EngineConfig) -> dict[str, Any]:
    """What `vllm.LLM` is called with."""
    chosen = {
        "model": config.model,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "max_num_seqs": config.max_num_seqs,
        "enable_prefix_caching": False,
        "seed": 0,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if config.max_context:
        chosen["max_model_len"] = config.max_context
    if not Path(config.model).is_dir():
        chosen["revision"] = config.revision
    if not config.num_gpus:
        return chosen | {"dtype": "float32", "enforce_eager": True}  # left to itself it takes bfloat16
    if config.num_gpus < 1:  # others have the rest of the GPU; vLLM would take nearly all of it
        chosen["gpu_memory_utilization"] = GPU_MEMORY_SHARE * config.num_gpus
    return chosen | {"tensor_parallel_size": max(1, int(config.num_gpus))}
