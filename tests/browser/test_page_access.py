"""The page for everybody: keyboard, names for screen readers, contrast, dark, small and calm screens."""

import re
from itertools import pairwise

import pytest
from playwright.sync_api import expect

from .browsing import ANSWER_MS, INSPECT, encoded, picture, upload

PLATE = upload("plate.png", encoded(picture(1, size=128)))
LOW = 0.002  # any picture is anomalous at this threshold
CONTROLS = {"button", "slider", "spinbutton", "combobox", "textbox", "meter", "link", "image"}

# For every element with text of its own: the ratio of its colour to what lies behind it (WCAG 2.2, 1.4.3), as text.
CONTRASTS = """() => {
    const channels = colour => colour.match(/[\\d.]+/g).map(Number);
    const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = channels(getComputedStyle(element).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const element of document.body.querySelectorAll("*")) {
        const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        if (!own || !element.checkVisibility() || element.closest(":disabled")) continue;
        const pair = [channels(getComputedStyle(element).color), behind(element)].map(luminance);
        const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        found.push([ratio, element.textContent.trim().slice(0, 40)]);
    }
    return found;
}"""


def everything_shown(page):
    """All parts at once: a result with regions and prompts, a note, a refusal in the history, opened details."""
    page.at("#detector").select_option("nano:alfa")
    page.set_threshold(LOW)
    page.inspect(upload("page.html", b"<html>", "text/html"), PLATE)
    page.at("#strip button").first.click()
    page.page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    expect(page.at("#score")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(open_page, scheme):
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    everything_shown(page)
    shown = page.page.evaluate(CONTRASTS)
    page.at("#strip button").nth(1).click()
    expect(page.at("#failure")).to_be_visible()
    shown += page.page.evaluate(CONTRASTS)
    assert len(shown) > 60
    assert [item for item in shown if item[0] < 4.5] == []


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_page_follows_the_colour_scheme(open_page, scheme, is_dark):
    page = open_page(color_scheme=scheme)
    colour = page.at("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert (max(int(channel) for channel in re.findall(r"\d+", colour)) < 64) is is_dark


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_a_small_screen(open_page, width):
    page = open_page(viewport={"width": width, "height": 700}, has_touch=True)
    everything_shown(page)
    assert page.page.evaluate("document.documentElement.scrollWidth") == width
    small = page.page.evaluate(
        """[...document.querySelectorAll("main button, main select, main input")]
            .filter(e => e.checkVisibility() && e.id !== "files" && !e.closest("#boxes"))
            .filter(e => e.getBoundingClientRect().height < 24).map(e => e.outerHTML)"""
    )
    assert small == []


def test_whoever_wants_calm_gets_no_motion(open_page):
    page = open_page(reduced_motion="reduce")
    moving = page.page.evaluate(
        """[...document.querySelectorAll("*")].map(e => getComputedStyle(e))
            .filter(s => s.transitionDuration !== "0s" || s.animationName !== "none").length"""
    )
    assert moving == 0


def test_every_control_and_picture_has_a_name(page):
    everything_shown(page)
    session = page.page.context.new_cdp_session(page.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    seen = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and node["role"]["value"].lower() in CONTROLS
    ]
    assert {"button", "slider", "spinbutton", "combobox", "textbox", "meter"} <= {role for role, _ in seen}
    assert [item for item in seen if not item[1].strip()] == []


def test_headings_go_down_one_level_at_a_time(page):
    everything_shown(page)
    levels = page.page.evaluate(
        """[...document.querySelectorAll("h1, h2, h3, h4")].filter(h => h.checkVisibility())
            .map(h => Number(h.tagName[1]))"""
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def focused(page) -> str:
    return page.page.evaluate(
        "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
    )


def test_tab_goes_through_the_page_in_reading_order(page):
    page.inspect(PLATE, PLATE)
    page.at(".skip").focus()
    order = [focused(page)]
    for _ in range(20):
        page.page.keyboard.press("Tab")
        order.append(focused(page))
    expected = ["skip", "files", "detector", "threshold-range", "threshold", "SUMMARY", "again"]
    assert order[:7] == expected
    later = [name for name in order[7:] if name in {"opacity", "copy", "clear"}]
    assert later[:3] == ["opacity", "copy", "clear"]


def test_an_image_is_inspected_and_its_threshold_changed_by_keyboard_alone(page):
    page.page.on("filechooser", lambda chooser: chooser.set_files([PLATE]))  # long before the key that asks for it
    for _ in range(2):
        page.page.keyboard.press("Tab")
    assert focused(page) == "files"
    with page.page.expect_response(INSPECT, timeout=ANSWER_MS):
        page.page.keyboard.press("Enter")
    page.settled()
    page.at("#threshold-range").focus()
    page.page.keyboard.press("End")
    expect(page.at("#threshold")).to_have_value("0.995")
    expect(page.at("#verdict-text")).to_have_text("Normal")
    page.page.keyboard.press("Home")
    expect(page.at("#threshold")).to_have_value("0.005")
    assert len(page.inspections) == 1


def test_arrow_keys_go_through_regions_and_history_with_one_tab_stop_each(page):
    page.inspect(*(upload(f"{number}.png", encoded(picture(number, size=64))) for number in range(3)))
    stops = page.at("#strip button[tabindex='0']")
    expect(stops).to_have_count(1)
    stops.focus()
    page.page.keyboard.press("Home")
    page.page.keyboard.press("Enter")
    expect(page.at("#subject")).to_contain_text("2.png")
    page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("Enter")
    expect(page.at("#subject")).to_contain_text("1.png")
    expect(page.at("#strip button:focus")).to_contain_text("1.png")


def test_results_and_new_decisions_are_announced(page):
    answer = page.inspect(PLATE)
    verdict = "anomalous" if answer["is_anomaly"] else "normal"
    expect(page.at("#live")).to_have_text(re.compile(rf"plate\.png: {verdict}.*Score \d"))
    page.set_threshold(0.999)
    expect(page.at("#live")).to_have_text(re.compile(r"plate\.png: normal\. Score .*threshold 0\.999"))
    expect(page.at("#live")).to_have_attribute("aria-live", "polite")


def test_the_skip_link_leads_to_the_result(page):
    page.page.keyboard.press("Tab")
    expect(page.at(".skip")).to_be_focused()
    page.page.keyboard.press("Enter")
    expect(page.at("#result")).to_be_focused()
