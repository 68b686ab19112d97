"""`Backbone`: the same numbers whatever the batch, and few surprises at load time."""

import pytest
import tiny_model
import torch

from zsad.backbone import load_backbone
from zsad.errors import ModelError


@pytest.fixture(params=[1, 2])
def threads(request):
    """Runs a test with one and with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, 8, 11, 16])
def test_an_images_place_in_the_batch_changes_no_bit(tiny_backbone, batch, threads):
    images = tiny_model.pixels(batch, 32, 32)
    whole = tiny_backbone.encode_image(images, taps=(1,))
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(1))
    moved = tiny_backbone.encode_image(images[order], taps=(1,))
    assert torch.equal(moved.image_BD, whole.image_BD[order])
    assert torch.equal(moved.patches_BPD, whole.patches_BPD[order])
    assert torch.equal(moved.taps[1], whole.taps[1][order])


def test_neighbours_in_the_batch_change_no_bit(tiny_backbone):
    images, others = tiny_model.pixels(4, 32, 32), tiny_model.pixels(4, 32, 32, seed=1)
    mixed = torch.cat([images[:1], others[1:]])
    found, expected = tiny_backbone.encode_image(mixed), tiny_backbone.encode_image(images)
    assert torch.equal(found.patches_BPD[0], expected.patches_BPD[0])
    assert torch.equal(found.image_BD[0], expected.image_BD[0])


def test_another_batch_size_changes_the_last_bits_at_most(tiny_backbone):
    images = tiny_model.pixels(5, 32, 32)
    alone = torch.cat([tiny_backbone.encode_image(image[None]).patches_BPD for image in images])
    torch.testing.assert_close(alone, tiny_backbone.encode_image(images).patches_BPD, atol=1e-5, rtol=0)


def test_the_number_of_threads_changes_no_bit(tiny_backbone):
    images, before, found = tiny_model.pixels(16, 64, 64), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(tiny_backbone.encode_image(images))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].image_BD, found[1].image_BD)
    assert torch.equal(found[0].patches_BPD, found[1].patches_BPD)


def test_bf16_stays_close_to_fp32(tiny_network, tiny_backbone):
    images = tiny_model.pixels(4, 32, 32)
    half = tiny_model.backbone_of(tiny_network, precision="bf16").encode_image(images, taps=(2,))
    full = tiny_backbone.encode_image(images, taps=(2,))
    assert (half.patches_BPD * full.patches_BPD).sum(dim=-1).min() > 0.99
    assert (half.image_BD * full.image_BD).sum(dim=-1).min() > 0.99
    assert {half.patches_BPD.dtype, half.image_BD.dtype, half.taps[2].dtype} == {torch.float32}


def test_pixels_are_normalised_by_mean_and_spread(tiny_backbone):
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 8, 8, 3)
    found = tiny_backbone.normalise(image)
    assert found.shape == (1, 3, 8, 8)
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))  # (x / 255 - 0.5) / 0.5


def test_value_value_start_is_the_backbones_unless_given(tiny_network):
    images = tiny_model.pixels(1, 32, 32)
    backbone = tiny_model.backbone_of(tiny_network, vv_start=2)
    assert (backbone.vv_start, tiny_model.backbone_of(tiny_network).vv_start) == (2, 1)
    default, two, zero = (backbone.encode_image(images, vv_start=start).patches_BPD for start in (None, 2, 0))
    assert torch.equal(default, two)
    assert not torch.equal(default, zero)


@pytest.mark.parametrize("start", [-1, 4, 1.0, True])
def test_a_value_value_start_beyond_the_tower_is_refused(tiny_backbone, start):
    with pytest.raises(ModelError, match=f"vv_start is {start!r}; .* blocks 0 to 2, and 3 switches"):
        tiny_backbone.encode_image(tiny_model.pixels(1, 32, 32), vv_start=start)


def test_facts_of_the_tower(tiny_backbone):
    facts = (tiny_backbone.image_size, tiny_backbone.patch_size, tiny_backbone.num_layers, tiny_backbone.embed_dim)
    assert facts == (32, 8, 3, 32)


def test_nothing_can_be_trained_by_accident(tiny_backbone):
    assert not any(parameter.requires_grad for parameter in tiny_backbone.model.parameters())
    assert not tiny_backbone.model.training
    assert not tiny_backbone.encode_image(tiny_model.pixels(1, 32, 32)).image_BD.requires_grad


def test_one_backbone_is_shared(tiny_folder):
    assert load_backbone(str(tiny_folder), "cpu", "fp32") is load_backbone(str(tiny_folder), "cpu", "fp32")
    assert load_backbone(str(tiny_folder), "cpu", "fp32") is not load_backbone(str(tiny_folder), "cpu", "bf16")


def test_the_default_precision_shares_the_same_backbone(tiny_folder):
    assert load_backbone(str(tiny_folder)) is load_backbone(str(tiny_folder), "cpu", "fp32")
    assert load_backbone(str(tiny_folder)).precision == "fp32"


def test_impossible_devices_are_refused(tiny_folder):
    with pytest.raises(ModelError, match="'toaster' is not a torch device"):
        load_backbone(str(tiny_folder), "toaster")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="sees no GPU"):
            load_backbone(str(tiny_folder), "cuda")
