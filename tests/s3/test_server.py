"""The local S3 server behaves like S3 where zsad relies on it, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import botocore.session
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import requests
import s3fs
from botocore.exceptions import ClientError

from . import server as server_module
from .server import ServerStartError, ServerUnavailableError, SwiftServer

pytestmark = pytest.mark.s3


def client():
    return botocore.session.get_session().create_client("s3")


def http_status(call, **arguments) -> int:
    try:
        return call(**arguments)["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]


def http_status_of_cause(error: BaseException) -> int:
    """What the server answered, from the botocore error that s3fs translates (its own class for 412 has varied)."""
    while not isinstance(error, ClientError):
        error = error.__cause__
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def is_process_group_alive(pgid: int) -> bool:
    """Zombies that nobody has reaped yet do not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == pgid and state != "Z":
            return True
    return False


def test_put_get_range_list_delete(s3):
    bucket = s3.new_bucket()
    fs = s3fs.S3FileSystem()
    content = bytes(range(256)) * 40
    fs.pipe_file(f"{bucket}/a/one.bin", content)
    fs.pipe_file(f"{bucket}/a/b/two.bin", b"2")
    fs.pipe_file(f"{bucket}/c.bin", b"")
    name = bucket.removeprefix("s3://")
    assert fs.cat_file(f"{bucket}/a/one.bin") == content
    assert fs.cat_file(f"{bucket}/a/one.bin", start=300, end=310) == content[300:310]
    assert fs.info(f"{bucket}/a/one.bin")["size"] == 10240
    assert sorted(fs.ls(bucket, detail=False, refresh=True)) == [f"{name}/a", f"{name}/c.bin"]
    assert sorted(fs.find(bucket)) == [f"{name}/a/b/two.bin", f"{name}/a/one.bin", f"{name}/c.bin"]
    fs.rm(f"{bucket}/a", recursive=True)
    assert fs.find(bucket, refresh=True) == [f"{name}/c.bin"]


def test_second_put_with_if_none_match_is_refused_with_412(s3):
    put = {"Bucket": s3.new_bucket().removeprefix("s3://"), "Key": "commit.json", "IfNoneMatch": "*"}
    assert http_status(client().put_object, Body=b"first", **put) == 200
    assert http_status(client().put_object, Body=b"second", **put) == 412
    assert client().get_object(Bucket=put["Bucket"], Key="commit.json")["Body"].read() == b"first"


def test_s3fs_create_mode_is_refused_for_a_key_that_exists(s3):
    path = f"{s3.new_bucket()}/commit.json"
    fs = s3fs.S3FileSystem()
    fs.pipe_file(path, b"first", mode="create")
    with pytest.raises(OSError, match="preconditions") as refusal:
        fs.pipe_file(path, b"second", mode="create")
    assert http_status_of_cause(refusal.value) == 412
    assert fs.cat_file(path) == b"first"


def test_of_simultaneous_puts_with_if_none_match_one_wins(s3):
    bucket = s3.new_bucket().removeprefix("s3://")
    shared = client()
    for race in range(4):
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(
                lambda i, key=f"commit-{race}": http_status(
                    shared.put_object, Bucket=bucket, Key=key, Body=b"%d" % i, IfNoneMatch="*"
                ),
                range(8),
            )
            statuses = list(answers)
        assert sorted(statuses) == [200] + [412] * 7
        winner = shared.get_object(Bucket=bucket, Key=f"commit-{race}")["Body"].read()
        assert winner == b"%d" % statuses.index(200)


@pytest.mark.parametrize(
    ("key", "secret"), [("test:tester", "not-the-secret"), ("test:nobody", "testing")], ids=["secret", "key"]
)
def test_wrong_credentials_are_refused(s3, key, secret):
    path = f"{s3.new_bucket()}/x"
    fs = s3fs.S3FileSystem(key=key, secret=secret)
    with pytest.raises(PermissionError):
        fs.pipe_file(path, b"x")
    assert not s3fs.S3FileSystem().exists(path)


def test_anonymous_is_refused(s3):
    path = f"{s3.new_bucket()}/x"
    s3fs.S3FileSystem().pipe_file(path, b"x")
    with pytest.raises(OSError, match="Bad Request"):  # 400 here, where S3 answers 403
        s3fs.S3FileSystem(anon=True).cat_file(path)


def test_unknown_bucket_and_key_are_404(s3):
    bucket = s3.new_bucket().removeprefix("s3://")
    assert http_status(client().list_objects_v2, Bucket="bucket-that-is-not-there") == 404
    assert http_status(client().put_object, Bucket="bucket-that-is-not-there", Key="x", Body=b"") == 404
    assert http_status(client().get_object, Bucket=bucket, Key="missing") == 404
    with pytest.raises(FileNotFoundError):
        s3fs.S3FileSystem().cat_file(f"s3://{bucket}/missing")


def test_pyarrow_writes_a_dataset_in_several_parts_and_reads_it_back(s3):
    path = f"{s3.new_bucket()}/table"
    num_rows = 2_000_000  # 16 MB; pyarrow sends parts of 10 MB
    table = pa.table({"score": np.random.default_rng(0).random(num_rows)})
    filesystem, folder = pa.fs.FileSystem.from_uri(path)
    options = ds.ParquetFileFormat().make_write_options(compression="none", use_dictionary=False)
    ds.write_dataset(table, folder, filesystem=filesystem, format="parquet", file_options=options, preserve_order=True)
    info = s3fs.S3FileSystem().info(f"{path}/part-0.parquet")
    assert info["ETag"].strip('"').endswith("-2")  # the ETag of an object made of two parts
    assert ds.dataset(path).to_table().equals(table)


def test_presigned_url_reads_one_object_and_no_other(s3):
    bucket = s3.new_bucket()
    fs = s3fs.S3FileSystem()
    fs.pipe({f"{bucket}/open": b"content", f"{bucket}/closed": b"secret"})
    url = fs.sign(f"{bucket}/open", expiration=60)
    assert requests.get(url, timeout=30).content == b"content"
    assert requests.get(url.replace("/open?", "/closed?"), timeout=30).status_code == 403


def test_fixture_hides_other_aws_settings(s3):
    assert {name: value for name, value in os.environ.items() if name.startswith("AWS_")} == s3.env
    assert s3.env["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")


def test_everything_is_stopped_and_deleted_when_the_block_raises(tmp_path, monkeypatch):
    skip_unless_usable(tmp_path)
    monkeypatch.setattr(server_module, "find_data_directory", lambda: tmp_path)
    server = SwiftServer()

    def use() -> None:
        with server:
            assert is_process_group_alive(server.pid)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        use()
    assert not is_process_group_alive(server.pid)
    assert list(tmp_path.iterdir()) == []


def test_servers_stop_when_the_process_that_started_them_is_killed(tmp_path):
    skip_unless_usable(tmp_path)
    script = Path(server_module.__file__)
    owner = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    lines = iter(owner.stdout.readline, "# serving until Ctrl-C\n")
    assert any(line.startswith("export AWS_ENDPOINT_URL=http://127.0.0.1:") for line in lines)
    [supervisor] = Path(f"/proc/{owner.pid}/task/{owner.pid}/children").read_text().split()
    assert is_process_group_alive(int(supervisor))
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    deadline = time.monotonic() + 10
    while is_process_group_alive(int(supervisor)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_process_group_alive(int(supervisor))


def test_failed_start_shows_the_log_and_leaves_nothing(tmp_path, monkeypatch):
    skip_unless_usable(tmp_path)
    monkeypatch.setattr(server_module, "find_data_directory", lambda: tmp_path)
    monkeypatch.setattr(server_module, "free_ports", lambda count: [0] * count)
    with pytest.raises(ServerStartError, match=r"(?s)its log:.*bind_port"):
        SwiftServer().__enter__()
    assert list(tmp_path.iterdir()) == []


def test_missing_installation_names_the_command_that_installs(tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "SWIFT_PYTHON", tmp_path / "python")
    with pytest.raises(ServerUnavailableError, match=r"make \.venv-s3/\.done"):
        SwiftServer().__enter__()


def test_missing_xattrs_name_the_directories(monkeypatch):
    monkeypatch.setattr(server_module, "has_user_xattrs", lambda directory: False)
    with pytest.raises(ServerUnavailableError, match="build have none"):
        server_module.find_data_directory()


def skip_unless_usable(directory: Path) -> None:
    """Skip unless Swift is installed and can keep its data in this directory."""
    if not server_module.SWIFT_PYTHON.exists() or not server_module.has_user_xattrs(directory):
        pytest.skip("needs .venv-s3 and a temporary directory with user extended attributes")
