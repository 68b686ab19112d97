import asyncio

import pytest
from fake_engine import HELD, FakeObserver

from zsad.http.journal import Journal
from zsad.http.limits import BodyGuard, Waiting
from zsad.http.problems import Problem
from zsad.serve_config import ServeConfig


def test_places_are_given_back_whatever_happens():
    waiting = Waiting(2)
    with waiting.room_for(2), pytest.raises(Problem) as caught, waiting.room_for(1):
        pass
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (429, "busy", 1)
    with pytest.raises(ZeroDivisionError), waiting.room_for(2):
        raise ZeroDivisionError
    assert waiting.num_images == 0


class Connection:
    """A client by hand: what it sends, when, and what it is answered."""

    def __init__(self, path="/v1/inspect", headers=()):
        self.scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path,
            "raw_path": path.encode(), "query_string": b"", "headers": list(headers), "scheme": "http",
            "server": ("x", 80), "client": ("y", 1), "root_path": "",
        }  # fmt: skip
        self.messages = asyncio.Queue()
        self.answers = []

    async def answer(self, message):
        """ASGI's send."""
        self.answers.append(message)

    def sends(self, body, *, more=False):
        """Have a piece of the body arrive."""
        self.messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leaves(self):
        """Close the connection."""
        self.messages.put_nowait({"type": "http.disconnect"})

    async def asks(self, app):
        """The status of the answer."""
        await app(self.scope, self.messages.get, self.answer)
        return self.answers[0]["status"] if self.answers else None


def test_a_body_that_does_not_arrive_in_time_is_cut_off(app_of):
    async def scenario():
        connection = Connection()
        connection.sends(b"a", more=True)
        assert await connection.asks(app_of(body_timeout_s=0.05)) == 408
        headers = dict(connection.answers[0]["headers"])
        assert headers[b"connection"] == b"close"
        assert b"slow_sender" in connection.answers[1]["body"]

    asyncio.run(scenario())


def test_a_client_that_leaves_in_its_body_is_no_bug(app_of, engine, observer):
    async def scenario():
        connection = Connection()
        connection.sends(b"a", more=True)
        connection.leaves()
        await connection.asks(app_of())

    asyncio.run(scenario())
    assert engine.keys == []
    assert observer.records[-1].status == 400


def test_more_images_than_may_wait_are_told_to_come_back(app_of, engine):
    async def scenario():
        app = app_of(max_waiting=32)
        connections = [Connection() for _ in range(33)]
        for connection in connections:
            connection.sends(HELD)
        tasks = [asyncio.create_task(connection.asks(app)) for connection in connections]
        while not any(task.done() for task in tasks):
            await asyncio.sleep(0.01)
        engine.release.set()
        statuses = sorted(await asyncio.gather(*tasks))
        assert statuses == [200] * 32 + [429]
        refused = next(connection for connection in connections if connection.answers[0]["status"] == 429)
        assert dict(refused.answers[0]["headers"])[b"retry-after"] == b"1"
        again = Connection()
        again.sends(b"x")
        assert await again.asks(app) == 200

    asyncio.run(scenario())


def test_an_answer_that_takes_too_long_is_given_up(app_of, engine):
    async def scenario():
        connection = Connection()
        connection.sends(HELD)
        assert await connection.asks(app_of(request_timeout_s=0.05)) == 504
        assert engine.num_cancelled == 1

    asyncio.run(scenario())


def test_the_work_for_a_client_that_was_cancelled_ends(app_of, engine):
    async def scenario():
        app = app_of()
        connection = Connection()
        connection.sends(HELD)
        task = asyncio.create_task(connection.asks(app))
        while not engine.num_held:
            await asyncio.sleep(0.01)
        task.cancel()  # what Ray Serve does when its client has gone
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.num_cancelled == 1

    asyncio.run(scenario())


def test_bytes_that_wait_are_counted_over_all_requests():
    async def scenario():
        reads = asyncio.Event()
        outcomes = []

        async def app(scope, receive, send):
            await receive()
            outcomes.append("read")
            await reads.wait()

        guard = BodyGuard(app, config=ServeConfig(max_waiting_bytes=10))
        first, second = Connection(), Connection()
        first.sends(b"x" * 6)
        second.sends(b"x" * 6)
        task = asyncio.create_task(first.asks(guard))
        await asyncio.sleep(0.01)
        assert guard.num_bytes == 6
        assert await second.asks(Journal(guard, observer=FakeObserver())) == 503
        reads.set()
        await task
        assert guard.num_bytes == 0
        assert outcomes == ["read"]

    asyncio.run(scenario())
