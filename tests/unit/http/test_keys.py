"""Tricks that make servers fetch what they should not: none is a key, none opens a connection."""

import socket

import pytest

URLS = [
    "http://127.0.0.1/", "http://localhost/", "http://0x7f000001/", "http://2130706433/", "http://0177.0.0.1/",
    "http://127.1/", "http://127.0.1/", "http://0/", "http://[::1]/", "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/", "http://[0:0:0:0:0:0:0:1]/", "http://[fe80::1%25eth0]/", "http://[64:ff9b::7f00:1]/",
    "http://169.254.169.254/latest/meta-data/", "http://2852039166/", "http://0xa9fea9fe/", "http://[fd00:ec2::254]/",
    "http://metadata.google.internal/", "http://100.100.100.200/", "http://10.0.0.1/", "http://192.168.0.1/",
    "http://172.16.0.1/", "http://100.64.0.1/", "http://user@127.0.0.1/", "http://good.example@127.0.0.1/",
    "http://good.example:80@127.0.0.1/", "http://127.0.0.1#@good.example/", "http://good.example\\@127.0.0.1/",
    "http://127.0.0.1.nip.io/", "http://localtest.me/", "http://rebind.example/", "http://redirect.example/to-private",
    "http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/", "HTTP://127.0.0.1/", "https://127.0.0.1/", "ftp://127.0.0.1/",
    "gopher://127.0.0.1:6379/_FLUSHALL", "dict://127.0.0.1:11211/", "ldap://127.0.0.1/", "tftp://127.0.0.1/x",
    "file:///etc/passwd", "file://localhost/etc/passwd", "file:////etc/passwd", "s3://other-bucket/key",
    "S3://other-bucket/key", "gs://other/key", "data://image/png;base64,AAAA", "jar:http://127.0.0.1!//",
    "//127.0.0.1/x", "///etc/passwd", "/etc/passwd",
]  # fmt: skip
PATHS = [
    "..", "../secret", "a/../../secret", "a/..", "./a", "a/./b", "a//b", "a/", "", "a\0b", "a\nb", "a\rb", "a\x1bb",
    "\u202etxt", "é" * 600, "\ud7ff\u200b",
]  # fmt: skip


@pytest.fixture
def no_sockets(monkeypatch):
    """Counts connections that are opened; the test client itself needs none."""
    opened = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: opened.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **_: opened.append(arguments) or [])
    return opened


def test_there_are_more_than_sixty_tricks():
    assert len(set(URLS + PATHS)) >= 60


def test_a_trick_is_no_key_and_no_bucket(client, engine, no_sockets):
    for trick in URLS + PATHS:
        as_key = client.post("/v1/inspect", json={"bucket": "shots", "key": trick})
        assert as_key.status_code in (400, 422), trick
        as_bucket = client.post("/v1/inspect", json={"bucket": trick, "key": "a.jpg"})
        assert as_bucket.status_code in (404, 422), trick
    assert engine.stored == []
    assert no_sockets == []


@pytest.mark.parametrize("name", ["url", "image_url", "uri", "href", "callback"])
def test_there_is_no_other_member_that_could_hold_one(client, engine, no_sockets, name):
    body = {"bucket": "shots", "key": "a.jpg", name: "http://127.0.0.1/"}
    assert client.post("/v1/inspect", json=body).status_code == 422
    assert client.post(f"/v1/inspect?{name}=http://127.0.0.1/", content=b"x").status_code == 422
    assert (engine.stored, no_sockets) == ([], [])


def test_a_plain_key_stays_in_its_bucket(client, engine):
    assert client.post("/v1/inspect", json={"bucket": "shots", "key": "0x7f000001/ä b.jpg"}).status_code == 200
    assert [(image.bucket, image.key) for image in engine.stored] == [("shots", "0x7f000001/ä b.jpg")]


def test_in_a_batch_a_trick_costs_its_place_only(client, engine, no_sockets):
    items = [{"bucket": "shots", "key": key} for key in ("a.jpg", "../b.jpg", "http://127.0.0.1/c.jpg")]
    results = client.post("/v1/inspect:batch", json={"items": items}).json()["results"]
    assert [result["status"] for result in results] == [200, 400, 400]
    assert no_sockets == []
