"""From products to banks to a report: the job with the real nano model, and the main job that uses what it wrote."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from batch_runs import REPOSITORY, config_for, last_line, rows_by_key

from zsad.backbone import load_backbone
from zsad.backbone.model import Backbone
from zsad.distributed import write_prompts as job
from zsad.distributed.batch import score_bucket
from zsad.distributed.write_prompts import write_prompts
from zsad.errors import ConfigError
from zsad.prompts.bank import read_bank
from zsad.prompts.clip_scores import procedural_source
from zsad.prompts.ensemble import ABNORMAL_STATES, NORMAL_STATES, fill
from zsad.prompts.write_config import WritePromptsConfig
from zsad.prompts.writers.recorded import RecordedWriter

PAIRS = [
    ("an undamaged surface", "a dark stain on it"),
    ("no crack in the surface", "a small hole in it"),
    ("a smooth unbroken rim", "a nick in the rim"),
    ("a scratch on the surface", "a pressed-in spot"),
    ("see http://evil.example now", "<b>foreign matter</b> on it"),
]
ANSWER = {"pairs": [{"trait": "surface", "good": good, "faulty": faulty} for good, faulty in PAIRS]}


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch):
    """A tenth of the procedural pairs: what is tested here does not depend on their number."""
    monkeypatch.setattr(job, "procedural_source", lambda: procedural_source(12))


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "recording.json"
    path.write_text(json.dumps({"model": "by hand", "answers": {"metal plate": ANSWER, "lid": "What lid?"}}))
    return str(path)


@pytest.fixture
def banks(tmp_path, recording):
    """Banks of two products, the second of which fell back."""
    output = tmp_path / "banks"
    write_prompts(
        WritePromptsConfig(objects="metal_plate, lid", llm=f"recorded:{recording}", output=str(output), review=True)
    )
    return output


def test_the_job_leaves_banks_a_summary_and_a_page(banks, capsys):
    bank = read_bank(str(banks / "metal_plate.json"))
    verdicts = {phrase.text: phrase.verdict for phrase in bank.phrases}
    assert verdicts["an undamaged surface"] == verdicts["a dark stain on it"] == "keep"
    assert verdicts["a smooth unbroken rim"] == verdicts["a nick in the rim"] == "unseen"
    assert verdicts["a scratch on the surface"] == verdicts["<b>foreign matter</b> on it"] == "drop"
    assert (bank.origin.model, bank.origin.backbone) == ("by hand", "nano")
    summary = json.loads((banks / "_summary.json").read_text())
    assert (summary["written"], summary["fallback"]) == (1, 1)
    assert "not JSON" in read_bank(str(banks / "lid.json")).origin.fallback
    html = (banks / "review.html").read_text()
    assert "a dark stain on it" in html
    assert "&lt;b&gt;foreign matter&lt;/b&gt; on it" in html
    assert "<b>foreign" not in html


def test_a_second_run_does_no_model_work(banks, recording, monkeypatch):
    work = []
    for owner, name in ((Backbone, "encode_text"), (Backbone, "encode_image"), (RecordedWriter, "write")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, real=real, name=name, **k: work.append(name) or real(*a, **k))
    again = WritePromptsConfig(
        objects="metal_plate",
        llm=f"recorded:{recording}",
        output=str(banks.parent / "again"),
        cache=str(banks / "_cache"),
    )
    assert write_prompts(again).count("cached") == 1
    assert work == []
    assert (banks.parent / "again/metal_plate.json").read_bytes() == (banks / "metal_plate.json").read_bytes()
    changed = WritePromptsConfig(objects="lid", llm=f"recorded:{recording}", output=str(banks.parent / "again"))
    write_prompts(changed)
    assert set(work) == {"encode_text", "encode_image", "write"}


@pytest.mark.ray
def test_kept_prompts_of_a_bank_explain_the_findings_of_a_report(local_ray, scored, banks):
    output = banks.parent / "report"
    score_bucket(
        config_for(
            scored.folder,
            output,
            detector="nano:alfa",
            prompts=str(banks / "metal_plate.json"),
            include=("line1/*",),
            normals=str(scored.folder / "line1/cam1"),
        )
    )
    bank = read_bank(str(banks / "metal_plate.json"))
    voting = {
        side: {f"metal plate with {text}" for text in bank.texts(side)}
        | {fill(state, "metal plate") for state in states}
        for side, states in (("normal", NORMAL_STATES), ("abnormal", ABNORMAL_STATES))
    }
    told = [kept for row in rows_by_key(scored.folder, output).values() for kept in row["explanation"]]
    assert told
    assert all(kept["prompt"] in voting[kept["side"]] for kept in told)
    from_bank = {kept["prompt"] for kept in told} - {fill(s, "metal plate") for s in (*NORMAL_STATES, *ABNORMAL_STATES)}
    assert from_bank & voting["abnormal"]
    gallery = next(Path(output).rglob("gallery.html")).read_text()
    assert any(prompt in gallery for prompt in from_bank)


def test_own_normals_score_the_phrases(scored, tmp_path, recording):
    config = WritePromptsConfig(
        objects="metal plate",
        llm=f"recorded:{recording}",
        output=str(tmp_path / "banks"),
        normals=str(scored.folder / "line1/cam1"),
    )
    write_prompts(config)
    origin = read_bank(str(tmp_path / "banks/metal_plate.json")).origin
    assert origin.images == f"{scored.folder}/line1/cam1 with pasted pieces"


def test_relative_addresses_are_refused_inside_a_submitted_job(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "is_submitted_job", lambda: True)
    with pytest.raises(ConfigError, match=r"--objects-file list\.txt: inside a submitted job"):
        write_prompts(WritePromptsConfig(objects_file="list.txt", output=str(tmp_path / "banks")))
    assert not (tmp_path / "banks").exists()


def test_a_mistake_on_the_command_line_ends_with_its_code():
    arguments = ["--objects", "cap", "--output", "out", "--llm", "openai:m@nowhere"]
    done = subprocess.run(
        [sys.executable, "jobs/write_prompts.py", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2
    assert "exit 2: --llm 'openai:m@nowhere': write openai:MODEL@BASE_URL" in last_line(done.stderr)
    assert not (REPOSITORY / "out").exists()


def test_nano_is_the_backbone_that_banks_are_for(banks):
    assert read_bank(str(banks / "lid.json")).origin.backbone_sha256 == load_backbone("nano", "cpu").sha256
