"""One run, many products: two hundred folders with a learned detector each, over one backbone."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_runs import RUN_COLUMNS, THRESHOLD, config_for, rows_by_key, without
from hash_scorer import no_pictures
from PIL import Image

from zsad.datasets.synthetic import SyntheticConfig, generate
from zsad.detector import Detector, load_detector
from zsad.distributed import finish
from zsad.distributed.batch import score_bucket
from zsad.errors import ConfigError, ModelError
from zsad.images import DecodeLimits, decode_image
from zsad.learn import promptad
from zsad.methods import Subject
from zsad.prompts.bank import Phrase, PromptBank, write_bank
from zsad.report import ledger
from zsad.storage import open_store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

NUM_PRODUCTS = 200
IMAGES_EACH = 2
BATCH_SIZE = 2
MISSING = ("p003", "p150")
BROKEN = "p004"
LARGER = "p005"
PIXELS = [generate(6, number, SyntheticConfig(size=224, anomaly_share=0.0)).image for number in range(8)]


def learned() -> Detector:
    """A PromptAD detector over nano, calibrated."""
    nano = load_detector("nano", device="cpu", batch_size=8)
    normals = [torch.from_numpy(np.stack(PIXELS[:2]))]
    tensors = promptad.fit(promptad.PromptADTraining(epochs=2), nano.backbone, Subject(object_name="object"), normals)
    config = replace(nano.config, method="promptad", settings={}, calibration=None)
    return Detector(config, tensors, batch_size=8).calibrated(PIXELS, source="drawn images")


def save_variant(detector: Detector, seed: int, url: str) -> None:
    """Save a detector with other directions, as if it had been learned for another product."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(detector.method.tensors)
    for name in ("cls.text", "seg.text"):
        noise = 0.1 * torch.randn(tensors[name].shape, generator=generator)
        tensors[name] = torch.nn.functional.normalize(tensors[name] + noise, dim=-1)
    preprocess = replace(detector.config.preprocess, size=256) if url.endswith(LARGER) else detector.config.preprocess
    Detector(replace(detector.config, preprocess=preprocess), tensors, batch_size=BATCH_SIZE).save(url)


def write_images(folder: Path, product: int) -> None:
    """Two small pictures of noise."""
    folder.mkdir(parents=True)
    for number in range(IMAGES_EACH):
        pixels = np.random.default_rng((product, number)).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def factory(tmp_path_factory):
    """Folders of images and of bundles."""
    root = tmp_path_factory.mktemp("factory")
    detector = learned()
    for number in range(NUM_PRODUCTS):
        name = f"p{number:03d}"
        write_images(root / "images" / f"line{number % 2}" / name, number)
        if name not in MISSING:
            save_variant(detector, number, str(root / "models" / name))
    (root / "models" / BROKEN / "detector.json").write_text("{}")
    (root / "images" / "readme.png").write_bytes((root / "images/line0/p000/0.png").read_bytes())
    return root


def config_of(root: Path, output: Path, **changes):
    changes = {"detector": f"{root}/models/{{product}}", "partition": "{line}/{product}/"} | changes
    return config_for(root / "images", output, batch_size=BATCH_SIZE, **changes)


@pytest.fixture(scope="module")
def report(local_ray, factory, tmp_path_factory):
    """The published report of all products."""
    output = tmp_path_factory.mktemp("products") / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "write_gallery", no_pictures)  # of many products: test_grouped_shards
        score_bucket(config_of(factory, output))
    return output


def name_of(key: str) -> str:
    return key.split("/")[1] if "/" in key else ""


def test_a_missing_detector_costs_the_rows_of_its_product_only(factory, report):
    rows = rows_by_key(factory / "images", report)
    assert len(rows) == NUM_PRODUCTS * IMAGES_EACH + 1
    for key, row in rows.items():
        lost = name_of(key) in (*MISSING, BROKEN, "")
        assert (row["status"], row["error_code"]) == (("error", "no_detector") if lost else ("ok", None)), key
    assert "no detector.json there" in rows["line1/p003/0.png"]["error_message"]
    assert "format version" in rows["line0/p004/0.png"]["error_message"]
    assert "does not fit --partition" in rows["readme.png"]["error_message"]


def test_every_product_is_scored_by_its_own_detector_with_the_notebooks_bits(factory, report):
    rows = rows_by_key(factory / "images", report)
    scores = set()
    for number in (0, 1, 5, 77, 199):
        url = f"{factory}/models/p{number:03d}"
        detector = load_detector(url, device="cpu", batch_size=BATCH_SIZE).with_threshold(THRESHOLD)
        keys = [f"line{number % 2}/p{number:03d}/{place}.png" for place in range(IMAGES_EACH)]
        images = [decode_image((factory / "images" / key).read_bytes(), DecodeLimits()) for key in keys]
        for key, finding in zip(keys, detector.inspect(images), strict=True):
            row = rows[key]
            assert (row["score"], row["raw_score"]) == (finding.score, finding.raw_score)
            assert [region["rle"] for region in row["regions"]] == [region.rle for region in finding.regions]
            assert (row["detector"], row["product"]) == (url, f"p{number:03d}")
            scores.add(row["raw_score"])
    assert len(scores) == 10


def test_a_product_alone_has_the_same_rows(factory, report, tmp_path):
    alone = config_of(factory, tmp_path / "alone", detector=f"{factory}/models/p042", include=("line0/p042/*",))
    score_bucket(alone)
    found = rows_by_key(factory / "images", tmp_path / "alone")
    together = rows_by_key(factory / "images", report)
    assert len(found) == IMAGES_EACH
    for key, row in found.items():
        assert without(row, RUN_COLUMNS) == without(together[key], RUN_COLUMNS)


def test_changed_bundles_are_refused_and_new_products_join(factory, tmp_path):
    root, output = tmp_path / "factory", tmp_path / "report"
    for name in ("p000", "p001", "p003"):
        line = f"line{int(name[1:]) % 2}"
        shutil.copytree(factory / "images" / line / name, root / "images" / line / name, copy_function=shutil.copy2)
    for name in ("p000", "p001"):
        shutil.copytree(factory / "models" / name, root / "models" / name)
    config = config_of(root, output)
    score_bucket(config)
    first = ledger.latest_published(open_store(str(output)))

    shutil.rmtree(root / "models" / "p001")
    shutil.copytree(factory / "models" / "p002", root / "models" / "p001")
    with pytest.raises(ConfigError, match=r"another detector\.p001; give --restart"):
        score_bucket(config)

    shutil.rmtree(root / "models" / "p001")
    shutil.copytree(factory / "models" / "p001", root / "models" / "p001")
    shutil.copytree(factory / "models" / "p010", root / "models" / "p003")
    shutil.copytree(factory / "models" / "p006", root / "models" / "p006")
    write_images(root / "images/line0/p006", 6)
    score_bucket(config)
    rows = rows_by_key(root / "images", output)
    new = {name_of(key) for key, row in rows.items() if row["run_id"] != first}
    assert new == {"p003", "p006"}
    assert {row["status"] for row in rows.values()} == {"ok"}


def test_without_any_detector_nothing_is_scored(factory, tmp_path):
    with pytest.raises(ModelError, match=r"none of 200 products has a detector; the first, p000: .*no detector\.json"):
        score_bucket(config_of(factory, tmp_path / "report", detector=f"{factory}/nowhere/{{product}}"))
    assert not (tmp_path / "report" / "published").exists()


def test_a_dry_run_says_which_products_have_no_detector(factory, tmp_path, capsys):
    score_bucket(config_of(factory, tmp_path / "report", dry_run=True))
    said = capsys.readouterr().out
    assert "197 of 200 have a detector; without: p003 (" in said
    assert not (tmp_path / "report").exists()


def test_normals_and_prompts_of_each_product(factory, tmp_path):
    root = tmp_path / "factory"
    for name in ("left", "right"):
        write_images(root / "images" / name, len(name))
        (root / "normals" / name).mkdir(parents=True)
        Image.fromarray(PIXELS[len(name)]).save(root / "normals" / name / "one.png")
    phrases = (Phrase(text="an even {} coat", side="normal"), Phrase(text="a nick", side="abnormal"))
    write_bank(str(root / "left.json"), PromptBank(object_name="left gear", phrases=phrases))
    changes = {"detector": "nano:alfa", "partition": "{product}/", "normals": f"{root}/normals/{{product}}"}
    score_bucket(config_of(root, tmp_path / "report", prompts=f"{root}/{{product}}.json", **changes))
    rows = rows_by_key(root / "images", tmp_path / "report")
    assert {(name_of("/" + key), row["error_code"]) for key, row in rows.items()} == {
        ("left", None),
        ("right", "no_detector"),
    }
    assert all("left gear" in told["prompt"] for told in rows["left/0.png"]["explanation"])
