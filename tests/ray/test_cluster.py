"""Which cluster a job joins: the one it is told, else that of `ray start`, if it still answers."""

import socket

import pytest

from zsad.distributed import cluster
from zsad.distributed.cluster import find_cluster
from zsad.errors import ConfigError


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def dead():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"  # closed on the way out


def noted(monkeypatch, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "read_ray_address", lambda: address)


def test_without_any_note_ray_starts_here(monkeypatch):
    noted(monkeypatch, None)
    assert find_cluster() is None


def test_the_cluster_of_ray_start_is_joined(monkeypatch, listener):
    noted(monkeypatch, listener)
    assert find_cluster() == listener


def test_a_note_of_a_dead_cluster_is_passed_over_with_a_warning(monkeypatch, dead, caplog):
    noted(monkeypatch, dead)
    assert find_cluster() is None
    assert dead in caplog.text


@pytest.mark.parametrize("told", ["", "auto"])
def test_an_address_that_says_nothing_counts_as_none(monkeypatch, listener, told):
    noted(monkeypatch, listener)
    monkeypatch.setenv("RAY_ADDRESS", told)
    assert find_cluster() == listener


def test_local_starts_ray_here_whatever_is_noted(monkeypatch, listener):
    noted(monkeypatch, listener)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert find_cluster() is None


def test_the_told_cluster_goes_before_the_noted_one(monkeypatch, listener, dead):
    noted(monkeypatch, dead)
    monkeypatch.setenv("RAY_ADDRESS", listener)
    assert find_cluster() == listener


def test_a_told_cluster_that_does_not_answer_is_an_error(monkeypatch, listener, dead):
    noted(monkeypatch, listener)
    monkeypatch.setenv("RAY_ADDRESS", dead)
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at RAY_ADDRESS={dead}"):
        find_cluster()


def test_an_address_of_another_kind_is_left_to_ray(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://nobody:10001")
    assert find_cluster() == "ray://nobody:10001"
