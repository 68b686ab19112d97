"""What the endpoint counts, by `ray.util.metrics`: Ray exports it in Prometheus' form with the prefix `ray_`.

Routes, statuses and configured detectors are few, so that the number of series is bounded whatever clients send.
"""

from typing import Any

from ray.util import metrics

from zsad.http.engine import Inspected
from zsad.http.journal import Record

_TIMES_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000]
_BATCHES = [1, 2, 4, 8, 16, 32, 64]


class RequestMetrics:
    """`zsad.http.journal.Observer` of one ingress replica."""

    def __init__(self) -> None:
        self._requests = _counter("zsad_requests", "Requests answered.", "route", "status")
        self._request_ms = _times("zsad_request_ms", "From headers to answer, ms.", "route")
        self._images = _counter("zsad_images", "Images with a finding.", "detector", "verdict")
        self._times = {
            name: _times(f"zsad_{name}_ms", f"{text} of an image, ms.", "detector")
            for name, text in (
                ("queue", "Waiting and transfer"),
                ("decode", "Decoding"),
                ("model", "The model's batch"),
            )
        }

    def request(self, record: Record) -> None:
        """A request was answered."""
        self._requests.inc(tags={"route": record.route, "status": str(record.status)})
        self._request_ms.observe(record.total_ms, tags={"route": record.route})

    def image(self, inspected: Inspected, queue_ms: float) -> None:
        """An image got its finding."""
        detector = inspected.detector.name
        verdict = "anomaly" if inspected.finding.is_anomaly else "normal"
        self._images.inc(tags={"detector": detector, "verdict": verdict})
        spent = {"queue": queue_ms, "decode": inspected.decode_ms, "model": inspected.model_ms}
        for name, value in spent.items():
            self._times[name].observe(max(value, 1e-3), tags={"detector": detector})


class ScorerMetrics:
    """What one scorer counts."""

    def __init__(self) -> None:
        self._batches = metrics.Histogram("zsad_batch_images", "Images of a batch.", boundaries=_BATCHES)
        self._loads = _counter("zsad_detector_loads", "Detectors loaded, or loaded anew.", "detector", "outcome")
        self._held = metrics.Gauge("zsad_detectors_held", "Detectors in memory.")

    def batch(self, num_images: int) -> None:
        """A batch was scored."""
        self._batches.observe(num_images)

    def load(self, detector: str, outcome: str, num_held: int) -> None:
        """A detector was loaded ("ok"), or could not be ("failed")."""
        self._loads.inc(tags={"detector": detector, "outcome": outcome})
        self._held.set(num_held)


def _counter(name: str, text: str, *tags: str) -> Any:
    return metrics.Counter(name, text, tag_keys=tags)


def _times(name: str, text: str, *tags: str) -> Any:
    return metrics.Histogram(name, text, boundaries=_TIMES_MS, tag_keys=tags)
