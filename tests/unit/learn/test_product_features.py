"""Features of a product's images on storage, over a tiny tower and local folders."""

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from zsad.errors import ModelError, StorageError
from zsad.learn.product_features import (
    FOLDER,
    bytes_per_image,
    features_hash,
    features_of,
    pack_features,
    unpack_features,
)
from zsad.methods.promptad import PromptADConfig, encode
from zsad.storage import open_store

CONFIG = PromptADConfig()


@pytest.fixture
def pixels():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))


@pytest.fixture
def passes(monkeypatch, tiny_backbone):
    """A list that grows by the number of images of every pass of the image tower."""
    seen, encode_image = [], tiny_backbone.encode_image

    def counted(pixels_BHWC, **settings):
        seen.append(len(pixels_BHWC))
        return encode_image(pixels_BHWC, **settings)

    monkeypatch.setattr(tiny_backbone, "encode_image", counted)
    return seen


def stored(folder):
    return sorted(folder.glob(f"{FOLDER}/*.arrow"))


def same(first, second):
    parts = [(first.image_BD, second.image_BD), (first.patches_BPD, second.patches_BPD)]
    parts += [(first.taps[tap], second.taps[tap]) for tap in first.taps]
    return first.grid == second.grid and all(torch.equal(one, other) for one, other in parts)


@pytest.mark.parametrize("kept", ["fp32", "fp16"])
def test_the_second_reading_runs_no_tower_and_gives_the_same_bits(tmp_path, tiny_backbone, pixels, passes, kept):
    work = open_store(str(tmp_path))
    first = features_of(tiny_backbone, CONFIG, pixels, work, kept)
    second = features_of(tiny_backbone, CONFIG, pixels, work, kept)
    assert passes == [2]
    assert same(first, second)


def test_fp32_is_exact_and_fp16_is_rounded_whether_the_file_was_there_or_not(tmp_path, tiny_backbone, pixels):
    exact = encode(tiny_backbone, CONFIG, pixels)
    work = open_store(str(tmp_path))
    assert same(features_of(tiny_backbone, CONFIG, pixels, work, "fp32"), exact)
    rounded = features_of(tiny_backbone, CONFIG, pixels, work, "fp16")
    assert torch.equal(rounded.patches_BPD, exact.patches_BPD.half().float())
    assert not torch.equal(rounded.patches_BPD, exact.patches_BPD)


def test_off_writes_nothing(tmp_path, tiny_backbone, pixels, passes):
    for _ in range(2):
        features_of(tiny_backbone, CONFIG, pixels, open_store(str(tmp_path)), "off")
    assert (passes, list(tmp_path.iterdir())) == ([2, 2], [])


def test_other_pixels_taps_or_precision_are_another_file(tiny_backbone, pixels, monkeypatch):
    mended = pixels.clone()
    mended[1, 5, 5, 0] ^= 1
    with monkeypatch.context() as patched:
        patched.setattr(tiny_backbone, "declared_vv_start", 2)
        declared = features_hash(tiny_backbone, CONFIG, pixels, "fp32")
    names = {
        declared,
        features_hash(tiny_backbone, CONFIG, pixels, "fp32"),
        features_hash(tiny_backbone, CONFIG, mended, "fp32"),
        features_hash(tiny_backbone, CONFIG, pixels, "fp16"),
        features_hash(tiny_backbone, replace(CONFIG, first_tap=0), pixels, "fp32"),
        features_hash(tiny_backbone, replace(CONFIG, vv_start=1), pixels, "fp32"),
        features_hash(tiny_backbone, CONFIG, pixels.flip(0), "fp32"),
    }
    assert len(names) == 7


def test_a_file_is_an_arrow_table_of_the_size_that_was_said_before(tmp_path, tiny_backbone, pixels):
    features_of(tiny_backbone, CONFIG, pixels, open_store(str(tmp_path)), "fp16")
    (path,) = stored(tmp_path)
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    taps = [f"tap {tap}" for tap in CONFIG.taps(tiny_backbone.num_layers)]
    assert (table.num_rows, table.column_names) == (2, ["image", "patches", *taps])
    found = encode(tiny_backbone, CONFIG, pixels)
    tower_width = next(iter(found.taps.values())).shape[-1]
    said = 2 * bytes_per_image(found.patches_BPD.shape[1], tiny_backbone.embed_dim, tower_width, "fp16")
    assert said <= path.stat().st_size <= said + 4096


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"", lambda data: b"x" * len(data)])
def test_a_file_that_cannot_be_read_is_named_and_made_again(tmp_path, tiny_backbone, pixels, passes, caplog, damage):
    work = open_store(str(tmp_path))
    first = features_of(tiny_backbone, CONFIG, pixels, work, "fp32")
    (path,) = stored(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        second = features_of(tiny_backbone, CONFIG, pixels, work, "fp32")
    assert passes == [2, 2]
    assert same(first, second)
    assert path.name in caplog.text
    assert path.read_bytes() == whole


def test_a_file_of_another_form_is_made_again(tmp_path, tiny_backbone, pixels, passes):
    """A valid Arrow file, but without a grid, a column, or with a row of the wrong length."""
    work = open_store(str(tmp_path))
    features_of(tiny_backbone, CONFIG, pixels, work, "fp32")
    (path,) = stored(tmp_path)
    whole = pa.ipc.open_file(path.read_bytes()).read_all()
    for broken in (
        whole.replace_schema_metadata({}),
        whole.replace_schema_metadata(None),
        whole.replace_schema_metadata({"grid": "7"}),
        whole.replace_schema_metadata({"grid": "[5, 7]"}),
        whole.drop_columns(["patches"]),
        whole.set_column(0, "image", pa.array(["a", "b"])),
    ):
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, broken.schema) as writer:
            writer.write_table(broken)
        features_of(tiny_backbone, CONFIG, pixels, work, "fp32")
    assert passes == [2] * 7


def test_storage_that_fails_is_an_error_of_its_own(tmp_path, tiny_backbone, pixels):
    (tmp_path / FOLDER).write_text("a file where the folder goes")
    with pytest.raises(StorageError, match=FOLDER):
        features_of(tiny_backbone, CONFIG, pixels, open_store(str(tmp_path)), "fp32")


def test_images_that_do_not_divide_into_patches_leave_no_file(tmp_path, tiny_backbone, pixels):
    with pytest.raises(ModelError):
        features_of(tiny_backbone, CONFIG, pixels[:, :31, :31], open_store(str(tmp_path)), "fp32")
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_fp16_cannot_hold_are_refused(tiny_backbone, pixels):
    """Its largest is 65,504."""
    found = encode(tiny_backbone, CONFIG, pixels)
    tap = next(iter(found.taps))
    huge = replace(found, taps=found.taps | {tap: found.taps[tap] * 0 + 7e4})
    with pytest.raises(ModelError, match=rf"tap {tap}\) hold numbers that do not fit fp16; try --cache fp32"):
        pack_features(huge, "fp16")
    assert torch.equal(unpack_features(pack_features(huge, "fp32"), huge.image_BD.device).taps[tap], huge.taps[tap])
