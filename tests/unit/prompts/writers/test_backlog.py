"""Which product is written next, and what happens to those of a model that is gone."""

import pytest

from zsad.prompts.writers.backlog import Backlog
from zsad.prompts.writers.base import Draft, DraftPhrase, WriteRequest


def requests(number):
    return [WriteRequest(product=f"part {i}") for i in range(number)]


def backlog_of(number, window=100):
    return Backlog(requests(number), "m", "1", window)


def draft(place):
    phrases = (DraftPhrase(text="a smooth rim", side="normal"),)
    return Draft(request=requests(place + 1)[place], phrases=phrases, model="m", revision="1")


def places(taken):
    return [place for place, _ in taken]


def test_products_are_taken_in_order_up_to_the_room_that_is_left():
    backlog = backlog_of(7)
    assert places(backlog.take(0, 4)) == [0, 1, 2, 3]
    assert places(backlog.take(4, 4)) == []
    assert places(backlog.take(2, 4)) == [4, 5]
    assert places(backlog.take(0, 4)) == [6]
    assert places(backlog.take(0, 4)) == []


def test_drafts_leave_in_order_however_they_are_finished():
    backlog = backlog_of(3)
    backlog.take(0, 3)
    backlog.finish(2, draft(2))
    assert backlog.pop() == []
    backlog.finish(0, draft(0))
    assert [d.request.product for d in backlog.pop()] == ["part 0"]
    backlog.finish(1, draft(1))
    assert [d.request.product for d in backlog.pop()] == ["part 1", "part 2"]
    assert backlog.is_done


def test_no_more_drafts_wait_for_a_slow_one_than_the_window_holds():
    backlog = backlog_of(100, window=6)
    for place in places(backlog.take(0, 4))[1:]:
        backlog.finish(place, draft(place))
    assert places(backlog.take(1, 4)) == [4, 5]
    assert places(backlog.take(0, 4)) == []
    backlog.finish(0, draft(0))
    assert len(backlog.pop()) == 4
    assert places(backlog.take(0, 4)) == [6, 7, 8, 9]


def test_products_of_a_lost_model_are_tried_alone_before_anything_else():
    backlog = backlog_of(10)
    backlog.lose(places(backlog.take(0, 3)), "died")
    assert places(backlog.take(1, 8)) == []  # another model is still busy with something
    assert [places(backlog.take(0, 8)) for _ in range(4)] == [[0], [1], [2], [3, 4, 5, 6, 7, 8, 9]]


def test_a_product_that_fails_alone_is_given_up_with_the_reason():
    backlog = backlog_of(2)
    backlog.lose(places(backlog.take(0, 2)), "died")
    backlog.lose(places(backlog.take(0, 2)), "died again")
    (lost,) = backlog.pop()
    assert (lost.phrases, lost.failure, lost.request.product) == ((), "died again", "part 0")
    backlog.take(0, 2)
    backlog.finish(1, draft(1))
    assert [d.failure for d in backlog.pop()] == [None]
    assert backlog.is_done


def test_without_a_model_suspects_and_all_that_waits_are_given_up():
    backlog = backlog_of(5)
    backlog.lose(places(backlog.take(0, 2)), "died")
    backlog.abandon("none left")
    assert [d.failure for d in backlog.pop()] == 5 * ["none left"]
    assert backlog.is_done
    assert backlog.take(0, 8) == []


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_lost_every_product_ends_as_one_draft_in_order(seed):
    import random

    chance = random.Random(seed)
    backlog, open_now, given = backlog_of(40, window=chance.randint(1, 20)), set(), []
    while not backlog.is_done:
        open_now |= set(places(backlog.take(len(open_now), 5)))
        if chance.random() < 0.2:
            backlog.lose(sorted(open_now), "died")
            open_now = set()
        elif open_now:
            place = chance.choice(sorted(open_now))
            open_now.discard(place)
            backlog.finish(place, draft(place))
        given += backlog.pop()
    assert [d.request.product for d in given] == [f"part {i}" for i in range(40)]
