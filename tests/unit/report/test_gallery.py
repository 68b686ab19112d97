"""The HTML page of a run."""

import base64
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from zsad.report.gallery import RunInfo, Tile, printable, render_gallery
from zsad.report.selection import Counts, Selection

RUN = RunInfo(
    run_id="20260102T030405Z-abcd",
    input_url="s3://plant/line-a/",
    detector="nano:winclip",
    object_name="plate",
    started="2026-01-02T03:04:05+00:00",
    finished="2026-01-02T04:09:05+00:00",
    images_per_s=12.34,
    config_hash="c0ffee",
    version="0.1.0",
    threshold=0.5,
    calibration_source="procedural normal images",
    calibration_num_normals=256,
)
HOSTILE = "s3://b/\"><script>alert(1)</script>'onerror=x\n\x1b[31mred\u202egnp.exe{{ 7*7 }}"
VOID = {"meta", "img", "br", "wbr"}


def row(uri="s3://plant/line-a/one.png", score=0.9, **more):
    is_anomaly = score >= 0.5
    base = {"uri": uri, "score": score, "raw_score": 0.4, "threshold": 0.5, "is_anomaly": is_anomaly, "width": 640}
    base |= {"height": 480, "defect_type": "dent" if is_anomaly else None, "detector": "nano", "regions": []}
    names = [("dent", 0.6), ("scratch", 0.25), ("crack", 0.1), ("stain", 0.05)] if is_anomaly else []
    return base | {"defect_scores": [{"name": name, "score": score} for name, score in names]} | more


def selection(*, top=(), above=(), below=(), normals=(), errors=(), counts=None, types=None):
    number_ok = len(top) + len(above) + len(below) + len(normals)
    codes = {}
    for error in errors:
        codes[error["error_code"]] = codes.get(error["error_code"], 0) + 1
    counts = counts or Counts(
        listed=number_ok + len(errors),
        ok=number_ok,
        anomalous=len(top) + len(above),
        errors=len(errors),
        by_error_code=codes,
        by_defect_type=types or ({"dent": len(top) + len(above)} if top or above else {}),
    )
    bins = {"normal_bins": (len(below) + len(normals),) + (0,) * 19, "anomalous_bins": (0,) * 19 + (len(top),)}
    groups = {"top": tuple(top), "above": tuple(above), "below": tuple(below), "normals": tuple(normals)}
    return Selection(**groups, errors=tuple(errors), counts=counts, **bins)


def tile(**more):
    picture = np.full((48, 64, 3), 130, np.uint8)
    return Tile(**({"thumbnail": picture, "anomaly_map": np.eye(4, dtype=np.float32)} | more))


def page(chosen, tiles=None, run=RUN):
    return render_gallery(chosen, {uri: tile() for uri in chosen.uris} if tiles is None else tiles, run=run)


class Reader(HTMLParser):
    """Tags with attributes, and all text; fails on tags that do not nest."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):  # noqa: D102
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):  # noqa: D102
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):  # noqa: D102
        assert self.open.pop() == tag

    def handle_data(self, data):  # noqa: D102
        self.text += data


def full_page():
    error = {"uri": "s3://plant/bad.png", "error_code": "truncated", "error_message": "12 bytes missing"}
    return page(
        selection(
            top=[row("s3://plant/a.png", 0.97)],
            above=[row("s3://plant/b.png", 0.51)],
            below=[row("s3://plant/c.png", 0.49)],
            normals=[row("s3://plant/d.png", 0.02)],
            errors=[error],
        )
    )


def test_the_page_is_well_formed_and_starts_with_a_doctype():
    assert full_page().lstrip().startswith("<!doctype html>")
    Reader(full_page())


def test_the_page_asks_no_other_host_and_runs_no_script():
    html = full_page()
    assert "http://" not in html
    assert "https://" not in html
    assert "file://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert set(re.findall(r'src="([^"]{5})', html)) == {"data:"}
    tags = Reader(html).tags
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in tags}
    assert all(attributes["href"].startswith("#") for tag, attributes in tags if tag == "a")
    policy = next(attributes for _, attributes in tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_hostile_names_are_escaped_wherever_they_appear():
    error = {"uri": HOSTILE + "e", "error_code": "decode", "error_message": HOSTILE}
    types = [{"name": HOSTILE, "score": 0.9}]
    told = [{"prompt": HOSTILE, "side": "abnormal", "similarity": 0.25}]
    hostile_row = row(HOSTILE, defect_type=HOSTILE, defect_scores=types, detector=HOSTILE, explanation=told)
    chosen = selection(top=[hostile_row], normals=[row(HOSTILE + "2", 0.1)], errors=[error], types={HOSTILE: 1})
    run = replace(RUN, input_url=HOSTILE, object_name=HOSTILE, detector=HOSTILE, partition={HOSTILE: HOSTILE})
    html = page(chosen, {HOSTILE: tile(), HOSTILE + "2": Tile(thumbnail=None, anomaly_map=None, reason=HOSTILE)}, run)
    reader = Reader(html)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", html)
    assert r"\n\x1b[31mred\u202egnp.exe{{ 7*7 }}" in reader.text
    assert "<script>alert(1)</script>" in reader.text


def test_the_prompts_that_judged_are_shown_and_no_more_than_six():
    told = [{"prompt": f"look {n}", "side": "normal", "similarity": 0.12345} for n in range(8)]
    text = Reader(page(selection(top=[row(explanation=told)]), {})).text
    assert "Prompts that judged it" in text
    assert "look 5 0.123" in " ".join(text.split())
    assert "look 6" not in text
    assert "Prompts that judged it" not in Reader(page(selection(top=[row()]), {})).text


def test_invisible_characters_are_shown_as_escapes_and_long_texts_are_cut():
    assert printable("a\tb\u200b\ud800é") == r"a\tb\u200b\ud800é"
    cut = printable("x" * 5000)
    assert len(cut) < 1200
    assert " ... " in cut


def test_counts_and_verdict_stand_at_the_top():
    counts = Counts(
        listed=1204, ok=1199, anomalous=37, errors=5, by_error_code={"empty": 5}, by_defect_type={"dent": 37}
    )
    text = Reader(page(selection(top=[row()], counts=counts))).text
    assert "37 of 1,199 images look defective" in text
    assert "1,204" in text
    assert "5 could not be scored" in text
    assert "3.1 % of scored" in text
    assert "1 h 05 min" in text
    assert "12.3 images/s" in text
    assert "1 of 37 anomalous images" in text


@pytest.mark.parametrize(
    ("chosen", "verdict"),
    [
        (selection(), "No image was listed"),
        (selection(normals=[row(score=0.1)]), "No defect found in 1 image"),
        (selection(top=[row()]), "1 of 1 image looks defective"),
        (
            selection(errors=[{"uri": "e", "error_code": "empty", "error_message": None}] * 3),
            "None of 3 images could be read",
        ),
    ],
)
def test_the_verdict_fits_the_counts(chosen, verdict):
    assert verdict in Reader(page(chosen)).text


def test_every_picture_is_a_jpeg_with_alternative_text():
    images = [attributes for tag, attributes in Reader(full_page()).tags if tag == "img"]
    assert len(images) == 4
    assert "a.png: score 0.970, dent, 0 regions" in images[0]["alt"]
    for attributes in images:
        data = base64.b64decode(attributes["src"].removeprefix("data:image/jpeg;base64,"), validate=True)
        assert Image.open(BytesIO(data)).format == "JPEG"


def test_details_name_the_three_most_probable_types_and_the_whole_uri():
    text = Reader(page(selection(top=[row()]))).text
    assert "scratch" in text
    assert "25 %" in text
    assert "stain" not in text
    assert "s3://plant/line-a/one.png" in text


def test_a_picture_that_could_not_be_read_has_a_placeholder_with_the_reason():
    chosen = selection(top=[row("u1"), row("u2"), row("u3")])
    no_map = tile(anomaly_map=None, reason="model gone")
    html = page(chosen, {"u1": Tile(thumbnail=None, anomaly_map=None, reason="changed: other etag"), "u2": no_map})
    assert "No picture: changed: other etag" in html
    assert "No heat map: model gone" in html
    assert "No picture: the picture was not read again" in html
    assert html.count("<img") == 1


def test_a_score_is_never_rounded_onto_its_threshold_or_to_certainty():
    text = Reader(page(selection(top=[row(score=0.99999)], below=[row("v", 0.49996)], normals=[row("w", 1e-6)]))).text
    assert "> 0.999" in text
    assert "0.49996" in text
    assert "< 0.001" in text


def test_errors_are_listed_by_code_with_examples():
    text = Reader(full_page()).text
    assert "truncated" in text
    assert "s3://plant/bad.png" in text
    assert "12 bytes missing" in text


def test_the_chart_marks_the_threshold_and_its_bars_are_in_a_table():
    html = full_page()
    assert 'class="limit"' in html
    assert "score 0.95 to 1.00: 1 anomalous" in html
    assert "<td>0.00 to 0.05</td>" in html
    assert 'class="limit"' not in page(selection(top=[row()]), run=replace(RUN, threshold=None))


def test_the_legend_shows_the_contours_value_when_all_pictures_share_it():
    chosen = selection(top=[row("u1"), row("u2")])
    assert "contour at 0.40" in page(chosen, {uri: tile(map_threshold=0.4) for uri in chosen.uris})
    different = page(chosen, {"u1": tile(map_threshold=0.4), "u2": tile()})
    assert "each detector" in different


def test_unreadable_times_and_unknown_speed_are_left_out():
    html = page(selection(top=[row()]), run=replace(RUN, started="?", images_per_s=None))
    assert "Took" not in html


def test_the_same_input_gives_the_same_page():
    assert full_page() == full_page()


def test_a_page_of_the_default_numbers_stays_below_5_megabytes():
    noise = np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8)
    rows = [row(f"s3://plant/{i:04}.png", 0.9) for i in range(7)]
    hot = Tile(thumbnail=noise, anomaly_map=np.random.default_rng(1).random((16, 16), dtype=np.float32))
    html = page(selection(top=rows), {entry["uri"]: hot for entry in rows})
    empty = len(page(selection()).encode())
    assert html.count("<img") == 7
    assert empty + 84 / 7 * (len(html.encode()) - empty) <= 5_000_000


def test_making_a_page_needs_neither_torch_nor_ray():
    code = "import sys, zsad.report.gallery; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
