"""What keeping FAPrompt's features saves: measured speed-up of a step beside the bound that FLOPs set.

OMP_NUM_THREADS=1 python benchmarks/training_cache.py [--steps 6] [--skip-base]

A step without the cache runs the frozen image tower and then learns; with the cache it only learns, on rows read from
their shard. FLOPs are those of matrix products, convolutions and attention as torch counts them. Bound = FLOPs of both
over FLOPs of learning. Times are CPU seconds of one thread, medians of interleaved steps. ViT-B/16 at 224 px has random
weights: time does not depend on them. Aim: 0.7 of the bound.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode

from zsad.backbone import Backbone, load_backbone
from zsad.backbone.load import Loaded
from zsad.learn.examples import Shards, shard_key, write_shard
from zsad.learn.recipes import FAPromptRecipe
from zsad.learn.step import bytes_exchanged, take_step
from zsad.storage import open_store

BATCH, AIM = 8, 0.7
HALF = (0.5, 0.5, 0.5)


def main() -> None:
    """Print one line a backbone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--skip-base", action="store_true", help="nano only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| backbone | GFLOP with / without cache | bound | measured | of the bound (aim 0.7) | s a step | exchanged |"
    )
    print("|---|---|---|---|---|---|---|")
    print(row("nano", load_backbone("nano", "cpu"), arguments.steps), flush=True)
    if not arguments.skip_base:
        print(row("ViT-B/16, 224 px", random_base(), max(2, arguments.steps // 2)), flush=True)


def random_base() -> Backbone:
    """ViT-B/16 with random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16", pretrained=None).eval().requires_grad_(False)
    loaded = Loaded(model, open_clip.get_tokenizer("ViT-B-16"), HALF, HALF, "bicubic")
    return Backbone("ViT-B-16", loaded, device=torch.device("cpu"), precision="fp32")


def row(name: str, backbone: Backbone, steps: int) -> str:
    """Figures of one backbone."""
    rng = np.random.default_rng(0)
    recipe = FAPromptRecipe(backbone, seed=0, learning_rate=1e-3)
    pixels = rng.integers(0, 256, (BATCH, backbone.image_size, backbone.image_size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        cached, plain = (reader(Path(folder) / kept, recipe, kept, pixels) for kept in ("fp32", "pixels"))
        flops = [counted(step) for step in (cached, plain)]
        times = interleaved((cached, plain), steps)
    bound, measured = flops[1] / flops[0], times[1] / times[0]
    return (
        f"| {name} | {flops[0] / 1e9:.2f} / {flops[1] / 1e9:.2f} | {bound:.2f} | {measured:.2f} "
        f"| {measured / bound:.2f} | {times[0]:.3f} / {times[1]:.3f} | {bytes_exchanged(recipe.learner) / 1e6:.2f} MB |"
    )


def reader(folder: Path, recipe: FAPromptRecipe, kept: str, pixels: np.ndarray) -> Callable[[], object]:
    """A step on rows that are read from a shard of `kept` data."""
    size = pixels.shape[1]
    form, store = recipe.form(size, kept), open_store(str(folder))
    mask = np.zeros((size, size), bool)
    mask[: size // 4] = True
    image_BD, patches_BPD = recipe.features(pixels)
    rows = [
        {
            "key": str(index),
            "uri": str(index),
            "label": index % 2,
            "defect_type": "crack" if index % 2 else "good",
            "mask_SS": mask & bool(index % 2),
            "pixels_SSC": pixels[index],
            "image_D": image_BD[index].numpy(),
            "patches_PD": patches_BPD[index].numpy(),
        }
        for index in range(BATCH)
    ]
    store.put(shard_key(0), write_shard(form, rows))
    shards = Shards(store, form)
    facts = shards.facts(0)
    return lambda: take_step(recipe.learner, recipe.batch([shards.read(fact) for fact in facts]))


def counted(step: Callable[[], object]) -> int:
    """FLOPs of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def interleaved(steps: tuple[Callable[[], object], ...], count: int) -> list[float]:
    """Median CPU seconds of each, taken in turn."""
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(count):
        for step, seconds in zip(steps, taken, strict=True):
            began = time.process_time()
            step()
            seconds.append(time.process_time() - began)
    return [statistics.median(seconds) for seconds in taken]


if __name__ == "__main__":
    main()
