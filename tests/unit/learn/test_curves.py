"""Curves by hand, the page and the event files made of them."""

import re
import tempfile

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zsad.errors import StorageError
from zsad.learn import curves
from zsad.learn.checkpoints import EpochRecord, State
from zsad.learn.page import PAGE, put_page
from zsad.learn.tensorboard import event_bytes, put_events
from zsad.storage import open_store
from zsad.train_config import TrainConfig

HISTORY = (
    EpochRecord(epoch=0, steps=[{"a": 4.0, "b": 0.0}, {"a": 2.0, "b": 1.0}], validation={"a": 1.0, "b": 1.0}),
    EpochRecord(epoch=1, steps=[{"a": 1.0, "b": 0.5}, {"a": 0.0, "b": 0.5}], validation={"a": 0.5, "b": 0.0}),
)


def points(line):
    return [tuple(float(value) for value in point.split(",")) for point in line.points.split()]


def test_the_total_comes_first_then_every_term():
    assert [chart.title for chart in curves.charts(HISTORY)] == ["total", "a", "b"]


def test_places_of_a_curve_by_hand():
    """Totals 4, 3, 1.5, 0.5 in the middles of the half epochs of two; validation 2 and 0.5 at their ends."""
    total = curves.charts(HISTORY)[0]
    assert total.top == 4.0
    width, height = curves.WIDTH - curves.LEFT - curves.RIGHT, curves.HEIGHT - curves.TOP - curves.BOTTOM
    training, validation = total.lines
    expected = [(0.125, 1.0), (0.375, 0.75), (0.625, 0.375), (0.875, 0.125)]
    for (x, y), (share_x, share_y) in zip(points(training), expected, strict=True):
        assert x == pytest.approx(curves.LEFT + share_x * width, abs=0.06)
        assert y == pytest.approx(curves.HEIGHT - curves.BOTTOM - share_y * height, abs=0.06)
    assert [round(x - curves.LEFT) for x, _ in points(validation)] == [round(width / 2), width]


def test_many_steps_are_averaged_to_a_bounded_number_of_points():
    record = EpochRecord(epoch=0, steps=[{"a": float(number % 2)} for number in range(10_000)])
    line = curves.charts([record])[0].lines[0]
    assert len(points(line)) == curves.NUM_POINTS
    assert len({y for _, y in points(line)}) <= 3  # all near one half


def test_the_page_holds_every_point_of_long_curves(tmp_path):
    """500 steps, five to a point; long texts are cut in the middle on this page, which would leave no valid curve."""
    steps = [{"a": 1.0 + number % 7, "b": 0.5} for number in range(500)]
    config = TrainConfig(method="faprompt", dataset="synthetic", output=str(tmp_path / "o"))
    history = (EpochRecord(epoch=0, steps=steps, validation={"a": 1.0, "b": 0.5}),)
    put_page(open_store(str(tmp_path)), config, State(epochs=1, history=history))
    shown = re.findall(r'<polyline class="curve c(\d)" points="([^"]*)"', (tmp_path / PAGE).read_text())
    number = r"\d+\.\d,\d+\.\d"
    assert all(re.fullmatch(f"{number}( {number})+", text) for _, text in shown)
    assert [(colour, len(text.split())) for colour, text in shown] == [("1", 100), ("2", 2)] * 3


def test_validation_after_one_epoch_is_a_short_level_dash_at_its_end():
    validation = curves.charts(HISTORY[:1])[0].lines[1]
    (left, low), (right, high) = points(validation)
    assert low == high
    assert 5 < right - left < 20
    assert right == curves.WIDTH - curves.RIGHT


def test_the_page_escapes_what_it_was_told(tmp_path):
    store = open_store(str(tmp_path))
    config = TrainConfig(method="dapo", dataset="mvtec:/data/<script>alert(1)</script>", output=str(tmp_path / "o"))
    put_page(store, config, State(epochs=2, history=HISTORY))
    page = (tmp_path / PAGE).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<polyline") == 3 * 2
    assert "Content-Security-Policy" in page


def test_event_files_hold_every_step_once(tmp_path):
    store = open_store(str(tmp_path / "events"))
    for epochs in (1, 2, 2):  # an epoch that was done again replaces its file
        put_events(store, State(epochs=epochs, history=HISTORY[:epochs]))
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/total")] == [
        (0, 4),
        (1, 3),
        (2, 1.5),
        (3, 0.5),
    ]
    assert [(event.step, event.value) for event in events.Scalars("validation/total")] == [(2, 2), (4, 0.5)]


def test_a_folder_for_temporary_files_that_fails_is_a_storage_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="curves of epoch 1 can't be written to this machine's folder for temporary"):
        event_bytes(HISTORY[0], 0)
