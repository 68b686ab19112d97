"""What a text tower makes of phrases, on a random tower and on nano."""

import numpy as np
import pytest
import tiny_model
import torch

from zsad.backbone import load_backbone
from zsad.errors import ConfigError
from zsad.prompts.clip_scores import PairSource, Reader, damaged_source, paste_piece, procedural_source
from zsad.prompts.ensemble import TEMPLATES


class AxisBackbone:
    """Texts of faults lie along the second axis, others along the first; "odd" ones in between, nearer the first."""

    image_size = 32
    tokenizer = staticmethod(tiny_model.SimpleTokenizer())

    def encode_text(self, strings):  # noqa: D102
        return torch.stack([self.embed(text) for text in strings])

    def embed(self, text):  # noqa: D102
        if "odd" in text:
            return torch.tensor([0.8, 0.6])
        is_faulty = any(word in text for word in ("damaged", "with flaw", "with defect", "with damage", "crack"))
        return torch.tensor([0.0, 1.0] if is_faulty else [1.0, 0.0])


def reader_on(normal, faulty):
    reader = Reader(AxisBackbone(), PairSource(name="x", identity="x", make=None))
    reader.__dict__["pairs"] = (torch.tensor(normal), torch.tensor(faulty))
    return reader


def test_contrast_is_the_margin_to_the_own_side():
    reader = reader_on([[1.0, 0.0]], [[0.0, 1.0]])
    found = reader.read(["a crack here", "a crack here", "an odd look"], ["abnormal", "normal", "normal"], "cap")
    assert found.contrast == pytest.approx([1.0, -1.0, 0.2], abs=1e-6)


def test_separation_is_the_share_of_pairs_that_the_fault_moves_the_right_way():
    """Along the second axis pairs move by +1, +0.1, -0.1 and 0: 2.5 of 4 for a faulty phrase, 1.5 for a good one."""
    normal = [[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]]
    faulty = [[0.0, 1.0], [0.9, 0.2], [1.1, 0.1], [1.0, 0.3]]
    found = reader_on(normal, faulty).read(["a crack here", "a crack here"], ["abnormal", "normal"], "cap")
    assert found.separation == [2.5 / 4, 1.5 / 4]


def test_a_phrase_fits_until_the_longest_template_is_full():
    """With the longest phrase that fits, the prompt has just as many tokens as the tower has places."""
    reader = reader_on([[1.0, 0.0]], [[0.0, 1.0]])
    context = reader.backbone.tokenizer.context_length
    longest = next(n for n in range(1, 100) if not reader.fits(" ".join(["rim"] * n), "cap")) - 1
    prompts = [template.replace("{}", "cap with " + " ".join(["rim"] * longest)) for template in TEMPLATES]
    assert max(int((reader.backbone.tokenizer([text])[0] != 0).sum()) for text in prompts) == context
    assert not reader.fits("a rim", " ".join(["cap"] * context))


@pytest.fixture(scope="module")
def nano():
    torch.set_num_threads(1)
    return load_backbone("nano", "cpu", "fp32")


@pytest.fixture(scope="module")
def nano_reader(nano):
    return Reader(nano, procedural_source(12))


def test_nano_reads_plain_phrases_on_their_side(nano_reader):
    found = nano_reader.read(
        ["an undamaged surface", "a dark stain on it", "a small hole in it"],
        ["normal", "abnormal", "abnormal"],
        "bottle",
    )
    assert all(contrast > 0.2 for contrast in found.contrast)
    assert all(separation > 0.6 for separation in found.separation)


def test_swapped_sides_swap_the_scores(nano_reader):
    right, wrong = (nano_reader.read(["a dark stain on it"], [side], "bottle") for side in ("abnormal", "normal"))
    assert wrong.contrast == [-right.contrast[0]]
    assert wrong.separation == pytest.approx([1 - right.separation[0]])


def test_readings_do_not_depend_on_what_was_read_before(tiny_backbone):
    texts, sides = ["an undamaged surface", "a dark stain on it"], ["normal", "abnormal"]
    fresh, used = (Reader(tiny_backbone, procedural_source(4)) for _ in range(2))
    used.read(["a crack in the wall"], ["abnormal"], "lid")
    one, other = (reader.read(texts, sides, "bottle") for reader in (fresh, used))
    assert (one.contrast, one.separation) == (other.contrast, other.separation)


def test_pairs_are_made_once_and_only_when_a_phrase_is_read(tiny_backbone):
    made = []

    def make(backbone):
        made.append(backbone)
        return procedural_source(2).make(backbone)

    reader = Reader(tiny_backbone, PairSource(name="x", identity="x", make=make))
    assert made == []
    for _ in range(2):
        reader.read(["a dark stain on it"], ["abnormal"], "bottle")
    assert made == [tiny_backbone]


def test_a_pasted_piece_changes_a_part_of_the_image_and_is_always_the_same():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    before = image.copy()
    damaged = paste_piece(image, np.random.default_rng(1))
    assert (image == before).all()
    changed = (damaged != image).any(axis=-1).mean()
    assert 0.01 < changed <= 0.3 * 0.3 + 1e-9
    assert (paste_piece(image, np.random.default_rng(1)) == damaged).all()


def test_own_normals_become_pairs_of_the_models_size(tiny_backbone):
    images = [np.full((50 + n, 40, 3), 20 * n, np.uint8) for n in range(9)]
    source = damaged_source(lambda: iter(images), name="s3://bucket/good", identity="1")
    pairs = source.make(tiny_backbone)
    assert {image.shape for image in (*pairs.normal, *pairs.faulty)} == {(32, 32, 3)}
    assert len(pairs.normal) == len(pairs.faulty) == 9
    assert source.name == "s3://bucket/good with pasted pieces"


def test_too_few_own_normals_are_refused(tiny_backbone):
    images = [np.zeros((40, 40, 3), np.uint8)] * 7
    with pytest.raises(ConfigError, match="here: 7 normal images; scoring phrases needs at least 8"):
        damaged_source(lambda: iter(images), name="here", identity="1").make(tiny_backbone)
