"""What a run may change of a detector's method: its settings by name, and the prompt bank it reads.

Whatever changes the raw numbers takes the calibration away, so that thresholds are fitted anew.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from types import NoneType
from typing import Any, get_args

from zsad.bundle import DetectorConfig
from zsad.errors import ConfigError
from zsad.prompts.bank import PromptBank

READS_BANKS = ("normal", "abnormal")
"""Settings of a method that can use a prompt bank."""


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Settings out of `NAME=VALUE` words; a value is read as JSON where it is JSON, else as text.

    Raises:
        ConfigError: for a word without a name or without "=", and for a name given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"setting {pair!r}: write NAME=VALUE, such as dense=windows")
        if name in found:
            raise ConfigError(f"setting {name!r} is given twice")
        found[name] = _value(value)
    return found


def with_settings(config: DetectorConfig, changes: Mapping[str, Any], settings_class: Any) -> DetectorConfig:
    """`config` with some settings of its method changed; uncalibrated if that changes anything.

    Args:
        config: of the detector.
        changes: name -> value.
        settings_class: the method's config.

    Raises:
        ConfigError: for an unknown name (with the nearest known one) or a value that the method refuses.
    """
    known = {field.name: field for field in fields(settings_class)}
    for name, value in changes.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ConfigError(f"method {config.method} has no setting {name!r}; {hint}")
        _check_number(name, value, known[name].type)
    merged = {**config.settings, **changes}
    try:
        is_same = settings_class(**merged) == settings_class(**config.settings)
    except TypeError as error:
        raise ConfigError(f"settings of method {config.method}: {error}") from error
    return config if is_same else replace(config, settings=merged, calibration=None)


def with_bank(config: DetectorConfig, bank: PromptBank, settings_class: Any) -> DetectorConfig:
    """`config` with the phrases and the object of a prompt bank; uncalibrated if they change anything.

    Raises:
        ConfigError: if the method can't use a bank.
    """
    if not set(READS_BANKS) <= {field.name for field in fields(settings_class)}:
        raise ConfigError(f"method {config.method} reads no prompt bank; leave --prompts out, or use the method alfa")
    if bank.object_name != config.object_name:
        config = replace(config, object_name=bank.object_name, calibration=None)
    phrases = {"normal": list(bank.texts("normal")), "abnormal": list(bank.texts("abnormal"))}
    return with_settings(config, phrases, settings_class)


def _check_number(name: str, value: Any, kind: Any) -> None:
    """Refuse what is no number, or no whole one, where a setting of type `kind` asks for one."""
    kinds = get_args(kind) or (kind,)
    if not {int, float} & set(kinds) or (value is None and NoneType in kinds):
        return
    if isinstance(value, bool) or not isinstance(value, int if int in kinds else int | float):
        raise ConfigError(f"{name} is {value!r}; it must be a {'whole ' if int in kinds else ''}number")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
