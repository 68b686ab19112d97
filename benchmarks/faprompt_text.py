"""Cost of FAPrompt's prompts per image: the released pattern against ours, and a batch against single images.

python benchmarks/faprompt_text.py [--rounds 3] [--batch 16]

The released code encodes 22 sequences of 77 tokens for every image: a normal and ten abnormal prompts, once without and
once with the image's prior. Ours keeps the first eleven and the common beginning of all prompts, and runs six tokens of
ten prompts per image, those of a whole batch in one call. Both run here on a text tower of ViT-L/14's size (12 blocks
of width 768) with random weights; images are random unit-length patches. The image tower is left out: it costs the same
on both sides. A tiny model (8 and 6 blocks of width 128, images of 98 px) then compares whole predictions, and its text
part alone, in a batch and image by image.

One thread, and its CPU time, which other work on the machine disturbs less than the clock. Rounds are interleaved;
figures are medians. Ends with exit code 1 if results differ or a target is missed.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from zsad.backbone import Backbone
from zsad.backbone.load import Loaded, build
from zsad.detector import BATCH_SIZE
from zsad.methods.base import Subject
from zsad.methods.faprompt import FAPrompt, FAPromptConfig, PromptEncoder, initial_tensors, prior

REAL = {"width": 768, "heads": 12, "layers": 12}
SMALLEST_VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
TINY = {"width": 128, "heads": 2, "layers": 6}
TINY_VISION = {"image_size": 56, "layers": 8, "width": 128, "head_width": 64, "patch_size": 14}
TINY_PX = 98
RELEASED_TARGET, REAL_TARGET, TINY_TARGET = 15.0, 1.2, 2.0
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """A text tower with learned vectors, and the patches that a batch of images selected."""

    encoder: PromptEncoder
    tensors: dict
    selected_BMD: Tensor


def main() -> None:
    """Measure, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=BATCH_SIZE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        misses = measure_real(arguments.rounds, arguments.batch) + measure_tiny(arguments.rounds, arguments.batch)
    sys.exit("; ".join(misses) or None)


def measure_real(rounds: int, batch: int) -> list[str]:
    """Real text size: the released pattern, ours image by image, ours in one batch. Returns the targets missed."""
    case = make_case(make_backbone(REAL, SMALLEST_VISION), batch)
    seconds = {"released pattern": [], "ours, single images": [], "ours, one batch": []}
    prefix = case.encoder.static(case.tensors).prefix
    for _ in range(rounds):
        took, plain_KD = timed(lambda: released(case, 0))
        seconds["released pattern"].append(took)
        took, _ = timed(lambda: one_by_one(case, prefix))
        seconds["ours, single images"].append(took / batch)
        took, ours_BKD = timed(lambda: in_one_batch(case, prefix))
        seconds["ours, one batch"].append(took / batch)
    middle = report(f"12 blocks of width 768, batch of {batch}", seconds)
    gain = middle["released pattern"] / middle["ours, one batch"]
    alone = middle["released pattern"] / middle["ours, single images"]
    batching = middle["ours, single images"] / middle["ours, one batch"]
    difference = float((ours_BKD[0] - plain_KD).abs().max())
    print(f"released / ours          {gain:6.1f} in a batch, {alone:.1f} image by image (target {RELEASED_TARGET})")
    print(f"single images / a batch  {batching:6.2f} (target {REAL_TARGET})")
    print(f"largest difference       {difference:6.1e} of features up to {float(plain_KD.abs().max()):.1f}")
    return [
        *missed("released / ours", gain, RELEASED_TARGET),
        *missed("batching at real size", batching, REAL_TARGET),
        *differs(difference),
    ]


def measure_tiny(rounds: int, batch: int) -> list[str]:
    """A tiny model, where calls cost more than products: single images against one batch, all and the text part."""
    backbone = make_backbone(TINY, TINY_VISION)
    case = make_case(backbone, batch)
    prefix = case.encoder.static(case.tensors).prefix
    method = FAPrompt(case.encoder.config, backbone, Subject(), case.tensors)
    pixels = torch.randint(0, 256, (batch, TINY_PX, TINY_PX, 3), dtype=torch.uint8)
    seconds = {
        name: [] for name in ("whole, single images", "whole, one batch", "text, single images", "text, one batch")
    }
    for _ in range(10 * rounds):
        took, single = timed(lambda: torch.cat([method.predict(image[None]).score_B for image in pixels]))
        seconds["whole, single images"].append(took / batch)
        took, together = timed(lambda: method.predict(pixels).score_B)
        seconds["whole, one batch"].append(took / batch)
        seconds["text, single images"].append(timed(lambda: one_by_one(case, prefix))[0] / batch)
        seconds["text, one batch"].append(timed(lambda: in_one_batch(case, prefix))[0] / batch)
    middle = report(f"tiny model, batch of {batch}", seconds)
    whole = middle["whole, single images"] / middle["whole, one batch"]
    text = middle["text, single images"] / middle["text, one batch"]
    difference = float((single - together).abs().max())
    print(f"single images / a batch  {whole:6.2f} (target {TINY_TARGET}); the text part alone {text:.2f}")
    print(f"largest difference       {difference:6.1e} of scores")
    return missed("batching on a tiny model", whole, TINY_TARGET) + differs(difference)


def make_backbone(text_cfg: dict, vision_cfg: dict) -> Backbone:
    torch.manual_seed(0)
    cfg = {"embed_dim": text_cfg["width"], "quick_gelu": True, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    loaded = Loaded(build(cfg).eval().requires_grad_(False), SimpleTokenizer(), (0.5,) * 3, (0.5,) * 3, "bicubic")
    return Backbone("random", loaded, device=torch.device("cpu"), precision="fp32")


def make_case(backbone: Backbone, batch: int) -> Case:
    config = FAPromptConfig()
    selected = F.normalize(torch.randn(batch, config.num_selected, backbone.embed_dim), dim=-1)
    return Case(PromptEncoder(config, backbone), initial_tensors(config, backbone, 0), selected)


def one_by_one(case: Case, prefix) -> Tensor:
    rows = case.selected_BMD.split(1)
    return torch.cat([case.encoder.with_prior(case.tensors, prefix, prior(case.tensors, row)) for row in rows])


def in_one_batch(case: Case, prefix) -> Tensor:
    return case.encoder.with_prior(case.tensors, prefix, prior(case.tensors, case.selected_BMD))


def released(case: Case, row: int) -> Tensor:
    """Abnormal embeddings (K, D) of one image by the released pattern, which also encodes all that stays the same."""
    tensors, flat = case.tensors, case.selected_BMD[row].flatten()
    hidden = F.relu(tensors["prior.linear1.weight"] @ flat + tensors["prior.linear1.bias"])
    bias = tensors["prior.linear2.weight"] @ hidden + tensors["prior.linear2.bias"]
    for added in (torch.zeros_like(bias), bias):
        plain(case, case.encoder.normal_TW[None], tensors["normal_context"][None])
        context = torch.cat([tensors["normal_context"].expand(10, -1, -1), tensors["abnormal_context"] + added], dim=1)
        abnormal_KD = plain(case, case.encoder.abnormal_TW.expand(10, -1, -1), context)
    return abnormal_KD


def plain(case: Case, words_STW: Tensor, context_STW: Tensor) -> Tensor:
    """Embeddings of prompts on all 77 positions by open_clip's own blocks."""
    model, deep = case.encoder.model, case.tensors["deep_prompts"]
    start = case.encoder.start_1W.expand(len(words_STW), 1, -1)
    x = torch.cat([start, context_STW, words_STW], dim=1)
    end = x.shape[1] - 1
    x = F.pad(x, (0, 0, 0, 77 - x.shape[1])) + model.positional_embedding
    for number, block in enumerate(model.transformer.resblocks):
        if 0 < number <= len(deep):
            x = torch.cat([x[:, :1], deep[number - 1].expand(len(x), -1, -1), x[:, 5:]], dim=1)
        x = block(x, attn_mask=model.attn_mask)
    return model.ln_final(x)[:, end] @ model.text_projection


def timed(call) -> tuple[float, Tensor]:
    began = time.thread_time()
    result = call()
    return time.thread_time() - began, result


def report(title: str, seconds: dict[str, list[float]]) -> dict[str, float]:
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\n{title}")
    for name, value in middle.items():
        print(f"  {name:<22} {1000 * value:9.2f} ms per image (median of {len(seconds[name])})")
    return middle


def missed(name: str, found: float, target: float) -> list[str]:
    return [f"{name} is {found:.2f}, below {target}"] if found < target else []


def differs(difference: float) -> list[str]:
    return [f"results differ by {difference:.1e}"] if difference > TOLERANCE else []


if __name__ == "__main__":
    main()
