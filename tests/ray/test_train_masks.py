"""Trainings from masks on a real Ray, over a tiny random backbone; one small one over nano."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_runs import REPOSITORY
from training_runs import (
    SIDE_PX,
    config_for,
    learned_in,
    save,
    training_workers,
    when_epochs_are_done,
    write_backbone,
    write_labelled,
)

from zsad.backbone import load_backbone
from zsad.detector import load_detector
from zsad.distributed.train_board import Board, shown
from zsad.distributed.train_prompts import train_prompts
from zsad.errors import CommitConflict, ConfigError, TooManyBadImages
from zsad.learn import checkpoints
from zsad.learn.plan import make_plan
from zsad.learn.prepare import list_images
from zsad.report.paths import run_key
from zsad.storage import open_store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of a backbone and of a data set."""
    folder = tmp_path_factory.mktemp("training")
    return write_backbone(folder / "backbone"), write_labelled(folder / "data")


@pytest.fixture(scope="module")
def one_worker(local_ray, places, tmp_path_factory):
    """The output of a training by one worker; read only."""
    output = tmp_path_factory.mktemp("one") / "bundle"
    train_prompts(config_for(*places, output))
    return output


def state_in(output):
    return checkpoints.newest(open_store(str(output / "_training" / "checkpoints")))


def test_two_workers_learn_what_one_does(places, one_worker, tmp_path):
    """Twenty steps; the last batch of each epoch has one image, so one of the workers has none."""
    train_prompts(config_for(*places, tmp_path / "bundle", num_workers=2))
    one, two = state_in(one_worker), state_in(tmp_path / "bundle")
    assert [len(record.steps) for record in two.history] == [10, 10]
    expected, found = learned_in(one_worker), learned_in(tmp_path / "bundle")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=0)
    for before, after in zip(one.history, two.history, strict=True):
        assert sum(after.validation.values()) == pytest.approx(sum(before.validation.values()), abs=1e-4)


def test_the_bundle_is_calibrated_and_says_where_it_came_from(one_worker):
    detector = load_detector(str(one_worker), device="cpu")
    stored = detector.config
    assert stored.method == "faprompt"
    assert stored.calibration.source == "8 procedural normal images"
    assert stored.provenance["epoch"] in (1, 2)
    assert stored.provenance["data"].startswith("mvtec:")
    finding = detector.inspect([np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)])[0]
    assert 0 < finding.score < 1


def test_curves_and_event_files_lie_beside_it(one_worker):
    page = (one_worker / "training.html").read_text()
    assert page.count("<polyline") == 2 * 11  # the total and ten terms, training and validation
    assert "<script" not in page
    events = sorted(path.name for path in (one_worker / "_training" / "tensorboard").iterdir())
    assert len(events) == 2
    assert all("tfevents" in name for name in events)


def test_an_output_that_holds_something_is_not_written_over(places, one_worker):
    with pytest.raises(ConfigError, match="holds a detector bundle already"):
        train_prompts(config_for(*places, one_worker))


def test_going_on_with_other_settings_is_refused_by_name(places, one_worker):
    with pytest.raises(ConfigError, match="another learning_rate"):
        train_prompts(config_for(*places, one_worker, resume=True, learning_rate=0.5))


@pytest.mark.slow
def test_a_mask_of_another_size_is_named_and_gives_no_bundle_until_it_is_mended(places, tmp_path):
    data = write_labelled(tmp_path / "data")
    mask = data / "bolt" / "ground_truth" / "scratch" / "03_mask.png"
    whole = mask.read_bytes()
    save(mask, np.full((8, 8), 255, np.uint8))
    config = config_for(places[0], data, tmp_path / "bundle", num_workers=2)
    with pytest.raises(TooManyBadImages, match=r"bolt/test/scratch/03\.png: mask .*03_mask\.png has 8 x 8 px"):
        train_prompts(config)
    assert not (tmp_path / "bundle" / "detector.json").exists()
    mask.write_bytes(whole)
    train_prompts(replace(config, resume=True))
    assert (tmp_path / "bundle" / "detector.json").exists()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(places, tmp_path, capsys):
    """Two products of 11 images; two of the 22 are held out, so an epoch has ten steps of two."""
    train_prompts(config_for(*places, tmp_path / "bundle", dry_run=True))
    said = capsys.readouterr().out
    assert "images              22" in said
    assert "steps               20 in 2 epochs" in said
    with pytest.raises(ConfigError, match="input size 33 px"):
        train_prompts(config_for(*places, tmp_path / "bundle", dry_run=True, size=33))
    assert not (tmp_path / "bundle").exists()


def test_gpus_that_the_cluster_lacks_are_refused_before_anything_is_written(places, tmp_path):
    with pytest.raises(ConfigError, match=r"there must be 2 workers .* the cluster has 0 GPUs"):
        train_prompts(config_for(*places, tmp_path / "bundle", num_workers=2, use_gpu=True))
    assert not (tmp_path / "bundle" / "_training").exists()


def test_a_driver_whose_lease_is_taken_over_is_interrupted(places, tmp_path):
    config = config_for(*places, tmp_path / "bundle")
    backbone = load_backbone(config.backbone, "cpu")
    plan, _ = make_plan(config, list_images(config), backbone)
    began = time.monotonic()

    def check():
        if time.monotonic() - began > 1:
            raise CommitConflict("lease 1 was taken over")

    with pytest.raises(CommitConflict, match="taken over"), shown(Board.remote(), plan, check):
        time.sleep(60)
    assert time.monotonic() - began < 30


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_whose_worker_is_killed_ends_as_if_nothing_happened(places, tmp_path):
    config = config_for(*places, tmp_path / "whole", num_workers=2, epochs=16, keep="last")
    train_prompts(config)
    killed = []

    def kill():
        killed.append(when_epochs_are_done(tmp_path / "bundle", 3))
        os.kill(training_workers()[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    train_prompts(replace(config, output=str(tmp_path / "bundle")))
    killer.join()
    assert 3 <= killed[0] < 16
    for name, tensor in learned_in(tmp_path / "whole").items():
        torch.testing.assert_close(learned_in(tmp_path / "bundle")[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_that_loses_a_node_goes_on_with_as_many_workers_as_are_left(places, one_worker, tmp_path):
    """Two workers on one node, one of which fits on the other. Rounding grows: only the first steps are compared."""
    ran = on_two_nodes(places, tmp_path / "bundle", epochs=16)
    assert "workers before 2" in ran.stdout, ran.stderr
    assert "CPUs after 1" in ran.stdout, ran.stderr  # said behind the training; Ray ends with 1 when a node is missing
    history = state_in(tmp_path / "bundle").history
    assert [len(record.steps) for record in history] == [10] * 16
    for before, after in zip(state_in(one_worker).history, history, strict=False):
        assert sum(after.validation.values()) == pytest.approx(sum(before.validation.values()), abs=1e-4)
    assert (tmp_path / "bundle" / "detector.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_takes_a_new_node_in(places, one_worker, tmp_path):
    """As above, and another node comes; the epochs with one worker, and those after it grew, are in one history."""
    ran = on_two_nodes(places, tmp_path / "bundle", "--again", epochs=100_000)
    told = ran.stdout.split("\n")
    assert {"workers before 2", "workers left 1", "workers again 2"} <= set(told), ran.stdout + ran.stderr
    history = state_in(tmp_path / "bundle").history
    assert [record.epoch for record in history] == list(range(len(history)))
    assert {len(record.steps) for record in history} == {10}
    for before, after in zip(state_in(one_worker).history, history, strict=False):
        assert sum(after.validation.values()) == pytest.approx(sum(before.validation.values()), abs=1e-4)


def on_two_nodes(places, output, *flags, epochs):
    """A training by two workers whose node goes after three epochs."""
    backbone, data = map(str, places)
    changes = {"epochs": epochs, "keep": "last", "num_workers": 2, "min_workers": 1}
    settings = json.dumps([backbone, data, str(output), changes])
    script = REPOSITORY / "tests" / "ray" / "two_nodes.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(script), settings, "3", *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_whose_driver_is_killed_goes_on(places, local_ray, tmp_path):
    config = config_for(*places, tmp_path / "bundle", epochs=16, keep="last")
    flags = [f"--{name}={getattr(config, name)}" for name in ("method", "dataset", "output", "backbone", "keep")]
    flags += ["--epochs=16", "--batch-size=2", "--calibration-images=8"]
    job = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "jobs" / "train_prompts.py"), *flags], env={**os.environ, **local_ray.env}
    )
    assert 2 <= when_epochs_are_done(tmp_path / "bundle", 2) < 16
    job.kill()
    job.wait()
    with pytest.raises(ConfigError, match="--resume goes on"):
        train_prompts(config)
    train_prompts(replace(config, resume=True))
    train_prompts(replace(config, output=str(tmp_path / "whole")))
    for name, tensor in learned_in(tmp_path / "whole").items():
        torch.testing.assert_close(learned_in(tmp_path / "bundle")[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_driver_that_was_taken_over_ends_with_its_workers_and_writes_no_bundle(places, tmp_path):
    config = config_for(*places, tmp_path / "bundle", epochs=400)

    def take_over():
        when_epochs_are_done(tmp_path / "bundle", 1)
        config.work_store.put(run_key("training", "lease/000002.json"), b"{}")

    other = threading.Thread(target=take_over)
    other.start()
    with pytest.raises(CommitConflict, match="was taken over"):
        train_prompts(config)
    other.join()
    done = state_in(tmp_path / "bundle").epochs
    assert done < 400
    time.sleep(3)
    assert state_in(tmp_path / "bundle").epochs <= done + 1
    assert not (tmp_path / "bundle" / "detector.json").exists()
    assert not (tmp_path / "bundle" / "training.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_control_c_is_130_and_says_how_to_go_on(places, local_ray, tmp_path):
    output = tmp_path / "bundle"
    flags = ["--method=dapo", f"--dataset=mvtec:{places[1]}", f"--output={output}", f"--backbone={places[0]}"]
    job = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "jobs" / "train_prompts.py"), *flags, "--epochs=400"],
        env={**os.environ, **local_ray.env},
        stderr=subprocess.PIPE,
        text=True,
    )
    when_epochs_are_done(output, 1)
    job.send_signal(signal.SIGINT)
    said = job.communicate(timeout=120)[1]
    assert job.returncode == 130, said
    assert "exit 130: interrupted; the same command with --resume goes on" in said.splitlines()[-1]
    assert not (output / "detector.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dapo_and_features_in_half_precision_over_nano_through_the_scorer(tmp_path, places):
    output = tmp_path / "bundle"
    small = {"epochs": 1, "batch_size": 8, "calibration_images": 16}
    train_prompts(config_for(Path("nano"), places[1], output, **small, method="dapo"))
    assert load_detector(str(output), device="cpu").config.defect_words == ("scratch",)
    half = tmp_path / "half"
    train_prompts(config_for(Path("nano"), places[1], half, **small, cache="fp16"))
    rows = next((half / "_training").glob("cache-*/*.arrow")).stat().st_size
    assert rows < 22 * (197 * 192 * 2 + 224 * 224 // 8 + 2048)
