"""What a training may be asked for."""

import pytest

from zsad.errors import ConfigError
from zsad.train_config import TrainConfig


def config(tmp_path, **changes):
    return TrainConfig(
        **{"method": "faprompt", "dataset": f"mvtec:{tmp_path}/data", "output": f"{tmp_path}/o"} | changes
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 0}, "--batch-size 0: it must be at least 1"),
        ({"shots": 0}, "--shots 0: it must be at least 1"),
        ({"num_workers": 0}, "--num-workers 0"),
        ({"learning_rate": 1.0}, r"--learning-rate 1.0: it must lie in \[0, 1\)"),
        ({"validation": 0.6}, "--validation 0.6"),
        ({"min_workers": 2}, "--min-workers 2 is more than --num-workers 1"),
        ({"resume": True, "restart": True}, "give one of them"),
        ({"dataset": "mvtek:/data"}, "did you mean 'mvtec'"),
        ({"dataset": "synthetic", "method": "promptad"}, "synthetic has none"),
        ({"dataset": "synthetic", "products": ("bolt",)}, "synthetic has none"),
        ({"object": " "}, "--object is empty"),
        ({"await_gpus": True}, "--await-gpus waits for GPUs that --use-gpu asks for"),
        ({"method": "promptad", "batch_size": 4}, "--batch-size 4: promptad makes no use of it"),
        ({"method": "promptad", "keep": "last"}, "--keep last: promptad makes no use of it"),
        ({"method": "dapo", "cache": "fp16"}, "--cache fp16: dapo makes no use of it"),
        ({"method": "dapo", "dice_weight": 0.5}, "--dice-weight 0.5: dapo makes no use of it"),
        ({"method": "faprompt", "checkpointing": True}, "--checkpointing True: faprompt makes no use of it"),
        ({"method": "faprompt", "shots": 2}, "--shots 2: faprompt makes no use of it"),
        ({"method": "faprompt", "dice_weight": 1.5}, r"--dice-weight 1.5: it must lie in \[0, 1\]"),
        ({"method": "promptad", "max_restarts": 0}, "--max-restarts 0: promptad makes no use of it"),
    ],
)
def test_impossible_wishes_are_refused_in_words(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, **changes)


def test_the_output_may_not_lie_inside_the_data_set(tmp_path):
    with pytest.raises(ConfigError, match="lies inside the data set"):
        config(tmp_path, output=f"{tmp_path}/data/bundle")


@pytest.mark.parametrize(
    ("method", "split", "epochs"), [("faprompt", "test", 7), ("dapo", "test", 5), ("promptad", "train", 100)]
)
def test_each_method_learns_from_its_own_split_for_its_own_time(tmp_path, method, split, epochs):
    made = config(tmp_path, method=method)
    assert (made.used_split, made.num_epochs) == (split, epochs)


def test_what_does_not_change_the_result_may_change_between_runs(tmp_path):
    first = config(tmp_path)
    other = {"num_workers": 8, "use_gpu": True, "await_gpus": True, "max_error_share": 0.1, "resume": True}
    assert first.identity() == config(tmp_path, **other, work="/elsewhere").identity()
    assert first.identity() != config(tmp_path, seed=1).identity()


def test_cache_and_checkpoints_lie_beside_the_bundle_unless_told(tmp_path):
    assert config(tmp_path).work_store.url == f"{tmp_path}/o/_training"
    assert config(tmp_path, work=f"{tmp_path}/w").work_store.url == f"{tmp_path}/w"


@pytest.mark.parametrize(
    ("changes", "num_gpus", "is_refused"),
    [
        ({"num_workers": 4}, 3, True),
        ({"num_workers": 4}, 4, False),
        ({"num_workers": 4, "min_workers": 2}, 2, False),
        ({"num_workers": 4, "min_workers": 2}, 1, True),
        ({"num_workers": 4, "await_gpus": True}, 0, False),
    ],
)
def test_workers_on_gpus_that_are_not_there_are_refused_unless_they_are_to_come(
    tmp_path, changes, num_gpus, is_refused
):
    made = config(tmp_path, use_gpu=True, **changes)
    if is_refused:
        with pytest.raises(ConfigError, match=rf"the cluster has {num_gpus} GPUs; .*--await-gpus"):
            made.check_gpus(num_gpus)
    else:
        made.check_gpus(num_gpus)


def test_without_gpus_none_are_asked_for(tmp_path):
    config(tmp_path, num_workers=4).check_gpus(0)
