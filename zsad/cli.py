"""The shell around every job: command line and TOML file -> config dataclass -> call -> exit code.

One of three places in zsad that catch every exception (the others are the scorer's call and the HTTP handler): whatever
happens, the last log line says what, and carries the exit code, because `ray job submit` turns every failure into 1.
"""

import logging
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from zsad.errors import ConfigError, ZsadError, causes
from zsad.visible import visible

T = TypeVar("T")
log = logging.getLogger("zsad")
INTERRUPTED = 130


def run_job(
    config_class: type[T], job: Callable[[T], None], arguments: Sequence[str] | None = None, *, goes_on: bool = True
) -> int:
    """Parse, run, and turn the outcome into an exit code.

    Args:
        config_class: a frozen dataclass; its docstring is the help text.
        job: does the work.
        arguments: command line without the program; None: the process's own.
        goes_on: whether another call goes on with what an interrupted one has done.

    Returns:
        0, or the exit code of docs and README.
    """
    config = None
    try:
        configure_logging()
        config = parse(config_class, sys.argv[1:] if arguments is None else arguments)
        job(config)
    except KeyboardInterrupt:
        return _failed(INTERRUPTED, interrupted(config, goes_on=goes_on))
    except ZsadError as error:
        return _failed(error.exit_code, str(error))
    except Exception as error:
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes(error)):  # Ctrl-C inside a class body, say
            return _failed(INTERRUPTED, interrupted(config, goes_on=goes_on))
        log.exception("unexpected error; please report it with the lines above")
        return _failed(1, "unexpected error")
    return 0


def interrupted(config: Any, *, goes_on: bool = True) -> str:
    """The last line of a job that was interrupted: which call does the rest.

    Args:
        config: of the job; None: it was not parsed yet.
        goes_on: see `run_job`.
    """
    if not goes_on:
        return "interrupted; the same command starts from the beginning"
    restart, resume = (getattr(config, name, None) for name in ("restart", "resume"))
    if resume is False:  # the job has the option, and it was not given
        how = " with --resume in place of --restart" if restart else " with --resume"
    else:
        how = " without --restart" if restart else ""
    return f"interrupted; the same command{how} goes on where it stopped"


def parse(config_class: type[T], arguments: Sequence[str]) -> T:
    """Build a config from `--config FILE` (TOML) and flags; flags win.

    Raises:
        ConfigError: for an unreadable file, an unknown key (with the nearest known one) or a wrong value.
    """
    import tyro

    rest, path = _take_config(list(arguments))
    defaults = read_toml(config_class, Path(path)) if path else {}
    flags = [f"--{key.replace('_', '-')}" for key in defaults]
    unset = [flag for flag in flags if not any(a == flag or a.startswith(flag + "=") for a in rest)]
    from_file = [part for key, value in defaults.items() for part in _as_flag(key, value, unset)]
    try:
        return tyro.cli(config_class, args=[*from_file, *rest], config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError("the arguments can't be used, see the message above; --help lists all") from stop


def read_toml(config_class: type[Any], path: Path) -> dict[str, Any]:
    """Keys of a TOML file that are fields of `config_class`.

    Raises:
        ConfigError: if the file can't be read, or has an unknown key.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: {error}") from error
    known = _flat_fields(config_class)
    for key in values:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"--config {path}: unknown key {key!r}{hint}")
    return values


def _flat_fields(config_class: Any) -> list[str]:
    """Field names, those of nested dataclasses included, as the command line shows them."""
    names: list[str] = []
    for item in fields(config_class):
        nested: Any = item.default_factory
        names += _flat_fields(nested) if is_dataclass(nested) else [item.name]
    return names


def _take_config(arguments: list[str]) -> tuple[list[str], str]:
    for index, argument in enumerate(arguments):
        if argument == "--config":
            if index + 1 == len(arguments):
                raise ConfigError("--config needs a file")
            return arguments[:index] + arguments[index + 2 :], arguments[index + 1]
        if argument.startswith("--config="):
            return arguments[:index] + arguments[index + 1 :], argument.removeprefix("--config=")
    return arguments, ""


def _as_flag(key: str, value: Any, unset: Sequence[str]) -> list[str]:
    flag = f"--{key.replace('_', '-')}"
    if flag not in unset:
        return []
    if isinstance(value, bool):
        return [flag if value else f"--no-{key.replace('_', '-')}"]
    values = value if isinstance(value, list) else [value]
    return [flag, *(str(item) for item in values)]


class _OneLine(logging.Formatter):
    """A message is one line of visible characters, whatever names it holds; a traceback follows as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        return visible(super().formatMessage(record))


def configure_logging() -> None:
    """One line per event on stderr; ZSAD_LOG sets the level.

    Raises:
        ConfigError: if ZSAD_LOG is no level.
    """
    level = os.environ.get("ZSAD_LOG", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        raise ConfigError(f"ZSAD_LOG={level}: choose one of {', '.join(logging.getLevelNamesMapping())}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for noisy in ("botocore", "aiobotocore", "urllib3", "s3fs", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _failed(code: int, message: str) -> int:
    one_line = " ".join(message.split())
    log.error("exit %d: %s", code, one_line)
    return code
