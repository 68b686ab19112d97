"""What a run may change of a method: settings by name, and the phrases of a prompt bank."""

import pytest

from zsad.errors import ConfigError
from zsad.methods import AlfaConfig, WinCLIPConfig
from zsad.prompts.bank import Phrase, PromptBank
from zsad.settings import parse_settings, with_bank, with_settings

BANK = PromptBank(
    object_name="cable",
    phrases=(
        Phrase(text="an even coat", side="normal"),
        Phrase(text="a nick", side="abnormal"),
        Phrase(text="a dent", side="abnormal", verdict="drop"),
    ),
)


@pytest.fixture
def config(tiny_detector):
    """A calibrated detector description."""
    return tiny_detector.config


def test_values_are_json_or_text():
    words = ("dense=windows", "beta=0.25", "top=3", 'normal=["a=b"]', "start=null", "empty=")
    expected = {"dense": "windows", "beta": 0.25, "top": 3, "normal": ["a=b"], "start": None, "empty": ""}
    assert parse_settings(words) == expected
    assert parse_settings(()) == {}


@pytest.mark.parametrize("word", ["dense", "=3", "a b=3", "--beta=1", ""])
def test_words_without_a_name_or_value_are_refused(word):
    with pytest.raises(ConfigError, match="write NAME=VALUE"):
        parse_settings((word,))


def test_a_setting_given_twice_is_refused():
    with pytest.raises(ConfigError, match="'beta' is given twice"):
        parse_settings(("beta=1", "beta=0"))


def test_a_changed_setting_voids_the_calibration(config):
    found = with_settings(config, {"temperature": 0.01}, WinCLIPConfig)
    assert found.settings == {"temperature": 0.01}
    assert found.calibration is None
    assert found.fingerprint() != config.fingerprint()


def test_a_setting_at_its_present_value_changes_nothing(config):
    assert with_settings(config, {"temperature": 0.07}, WinCLIPConfig) is config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temprature": 1}, "no setting 'temprature'; did you mean 'temperature'"),
        ({"zzz": 1}, "no setting 'zzz'; it has dense, temperature"),
        ({"temperature": 7}, "temperature is 7"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
        ({"temperature": True}, "temperature is True; it must be a number"),
        ({"top_patches": 2.5}, "top_patches is 2.5; it must be a whole number"),
        ({"vv_start": "last"}, "vv_start is 'last'; it must be a whole number"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, changes, words):
    with pytest.raises(ConfigError, match=words):
        with_settings(config, changes, WinCLIPConfig)


@pytest.mark.parametrize("changes", [{"vv_start": None}, {"vv_start": 1}, {"map_weight": 1}, {"temperature": 0.5}])
def test_whole_numbers_fractions_and_none_pass_where_they_are_allowed(config, changes):
    assert with_settings(config, changes, WinCLIPConfig).settings in ({}, changes)


def test_a_bank_gives_phrases_in_use_and_the_object(config):
    found = with_bank(config, BANK, AlfaConfig)
    assert found.settings == {"normal": ["an even coat"], "abnormal": ["a nick"]}
    assert found.object_name == "cable"
    assert found.calibration is None
    assert with_bank(found, BANK, AlfaConfig) is found


def test_methods_that_read_no_bank_say_so(config):
    with pytest.raises(ConfigError, match="method winclip reads no prompt bank; leave --prompts out"):
        with_bank(config, BANK, WinCLIPConfig)
