"""What the S3 store does when the server misbehaves: a scripted server answers each request from a list."""

import hashlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from zsad.errors import ErrorCode, ImageError, StorageError
from zsad.storage import counters, open_store, retry, s3, s3_errors

ERROR_XML = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>no</Message></Error>'


class Answer:
    """One scripted answer; `cut` sends that many bytes and breaks the connection, `silent_s` waits first."""

    def __init__(self, status=200, body=b"", headers=None, cut=None, silent_s=0.0):
        self.status, self.body, self.headers, self.cut, self.silent_s = status, body, headers or {}, cut, silent_s


def error(status, code):
    return Answer(status, ERROR_XML.format(code).encode(), {"Content-Type": "application/xml"})


def content(body, etag="e1", **more):
    return Answer(200, body, {"ETag": f'"{etag}"'}, **more)


def page(*keys, more=False):
    entry = "<Contents><Key>{}</Key><LastModified>2026-03-01T10:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag>"
    items = "".join((entry + "<Size>{}</Size></Contents>").format(key, len(key)) for key in keys)
    flags = f"<IsTruncated>{str(more).lower()}</IsTruncated><NextContinuationToken>same</NextContinuationToken>"
    return Answer(200, f"<ListBucketResult><Name>bucket</Name>{flags}{items}</ListBucketResult>".encode())


class Script:
    """Answers in order, the last one for ever; `requests` are the (method, path with query) seen."""

    def __init__(self):
        self.answers, self.requests, self.bodies = [], [], []

    def next(self):
        """Take the answer to one request."""
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def script(monkeypatch):
    found = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            found.requests.append((self.command, self.path))
            found.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            planned = found.next()
            time.sleep(planned.silent_s)
            self.send_response(planned.status)
            for name, value in planned.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(planned.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(planned.body[: planned.cut])
            if planned.cut is not None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_DELETE = answer

        def log_message(self, *_arguments):
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "canary-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        s3, "POLICY", retry.RetryPolicy(base_s=0.001, give_up_after_s=20, give_up_unreachable_after_s=1)
    )
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def store():
    return open_store("s3://bucket/root")


def test_slow_down_is_retried_and_counted(script, store):
    script.answers = [error(503, "SlowDown"), error(500, "InternalError"), content(b"pixels")]
    before = counters.snapshot()
    assert store.get("x.png", max_bytes=100) == b"pixels"
    assert counters.snapshot() - before == counters.Counters(requests=3, retries=2, throttles=1, bytes_read=6)
    assert script.requests == [("GET", "/bucket/root/x.png")] * 3


@pytest.mark.parametrize("etag", ["e1", "", None], ids=["etag", "empty etag", "no etag"])
def test_slow_down_inside_a_success_is_retried(script, store, etag):
    hidden = Answer(200, ERROR_XML.format("SlowDown").encode(), {"Content-Type": "application/xml"})
    script.answers = [hidden, content(b"pixels")]
    before = counters.snapshot()
    assert store.get("x.png", max_bytes=1000, etag=etag) == b"pixels"
    assert (counters.snapshot() - before).throttles == 1


def test_a_stored_error_document_is_returned_as_it_is(script, store):
    document = ERROR_XML.format("SlowDown").encode()
    script.answers = [content(document, etag="e9")]
    assert store.get("x.xml", max_bytes=1000, etag="e9") == document
    assert len(script.requests) == 1


def test_arrow_reads_through_refusals_and_cut_bodies(script, store):
    script.answers = [
        error(503, ""),
        Answer(200, b"0123456789"),
        Answer(200, b"0123456789"),
        error(503, "SlowDown"),
        error(200, "SlowDown"),
        error(500, "InternalError"),
        content(b"0123456789", cut=4),
        content(b"0123456789"),
    ]
    filesystem, root = store.arrow_filesystem()
    with filesystem.open_input_file(f"{root}/x.bin") as file:
        assert file.read() == b"0123456789"
    assert [method for method, _ in script.requests] == ["HEAD"] * 3 + ["GET"] * 5


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (404, "NoSuchKey")])
def test_arrow_asks_once_for_what_can_not_be_read(script, store, status, code):
    filesystem, root = store.arrow_filesystem()
    script.answers = [Answer(200, b"0123456789"), Answer(200, b"0123456789"), error(status, code)]
    with filesystem.open_input_file(f"{root}/x.bin") as file, pytest.raises(OSError, match=r".+"):
        file.read()
    assert [method for method, _ in script.requests] == ["HEAD", "HEAD", "GET"]


def test_a_cut_body_is_retried_never_returned(script, store):
    script.answers = [content(b"0123456789", cut=4), content(b"0123456789")]
    assert store.get("x.png", max_bytes=100) == b"0123456789"
    assert len(script.requests) == 2


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (error(403, "AccessDenied"), ErrorCode.FORBIDDEN),
        (error(403, "SignatureDoesNotMatch"), ErrorCode.FORBIDDEN),
        (error(404, "NoSuchKey"), ErrorCode.MISSING),
        (error(404, "NoSuchBucket"), ErrorCode.MISSING),
        (error(400, "InvalidRequest"), ErrorCode.READ_ERROR),
    ],
)
def test_final_errors_get_one_attempt_and_no_secret_in_the_message(script, store, answer, code):
    script.answers = [answer]
    with pytest.raises(StorageError, match=r"s3://bucket/root/x\.png") as caught:
        store.get("x.png", max_bytes=100)
    assert caught.value.code == code
    assert not caught.value.retryable
    assert "canary-secret" not in str(caught.value)
    assert len(script.requests) == 1


def test_a_server_that_never_answers_is_a_read_timeout(script, store, monkeypatch):
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 0.3)
    monkeypatch.setattr(s3, "POLICY", retry.RetryPolicy(give_up_after_s=0))
    monkeypatch.setenv("AWS_ZSAD_TEST", "new pool")
    script.answers = [content(b"late", silent_s=1.0)]
    with pytest.raises(StorageError) as caught:
        store.get("x.png", max_bytes=100)
    assert caught.value.code == ErrorCode.READ_TIMEOUT
    assert caught.value.retryable


def test_a_dead_endpoint_names_the_variable(script, store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
        store.get("x.png", max_bytes=100)


def test_missing_credentials_name_the_variables(script, store, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID") as caught:
        store.get("x.png", max_bytes=100)
    assert caught.value.code == ErrorCode.FORBIDDEN
    assert script.requests == []


def test_too_many_bytes_and_a_changed_etag_are_the_images_fault(script, store):
    script.answers = [content(b"12345", etag="new")]
    with pytest.raises(ImageError) as caught:
        store.get("x.png", max_bytes=4)
    assert caught.value.code == ErrorCode.TOO_MANY_BYTES
    with pytest.raises(ImageError) as caught:
        store.get("x.png", max_bytes=10, etag="old")
    assert caught.value.code == ErrorCode.CHANGED


def test_content_that_is_not_its_etags_md5_is_read_again_then_changed(script, store):
    md5 = hashlib.md5(b"pixels", usedforsecurity=False).hexdigest()
    script.answers = [content(b"pixels", etag=md5), content(b"pixelz", etag=md5), content(b"pixels", etag=md5)]
    assert [store.get("x.png", max_bytes=10) for _ in range(2)] == [b"pixels"] * 2
    assert len(script.requests) == 3
    script.answers = [content(b"pixelz", etag=md5)]
    with pytest.raises(ImageError, match="damaged") as caught:
        store.get("x.png", max_bytes=10, etag=md5)
    assert caught.value.code == ErrorCode.CHANGED
    assert len(script.requests) == 3 + 1 + s3.MAX_MD5_RETRIES


@pytest.mark.parametrize(
    ("bucket", "etag", "headers"),
    [
        ("never-md5", "0" * 32, {}),
        ("bucket", "0" * 32 + "-7", {}),
        ("bucket", "0" * 32, {"x-amz-server-side-encryption": "aws:kms"}),
        ("bucket", "0" * 32, {"x-amz-server-side-encryption-customer-algorithm": "AES256"}),
    ],
    ids=["a server with etags of its own", "upload in parts", "KMS", "customer's key"],
)
def test_etags_that_are_no_md5_prove_nothing(script, bucket, etag, headers):
    script.answers = [content(b"pixels", etag=hashlib.md5(b"pixels", usedforsecurity=False).hexdigest())]
    open_store("s3://bucket").get("x.png", max_bytes=10)
    answer = content(b"pixels", etag=etag)
    answer.headers |= headers
    script.answers = [answer]
    assert open_store(f"s3://{bucket}").get("x.png", max_bytes=10, etag=etag) == b"pixels"


def test_put_if_absent_tells_refusal_from_race(script, store):
    script.answers = [error(409, "ConditionalRequestConflict"), Answer(200)]
    assert store.put_if_absent("lock", b"me")
    script.answers = [error(412, "PreconditionFailed")]
    assert not store.put_if_absent("lock", b"me")


@pytest.mark.parametrize(("stored", "expected"), [(b"me", True), (b"you", False), (b"somebody else", False)])
def test_put_if_absent_recognises_its_own_object_after_a_lost_answer(script, store, stored, expected):
    script.answers = [error(500, "InternalError"), error(412, "PreconditionFailed"), content(stored)]
    assert store.put_if_absent("lock", b"me") is expected


def test_storage_without_put_if_absent_is_refused(script, store):
    script.answers = [Answer(200)]
    with pytest.raises(StorageError, match="If-None-Match"):
        store.check_writable()


def test_listing_survives_a_repeated_page_and_a_repeated_token(script, store):
    script.answers = [
        page("root/a", "root/b", more=True),
        page("root/a", "root/b", more=True),
        page("root/b", "root/c", more=True),
        page("root/d"),
    ]
    assert [info.key for info in store.list()] == ["a", "b", "c", "d"]
    assert "start-after=root%2Fc" in script.requests[-1][1]


def test_listing_keeps_odd_keys_and_leaves_folder_marks_out(script, store):
    answer = page("root/../x", "root/a b.png", "root/a//b")
    answer.body = answer.body.replace(b"</ListBucketResult>", b"") + (
        b"<Contents><Key>root/folder/</Key><LastModified>2026-03-01T10:00:00.000Z</LastModified>"
        b"<ETag>e</ETag><Size>0</Size></Contents></ListBucketResult>"
    )
    script.answers = [answer]
    listed = list(store.list())
    assert [info.key for info in listed] == ["../x", "a b.png", "a//b"]
    assert listed[0].uri == "s3://bucket/root/../x"
    assert listed[0].etag == "e"
    script.answers = [content(b"1")]
    store.get("../x", max_bytes=10)
    assert script.requests[-1] == ("GET", "/bucket/root/../x")


def test_an_unordered_listing_is_refused(script, store):
    script.answers = [page("root/b", "root/a")]
    with pytest.raises(StorageError, match="key order"):
        list(store.list())


def test_an_error_inside_a_listing_is_not_an_empty_bucket(script, store):
    script.answers = [Answer(200, ERROR_XML.format("SlowDown").encode()), page("root/a")]
    assert [info.key for info in store.list()] == ["a"]


@pytest.mark.parametrize("key", ["../x", "", "a//b"])
def test_odd_keys_are_never_written(script, store, key):
    with pytest.raises(StorageError):
        store.put(key, b"")
    assert script.requests == []


def test_exists_and_delete(script, store):
    script.answers = [Answer(404)]
    assert not store.exists("x")
    script.answers = [Answer(200)]
    assert store.exists("x")
    store.delete("x")
    assert script.requests[-1] == ("DELETE", "/bucket/root/x")


def test_hidden_error_needs_the_shape_of_an_error_document():
    assert s3_errors.hidden_error_code(ERROR_XML.format("SlowDown").encode()) == "SlowDown"
    assert s3_errors.hidden_error_code(b"\xff\xd8<Error><Code>SlowDown</Code></Error>") is None
    assert s3_errors.hidden_error_code(b"<?xml version='1.0'?><svg/>") is None
