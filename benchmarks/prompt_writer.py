"""Products per second, memory and occupancy of prompt writing on this machine's CPU.

python benchmarks/prompt_writer.py --model ../shared/llm/stories260K [--products 2000] [--pairs 1] [--slots 64]
.venv-llm/bin/python benchmarks/prompt_writer.py --model ... --products 200 --variant ray-data

`actor` is zsad's own Ray actor. `ray-data` does the same work with two processors of ray.data.llm, one that answers and
one that scores; they must be built where vLLM's packages are, so it is run by the model's own interpreter. Both load
the same model with the same engine settings. The model of the tests is tiny: these rates compare ways of feeding an
engine, and tell nothing of a useful model.

The actor's run fails unless every product has a draft, one model was loaded, and the second half of the run needed at
most 5 % more memory than the first.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from pathlib import Path

import ray

from zsad.distributed.prompt_writer import ActorConfig, vllm_writer
from zsad.prompts.writers.base import WriteRequest
from zsad.prompts.writers.request import BadAnswer, messages, parse, schema, scored_text
from zsad.prompts.writers.vllm_engine import TOKENS_PER_PAIR, EngineConfig, environment, folder_revision

MORE_MEMORY = 1.05


def main() -> None:
    """Measure one variant, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--products", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--variant", choices=("actor", "ray-data"), default="actor")
    parser.add_argument("--python", default=".venv-llm/bin/python")
    arguments = parser.parse_args()
    # Each of the stages of ray.data.llm's pipeline holds a CPU: with two they wait for one another for ever.
    num_cpus = 2 if arguments.variant == "actor" else 6
    ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=256 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    requests = [WriteRequest(product=f"part {i}", num_pairs=arguments.pairs) for i in range(arguments.products)]
    measure = by_actor if arguments.variant == "actor" else by_ray_data
    measure(requests, arguments)


def by_actor(requests: list[WriteRequest], arguments: argparse.Namespace) -> None:
    """Write with zsad's actor."""
    config = ActorConfig(python=arguments.python, max_in_flight=arguments.slots)
    with vllm_writer(arguments.model, config=config) as writer:
        begun = time.monotonic()
        list(writer.write([WriteRequest(product="warm up", num_pairs=arguments.pairs)]))
        loaded = time.monotonic()
        steps, slots, used, tokens = (getattr(writer.tally, n) for n in ("steps", "slots", "slots_used", "tokens"))
        failures = drafts = 0
        for draft in writer.write(requests):
            drafts += 1
            failures += draft.failure is not None
            if drafts % max(1, len(requests) // 10) == 0:
                print(f"{drafts} products, {writer.tally.memory_bytes[-1] / 2**20:.0f} MiB", flush=True)
        seconds, tally = time.monotonic() - loaded, writer.tally
    occupancy = (tally.slots_used - used) / (tally.slots - slots)
    print_rates(len(requests), loaded - begun, seconds)
    print(
        f"{tally.loads} model loaded, {failures} failures, {tally.steps - steps} steps, {tally.tokens - tokens} tokens"
    )
    print(f"{occupancy:.1%} of {arguments.slots} slots in use, {seconds / (tally.steps - steps) * 1e3:.1f} ms a step")
    half = len(tally.memory_bytes) // 2
    first, second = (statistics.median(part) for part in (tally.memory_bytes[:half], tally.memory_bytes[half:]))
    print(f"memory, medians of the halves: {first / 2**20:.0f} and {second / 2**20:.0f} MiB")
    if drafts != len(requests) or tally.loads != 1 or second > MORE_MEMORY * first:
        sys.exit("a draft is missing, a model was loaded again, or memory grew")


def by_ray_data(requests: list[WriteRequest], arguments: argparse.Namespace) -> None:
    """Write with two processors of ray.data.llm, one after the other; their times include the loading."""
    model = str(Path(arguments.model).resolve())
    begun = time.monotonic()
    questions = [
        {"messages": messages(r), "sampling_params": answer_parameters(r), "product": i} for i, r in enumerate(requests)
    ]
    answers = processed(questions, model, arguments.slots, chat=True)
    answered = time.monotonic()
    texts = []
    for row in answers:
        request = requests[row["product"]]
        with contextlib.suppress(BadAnswer):
            looks = parse(row["generated_text"], request)
            texts += [{"prompt": scored_text(request, *look)[1], "product": row["product"]} for look in looks]
    parameters = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    scores = processed([text | {"sampling_params": parameters} for text in texts], model, arguments.slots, chat=False)
    seconds = time.monotonic() - answered
    print(f"answers {answered - begun:.1f} s, {len(scores)} scores {seconds:.1f} s, loading included in both")
    print_rates(len(requests), 0.0, time.monotonic() - begun)


def processed(rows: list[dict], model: str, slots: int, *, chat: bool) -> list[dict]:
    """Rows through one processor of ray.data.llm."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    engine = EngineConfig(model=model, revision=folder_revision(model))
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs={
            "dtype": "float32",
            "enforce_eager": True,
            "load_format": "safetensors",
            "max_num_seqs": slots,
            "enable_prefix_caching": False,
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        },
        runtime_env={"env_vars": environment(engine)},
        placement_group_config={"bundles": [{"CPU": 1}]},
        chat_template_stage={"enabled": chat},
        tokenize_stage={"enabled": False},
        detokenize_stage={"enabled": False},
        batch_size=slots,
        concurrency=1,
        log_engine_metrics=False,
    )
    processor = build_processor(config, postprocess=result)
    return processor(ray.data.from_items(rows)).take_all()


def result(row: dict) -> dict:
    """A finished row: the answer, and the mean log-probability of the prompt where it was asked for."""
    places = [next(iter(place.values())) for place in (row.get("prompt_logprobs") or ()) if place]
    mean = statistics.fmean(place["logprob"] for place in places) if places else None
    return {"product": row["product"], "generated_text": row["generated_text"], "log_prob": mean}


def answer_parameters(request: WriteRequest) -> dict:
    """Sampling parameters of an answer, as plain values."""
    return {
        "max_tokens": TOKENS_PER_PAIR * request.num_pairs,
        "temperature": 0,
        "seed": request.seed,
        "structured_outputs": {"json": json.dumps(schema(request))},
    }


def print_rates(products: int, loading: float, seconds: float) -> None:
    """Products per second, and the time to load."""
    print(f"{products} products in {seconds:.1f} s: {products / seconds:.2f} products/s; {loading:.1f} s to load")


if __name__ == "__main__":
    main()
