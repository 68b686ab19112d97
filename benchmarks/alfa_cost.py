"""What ALFA's aligners cost, as ratios to a plain forward pass of the same tower, interleaved in one run.

OMP_NUM_THREADS=1 python benchmarks/alfa_cost.py [--images 4] [--rounds 5] [--skip-large]

Towers: nano, and a ViT-B/16-plus-240 with random weights (time does not depend on them). "Bound" is the number of
tokens of windows and image over those of the image: what windows would cost if a token always cost the same; the aim is
at most 1.3 of it. `patch_only` adds the value-value stream and should stay below 1.25 plain passes. CPU seconds of this
process, medians; prompts are encoded before the clock starts.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from zsad.backbone import Backbone, load_backbone, vision
from zsad.backbone.load import Loaded, build
from zsad.methods import Alfa, AlfaConfig
from zsad.methods.base import Subject
from zsad.methods.windows import num_tokens

LARGE = "ViT-B-16-plus-240"


def main() -> None:
    """Print one line per tower and aligner."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-large", action="store_true")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} thread(s), batches of {arguments.images}, median of {arguments.rounds} rounds")
    report(load_backbone("nano", "cpu", "fp32"), arguments.images, arguments.rounds)
    if not arguments.skip_large:
        report(random_tower(LARGE), arguments.images, arguments.rounds)


def report(backbone: Backbone, num_images: int, rounds: int) -> None:
    """Measure one tower."""
    side = backbone.image_size
    pixels = torch.randint(0, 256, (num_images, side, side, 3), dtype=torch.uint8)
    grid = backbone.grid(pixels)
    bound = num_tokens(grid) / num_tokens(grid, ())
    calls: dict[str, Callable[[], object]] = {"plain": lambda: plain(backbone, pixels)}
    for aligner in ("patch_only", "ridge", "transport"):
        method = Alfa(AlfaConfig(aligner=aligner), backbone, Subject())
        calls[aligner] = lambda method=method: method.predict(pixels)
    times = {name: [] for name in calls}
    for _ in range(rounds + 1):  # the first round allocates and is left out
        for name, call in calls.items():
            began = time.process_time()
            call()
            times[name].append(time.process_time() - began)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    each_ms = 1000 * medians["plain"] / num_images
    print(f"{backbone.name}, {side} px, grid {grid[0]} x {grid[1]}: plain {each_ms:.1f} ms/image")
    for name in ("patch_only", "ridge", "transport"):
        ratio = medians[name] / medians["plain"]
        of_bound = "" if name == "patch_only" else f" = {ratio / bound:.2f} of the token bound {bound:.1f}"
        print(f"  {name:<11} {ratio:6.2f} plain passes{of_bound}", flush=True)


@torch.inference_mode()
def plain(backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
    """The image embedding alone, by the ordinary stream."""
    visual = backbone.model.visual
    tokens = vision.embed(visual, backbone.normalise(pixels))
    return vision.class_to_joint(visual, vision.run_blocks(visual, tokens, vv_start=backbone.num_layers).h_BNW)


def random_tower(name: str) -> Backbone:
    """An open_clip model with random weights."""
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.tokenizer import SimpleTokenizer

    model = build(open_clip.get_model_config(name)).eval().requires_grad_(False)
    loaded = Loaded(model, SimpleTokenizer(), OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, "bicubic")
    return Backbone(name, loaded, device=torch.device("cpu"), precision="fp32")


if __name__ == "__main__":
    main()
