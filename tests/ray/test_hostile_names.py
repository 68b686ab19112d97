"""Hostile names and secrets in a whole run: nothing is executed or forged, and no secret is written anywhere."""

import re
import shutil
from io import BytesIO

import pyarrow.parquet as pq
import pytest
from batch_runs import REPOSITORY, THRESHOLD, last_line, rows_by_key, run_job
from PIL import Image

pytestmark = pytest.mark.ray

ALERT = "<script>alert(1)<"
NAMES = (
    f"{ALERT}/script>/a.png",  # the folder closes the tag
    "=cmd|' /C calc'!A0/b.png",
    "new\nline 2026-01-01 INFO zsad: exit 0/c.png",
    "\x1b[31mred\x1b[0m/d.png",
    "\u202egnp.exe/e.png",
    "{{ 7*7 }}/f.png",
)
BROKEN = ("new\nline/\x1b[2Jbroken.png", f"{ALERT}/broken.png")
CANARY = "canary7f3a91"
SECRETS = {
    "AWS_ACCESS_KEY_ID": f"AKIA{CANARY}",
    "AWS_SECRET_ACCESS_KEY": f"secret-{CANARY}",
    "AWS_SESSION_TOKEN": f"token-{CANARY}",
    "OPENAI_API_KEY": f"sk-{CANARY}",
    "ZSAD_LOG": "DEBUG",
}


@pytest.fixture(scope="module")
def run(local_ray, bucket, tmp_path_factory):
    """The finished job on a bucket with such names, started with secrets in its environment."""
    root = tmp_path_factory.mktemp("hostile")
    source, output = root / "images", root / "report"
    for number, name in enumerate(NAMES):
        (source / name).parent.mkdir(parents=True)
        shutil.copy2(bucket / f"line1/cam1/{2 * number:03d}.png", source / name)
    for name in BROKEN:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"no image")
    arguments = {
        "--input": source,
        "--output": output,
        "--partition": "{folder}/",
        "--detector": f"{root}/models/{{folder}}",
        "--maps": "all",
        "--batch-size": "8",
        "--num-scorers": "1",
        "--max-error-share": "1",
        "--threshold": str(THRESHOLD),
    }
    for name in {name.split("/")[0] for name in NAMES[:2]}:  # the others have no detector
        shutil.copytree(REPOSITORY / "zsad/nano/winclip", root / "models" / name)
    done = run_job(*(str(part) for pair in arguments.items() for part in pair), **local_ray.env, **SECRETS)
    assert done.returncode == 0, done.stderr[-3000:]
    return done, source, output


def test_names_are_kept_in_the_report_as_they_are(run):
    _, source, output = run
    rows = rows_by_key(source, output)
    assert sorted(rows) == sorted((*NAMES, *BROKEN))
    codes = {key: row["error_code"] for key, row in rows.items()}
    scored = {key for key, code in codes.items() if code is None}
    assert scored == set(NAMES[:2])
    assert codes[BROKEN[1]] == "unknown_format"
    assert {codes[key] for key in (*NAMES[2:], BROKEN[0])} == {"no_detector"}
    assert rows[NAMES[3]]["folder"] == "\x1b[31mred\x1b[0m"


def test_the_page_shows_them_as_text(run):
    _, _, output = run
    (page,) = output.glob("runs/*/gallery.html")
    text = page.read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)


def test_log_and_terminal_stay_one_line_each(run):
    done, _, _ = run
    for text in (done.stdout, done.stderr):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert not any(line.startswith("line 2026-01-01 INFO zsad: exit 0") for line in done.stderr.splitlines())
    assert "new\\nline" in done.stderr


def test_secrets_are_written_nowhere(run):
    done, _, output = run
    assert CANARY not in done.stdout + done.stderr
    files = [path for path in output.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".parquet", ".png", ".html", ".safetensors"}
    for path in files:
        data = path.read_bytes()
        assert CANARY.encode() not in data, path
        if path.suffix == ".parquet":
            table = pq.read_table(BytesIO(data))
            assert CANARY not in str(table.schema.metadata) + str(table.to_pylist()), path
        if path.suffix == ".png":
            assert CANARY not in str(Image.open(BytesIO(data)).info), path


@pytest.mark.parametrize("url", [f"s3://key:{CANARY}@bucket/x", f"https://host/x?X-Amz-Signature={CANARY}"])
def test_a_secret_in_a_url_is_refused_without_repeating_it(tmp_path, url):
    done = run_job("--input", url, "--output", str(tmp_path / "report"))
    assert done.returncode == 2
    assert CANARY not in done.stdout + done.stderr
    assert "exit 2" in last_line(done.stderr)
