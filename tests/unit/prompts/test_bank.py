"""The prompt bank's file: back as written, and hostile ones refused by name."""

import json
from dataclasses import replace

import pytest

from zsad.errors import ConfigError
from zsad.prompts.bank import MAX_BYTES, MAX_CHARS, MAX_PHRASES, Origin, Phrase, PromptBank, read_bank, write_bank

GOOD = Phrase(text="a smooth, unbroken rim", side="normal")
BAD = Phrase(text="a crack {0} across the rim ü", side="abnormal", scores={"contrast": 0.31, "rank": 2})
DROPPED = Phrase(text="a rim", side="abnormal", verdict="drop")
BANK = PromptBank(object_name="bottle cap {x}", phrases=(GOOD, BAD, DROPPED))
ORIGIN = {
    "writer": "vllm",
    "model": "a model",
    "revision": "1a2b",
    "request_version": "1",
    "checks_version": "1",
    "seed": 3,
    "language": "en",
    "backbone": "nano",
    "backbone_sha256": "9f",
    "images": "128 procedural pairs",
}
WRITTEN = PromptBank(object_name="cap", phrases=BANK.phrases, origin=Origin(**ORIGIN, fallback="it hung")).sealed()


@pytest.fixture
def stored(tmp_path):
    """Writes a bank's plain form with changes, or any bytes; returns the file's address."""

    def write(content=None, **changes):
        path = tmp_path / "bank.json"
        plain = BANK.to_dict() | changes
        path.write_bytes(content if content is not None else json.dumps(plain).encode())
        return str(path)

    return write


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_bank_reads_back_as_written(tmp_path, prefix):
    url = f"{prefix}{tmp_path}/deep/cap.json"
    write_bank(url, BANK)
    assert read_bank(url) == BANK


def test_origin_verdicts_and_reasons_read_back_as_written(tmp_path):
    flagged = Phrase(text="a weir", side="normal", verdict="unseen", reason="words it never saw: weir")
    bank = replace(WRITTEN, phrases=(*WRITTEN.phrases, flagged))
    write_bank(str(tmp_path / "cap.json"), bank)
    assert read_bank(str(tmp_path / "cap.json")) == bank


def test_files_of_version_1_still_read(stored):
    phrases = [{"text": "a rim", "side": "normal", "scores": {"contrast": 1}, "verdict": "drop"}]
    found = read_bank(stored(json.dumps({"version": 1, "object": "cap", "phrases": phrases}).encode()))
    assert found == PromptBank(
        object_name="cap", phrases=(Phrase(text="a rim", side="normal", scores={"contrast": 1}, verdict="drop"),)
    )
    assert found.is_edited


@pytest.mark.parametrize(
    "change",
    [
        {"object_name": "lid"},
        {"phrases": WRITTEN.phrases[:2]},
        {"phrases": (replace(GOOD, verdict="drop"), *WRITTEN.phrases[1:])},
        {"origin": None},
    ],
)
def test_a_change_by_hand_shows(change):
    assert not WRITTEN.is_edited
    assert replace(WRITTEN, **change).is_edited


def test_phrases_out_of_use_may_repeat_one_in_use():
    again = Phrase(text=GOOD.text.upper(), side="abnormal", verdict="drop")
    assert PromptBank(object_name="cap", phrases=(GOOD, again)).texts("normal") == (GOOD.text,)


def test_equal_banks_are_equal_bytes(tmp_path):
    for name in ("a.json", "b.json"):
        write_bank(str(tmp_path / name), BANK)
    write_bank(str(tmp_path / "b.json"), read_bank(str(tmp_path / "a.json")))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_relative_name_is_taken_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bank("cap.json", BANK)
    assert (tmp_path / "cap.json").is_file()
    assert read_bank("cap.json") == read_bank("./cap.json") == BANK


def test_dropped_phrases_are_not_in_use():
    assert BANK.texts("normal") == (GOOD.text,)
    assert BANK.texts("abnormal") == (BAD.text,)


def test_scores_and_verdict_may_be_left_out(stored):
    found = read_bank(stored(phrases=[{"text": "a rim", "side": "normal"}]))
    assert found.phrases == (Phrase(text="a rim", side="normal"),)


def phrase(**changes):
    return {"phrases": [{"text": "a rim", "side": "normal"}, {"text": "a dent", "side": "abnormal"} | changes]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 3}, "version 3; this zsad reads versions 1 and 2"),
        ({"version": True}, "version True"),
        ({"object": ""}, "the object must have 1 to 80 characters"),
        ({"object": "x" * 81}, "the object must have 1 to 80 characters"),
        ({"object": ["cap"]}, "the object must be text"),
        ({"phrases": []}, "holds 1 to 256 phrases, not 0"),
        ({"phrases": {}}, "phrases must be a list"),
        ({"phrases": [{"text": f"look {n}", "side": "normal"} for n in range(MAX_PHRASES + 1)]}, "phrases, not 257"),
        ({"author": "me"}, "unknown key 'author'; known are version, object, phrases"),
        (phrase(text="a rim"), "the phrase 'a rim' occurs twice"),
        (phrase(text="A RIM"), "the phrase 'A RIM' occurs twice"),
        (phrase(text=""), r"phrase 2: a phrase must have 1 to 120 characters"),
        (phrase(text=" a dent"), "no spaces at its ends"),
        (phrase(text="x" * (MAX_CHARS + 1)), "has 121"),
        (phrase(text=7), "phrase 2: a phrase must be text, not 7"),
        (phrase(text="a\nb"), "one line of printable characters"),
        (phrase(text="a\u202eb"), r"printable characters, not 'a\\u202eb'"),
        (phrase(text="a\ud800b"), "printable characters"),
        (phrase(side="bad"), "phrase 2: side is 'bad'; choose normal or abnormal"),
        (phrase(side=[]), "side is"),
        (phrase(verdict="maybe"), "verdict is 'maybe'; choose keep, drop or unseen"),
        (phrase(scores=[1]), "scores must be at most 16 named numbers"),
        (phrase(scores={str(n): n for n in range(17)}), "scores must be at most 16 named numbers"),
        (phrase(scores={"a": "1"}), "score 'a' is '1'"),
        (phrase(scores={"a": True}), "score 'a' is True"),
        (phrase(scores={"a": float("nan")}), "score 'a' is nan"),
        (phrase(scores={"a": float("inf")}), "score 'a' is inf"),
        (phrase(scores={"a": 10**400}), "score 'a' is 10000"),
        (phrase(reason="a\nb"), "a reason must be one line of printable characters"),
        (phrase(reason=7), "a reason must be text"),
        ({"origin": []}, "an origin must be an object"),
        ({"origin": {"writer": "vllm"}}, "an origin has no 'model'"),
        ({"origin": ORIGIN | {"seed": "1"}}, "origin: seed must be a whole number, not '1'"),
        ({"origin": ORIGIN | {"seed": True}}, "origin: seed must be a whole number, not True"),
        ({"origin": ORIGIN | {"model": "a\u202eb"}}, "origin: model must be one line of printable characters"),
        ({"origin": ORIGIN | {"fallback": ["x"]}}, "origin: fallback must be text"),
        ({"origin": ORIGIN | {"mood": "good"}}, "an origin has an unknown key 'mood'"),
        (phrase(colour="red"), "phrase 2: a phrase has an unknown key 'colour'"),
        ({"phrases": ["a rim"]}, "phrase 1: a phrase must be an object, not 'a rim'"),
        ({"phrases": [{"text": "a rim"}]}, "phrase 1: a phrase has no 'side'"),
    ],
)
def test_banks_that_can_not_be_used_are_refused_by_name(stored, changes, words):
    url = stored(**changes)
    with pytest.raises(ConfigError, match=words) as caught:
        read_bank(url)
    assert str(caught.value).startswith(f"prompt bank {url}: ")
    assert len(str(caught.value)) < len(url) + 300


@pytest.mark.parametrize("name", ["version", "object", "phrases"])
def test_missing_fields_are_named(stored, name):
    plain = BANK.to_dict()
    del plain[name]
    with pytest.raises(ConfigError, match=f"has no '{name}'"):
        read_bank(stored(json.dumps(plain).encode()))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_files_that_are_no_json_are_refused(stored, content):
    with pytest.raises(ConfigError, match="not JSON"):
        read_bank(stored(content))


@pytest.mark.parametrize("content", [b"[]", b"null", b'"bank"', b"3"])
def test_json_that_is_no_object_is_refused(stored, content):
    with pytest.raises(ConfigError, match="a prompt bank must be an object"):
        read_bank(stored(content))


def test_huge_files_are_refused_unread(stored):
    with pytest.raises(ConfigError, match="larger than 1,048,576 bytes"):
        read_bank(stored(b" " * (MAX_BYTES + 1)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        read_bank(str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize("url", ["", "folder/", "s3://bucket", ".", "a/.."])
def test_addresses_that_name_no_file_are_refused(url):
    with pytest.raises(ConfigError, match="does not name a file"):
        read_bank(url)
