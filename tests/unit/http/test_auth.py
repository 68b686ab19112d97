import subprocess
import sys

import pytest

from zsad.errors import ConfigError
from zsad.http import auth
from zsad.http.auth import ANONYMOUS, RateLimiter, authorised, digest, load_tokens, parse_tokens
from zsad.http.problems import Problem

RIGHT = digest("right")


def test_lines_name_tokens_by_their_digest():
    text = f"# who\n\nline1 sha256:{RIGHT}\nline2  sha256:{digest('other')}"
    assert parse_tokens(text, "f") == {"line1": RIGHT, "line2": digest("other")}
    assert parse_tokens(text.replace("\n", ","), "f") == parse_tokens(text, "f")


@pytest.mark.parametrize("line", ["right", "a right", f"a sha256:{RIGHT[:-1]}", f"a b sha256:{RIGHT}", f"{RIGHT}"])
def test_a_line_with_a_token_itself_is_refused_and_not_repeated(line):
    with pytest.raises(ConfigError, match="line 2") as caught:
        parse_tokens(f"ok sha256:{RIGHT}\n{line}", "tokens.txt")
    assert "right" not in str(caught.value)
    assert RIGHT not in str(caught.value)


def test_a_name_comes_once():
    with pytest.raises(ConfigError, match="each name once"):
        parse_tokens(f"a sha256:{RIGHT}\na sha256:{RIGHT}", "f")


def test_tokens_come_from_the_file_or_else_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(auth.TOKENS_VARIABLE, f"env sha256:{RIGHT}")
    assert set(load_tokens("")) == {"env"}
    (tmp_path / "tokens").write_text(f"file sha256:{RIGHT}\n")
    assert set(load_tokens(str(tmp_path / "tokens"))) == {"file"}
    monkeypatch.delenv(auth.TOKENS_VARIABLE)
    assert load_tokens("") == {}


def test_a_file_that_is_named_must_hold_tokens(tmp_path):
    (tmp_path / "empty").write_text("# nobody\n")
    for name in ("empty", "none"):
        with pytest.raises(ConfigError, match="tokens_file"):
            load_tokens(str(tmp_path / name))


def test_without_tokens_everybody_is_anonymous():
    assert authorised(None, {}) == ANONYMOUS


def test_a_known_token_has_a_name():
    assert authorised("bearer right", {"a": digest("x"), "b": RIGHT}) == "b"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer x", "Basic right", f"Bearer {RIGHT}", "right"]
)
def test_others_are_nobody(header):
    with pytest.raises(Problem) as caught:
        authorised(header, {"b": RIGHT})
    assert caught.value.status == 401


def test_all_digests_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda stored, given: compared.append(stored) or stored == given)
    authorised("Bearer right", {"a": RIGHT, "b": digest("x"), "c": digest("y")})
    assert compared == [RIGHT, digest("x"), digest("y")]


def test_a_bucket_refills_at_its_rate():
    now_s = [0.0]
    limiter = RateLimiter(rate=2, burst=3, clock=lambda: now_s[0])
    limiter.take("a", 3)
    with pytest.raises(Problem) as caught:
        limiter.take("a")
    assert (caught.value.status, caught.value.retry_after_s) == (429, 0.5)
    limiter.take("b", 3)
    now_s[0] = 0.5
    limiter.take("a")
    with pytest.raises(Problem):
        limiter.take("a")
    now_s[0] = 100.0
    limiter.take("a", 3)
    with pytest.raises(Problem):
        limiter.take("a")


def test_a_batch_larger_than_the_bucket_waits_for_a_full_one_and_is_paid_for():
    now_s = [0.0]
    limiter = RateLimiter(rate=1, burst=4, clock=lambda: now_s[0])
    limiter.take("a", 10)
    now_s[0] = 6.0
    with pytest.raises(Problem) as caught:
        limiter.take("a", 1)
    assert caught.value.retry_after_s == pytest.approx(1.0)


def test_a_rate_of_zero_limits_nothing():
    limiter = RateLimiter(rate=0, burst=1)
    for _ in range(100):
        limiter.take("a")


def test_a_new_token_fits_its_line():
    done = subprocess.run([sys.executable, "-m", "zsad.http.auth", "line1"], capture_output=True, text=True, check=True)
    first, second = (line.partition(": ")[2] for line in done.stdout.splitlines())
    assert authorised(f"Bearer {first}", parse_tokens(second, "f")) == "line1"
