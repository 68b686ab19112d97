"""What the evaluation tests share: a small labelled data set of procedural pictures, and its settings and figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zsad.datasets.synthetic import SyntheticConfig, generate
from zsad.evaluation.config import EvaluateConfig

SIDE_PX = 64
NUM_IMAGES = 14
PRODUCTS = {"plate": 3, "ring": 4}


def write_labelled(folder: Path) -> None:
    """Two products in the folders of MVTec AD, about half of their pictures with a defect and its mask."""
    config = SyntheticConfig(size=160, anomaly_share=0.5)
    for product, seed in PRODUCTS.items():
        for number in range(NUM_IMAGES):
            sample = generate(seed, number, config)
            kind = sample.defect_type
            _save(folder / product / "test" / kind / f"{number:03d}.png", sample.image)
            if kind != "good":
                mask = (np.asarray(sample.mask) > 0).astype(np.uint8) * 255
                _save(folder / product / "ground_truth" / kind / f"{number:03d}_mask.png", mask)


def config_for(folder: Path | str, output: Path | str, **changes: Any) -> EvaluateConfig:
    """Small batches, two scorers, a coarse comparison."""
    settings = {"batch_size": 8, "num_scorers": 2, "resolution": SIDE_PX, **changes}
    return EvaluateConfig(dataset=f"mvtec:{folder}", output=str(output), **settings)


def figures_of(output: Path) -> dict[str, Any]:
    """Product -> all its figures, from a local metrics.json."""
    products = json.loads((output / "metrics.json").read_text())["results"]["products"]
    return {product["product"]: product for product in products}


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
