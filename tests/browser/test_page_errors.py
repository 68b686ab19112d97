"""What the page does when there is no answer.

Refusals of files are the real endpoint's; faults of network and load are put in between.
"""

import json
import re

import numpy as np
import pytest
from playwright.sync_api import Route, expect

from .browsing import INSPECT, encoded, picture, upload

PLATE = upload("plate.png", encoded(picture(1, size=64)))


def problem(route: Route, status: int, code: str, **headers: str) -> None:
    body = {"type": "about:blank", "title": "Refused", "status": status, "detail": f"because {code}", "code": code}
    body["request_id"] = "request-7"
    kind = "application/problem+json"
    route.fulfill(status=status, body=json.dumps(body), headers=headers | {"Content-Type": kind})


@pytest.fixture
def faults(page):
    """Outcomes for the next requests to /v1/inspect; when they are used up the real endpoint answers."""
    outcomes = []
    page.page.route(INSPECT, lambda route: outcomes.pop(0)(route) if outcomes else route.continue_())
    return outcomes


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("page.jpg", b"<html><body>502 Bad Gateway</body></html>", "unknown_format"),
        ("empty.png", b"", "empty"),
        ("half.png", encoded(picture(1, size=64))[:600], "truncated"),
        ("tiny.png", encoded(np.zeros((4, 4, 3), np.uint8)), "too_small"),
    ],
)
def test_a_file_that_will_never_do_says_why_and_costs_itself_alone(page, name, content, code):
    page.inspect(upload(name, content), PLATE)
    page.at(f"#strip button[title='{name}']").click()
    expect(page.at("#verdict-text")).to_have_text("Not inspected")
    expect(page.at("#failure .code")).to_contain_text(re.compile(rf"HTTP 4\d\d, {code}"))
    expect(page.at("#findings")).to_be_hidden()
    page.at("#strip button[title='plate.png']").click()
    expect(page.at("#score")).to_be_visible()
    expect(page.at("#failure")).to_be_hidden()


def test_a_file_above_the_servers_limit_is_refused_as_too_large(page, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(bytes(21 * 2**20))
    page.at("#files").set_input_files(large)
    page.settled()
    expect(page.at("#failure h3")).to_have_text("Too large")
    expect(page.at("#failure").get_by_role("button", name="Try again")).to_be_visible()


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_counted_down_and_asked_again(page, faults, status):
    faults.append(lambda route: problem(route, status, "busy", **{"Retry-After": "2"}))
    page.give(PLATE)
    expect(page.at("#failure")).to_contain_text("because busy")
    expect(page.at("#countdown")).to_have_text("Trying again in 2 s.")
    expect(page.at("#countdown")).to_have_text("Trying again in 1 s.")
    page.settled()
    expect(page.at("#score")).to_be_visible()
    assert len(page.inspections) == 2


def test_a_busy_server_can_be_asked_at_once_or_given_up(page, faults):
    busy = lambda route: problem(route, 503, "busy", **{"Retry-After": "600"})  # noqa: E731
    faults += [busy, busy]
    page.give(PLATE, PLATE)
    page.page.get_by_role("button", name="Try now").click()
    expect(page.at("#countdown")).to_have_text("Trying again in 600 s.")
    page.page.get_by_role("button", name="Give up").click()
    page.settled()
    expect(page.at("#strip button")).to_have_count(1)
    expect(page.at("#score")).to_be_visible()


def test_a_server_that_stays_busy_is_not_asked_forever(page, faults):
    faults += [lambda route: problem(route, 429, "busy", **{"Retry-After": "0"})] * 7
    page.page.clock.install()
    page.give(PLATE)
    for asked in range(1, 7):
        expect(page.at("#failure")).to_be_visible()
        assert len(page.inspections) == asked
        if asked < 6:
            with page.page.expect_request(INSPECT):
                page.page.clock.run_for(1_000)
    expect(page.at("#countdown")).to_be_hidden()
    page.page.clock.run_for(60_000)
    assert len(page.inspections) == 6
    expect(page.page.get_by_role("button", name="Try now")).to_be_visible()


def test_without_a_network_the_queue_waits_and_goes_on_by_itself(page):
    page.page.context.set_offline(True)
    page.give(PLATE)
    expect(page.at("#failure")).to_contain_text("This device has no network")
    page.page.context.set_offline(False)
    page.page.evaluate("window.dispatchEvent(new Event('online'))")  # a machine with loopback only never fires it
    page.settled()
    expect(page.at("#score")).to_be_visible()


def test_a_server_that_cannot_be_reached_is_asked_again_on_request(page, faults):
    faults.append(lambda route: route.abort("connectionrefused"))
    page.give(PLATE)
    expect(page.at("#failure")).to_contain_text("The server can't be reached")
    page.page.get_by_role("button", name="Try now").click()
    page.settled()
    expect(page.at("#score")).to_be_visible()


def test_a_missing_token_is_asked_for_and_sent_from_memory_only(page, faults):
    faults.append(lambda route: problem(route, 401, "unauthorized"))
    page.give(PLATE)
    expect(page.at("#token")).to_be_focused()
    expect(page.at("#connection-note")).to_contain_text("Give an access token")
    page.page.keyboard.type("canary-token")
    page.page.keyboard.press("Enter")
    page.settled()
    expect(page.at("#score")).to_be_visible()
    expect(page.at("#connection-note")).to_be_hidden()
    sent = page.inspections[-1]
    assert sent.headers["authorization"] == "Bearer canary-token"
    assert "authorization" not in page.inspections[0].headers
    assert not any("canary-token" in request.url for request in page.inspections)
    kept = page.page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert "canary-token" not in kept


def test_detectors_that_cannot_be_listed_are_asked_for_again(open_page):
    listing = []

    def refuse_once(tab):
        def answer(route):
            listing.append(route.request)
            problem(route, 500, "internal") if len(listing) == 1 else route.continue_()

        tab.route("**/v1/detectors", answer)

    page = open_page(load=False, before=refuse_once)
    page.page.goto(page.url)
    expect(page.at("#connection-note")).to_contain_text("because internal")
    page.at("#connection-note button").click()
    expect(page.at("#detector")).to_be_enabled()
    expect(page.at("#connection-note")).to_be_hidden()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [(500, "<h1>Internal</h1>", "The server failed"), (200, "<h1>Hello</h1>", "The answer can't be read")],
)
def test_an_answer_that_is_not_ours_is_reported_as_such(page, faults, status, body, said):
    faults.append(lambda route: route.fulfill(status=status, body=body, content_type="text/html"))
    page.give(PLATE)
    expect(page.at("#failure")).to_contain_text(said)
    expect(page.at("#failure h1")).to_have_count(0)
    page.page.get_by_role("button", name="Try again").click()
    page.settled()
    expect(page.at("#score")).to_be_visible()


def test_a_broken_map_leaves_the_score_and_says_so(page, faults):
    def broken(route):
        answer = route.fetch().json()
        route.fulfill(json=answer | {"map": "bm90IGEgcG5n"})

    faults.append(broken)
    page.give(PLATE)
    page.settled()
    expect(page.at("#score")).to_be_visible()
    expect(page.at("#picture-note")).to_contain_text("No heat map: the map is not a PNG file")


def test_more_images_than_the_page_holds_are_left_out_and_counted(page, faults):
    faults.append(lambda route: problem(route, 503, "busy", **{"Retry-After": "600"}))
    page.give(*[PLATE] * 103)
    expect(page.at("#strip button")).to_have_count(100)
    expect(page.at("#intake-note")).to_contain_text("3 images left out")
    expect(page.at("#history-count")).to_have_text("100 images, 100 waiting")


def test_stop_forgets_what_has_not_been_answered(page, faults):
    faults.append(lambda route: problem(route, 503, "busy", **{"Retry-After": "600"}))
    page.give(PLATE, PLATE, PLATE)
    expect(page.at("#countdown")).to_be_visible()
    page.at("#stop").click()
    expect(page.at("#history")).to_be_hidden()
    expect(page.at("#verdict-text")).to_have_text("No image yet")
    page.inspect(PLATE)
    expect(page.at("#score")).to_be_visible()
