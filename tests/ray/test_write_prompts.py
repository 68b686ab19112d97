"""From products to banks to a report: the job with the real nano model, and the main job that uses what it wrote."""

import json
import shutil
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


@pytest.fixture(scope="module", autouse=True)
def few_pairs():
    """A tenth of the procedural pairs: what is tested here does not depend on their number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "procedural_source", lambda: procedural_source(12))
        yield


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "recording.json"
    path.write_text(json.dumps({"model": "by hand", "answers": {"metal plate": ANSWER, "lid": "What lid?"}}))
    return str(path)


@pytest.fixture(scope="module")
def banks(few_pairs, recording, tmp_path_factory):
    """Banks of two products, the second of which fell back; nobody may write to them."""
    output = tmp_path_factory.mktemp("written") / "banks"
    write_prompts(
        WritePromptsConfig(objects="metal_plate, lid", llm=f"recorded:{recording}", output=str(output), review=True)
    )
    return output


def test_the_job_leaves_banks_a_summary_and_a_page(banks):
    bank = read_bank(str(banks / "metal_plate.json"))
    verdicts = {phrase.text: phrase.verdict for phrase in bank.phrases}
    assert verdicts["an undamaged surface"] == verdicts["a dark stain on it"] == "keep"
    assert verdicts["a smooth unbroken rim"] == verdicts["a nick in the rim"] == "unseen"
    assert verdicts["a scratch on the surface"] == verdicts["<b>foreign matter</b> on it"] == "drop"
    assert (bank.origin.model, bank.origin.backbone) == ("by hand", "nano")
    assert bank.origin.backbone_sha256 == load_backbone("nano", "cpu").sha256
    summary = json.loads((banks / "_summary.json").read_text())
    assert (summary["written"], summary["fallback"]) == (1, 1)
    assert "not JSON" in read_bank(str(banks / "lid.json")).origin.fallback
    html = (banks / "review.html").read_text()
    assert "a dark stain on it" in html
    assert "&lt;b&gt;foreign matter&lt;/b&gt; on it" in html
    assert "<b>foreign" not in html


def test_a_second_run_does_no_model_work(banks, recording, monkeypatch, tmp_path):
    work = []
    for owner, name in ((Backbone, "encode_text"), (Backbone, "encode_image"), (RecordedWriter, "write")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, real=real, name=name, **k: work.append(name) or real(*a, **k))
    again = WritePromptsConfig(
        objects="metal_plate",
        llm=f"recorded:{recording}",
        output=str(tmp_path / "again"),
        cache=str(banks / "_cache"),
    )
    assert write_prompts(again).count("cached") == 1
    assert work == []
    assert (tmp_path / "again/metal_plate.json").read_bytes() == (banks / "metal_plate.json").read_bytes()
    changed = WritePromptsConfig(objects="lid", llm=f"recorded:{recording}", output=str(tmp_path / "again"))
    write_prompts(changed)
    assert set(work) == {"encode_text", "encode_image", "write"}


@pytest.mark.ray
def test_kept_prompts_of_a_bank_explain_the_findings_of_a_report(local_ray, bucket, banks, tmp_path):
    normals, output, prompts = tmp_path / "normals", tmp_path / "report", str(banks / "metal_plate.json")
    normals.mkdir()
    shutil.copyfile(bucket / "line1/cam1/000.png", normals / "one.png")
    chosen = {"detector": "nano:alfa", "prompts": prompts, "include": ("line1/cam1/*",)}
    score_bucket(config_for(bucket, output, normals=str(normals), **chosen))
    bank = read_bank(str(banks / "metal_plate.json"))
    voting = {
        side: {f"metal plate with {text}" for text in bank.texts(side)}
        | {fill(state, "metal plate") for state in states}
        for side, states in (("normal", NORMAL_STATES), ("abnormal", ABNORMAL_STATES))
    }
    rows = rows_by_key(bucket, output).values()
    told = [kept for row in rows for kept in row["explanation"]]
    assert len(told) == 6 * len(rows) == 6 * 16
    assert all(kept["prompt"] in voting[kept["side"]] for kept in told)
    from_bank = {kept["prompt"] for kept in told} - {fill(s, "metal plate") for s in (*NORMAL_STATES, *ABNORMAL_STATES)}
    assert from_bank & voting["abnormal"]
    gallery = next(Path(output).rglob("gallery.html")).read_text()
    assert any(prompt in gallery for prompt in from_bank)


def test_own_normals_score_the_phrases(bucket, tmp_path, recording):
    config = WritePromptsConfig(
        objects="metal plate",
        llm=f"recorded:{recording}",
        output=str(tmp_path / "banks"),
        normals=str(bucket / "line1/cam1"),
    )
    write_prompts(config)
    origin = read_bank(str(tmp_path / "banks/metal_plate.json")).origin
    assert origin.images == f"{bucket}/line1/cam1 with pasted pieces"


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
