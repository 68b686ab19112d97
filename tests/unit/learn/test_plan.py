"""Taking possession of an output, and what is forgotten of one."""

import pytest

from zsad.errors import CommitConflict, ConfigError
from zsad.learn.plan import begin, check_same, forget, hold
from zsad.train_config import TrainConfig


@pytest.fixture
def config_of(tmp_path):
    def made(**changes):
        wished = {"method": "faprompt", "dataset": "synthetic", "output": str(tmp_path / "o")} | changes
        return TrainConfig(**wished)

    return made


def test_a_second_training_in_the_same_place_is_refused(config_of):
    begin(config_of(), {"seed": 0})
    with pytest.raises(ConfigError, match="--resume goes on with it, --restart forgets it"):
        begin(config_of(), {"seed": 0})


def test_of_two_drivers_in_one_place_the_second_is_told_who_holds_it(config_of):
    with hold(config_of()), pytest.raises(CommitConflict, match="held by process"):
        hold(config_of(resume=True))
    hold(config_of(resume=True)).release()


def test_there_must_be_something_to_go_on_with(config_of):
    with pytest.raises(ConfigError, match="holds no training to go on with"):
        begin(config_of(resume=True), {"seed": 0})


def test_the_same_training_goes_on_and_another_is_named(config_of):
    begin(config_of(), {"seed": 0, "where": ("a=1",)})
    begin(config_of(resume=True), {"seed": 0, "where": ("a=1",)})
    with pytest.raises(ConfigError, match="begun with another seed;"):
        check_same(config_of().work_store, {"seed": 1, "where": ("a=1",)})


def test_starting_anew_forgets_the_trainings_own_files_and_no_others(config_of, tmp_path):
    config = config_of(work=str(tmp_path / "work"))
    kept = ["other.txt", "data/image.png"]
    ours = ["run.json", "cache-1234/000000.arrow", "checkpoints/epoch-0001.json", "tensorboard/events"]
    for key in (*kept, *ours):
        config.work_store.put(key, b"x")
    config.output_store.put("detector.json", b"{}")
    forget(config)
    assert sorted(info.key for info in config.work_store.list()) == sorted(kept)
    assert not config.output_store.exists("detector.json")
