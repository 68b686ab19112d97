"""Flags, TOML files and exit codes."""

import logging
from dataclasses import dataclass, field

import pytest

from zsad import errors
from zsad.batch_config import BatchConfig
from zsad.cli import parse, run_job
from zsad.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Nested settings.

    Attributes:
        depth: how deep.
    """

    depth: int = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """A small job.

    Attributes:
        name: of the thing.
        num_parts: how many.
        share: of them.
        dry_run: do nothing.
        tags: some words.
        inner: nested.
    """

    name: str = "x"
    num_parts: int = 1
    share: float = 0.5
    dry_run: bool = False
    tags: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)


@pytest.fixture
def toml(tmp_path):
    def write(text):
        (tmp_path / "job.toml").write_text(text)
        return str(tmp_path / "job.toml")

    return write


def test_defaults_and_flags():
    assert parse(Config, []) == Config()
    found = parse(Config, ["--name", "y", "--num-parts=4", "--dry-run", "--tags", "a", "b"])
    assert found == Config(name="y", num_parts=4, dry_run=True, tags=("a", "b"))


def test_a_file_sets_what_flags_do_not(toml):
    path = toml('name = "file"\nnum_parts = 7\nshare = 0.25\ndry_run = true\ntags = ["a", "b"]\n')
    whole = Config(name="file", num_parts=7, share=0.25, dry_run=True, tags=("a", "b"))
    assert parse(Config, ["--config", path]) == whole
    found = parse(Config, ["--name", "flag", f"--config={path}", "--num-parts=2", "--no-dry-run", "--tags", "c"])
    assert found == Config(name="flag", num_parts=2, share=0.25, dry_run=False, tags=("c",))


def test_flags_with_underscores_win_too(toml):
    assert parse(Config, ["--config", toml("num_parts = 7"), "--num_parts", "2"]).num_parts == 2


def test_fields_of_nested_settings_need_no_prefix(toml):
    config = ["--config", toml('input = "a"\noutput = "b"\nmax_pixels = 100\n')]
    assert parse(BatchConfig, config).decode.max_pixels == 100
    assert parse(BatchConfig, [*config, "--max-pixels", "200"]).decode.max_pixels == 200


@pytest.mark.parametrize("value", ["[]", "false"])
def test_empty_and_false_values(toml, value):
    key = "tags" if value == "[]" else "dry_run"
    assert parse(Config, ["--config", toml(f"{key} = {value}")]) == Config()


def test_negative_numbers_in_a_file(toml):
    assert parse(Config, ["--config", toml("num_parts = -3\nshare = -0.5")]) == Config(num_parts=-3, share=-0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_part = 3", "unknown key 'num_part'; did you mean 'num_parts'?"),
        ("zzz = 3", "unknown key 'zzz'$"),
        ("name = ", "job.toml"),
        ("num_parts = 'many'", "can't be used"),
    ],
)
def test_unusable_files(toml, text, words):
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        parse(Config, ["--config", toml(text)])


def test_missing_files_and_names(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        parse(Config, ["--config", str(tmp_path / "absent.toml")])
    with pytest.raises(ConfigError, match="--config needs a file"):
        parse(Config, ["--config"])


@pytest.mark.parametrize("arguments", [["--nonsense", "1"], ["--num-parts", "many"], ["--num-parts"], ["positional"]])
def test_unusable_flags(arguments):
    with pytest.raises(ConfigError, match="can't be used"):
        parse(Config, arguments)


def test_required_fields_are_asked_for():
    with pytest.raises(ConfigError, match="can't be used"):
        parse(BatchConfig, ["--input", "a"])


def test_values_out_of_range_keep_their_message():
    with pytest.raises(ConfigError, match="--batch-size 0: at least 1"):
        parse(BatchConfig, ["--input", "a", "--output", "b", "--batch-size", "0"])


def last_line(caplog):
    return caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ZsadError("m"), 1),
        (errors.ConfigError("m"), 2),
        (errors.CommitConflict("m"), 3),
        (errors.StorageError("m"), 4),
        (errors.ModelError("m"), 5),
        (errors.TooManyBadImages("m"), 6),
        (errors.ModelError("first\n  second"), 5),
        (RuntimeError("m"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(caplog, error, code):
    def job(_config):
        raise error

    with caplog.at_level(logging.INFO, "zsad"):
        assert run_job(Config, job, []) == code
    expected = {130: "interrupted", 1: "unexpected error" if isinstance(error, RuntimeError) else "m"}.get(code, "")
    assert last_line(caplog).startswith(f"exit {code}: {expected}")
    assert "\n" not in last_line(caplog)
    if isinstance(error, RuntimeError):
        assert any(record.exc_info for record in caplog.records)


def test_success_is_0_and_gets_the_config():
    seen = []
    assert run_job(Config, seen.append, ["--name", "y"]) == 0
    assert seen == [Config(name="y")]


def test_bad_arguments_end_with_2(caplog):
    with caplog.at_level(logging.INFO, "zsad"):
        assert run_job(Config, lambda _: None, ["--nonsense"]) == 2
    assert last_line(caplog).startswith("exit 2: ")


def test_help_ends_with_0_and_names_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        run_job(Config, lambda _: None, ["--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--name", "--num-parts", "--dry-run", "--depth", "how many"))


def test_arguments_default_to_the_process_own(monkeypatch):
    seen = []
    monkeypatch.setattr("sys.argv", ["job.py", "--name", "argv"])
    assert run_job(Config, seen.append) == 0
    assert seen[0].name == "argv"


def test_an_interrupt_that_python_wrapped_is_still_130():
    """Ctrl-C inside a class body comes out as a RuntimeError that it caused."""

    def job(_config):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("Error calling __set_name__") from error

    assert run_job(Config, job, []) == 130


@dataclass(frozen=True, kw_only=True)
class Restartable:
    """A job that goes on by itself.

    Attributes:
        restart: start anew.
    """

    restart: bool = False


@dataclass(frozen=True, kw_only=True)
class Resumable(Restartable):
    """A job that must be told to go on.

    Attributes:
        resume: go on.
    """

    resume: bool = False


@pytest.mark.parametrize(
    ("config_class", "flags", "said"),
    [
        (Config, [], "the same command goes on where it stopped"),
        (Restartable, ["--restart"], "the same command without --restart goes on where it stopped"),
        (Resumable, [], "the same command with --resume goes on where it stopped"),
        (Resumable, ["--restart"], "the same command with --resume in place of --restart goes on where it stopped"),
        (Resumable, ["--resume"], "the same command goes on where it stopped"),
    ],
)
def test_an_interrupted_job_says_which_call_goes_on(caplog, config_class, flags, said):
    def job(_config):
        raise KeyboardInterrupt

    with caplog.at_level(logging.INFO, "zsad"):
        assert run_job(config_class, job, flags) == 130
        assert run_job(config_class, job, flags, goes_on=False) == 130
    assert [record.getMessage() for record in caplog.records] == [
        f"exit 130: interrupted; {said}",
        "exit 130: interrupted; the same command starts from the beginning",
    ]
