"""Phrases without any model: the built-in lists, for when no language model is at hand or one has failed.

The faulty side is what things of this name suffer from (`zsad.prompts.class_states`), the good side is the same for
everything. The words are few and plain, most of them known even to the embedded backbone. They are English, whatever
language was asked for.
"""

from collections.abc import Iterator, Sequence

from zsad.prompts.class_states import family_suffixes
from zsad.prompts.writers.base import Draft, DraftPhrase, WriteRequest

LANGUAGE = "en"
GOOD_LOOKS = (
    "an undamaged surface",
    "an intact edge on every side",
    "a surface in perfect condition",
    "no crack in the surface",
    "the normal colour all over",
    "all parts in their right place",
    "a clean and even surface",
    "no foreign matter on it",
)


class BuiltinWriter:
    """The built-in lists as a `Writer`."""

    name = "builtin"
    model = "built-in lists"
    revision = "1"

    def write(self, requests: Sequence[WriteRequest]) -> Iterator[Draft]:
        """See `Writer.write`; at most `num_pairs` phrases of a side."""
        for request in requests:
            yield Draft(request=request, phrases=looks(request), model=self.model, revision=self.revision)


def looks(request: WriteRequest) -> tuple[DraftPhrase, ...]:
    """Good looks, then faulty ones, such as "bent tip on one part"."""
    faults = [suffix.removeprefix("with ") for suffix in family_suffixes(request.product)]
    good = [DraftPhrase(text=text, side="normal") for text in GOOD_LOOKS[: request.num_pairs]]
    bad = [DraftPhrase(text=f"{fault} on one part", side="abnormal") for fault in faults[: request.num_pairs]]
    return (*good, *bad)
