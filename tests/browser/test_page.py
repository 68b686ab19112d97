"""What a person does with the page, against the real endpoint and its model."""

import base64
import io
import json
from functools import cache

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from zsad.detector import load_detector
from zsad.regions import upsample
from zsad.report import overlay
from zsad.report.gallery import _score_text

from .browsing import ANSWER_MS, Watched, encoded, picture, upload

ANOMALOUS = 1  # of `picture`
LOW = 0.002  # any picture is anomalous at this threshold, and most have a region


def plate(number: int = ANOMALOUS, **more) -> dict:
    return upload(f"plate_{number}.png", encoded(picture(number, **more)))


@cache
def clearest() -> bytes:
    """The procedural picture that nano is surest about, so that it has regions."""
    rgb_NHW3 = [picture(number) for number in range(1, 40, 2)]
    findings = load_detector("nano", device="cpu").inspect(rgb_NHW3)
    surest = max(range(len(findings)), key=lambda n: (bool(findings[n].regions), findings[n].score))
    return encoded(rgb_NHW3[surest])


def defective(page: Watched) -> dict:
    """Inspect a picture that is anomalous and has a region."""
    return page.inspect(upload("marked.png", clearest()))


def test_a_chosen_image_shows_the_answer_that_the_endpoint_gives_to_the_same_bytes(page, page_url):
    content = encoded(picture(ANOMALOUS))
    page.inspect(upload("plate.png", content))
    answer = httpx.post(
        f"{page_url}v1/inspect", content=content, headers={"Content-Type": "image/png"}, timeout=60
    ).json()
    expect(page.at("#score")).to_have_text(_score_text(answer["score"], answer["threshold"]))
    expect(page.at("#verdict-text")).to_contain_text("Anomalous" if answer["is_anomaly"] else "Normal")
    expect(page.at("#subject")).to_have_text("plate.png, 256 x 256 px")
    expect(page.at("#meter")).to_have_attribute("aria-valuenow", f"{answer['score']:.4f}")
    assert page.at("#meter-mark").evaluate("mark => mark.style.left") == f"{100 * answer['threshold']:g}%"
    assert len(page.inspections) == 1


def test_several_files_are_inspected_in_order_and_stay_in_the_history(page):
    page.inspect(*(upload(f"{number}.png", encoded(picture(number, size=96))) for number in range(4)))
    expect(page.at("#strip .name")).to_have_text(["3.png", "2.png", "1.png", "0.png"])
    expect(page.at("#subject")).to_contain_text("0.png")
    expect(page.at("#history-count")).to_contain_text("4 images")
    page.at("#strip button").nth(0).click()
    expect(page.at("#subject")).to_contain_text("3.png")
    expect(page.at("#strip button[aria-current=true]")).to_contain_text("3.png")
    assert len(page.inspections) == 4
    page.at("#clear").click()
    expect(page.at("#history")).to_be_hidden()
    expect(page.at("#verdict-text")).to_have_text("No image yet")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_can_be_dropped_or_pasted(page, way):
    page.page.evaluate(
        """([way, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(bytes)], "given.png", {type: "image/png"}));
            const event = way === "drop"
                ? new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true})
                : new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true});
            document.body.dispatchEvent(event);
        }""",
        [way, list(encoded(picture(ANOMALOUS, size=64)))],
    )
    page.settled()
    expect(page.at("#subject")).to_have_text("given.png, 64 x 64 px")


def test_dropped_text_is_explained_and_not_sent(page):
    page.page.evaluate(
        """() => {
            const transfer = new DataTransfer();
            transfer.setData("text/uri-list", "http://example.org/image.png");
            const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
            document.body.dispatchEvent(new DragEvent("drop", options));
        }"""
    )
    expect(page.at("#intake-note")).to_contain_text("Nothing to inspect was dropped")
    assert page.inspections == []


def pixels_of(page: Watched, selector: str) -> np.ndarray:
    """RGBA of a canvas, uint8 (H, W, 4)."""
    width, height, data = page.at(selector).evaluate(
        """canvas => {
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let text = "";
            for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
            return [canvas.width, canvas.height, btoa(text)];
        }"""
    )
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)


def test_the_heat_map_has_the_colours_of_the_reports_on_one_fixed_scale(page):
    answer = defective(page)
    sent_hw = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["map"])))).astype(np.float32) / 65535
    shown_HW4 = pixels_of(page, "#heat")
    height, width = shown_HW4.shape[:2]
    colour_HW3, alpha_HW = overlay.heat(upsample(sent_hw, height, width))
    np.testing.assert_allclose(shown_HW4[..., 3], 255 * alpha_HW, atol=2)
    strong_HW = alpha_HW > 0.3  # where the canvas keeps colours to a few levels
    assert strong_HW.any()
    np.testing.assert_allclose(shown_HW4[strong_HW][:, :3], colour_HW3[strong_HW], atol=4)


def test_the_slider_changes_the_heat_maps_opacity_and_leaves_the_image(page):
    page.inspect(plate())
    page.at("#opacity").focus()
    page.page.keyboard.press("Home")
    expect(page.at("#opacity-value")).to_have_text("0 %")
    expect(page.at("#heat")).to_have_css("opacity", "0")
    page.page.keyboard.press("ArrowRight")
    expect(page.at("#heat")).to_have_css("opacity", "0.05")
    expect(page.at("#photo")).to_have_css("opacity", "1")


def test_a_changed_threshold_decides_again_without_a_request(page):
    page.set_threshold(LOW)
    answer = defective(page)
    assert answer["is_anomaly"]
    assert answer["regions"]
    expect(page.at("#boxes button")).to_have_count(len(answer["regions"]))
    page.set_threshold(0.999)
    expect(page.at("#verdict-text")).to_have_text("Normal")
    expect(page.at("#boxes button")).to_have_count(0)
    expect(page.at("#regions")).to_be_hidden()
    expect(page.at("#decision-note")).to_contain_text("no longer count")
    expect(page.at("#strip .tone")).to_contain_text("normal")
    page.set_threshold(LOW)
    expect(page.at("#verdict-text")).to_contain_text("Anomalous")
    expect(page.at("#boxes button")).to_have_count(len(answer["regions"]))
    assert len(page.inspections) == 1


def test_a_lower_threshold_says_what_the_answer_lacks_and_asking_again_gets_it(page):
    page.set_threshold(0.999)
    assert not defective(page)["is_anomaly"]
    page.set_threshold(LOW)
    expect(page.at("#verdict-text")).to_have_text("Anomalous")
    expect(page.at("#decision-note")).to_contain_text("named no type and no regions")
    expect(page.at("#type")).to_have_text("type not asked")
    with page.page.expect_response("**/v1/inspect?*") as waited:
        page.at("#again").click()
    page.settled()
    assert waited.value.json()["threshold"] == LOW
    expect(page.at("#decision-note")).to_be_hidden()
    expect(page.at("#type")).to_have_text(waited.value.json()["defect_type"])
    assert len(page.inspections) == 2


def test_a_region_chosen_in_the_picture_is_chosen_in_the_list_and_back(page):
    page.set_threshold(LOW)
    defective(page)
    expect(page.at("#boxes button").first).to_have_attribute("aria-pressed", "false")
    page.at("#boxes button").first.click()
    expect(page.at("#regions-list button").first).to_have_attribute("aria-pressed", "true")
    page.page.keyboard.press("Escape")
    expect(page.at("#regions-list button").first).to_have_attribute("aria-pressed", "false")
    page.at("#regions-list button").last.focus()
    expect(page.at("#boxes button").last).to_have_attribute("aria-pressed", "true")


def test_a_regions_box_and_rim_lie_where_the_answer_says(page):
    page.set_threshold(LOW)
    answer = defective(page)
    x, y, width, height = answer["regions"][0]["box"]
    stage, box = page.at("#stage").bounding_box(), page.at("#boxes button").first.bounding_box()
    scale = stage["width"] / answer["width"]
    assert box["x"] - stage["x"] == pytest.approx(x * scale, abs=1)
    assert box["y"] - stage["y"] == pytest.approx(y * scale, abs=1)
    assert box["width"] == pytest.approx(width * scale, abs=1)
    assert box["height"] == pytest.approx(height * scale, abs=1)
    page.at("#regions-list button").first.focus()
    rim_HW = pixels_of(page, "#lines")[..., 3] == 255  # of the chosen region; others are fainter
    lines_scale = rim_HW.shape[1] / answer["width"]
    rows, columns = (np.flatnonzero(rim_HW.any(axis=axis)) for axis in (1, 0))
    assert columns[0] == pytest.approx(x * lines_scale, abs=3)
    assert columns[-1] == pytest.approx((x + width) * lines_scale, abs=3)
    assert rows[0] == pytest.approx(y * lines_scale, abs=3)
    assert rows[-1] == pytest.approx((y + height) * lines_scale, abs=3)


def test_the_prompts_that_decided_are_listed_for_a_method_that_keeps_them(page):
    page.at("#detector").select_option("nano:alfa")
    answer = page.inspect(plate())
    assert answer["explanation"]
    expect(page.at("#prompts-rows tr")).to_have_count(len(answer["explanation"]))
    first = answer["explanation"][0]
    expect(page.at("#prompts-rows tr").first).to_have_text(f"{first['side']}{first['prompt']}{first['similarity']:.4f}")
    page.at("#detector").select_option("nano")
    expect(page.at("#settings-note")).to_contain_text("other settings")
    with page.page.expect_response("**/v1/inspect?*"):
        page.at("#again").click()
    page.settled()
    expect(page.at("#prompts")).to_be_hidden()


@pytest.mark.parametrize("is_secure", [True, False])
def test_copied_json_is_the_whole_answer(open_page, is_secure):
    """Without a secure context (plain http to another machine) there is no clipboard API, and copying still works."""
    script = "Object.defineProperty(navigator, 'clipboard', {value: undefined})"
    page = open_page(
        permissions=["clipboard-read", "clipboard-write"],
        before=None if is_secure else lambda tab: tab.add_init_script(script),
    )
    answer = page.inspect(plate())
    page.at("#copy").click()
    expect(page.at("#live")).to_have_text("JSON copied.")
    page.page.evaluate("document.body.append(Object.assign(document.createElement('textarea'), {id: 'sink'}))")
    page.at("#sink").focus()
    page.page.keyboard.press("Control+V")
    assert json.loads(page.at("#sink").input_value()) == answer
    page.page.get_by_text("Show JSON").click()
    expect(page.at("#json")).to_contain_text(answer["request_id"])
    expect(page.at("#json")).to_contain_text("characters of base64")


def test_a_tiff_that_the_browser_cannot_show_gets_its_map_on_grey(page):
    answer = page.inspect(upload("scan.tif", encoded(picture(ANOMALOUS), "TIFF"), "image/tiff"))
    expect(page.at("#score")).to_have_text(_score_text(answer["score"], answer["threshold"]))
    expect(page.at("#picture-note")).to_contain_text("can't show TIFF files")
    assert (pixels_of(page, "#photo") == [0x8B, 0x8B, 0x88, 255]).all()


def test_a_bmp_is_shown_as_it_is(page):
    rgb_HW3 = np.full((640, 640, 3), [200, 30, 60], np.uint8)
    page.inspect(upload("plain.bmp", encoded(rgb_HW3, "BMP"), "image/bmp"))
    expect(page.at("#picture-note")).to_be_hidden()
    assert (pixels_of(page, "#photo")[..., :3] == [200, 30, 60]).all()


def test_a_turned_photo_is_shown_as_the_model_saw_it(page):
    """EXIF orientation 6: stored 640 x 320 with a red left half, shown 320 x 640 with a red upper half."""
    rgb_HW3 = np.full((320, 640, 3), 255, np.uint8)
    rgb_HW3[:, :320] = [255, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    page.inspect(upload("turned.png", encoded(rgb_HW3, exif=exif)))
    expect(page.at("#subject")).to_have_text("turned.png, 320 x 640 px")
    shown_HW4 = pixels_of(page, "#photo")
    assert shown_HW4.shape[:2] == (640, 320)
    assert (shown_HW4[:310, :, :3] == [255, 0, 0]).all()
    assert (shown_HW4[330:, :, :3] == 255).all()


def test_a_hostile_file_name_is_shown_as_text(page):
    name = "<img src=x onerror=document.title=1>\u202egnp.png"
    page.inspect(upload(name, encoded(picture(ANOMALOUS, size=64))))
    expect(page.at("#strip .name")).to_have_text("<img src=x onerror=document.title=1>\\u{202e}gnp.png")
    expect(page.at("#subject img, #strip img")).to_have_count(0)
    assert page.page.title() != "1"


def test_an_object_name_is_sent_with_the_next_image(page):
    page.page.get_by_text("Object name and access token").click()
    page.at("#object").fill("bottle cap")
    page.inspect(plate())
    assert "object=bottle+cap" in page.inspections[0].url
    expect(page.at("#score")).to_be_visible(timeout=ANSWER_MS)
