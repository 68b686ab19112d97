"""A text tower whose answers the test decides, and writers that count or misbehave."""

import torch

from zsad.prompts.clip_scores import Readings
from zsad.prompts.writers.base import Draft, DraftPhrase, WriteRequest


class StubBackbone:
    """Knows all words but some."""

    name = "stub"
    sha256 = "5b" * 32

    def __init__(self, untaught=()):
        self.untaught = set(untaught)

    def unseen(self, phrase):  # noqa: D102
        return tuple(word for word in phrase.split() if word in self.untaught)


class StubSource:
    """Images that nobody looks at."""

    name = "no pairs"
    identity = "no pairs"


class StubReader:
    """Every phrase is on its side at 0.1, separates at 0.9, and is unlike all others, unless told otherwise."""

    source = StubSource()

    def __init__(self, *, contrast=None, separation=None, like=None, too_long=(), untaught=()):
        self.backbone = StubBackbone(untaught)
        self.contrast, self.separation, self.like = contrast or {}, separation or {}, like or {}
        self.too_long = too_long
        self.num_read = 0
        self.num_embedded = 0

    @property
    def pairs(self):  # noqa: D102
        self.num_embedded += 1

    def fits(self, phrase, object_name):  # noqa: D102
        return phrase not in self.too_long

    def read(self, phrases, sides, object_name):  # noqa: D102
        self.num_read += len(phrases)
        axes = {text: n for n, text in enumerate(dict.fromkeys(self.like.get(p, p) for p in phrases))}
        places = [axes[self.like.get(p, p)] for p in phrases]
        return Readings(
            units_KD=torch.eye(len(axes))[places],
            contrast=[self.contrast.get(p, 0.1) for p in phrases],
            separation=[self.separation.get(p, 0.9) for p in phrases],
        )


def request(product="pill bottle", **changes):
    return WriteRequest(product=product, **changes)


GOOD = ("a smooth clear wall", "a straight printed label", "a cap seated flush", "an even round rim")
BAD = ("a crack in the wall", "a label printed askew", "a cap tilted sideways", "a dark stain inside")


def phrases(good=GOOD, bad=BAD, log_prob=None):
    sides = (("normal", good), ("abnormal", bad))
    return tuple(DraftPhrase(text=text, side=side, log_prob=log_prob) for side, texts in sides for text in texts)


class StubWriter:
    """Gives `answers[product]`: phrases, or a failure in words; `GOOD` and `BAD` for others."""

    name, model, revision = "stub", "a model", "1"

    def __init__(self, answers=None):
        self.answers = answers or {}
        self.asked = []

    def write(self, requests):  # noqa: D102
        for one in requests:
            self.asked.append(one.product)
            answer = self.answers.get(one.product, phrases())
            failed = isinstance(answer, str)
            yield Draft(
                request=one,
                phrases=() if failed else answer,
                model=self.model,
                revision=self.revision,
                failure=answer if failed else None,
            )
