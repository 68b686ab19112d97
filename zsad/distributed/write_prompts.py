"""The job that writes prompt banks: find the writer of a REF, the images that score its phrases, and write.

Only a vLLM model needs Ray; the other writers run in this process. An actor with a model starts only when the cache has
not got everything.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256

import torch

from zsad.backbone import load_backbone
from zsad.batch_config import absolute
from zsad.distributed.cluster import connect, is_submitted_job
from zsad.distributed.prepare import read_normals
from zsad.errors import ConfigError
from zsad.images import DecodeLimits
from zsad.prompts.clip_scores import PairSource, Reader, damaged_source, procedural_source
from zsad.prompts.review import write_review
from zsad.prompts.write import Summary, write_banks
from zsad.prompts.write_config import WritePromptsConfig
from zsad.prompts.writers.base import Writer
from zsad.prompts.writers.builtin import BuiltinWriter
from zsad.prompts.writers.openai_endpoint import OpenAIWriter
from zsad.prompts.writers.recorded import read_recording
from zsad.storage import open_store

log = logging.getLogger(__name__)

ENDPOINT_TIMEOUT_S = 60.0
VLLM_TIMEOUT_S = 600.0


def write_prompts(config: WritePromptsConfig) -> Summary:
    """Run the job of `config` and print its summary; see docs/prompts.md for what it leaves in the output.

    Raises:
        ConfigError: for arguments that can't be used; nothing was written.
        ModelError: if the backbone can't be loaded.
        StorageError: if storage fails.
    """
    if is_submitted_job():
        _check_absolute(config)
    requests = config.requests()
    output, cache = open_store(config.output), open_store(config.cache_url)
    source = _pair_source(config.normals)
    with opened_writer(config) as writer:
        output.check_writable()
        reader = Reader(load_backbone(config.backbone, "cuda" if torch.cuda.is_available() else "cpu", "fp32"), source)
        log.info("%d products, written by %s (%s)", len(requests), writer.model, writer.name)
        summary = write_banks(requests, writer, reader, output=output, cache=cache, overwrite=config.overwrite)
    print(summary.table())
    if summary.count("fallback") + summary.count("kept") == len(summary.rows):
        log.warning("the writer %s gave no usable answer for any product", config.llm)
    if config.review:
        print(f"review page: {write_review(output, summary)}")
    return summary


def _check_absolute(config: WritePromptsConfig) -> None:
    """Refuse relative URLs.

    Raises:
        ConfigError: naming the option.
    """
    urls = {name: getattr(config, name) for name in ("output", "objects_file", "notes", "cache", "normals")}
    urls["llm"] = config.llm.removeprefix("recorded:") if config.llm.startswith("recorded:") else ""
    for name, url in urls.items():
        if url and not absolute(url):
            raise ConfigError(
                f"--{name.replace('_', '-')} {url}: inside a submitted job a relative path points into the shipped "
                "package; give an absolute path that all nodes share, or an s3:// URL"
            )


@contextmanager
def opened_writer(config: WritePromptsConfig) -> Iterator[Writer]:
    """The writer that `config.llm` names.

    Raises:
        ConfigError: if the reference can't be used.
    """
    kind, _, rest = config.llm.partition(":")
    if config.llm == "builtin":
        yield BuiltinWriter()
    elif kind == "recorded":
        yield read_recording(rest)
    elif kind == "openai":
        timeout_s = config.timeout_s or ENDPOINT_TIMEOUT_S
        yield OpenAIWriter(config.llm, timeout_s=timeout_s, num_parallel=config.num_parallel)
    else:
        from zsad.distributed.prompt_writer import ActorConfig, vllm_writer

        actors = ActorConfig(
            python=config.llm_python,
            resources={config.llm_resource: 1.0} if config.llm_resource else {},
            num_actors=config.num_llms,
            num_gpus=config.num_gpus_per_llm,
            timeout_s=config.timeout_s or VLLM_TIMEOUT_S,
        )
        connect()
        with vllm_writer(config.llm, revision=config.llm_revision, config=actors) as writer:
            yield writer
            if writer.tally.loads:
                log.info("%s", writer.tally.told())


def _pair_source(normals: str) -> PairSource:
    """The images that phrases must tell apart: procedural, or made of the user's normal ones."""
    if not normals:
        return procedural_source()
    digest = sha256()
    for info in open_store(normals).list():
        digest.update(f"{info.uri}\n{info.etag}\n".encode(errors="backslashreplace"))
    images = partial(read_normals, normals, DecodeLimits())
    return damaged_source(images, name=normals, identity=digest.hexdigest())
