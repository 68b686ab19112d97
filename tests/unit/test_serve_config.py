import pytest

from zsad.errors import ConfigError
from zsad.serve_config import CONFIG_VARIABLE, ServeConfig, load_serve_config


def test_a_reference_is_its_own_name_and_the_first_is_the_default():
    config = ServeConfig(detectors=("nano", "bottle=s3://models/bottle"))
    assert config.refs == {"nano": "nano", "bottle": "s3://models/bottle"}
    assert config.default == "nano"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"detectors": ()}, "detectors is empty"),
        ({"detectors": ("a/b",)}, "NAME=VALUE"),
        ({"detectors": ("s3://models/bottle",)}, "NAME=VALUE"),
        ({"detectors": ("a=",)}, "NAME=VALUE"),
        ({"detectors": ("a=nano", "a=nano")}, "comes twice"),
        ({"detectors": ("a=nano:none",)}, "unknown method"),
        ({"buckets": ("x=http://127.0.0.1/",)}, "unknown scheme"),
        ({"max_waiting": 31}, "32 images"),
        ({"num_scorers": 2, "max_scorers": 1}, "less than num_scorers"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"request_timeout_s": 0}, "request_timeout_s"),
        ({"reload_s": -1}, "must not be negative"),
        ({"surge_percent": 101}, "surge_percent is 101"),
    ],
)
def test_what_can_not_work_is_refused_by_name(changes, words):
    with pytest.raises(ConfigError, match=words):
        ServeConfig(**changes)


def test_settings_come_from_the_named_file(tmp_path, monkeypatch):
    path = tmp_path / "serve.toml"
    path.write_text('detectors = ["a=nano", "b=nano"]\nbatch_size = 8\nmax_pixels = 1000\n')
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    config = load_serve_config()
    assert (config.default, config.batch_size, config.decode.max_pixels) == ("a", 8, 1000)


def test_without_a_file_there_are_defaults(monkeypatch):
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    assert load_serve_config() == ServeConfig()


def test_a_wrong_key_in_the_file_names_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "serve.toml").write_text("batch_sise = 8\n")
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "serve.toml"))
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        load_serve_config()
