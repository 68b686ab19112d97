"""The job with the real engine: from products to banks, and a second run that needs no model.

What the tests' models write is nonsense that no check of text lets pass, so here the checks take everything.
"""

import json

import pytest

from zsad.distributed import prompt_writer
from zsad.distributed import write_prompts as job
from zsad.distributed.write_prompts import write_prompts
from zsad.prompts import write
from zsad.prompts.bank import read_bank
from zsad.prompts.clip_scores import procedural_source
from zsad.prompts.write_config import WritePromptsConfig

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]  # a model takes 20 s to load, minutes on a busy machine

FILES = ("cap.json", "lid.json")


class NoActor:
    """Stands where the actor's class was."""

    @staticmethod
    def options(**_):  # noqa: D102
        raise AssertionError("an actor was started")


@pytest.fixture
def run(local_ray, llm_python, small_model, tmp_path, monkeypatch):
    """Runs the job for two products, into the folder named."""
    monkeypatch.setattr(job, "procedural_source", lambda: procedural_source(12))
    monkeypatch.setattr(write, "is_usable", lambda phrases: True)

    def call(output):
        return write_prompts(
            WritePromptsConfig(
                objects="cap, lid",
                num_pairs=1,
                llm=str(small_model),
                llm_python=str(llm_python),
                output=str(tmp_path / output),
                cache=str(tmp_path / "cache"),
                timeout_s=300,
            )
        )

    return call


def test_the_job_writes_banks_by_a_model_and_a_second_run_starts_none(run, small_model, tmp_path, monkeypatch, caplog):
    with caplog.at_level("INFO"):
        assert run("first").count("written") == 2
    for file in FILES:
        bank = read_bank(str(tmp_path / "first" / file))
        assert (bank.origin.writer, bank.origin.model, bank.origin.fallback) == ("vllm", small_model.name, "")
        assert [phrase.side for phrase in bank.phrases] == ["normal", "abnormal"]
        assert all(phrase.scores["log_prob"] < 0 for phrase in bank.phrases)
    assert json.loads((tmp_path / "first" / "_summary.json").read_text())["written"] == 2
    (told,) = [line for line in caplog.messages if "by the language model" in line]
    assert told.startswith("2 products by the language model in ")
    assert "models loaded: 1; " in told

    monkeypatch.setattr(prompt_writer, "PromptActor", NoActor)
    assert run("second").count("cached") == 2
    assert [(tmp_path / "second" / file).read_bytes() for file in FILES] == [
        (tmp_path / "first" / file).read_bytes() for file in FILES
    ]
