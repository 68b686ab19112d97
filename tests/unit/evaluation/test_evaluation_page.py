"""The page and the text tables: complete, escaped, offline."""

import re
from dataclasses import replace

import numpy as np
import pytest
from test_figures import group, image, pixels

from zsad.evaluation.figures import Figure, results
from zsad.evaluation.page import render_page
from zsad.evaluation.summary import EvaluationInfo, markdown, number, terminal
from zsad.evaluation.tally import Tally
from zsad.report.gallery import Tile

EVIL = "<script>alert(1)</script>|`x`\nnext\\| ![](http://x/y) \x1b[2J"
INFO = EvaluationInfo(
    dataset="mvtec:/d",
    layout="mvtec",
    chosen="split test",
    detector="nano",
    model="nano, winclip, fp32, 224 px",
    object_names=("object",),
    calibrated_on="procedural normal images (256 images)",
    threshold=0.5,
    compared_at="256 x 256 px",
    started="2026-01-01T00:00:00+00:00",
    finished="2026-01-01T00:01:00+00:00",
    version="0.1.0",
)


@pytest.fixture
def tally():
    counted = Tally()
    counted.add(
        group(
            "part",
            "good",
            [image("g1", 0.1), image("g2", 0.7, is_anomaly=True, answer="crack")],
            pixels(False, score=-5),
        )
    )
    counted.add(
        group("part", "crack", [image("c1", 0.9, is_anomaly=True, answer="crack"), image("c2", 0.2)], pixels(True))
    )
    counted.add(group("part", "crack", [image("c3", 0, error="mask_missing")]))
    return counted  # fmt: skip


def page(tally, tiles=None, info=INFO):
    return render_page(results(tally), tally, tiles or {}, info=info)


def test_the_page_shows_figures_curves_confusion_the_worst_and_the_errors(tally):
    tile = Tile(
        thumbnail=np.full((40, 50, 3), 90, np.uint8), anomaly_map=np.eye(4, dtype=np.float32), map_threshold=0.5
    )
    html = page(tally, {"/d/g2": tile})
    assert "Image AUROC" in html
    assert ">0.750<" in html  # 0.9 beats both good ones, 0.2 beats one of two
    assert html.count("<polyline") == 5
    assert html.count("data:image/jpeg;base64,") == 1
    assert "No picture: the picture was not read again for this page" in html
    assert "mask_missing" in html
    assert "c3 is wrong" in html
    assert re.search(r'<td style="--share:50" class="right">1</td>', html)
    assert "518 x 518 (FAPrompt)" in html  # the published protocol


def test_long_curves_are_drawn_whole():
    """Text is cut at 1,100 characters, curves are not."""
    rng = np.random.default_rng(0)
    counted = Tally()
    counted.add(group("part", "good", [image(f"g{k}", score) for k, score in enumerate(rng.random(300))]))
    counted.add(group("part", "crack", [image(f"c{k}", score) for k, score in enumerate(rng.random(300))]))
    points = re.findall(r'points="([^"]*)"', page(counted))
    assert len(points) == 2
    assert all(len(text) > 1100 and re.fullmatch(r"[\d., ]+", text) for text in points)


def test_the_page_asks_nobody_for_anything_and_runs_nothing(tally):
    html = page(tally)
    assert "default-src 'none'" in html
    assert "<script" not in html
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", html)


def test_names_are_escaped_everywhere():
    counted = Tally()
    counted.add(group(EVIL, EVIL, [image(EVIL, 0.5), image(EVIL, 0, error="decode")], pixels(True), words=(EVIL,)))
    info = replace(INFO, dataset=EVIL, detector=EVIL, chosen=EVIL, object_names=(EVIL,), calibrated_on=EVIL)
    for text in (page(counted, info=info), markdown(results(counted), counted.errors, info)):
        assert "<script" not in text
    text = markdown(results(counted), counted.errors, info) + terminal(results(counted), info, "/out/report.html")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "alert" in line]
    assert len(rows) == 4  # product and type, the image with an error, the product in the terminal
    for row in rows:
        bare = re.sub(r"\\.", "", row)  # without what a backslash escapes
        assert bare.count("|") == (4 if "decode" in row else 9)
        assert not re.search(r"[\[\]`<\x1b]", bare)


def test_the_legend_names_the_lines_of_all_curves():
    """One product has only image figures, the other only pixel figures."""
    counted = Tally()
    counted.add(group("first", "good", [image("g", 0.1)]))
    counted.add(group("first", "dent", [image("d", 0.9)]))
    counted.add(group("second", "dent", [image("e", 0.9)], pixels(True)))
    legend = re.search(r'<ul class="lines".*?</ul>', page(counted), re.DOTALL)[0]
    assert re.findall(r"</svg>(\w+)</li>", legend) == ["first", "second"]


def test_figures_that_cannot_be_had_say_why():
    counted = Tally()
    counted.add(group("part", "crack", [image("c1", 0.9)], pixels(True)))
    found = results(counted)
    html, text = page(counted), markdown(found, [], INFO)
    assert "there are no normal images" in html
    assert "Image F1-max</th>" not in html  # a column without any figure is left out
    assert "Pixel AUROC</th>" in html
    assert "- Image AUROC: there are no normal images" in text
    assert "| part | - | - | - | 1.000 |" in text


def test_markdown_has_every_part(tally):
    text = markdown(results(tally), tally.errors, INFO)
    for part in ("# nano on mvtec:/d", "5 listed = 4 compared + 1 errors", "| part | 0.750 |", "## Defect types: part"):
        assert part in text
    assert "| crack (2) | 0.750 |" in text
    assert "false alarms 0.500 of 2 normal images, detections 0.500 of 2" in text
    assert "| /d/c3 | mask_missing | c3 is wrong |" in text
    assert "Published practice for MVTec AD" in text


def test_the_terminal_shows_types_of_one_product_and_products_of_several(tally):
    assert "| crack |" in terminal(results(tally), INFO, "/out/report.html")
    tally.add(group("other", "good", [image("g", 0.1)]))
    several = terminal(results(tally), INFO, "/out/report.html")
    assert "| other |" in several
    assert "| mean of 2 products |" in several
    assert "| crack |" not in several


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure(value=0.12345), "0.123"),
        (Figure(value=0.5, error=0.0004), "0.500"),
        (Figure(value=0.5, error=0.0021), "0.500 ± 0.002"),
        (Figure(value=None, reason="x"), "-"),
    ],
)
def test_numbers_show_their_error_where_it_reaches_them(figure, text):
    assert number(figure) == text
