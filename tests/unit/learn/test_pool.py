"""A drawn pool, and the batches that are cut from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zsad.datasets.synthetic import DEFECTS, SyntheticConfig, generate_pair
from zsad.learn import pool as module
from zsad.learn.pool import Pool, draw_batch, open_pool

CONFIG = SyntheticConfig(size=64)


def test_a_pool_holds_what_the_generator_draws(pool):
    assert len(pool) == 8
    for index in (0, 3, 4, 7):  # both ends of both shards
        sample, clean = generate_pair(3, index, replace(CONFIG, anomaly_share=1.0))
        image, twin, mask = pool.item(index)
        np.testing.assert_array_equal(image, sample.image)
        np.testing.assert_array_equal(twin, clean)
        np.testing.assert_array_equal(mask, sample.mask)
        assert pool.kinds[index] == (sample.material, sample.shape)
        assert pool.defects[index] == sample.defect_type


def test_an_interrupted_draw_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 2)
    first = open_pool(tmp_path, num_scenes=3, seed=1, config=CONFIG)
    assert len(first) == 4  # rounded up to whole shards
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("00000.*")}
    assert set(kept) == {"00000.json", "00000.images.npy", "00000.twins.npy", "00000.masks.npy"}
    expected = np.array(first.item(2)[0])
    (tmp_path / "00001.json").rename(tmp_path / "not-finished")  # as if stopped before the last file of a shard
    again = open_pool(tmp_path, num_scenes=4, seed=1, config=CONFIG)
    np.testing.assert_array_equal(again.item(2)[0], expected)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("00000.*")} == kept


def test_a_whole_pool_is_not_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 2)
    open_pool(tmp_path, num_scenes=2, seed=1, config=CONFIG)
    monkeypatch.setattr(module, "generate_pair", None)
    assert len(open_pool(tmp_path, num_scenes=2, seed=1, config=CONFIG)) == 2


def batch_of(pool, seed, **changes):
    options = {"batch_size": 6, "size": 32, "windows": (24, 48), "patch_size": 8} | changes
    return draw_batch(pool, np.random.default_rng(seed), **options)


def test_the_generator_decides_the_batch(pool):
    first, again, other = batch_of(pool, 5), batch_of(pool, 5), batch_of(pool, 6)
    assert torch.equal(first.pixels_BHWC, again.pixels_BHWC)
    assert torch.equal(first.coverage_BP, again.coverage_BP)
    assert (first.kinds, first.defects) == (again.kinds, again.defects)
    assert not torch.equal(first.pixels_BHWC, other.pixels_BHWC)


def test_the_form_of_a_batch(pool):
    batch = batch_of(pool, 5)
    assert batch.pixels_BHWC.shape == (6, 32, 32, 3)
    assert batch.pixels_BHWC.dtype == torch.uint8
    assert batch.coverage_BP.shape == (6, 16)
    assert batch.coverage_BP.min() >= 0
    assert batch.coverage_BP.max() <= 1
    assert set(batch.defects) <= {"good", *DEFECTS}
    assert set(batch.kinds) <= set(pool.kinds)


def plain_pool(mask):
    """One grey scene with the given defect mask, where its twin is black."""
    image = np.full((1, *mask.shape, 3), 128, np.uint8)
    twin = np.where(mask[..., None], 0, image).astype(np.uint8)
    return Pool(images=[image], twins=[twin], masks=[mask[None]], kinds=[("steel", "plate")], defects=["dent"])


def test_coverage_is_the_defective_share_of_a_patch():
    """Rows 0-3 of columns 0-5: of 4 px patches, all of patch 0 and half of patch 1, however the window is turned."""
    mask = np.zeros((8, 8), bool)
    mask[:4, :6] = True
    for seed in range(8):
        batch = batch_of(plain_pool(mask), seed, batch_size=2, size=8, windows=(8, 8), patch_size=4)
        assert sorted(batch.coverage_BP[0].tolist()) == [0.0, 0.0, 0.5, 1.0]
        assert batch.coverage_BP[1].tolist() == [0.0] * 4
        assert batch.defects == ["dent", "good"]


def test_coverage_by_hand():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4, :6] = True
    mask[7, 0] = True
    assert module._coverage(mask, 2).tolist() == [1.0, 0.5, 1 / 16, 0.0]


def test_whole_parts_can_be_drawn_more_often(pool):
    kinds = [("steel", "surface")] * 7 + [("steel", "nut")]
    few = Pool(pool.images, pool.twins, pool.masks, kinds, pool.defects)
    drawn = [batch_of(few, seed, part_share=share).kinds for share in (0.0, 1.0) for seed in range(4)]
    assert [{shape for _, shape in kinds} for kinds in drawn] == [{"surface"}] * 4 + [{"nut"}] * 4


@pytest.mark.parametrize(("defective", "name"), [(5, "good"), (6, "dent")])
def test_a_window_with_fewer_than_6_defective_pixels_is_normal(defective, name):
    mask = np.zeros((8, 8), bool)
    mask.flat[:defective] = True
    batch = batch_of(plain_pool(mask), 0, batch_size=2, size=8, windows=(8, 8), patch_size=4)
    assert batch.defects == [name, "good"]


def test_image_twin_and_mask_turn_together():
    """A twin differs from its image under the mask and nowhere else, and every window holds some of it."""
    mask = np.zeros((32, 32), bool)
    mask[4:12, 16:28] = True
    for seed in range(12):
        image, twin, turned = module._cut(*plain_pool(mask).item(0), np.random.default_rng(seed), (24, 32))
        np.testing.assert_array_equal((image != twin).any(dim=-1).numpy(), turned.numpy())
        assert turned.any()
        assert image.shape[:2] == twin.shape[:2] == turned.shape
        assert 24 <= image.shape[0] <= 32


def test_twins_pass_the_same_camera():
    """Where a pair does not differ in the scene, it does not differ in the batch."""
    mask = np.zeros((16, 16), bool)
    mask[:4, :4] = True
    batch = batch_of(plain_pool(mask), 3, batch_size=8, size=16, windows=(16, 16), patch_size=4)
    defective, clean = batch.pixels_BHWC[:4], batch.pixels_BHWC[4:]
    differs = (defective != clean).any(dim=-1).reshape(4, 4, 4, 4, 4).any(dim=4).any(dim=2).flatten(1)
    assert torch.equal(differs, batch.coverage_BP[:4] > 0)
    assert batch.kinds[:4] == batch.kinds[4:]
    assert len({tuple(image[8, 8].tolist()) for image in clean}) == 4  # each pair has its own light


def test_loss_of_colour_and_gain_by_hand():
    """Gamma 1, gain 1, no shift: a pixel stays as it is; where grey is drawn, it becomes its mean."""
    pixels = torch.tensor([10, 20, 60], dtype=torch.uint8).expand(4, 1, 1, 3)

    class Camera:
        """Neutral draws; the second pair loses its colour."""

        def uniform(self, low, high, size):
            if (low, high) == (0, 1):
                return np.array([0.9, 0.1]).reshape(size)
            return np.full(size, 1.0 if low > 0 else 0.0)

    out = module._photometric(pixels, Camera())
    assert out[:, 0, 0].tolist() == [[10, 20, 60], [30, 30, 30]] * 2
