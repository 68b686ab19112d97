"""Recorded answers, replayed as if a model gave them now."""

import json

import pytest

from zsad.errors import ConfigError
from zsad.prompts.writers import recorded
from zsad.prompts.writers.base import DraftPhrase, WriteRequest
from zsad.prompts.writers.recorded import read_recording

PAIR = {"trait": "surface", "good": "a smooth clear wall", "faulty": "a crack in the wall"}


@pytest.fixture
def replay(tmp_path):
    """Draft of one product from a recording with these answers."""

    def call(answers, product="pill bottle", **more):
        path = tmp_path / "recording.json"
        path.write_text(json.dumps({"answers": answers} | more))
        (draft,) = read_recording(str(path)).write([WriteRequest(product=product)])
        return draft

    return call


def test_an_answer_is_replayed_with_its_log_probabilities(replay):
    draft = replay({"pill_bottle": {"pairs": [PAIR | {"good_log_prob": -1.5}]}}, model="by hand")
    assert draft.phrases == (
        DraftPhrase(text="a smooth clear wall", side="normal", log_prob=-1.5),
        DraftPhrase(text="a crack in the wall", side="abnormal"),
    )
    assert draft.model == "by hand"
    assert draft.failure is None


def test_raw_text_is_read_as_an_answer(replay):
    assert len(replay({"pill bottle": json.dumps({"pairs": [PAIR]})}).phrases) == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Sure! Here are your phrases.", "not JSON"),
        (json.dumps({"pairs": [PAIR]})[:30], "not JSON"),
        ("", "empty"),
        ("word " * 10_000, "characters"),
        ({"pairs": []}, "no list of 1 to 12 pairs"),
        (None, "no list"),
        ([], "no list"),
        ({"pairs": [PAIR] * 13}, "no list of 1 to 12 pairs"),
        ({"pairs": [{"good": "a rim"}]}, "pair 1 has no text 'faulty'"),
        ({"pairs": [PAIR | {"good_log_prob": 1}]}, "pair 1: good_log_prob is 1; it must be a number up to 0"),
        ({"pairs": [PAIR | {"faulty_log_prob": "-1"}]}, "faulty_log_prob is '-1'"),
        ({"pairs": [PAIR | {"faulty_log_prob": True}]}, "faulty_log_prob is True"),
        ({"pairs": [PAIR | {"faulty_log_prob": -1e300}]}, "must be a number up to 0"),
    ],
)
def test_a_bad_answer_is_a_failure_of_its_product(replay, answer, reason):
    draft = replay({"pill bottle": answer})
    assert draft.phrases == ()
    assert reason in draft.failure


def test_a_product_without_an_answer_is_a_failure(replay):
    assert replay({"lid": {"pairs": [PAIR]}}).failure == "the recording has no answer for this product"


def test_another_file_is_another_revision(replay):
    one, same, other = (replay({"pill bottle": {"pairs": [PAIR]}}, note=note) for note in ("a", "a", "b"))
    assert one.revision == same.revision != other.revision


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", '"answers"'),
        ('{"answers": []}', '"answers"'),
        ('{"answers": {"\\n": 1}}', "no printable name"),
        (" " * 101, "larger than 100 bytes"),
    ],
)
def test_files_that_are_no_recording_are_refused(tmp_path, monkeypatch, content, words):
    if "larger" in words:
        monkeypatch.setattr(recorded, "MAX_BYTES", 100)
    path = tmp_path / "recording.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_recording(str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        read_recording(str(tmp_path / "nowhere.json"))
