"""A language engine whose faults are written in the product's name, for actors in the suite's own environment."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ray import cloudpickle

from zsad.prompts.writers.base import WriteRequest
from zsad.prompts.writers.drafting import Answer, Score

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import the tests


class ScriptedEngine:
    """Answers every question in the next step, with two pairs; `starts` gets one line for every engine made."""

    num_slots = 4

    def __init__(self, starts: Path | None = None) -> None:
        if starts is not None:
            with starts.open("a") as opened:
                opened.write(f"{os.getpid()}\n")
        self._asked: list[tuple[int, str]] = []
        self._texts: list[tuple[int, int, str]] = []

    @property
    def num_open(self) -> int:
        """Requests that the next steps finish."""
        return len(self._asked) + len(self._texts)

    def ask(self, place: int, request: WriteRequest) -> None:
        """Take a product in."""
        self._asked.append((place, request.product))

    def score(self, place: int, index: int, before: str, text: str) -> None:
        """Take a phrase in."""
        self._texts.append((place, index, text.removeprefix(before)))

    def step(self) -> Sequence[Answer | Score]:
        """Score all phrases, and answer as many questions as there are slots."""
        asked, self._asked = self._asked[: self.num_slots], self._asked[self.num_slots :]
        texts, self._texts = self._texts, []
        scores = [Score(place=place, index=index, log_prob=-float(len(text))) for place, index, text in texts]
        return [*scores, *(_answer(place, product) for place, product in asked)]


def _answer(place: int, product: str) -> Answer:
    if product.startswith("kills once"):  # the rest of the name is a file that tells whether it did
        marker = Path(product.removeprefix("kills once "))
        if not marker.exists():
            marker.touch()
            os._exit(1)
    if product == "kills":
        os._exit(1)
    if product == "hangs":
        time.sleep(3600)
    if product == "raises":
        raise RuntimeError("no memory left on the device")
    text = _TEXTS.get(product, good_answer(product))
    return Answer(place=place, text=text, is_complete=product != "cut", num_tokens=len(text.split()))


def good_answer(product: str) -> str:
    pairs = [
        {"trait": "edge", "good": f"a smooth edge of {product}", "faulty": f"a chipped edge of {product}"},
        {"trait": "surface", "good": f"a clean face of {product}", "faulty": f"a scratched face of {product}"},
    ]
    return json.dumps({"pairs": pairs})


_TEXTS = {
    "prose": "Certainly! A good bottle is smooth, and a faulty one has cracks.",
    "half": good_answer("half")[:40],
    "cut": good_answer("cut")[:40],
    "endless": "smooth and " * 10_000,
    "nothing": "",
    "a list": "[1, 2, 3]",
    "no pairs": '{"pairs": []}',
    "a number": '{"pairs": [{"trait": "edge", "good": 7, "faulty": "a chipped edge"}]}',
    "too many": json.dumps({"pairs": 3 * json.loads(good_answer("x"))["pairs"]}),
}
FAULTY_TEXTS = tuple(_TEXTS)
