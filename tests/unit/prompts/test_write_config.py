"""What the job that writes prompts may be asked for."""

import json

import pytest

from zsad.cli import parse
from zsad.errors import ConfigError
from zsad.prompts.write_config import WritePromptsConfig


def config(**changes):
    return WritePromptsConfig(**{"output": "out", "objects": "cap"} | changes)


def test_products_come_from_the_command_line_and_from_a_file(tmp_path):
    path = tmp_path / "objects.txt"
    path.write_text("lid\n\n  pill_bottle \n")
    asked = config(objects="cap, M4 screw,", objects_file=str(path), num_pairs=3, seed=2, language="de").requests()
    assert [file for file, _ in asked] == ["cap.json", "M4_screw.json", "lid.json", "pill_bottle.json"]
    assert [request.product for _, request in asked] == ["cap", "M4 screw", "lid", "pill bottle"]
    assert {(request.num_pairs, request.seed, request.language) for _, request in asked} == {(3, 2, "de")}


def test_text_notes_go_for_all_products_on_one_line(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("blue,\n\x1b[31mmatt\u202e  plastic")
    asked = config(objects="cap, lid", notes=str(path)).requests()
    assert {request.notes for _, request in asked} == {"blue, [31mmatt plastic"}


def test_notes_in_json_go_to_their_product(tmp_path):
    path = tmp_path / "notes.json"
    path.write_text(json.dumps({"pill_bottle": "amber glass", "other": "x"}))
    asked = config(objects="pill bottle, lid", notes=str(path)).requests()
    assert [request.notes for _, request in asked] == ["amber glass", ""]


def test_long_notes_are_cut(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("x" * 10_000)
    ((_, request),) = config(notes=str(path)).requests()
    assert request.notes == "x" * 400


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output": " "}, "--output is empty"),
        ({"llm": ""}, "--llm is empty"),
        ({"objects": " "}, "give --objects or --objects-file"),
        ({"num_pairs": 0}, "num_pairs is 0"),
        ({"num_pairs": 33}, "num_pairs is 33"),
        ({"seed": -1}, "seed is -1"),
        ({"language": "english"}, "two-letter code"),
        ({"timeout_s": -1.0}, "--timeout-s -1.0"),
        ({"num_parallel": 0}, "--num-parallel 0"),
        ({"num_llms": 0}, "--num-llms 0"),
        ({"num_gpus_per_llm": -1.0}, "--num-gpus-per-llm -1.0"),
    ],
)
def test_values_out_of_range_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objects": ", ,"}, "0 products; a run takes 1 to 100,000"),
        ({"objects": "pill bottle, pill_bottle"}, "would share the file"),
        ({"objects_file": "nowhere.txt"}, "--objects-file nowhere.txt: there is no such file"),
        ({"notes": "nowhere.txt"}, "--notes nowhere.txt: there is no such file"),
        ({"notes": "list.json"}, "must be an object of products and their notes"),
        ({"notes": "broken.json"}, "not JSON"),
        ({"notes": "latin.txt"}, "not UTF-8 text"),
        ({"language": "qq"}, "phrases in it can't be checked"),
    ],
)
def test_files_and_products_that_can_not_be_used_are_named(tmp_path, monkeypatch, changes, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "latin.txt").write_bytes(b"gr\xf6\xdfe")
    with pytest.raises(ConfigError, match=words):
        config(**changes).requests()


def test_the_documented_command_line_is_understood():
    found = parse(
        WritePromptsConfig,
        [
            "--objects",
            "pill bottle, M4 screw",
            "--notes",
            "n.txt",
            "--llm",
            "openai:m@http://h/v1",
            "--output",
            "o",
            "--review",
        ],
    )
    assert (found.objects, found.notes, found.llm, found.output, found.review) == (
        "pill bottle, M4 screw",
        "n.txt",
        "openai:m@http://h/v1",
        "o",
        True,
    )
    assert found.cache_url == "o/_cache"
