"""The whole app over an engine that needs no model."""

import pytest
from fake_engine import FakeEngine, FakeObserver
from starlette.testclient import TestClient

from zsad.http.app import make_app
from zsad.serve_config import ServeConfig


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def observer():
    return FakeObserver()


@pytest.fixture
def app_of(engine, observer):
    """Makes the app with changed settings."""

    def make(tokens=None, page=None, **settings):
        settings = {"detectors": ("first=nano", "second=nano"), "buckets": ("shots=/nowhere/images",)} | settings
        config = ServeConfig(**settings)
        page = {"index.html": b"<p>page</p>"} if page is None else page
        return make_app(config, engine, tokens=tokens or {}, observer=observer, page=page)

    return make


@pytest.fixture
def client_of(app_of):
    """Makes a client of the app with changed settings."""

    def make(**settings):
        return TestClient(app_of(**settings), raise_server_exceptions=False)

    return make


@pytest.fixture
def client(client_of):
    return client_of()
