"""Models and writers of the tests with the real engine: each is started once for all tests of a module."""

import os
import subprocess
from pathlib import Path

import pytest

from zsad.distributed.prompt_writer import ActorConfig, vllm_writer

REPOSITORY = Path(__file__).resolve().parents[2]
STORIES = REPOSITORY.parent / "shared" / "llm" / "stories260K"


@pytest.fixture(scope="session")
def llm_python():
    """The interpreter of the language model's environment; skips without it, fails instead if ZSAD_REQUIRE_LLM=1."""
    python = REPOSITORY / ".venv-llm" / "bin" / "python"
    if not python.exists():
        reason = "there is no .venv-llm; make it by: make .venv-llm/.done"
        if os.environ.get("ZSAD_REQUIRE_LLM") == "1":
            pytest.fail(f"ZSAD_REQUIRE_LLM=1, but {reason}", pytrace=False)
        pytest.skip(reason)
    return python


@pytest.fixture(scope="session")
def random_llama(llm_python, tmp_path_factory):
    """Folder of a tiny Llama of random weights with a context of 4,096."""
    folder = tmp_path_factory.mktemp("llm") / "random-llama"
    subprocess.run([llm_python, Path(__file__).with_name("random_llama.py"), folder], check=True, timeout=120)
    return folder


@pytest.fixture(scope="session")
def small_model(request):
    """A real Llama of 260K parameters and a context of 512, or without it the random one."""
    return STORIES if STORIES.is_dir() else request.getfixturevalue("random_llama")


@pytest.fixture(scope="module")
def writer(local_ray, llm_python, small_model):
    """A writer over `small_model`, with 16 products in work."""
    with vllm_writer(str(small_model), config=actors(llm_python)) as opened:
        yield opened


@pytest.fixture(scope="module")
def wide_writer(local_ray, llm_python, random_llama):
    """A writer over `random_llama`, whose context holds 15 pairs."""
    with vllm_writer(str(random_llama), config=actors(llm_python)) as opened:
        yield opened


def actors(python):
    """One actor that takes no CPU from the suite's other actors."""
    return ActorConfig(python=str(python), num_cpus=0, max_in_flight=16, start_timeout_s=600, timeout_s=200)
