"""What the training tests share: a small labelled data set, a tiny backbone on disk, and a training's settings."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from zsad.backbone.load import CONFIG_FILE, WEIGHTS_FILE, build
from zsad.train_config import TrainConfig

SIDE_PX = 48
DEADLINE_S = 240
NUM_IMAGES = 11
PRODUCTS = ("bolt", "steel_nut")
MODEL_CFG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def write_backbone(folder: Path) -> Path:
    """A random open_clip model of 4 x 4 patches; returns its folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(MODEL_CFG)
    folder.mkdir(parents=True)
    constants = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    (folder / CONFIG_FILE).write_text(json.dumps({"model_cfg": MODEL_CFG, "preprocess_cfg": constants}))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS_FILE)
    return folder


def write_labelled(folder: Path) -> Path:
    """Two products in the folders of MVTec AD: noise, every second test image with a bright square and its mask."""
    rng = np.random.default_rng(0)
    for product in PRODUCTS:
        for number in range(NUM_IMAGES):
            for split in ("train", "test"):
                picture = rng.integers(0, 120, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
                is_good = split == "train" or number % 2 == 0
                if not is_good:
                    picture[8:24, 8:24] = 250
                    mask = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
                    mask[8:24, 8:24] = 255
                    save(folder / product / "ground_truth" / "scratch" / f"{number:02d}_mask.png", mask)
                save(folder / product / split / ("good" if is_good else "scratch") / f"{number:02d}.png", picture)
    return folder


def save(path: Path, array: np.ndarray) -> None:
    """Write an image and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def config_for(backbone: Path, data: Path, output: Path, **changes: Any) -> TrainConfig:
    """Two epochs of ten steps with batches of two, the last of one image: 22 images, of which two are held out."""
    settings: dict[str, Any] = {"method": "faprompt", "epochs": 2, "batch_size": 2, "calibration_images": 8}
    settings |= {"backbone": str(backbone), "dataset": f"mvtec:{data}", "output": str(output)}
    return TrainConfig(**{**settings, **changes})


def learned_in(output: Path) -> dict[str, torch.Tensor]:
    """The tensors of a bundle."""
    return load_file(output / "tensors.safetensors")


def when_epochs_are_done(output: Path, epochs: int) -> int:
    """Wait until a training has that many epochs done; returns how many it has."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        found = sorted((output / "_training" / "checkpoints").glob("epoch-*.json"))
        done = int(found[-1].stem.removeprefix("epoch-")) if found else 0
        if done >= epochs:
            return done
        time.sleep(0.02)
    raise AssertionError(f"no {epochs} epochs within {DEADLINE_S} s")


def training_workers() -> list[int]:
    """Process ids of Ray Train's workers that descend from this process."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            names[int(entry.name)] = (entry / "cmdline").read_bytes()
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
    return [pid for pid, name in names.items() if b"RayTrainWorker" in name and _descends(pid, os.getpid(), parents)]


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        if pid == ancestor:
            return True
        pid = parents[pid]
    return False
