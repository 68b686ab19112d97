"""What can be said of the vLLM engine without vLLM: its arguments, a model's hash, questions, and scored tokens."""

import pytest
from jinja2 import TemplateError

from zsad.errors import ConfigError, ModelError
from zsad.prompts.writers.base import WriteRequest
from zsad.prompts.writers.request import BadAnswer, messages
from zsad.prompts.writers.vllm_engine import (
    EngineConfig,
    engine_arguments,
    environment,
    folder_revision,
    question_ids,
    scored_ids,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ""},
        {"revision": ""},
        {"num_gpus": -1},
        {"num_gpus": 1.5},
        {"max_context": -1},
        {"max_num_seqs": 0},
        {"kv_cache_gib": 0},
    ],
)
def test_an_engine_that_can_not_be_loaded_is_refused(wrong):
    with pytest.raises(ConfigError):
        EngineConfig(**{"model": "m", "revision": "1", **wrong})


@pytest.mark.parametrize("num_gpus", [0, 0.5, 1, 4])
def test_an_engine_takes_the_cpu_a_share_of_a_gpu_or_whole_ones(num_gpus):
    assert EngineConfig(model="m", revision="1", num_gpus=num_gpus).num_gpus == num_gpus


def test_a_folders_revision_tells_its_weights_and_configuration_from_others(folder):
    before = folder_revision(str(folder))
    assert before == folder_revision(str(folder))
    (folder / "README.md").write_text("not part of the model")
    assert folder_revision(str(folder)) == before
    (folder / "config.json").write_text('{"vocab_size": 3}')
    changed = folder_revision(str(folder))
    (folder / "model.safetensors").write_bytes(b"Weights")
    assert len({before, changed, folder_revision(str(folder))}) == 3


def test_bytes_that_move_from_one_file_to_the_next_change_the_revision(folder):
    (folder / "tokenizer.json").write_bytes(b"ab")
    before = folder_revision(str(folder))
    (folder / "tokenizer.json").write_bytes(b"a")
    (folder / "vocab.json").write_bytes(b"b")
    assert folder_revision(str(folder)) != before


def test_a_folder_without_safetensors_has_no_revision(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for wrong in (folder, tmp_path / "missing"):
        with pytest.raises(ModelError, match="no safetensors"):
            folder_revision(str(wrong))


def test_a_folders_engine_fetches_nothing_and_the_cpu_compiles_nothing(folder):
    cpu = environment(EngineConfig(model=str(folder), revision="1"))
    assert (cpu["HF_HUB_OFFLINE"], cpu["TORCHDYNAMO_DISABLE"]) == ("1", "1")
    gpu = environment(EngineConfig(model="someone/model", revision="1", num_gpus=1))
    assert not {"HF_HUB_OFFLINE", "TORCHDYNAMO_DISABLE"} & set(gpu)
    assert cpu["VLLM_NO_USAGE_STATS"] == gpu["VLLM_NO_USAGE_STATS"] == "1"


class Letters:
    """A tokenizer with one token a letter, a start token, and one for "th"."""

    def encode(self, text):
        """Token numbers."""
        return [0, *(ord(c) for c in text.replace("th", "\x01"))]


@pytest.mark.parametrize(
    ("before", "text", "num_before"),
    [
        ("on a", "on a rim", 5),  # the start token and four letters
        ("cat", "cath rim", 3),  # the last letter joined the phrase's first
        ("", "rim", 1),  # a first token has no log-probability
        ("rim", "rim", 3),  # at least one token is scored
        ("rims", "rim", 3),
    ],
)
def test_scored_are_the_tokens_from_the_first_that_differs(before, text, num_before):
    ids, found = scored_ids(Letters(), before, text)
    assert ids == Letters().encode(text)
    assert found == num_before


class Template(Letters):
    """A tokenizer whose chat template takes some roles only, and answers with what it was shown."""

    chat_template = "{{ a template }}"

    def __init__(self, *roles):
        self.roles = roles

    def apply_chat_template(self, chat, *, add_generation_prompt, return_dict):
        """As transformers: an error of the template is jinja2's."""
        assert add_generation_prompt
        assert not return_dict
        for message in chat:
            if message["role"] not in self.roles:
                raise TemplateError(f"{message['role'].title()} role not supported" + "!" * 1000)
        return self.encode("".join(f"<{message['role']}>{message['content']}" for message in chat))


REQUEST = WriteRequest(product="pill bottle")
SYSTEM, USER = (message["content"] for message in messages(REQUEST))


@pytest.mark.parametrize(
    ("tokenizer", "asked"),
    [
        (Template("system", "user"), f"<system>{SYSTEM}<user>{USER}"),
        (Template("user"), f"<user>{SYSTEM}\n\n{USER}"),
        (Letters(), f"{SYSTEM}\n\n{USER}\n\n"),
    ],
)
def test_a_model_is_asked_in_the_roles_that_its_template_takes(tokenizer, asked):
    assert question_ids(tokenizer, REQUEST) == Letters().encode(asked)


def test_a_template_that_takes_no_question_costs_the_product_not_the_model():
    with pytest.raises(BadAnswer, match=r"refuses the question: TemplateError\(.*User role not") as caught:
        question_ids(Template(), REQUEST)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize(("num_gpus", "share"), [(0.5, 0.45), (0.25, 0.225), (1, None), (4, None), (0, None)])
def test_models_that_share_a_gpu_share_its_memory(num_gpus, share):
    arguments = engine_arguments(EngineConfig(model="m", revision="1", num_gpus=num_gpus))
    assert arguments.get("gpu_memory_utilization") == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize(("num_gpus", "expected"), [(0.5, 1), (1, 1), (4, 4), (0, None)])
def test_whole_gpus_hold_a_model_together(num_gpus, expected):
    arguments = engine_arguments(EngineConfig(model="m", revision="1", num_gpus=num_gpus))
    assert arguments.get("tensor_parallel_size") == expected
