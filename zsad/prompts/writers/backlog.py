"""Which products wait, are in work, are suspected or done; drafts leave in the order in which products came.

When a model's process dies or hangs, nobody knows which of the products in it was the cause. All of them become
suspects, and each is tried once more alone: one bad product costs itself, not its neighbours. A suspect that fails
again is given up.

Cost: at most `window` drafts wait here for an earlier one.
"""

from collections import deque
from collections.abc import Collection, Sequence

from zsad.prompts.writers.base import Draft, WriteRequest


class Backlog:
    """The products of one call, by their place in it.

    Args:
        requests: the products.
        model: named in drafts that fail here.
        revision: likewise.
        window: products that may be in work, or done and not yet given back.
    """

    def __init__(self, requests: Sequence[WriteRequest], model: str, revision: str, window: int) -> None:
        self._requests = requests
        self._named = {"model": model, "revision": revision}
        self._window = window
        self._next = 0  # the first product that nobody has taken
        self._given = 0  # drafts given back
        self._done: dict[int, Draft] = {}
        self._suspects: deque[int] = deque()
        self._tried_alone: set[int] = set()

    @property
    def is_done(self) -> bool:
        """Whether every draft was given back."""
        return self._given == len(self._requests)

    def take(self, num_open: int, limit: int) -> list[tuple[int, WriteRequest]]:
        """Products for a model that has `num_open` in work and room for `limit`; a suspect goes alone."""
        if self._suspects:
            if num_open:
                return []
            place = self._suspects.popleft()
            self._tried_alone.add(place)
            return [(place, self._requests[place])]
        start = self._next
        self._next = min(start + max(0, limit - num_open), self._given + self._window, len(self._requests))
        self._next = max(start, self._next)
        return [(place, self._requests[place]) for place in range(start, self._next)]

    def finish(self, place: int, draft: Draft) -> None:
        """A product is done."""
        self._done[place] = draft

    def lose(self, places: Collection[int], reason: str) -> None:
        """The model with these products is gone: they are tried alone, or given up if they were."""
        for place in places:
            if place in self._tried_alone:
                self._give_up(place, reason)
            else:
                self._suspects.append(place)

    def abandon(self, reason: str) -> None:
        """There is no model left: everything that waits is given up; nothing may be in work."""
        for place in (*self._suspects, *range(self._next, len(self._requests))):
            self._give_up(place, reason)
        self._suspects.clear()
        self._next = len(self._requests)

    def pop(self) -> list[Draft]:
        """The next drafts that are done, in order."""
        drafts = []
        while self._given in self._done:
            drafts.append(self._done.pop(self._given))
            self._given += 1
        return drafts

    def _give_up(self, place: int, reason: str) -> None:
        self._done[place] = Draft(request=self._requests[place], phrases=(), failure=reason, **self._named)
