"""Masks: read, checked against their image, resized, packed; images whose mask is wrong become error rows."""

import io

import numpy as np
import pytest
from PIL import Image

from zsad.datasets.labelled import LabelledImage
from zsad.datasets.reference import parse_dataset
from zsad.decode_child import DecodeChild
from zsad.evaluation.truth import (
    MASK,
    MaskError,
    at_size,
    decode_truth,
    decoded_schema,
    pack,
    read_mask,
    truth_table,
    unpack,
)
from zsad.images import DecodeLimits, Preprocess
from zsad.scoring import PIXELS

LIMITS = DecodeLimits()
BLOCK = np.zeros((20, 30), np.uint8)
BLOCK[4:8, 10:20] = 255


def encoded(array, kind="PNG", **options) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(array).save(sink, kind, **options)
    return sink.getvalue()


def mask_of(data: bytes):
    return read_mask(data, "m.png", LIMITS, width=30, height=20)


@pytest.mark.parametrize("value", [255, 1, 7])
def test_any_value_above_zero_is_defective(value):
    np.testing.assert_array_equal(mask_of(encoded(np.minimum(BLOCK, value))), BLOCK > 0)


@pytest.mark.parametrize("hidden", [0, 255])
def test_what_is_transparent_in_a_mask_is_not_marked(hidden):
    """A block painted on a transparent layer, whatever colour lies under the transparency."""
    colour = np.where(BLOCK > 0, 200, hidden).astype(np.uint8)
    np.testing.assert_array_equal(mask_of(encoded(np.dstack([colour] * 3 + [BLOCK]))), BLOCK > 0)


def test_a_palette_mask_with_a_transparent_background_marks_its_other_colours():
    picture = Image.fromarray((BLOCK > 0).astype(np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 128, 0, 0])
    sink = io.BytesIO()
    picture.save(sink, "PNG", transparency=0)
    np.testing.assert_array_equal(mask_of(sink.getvalue()), BLOCK > 0)


def test_a_jpeg_mask_is_cut_at_half_scale():
    np.testing.assert_array_equal(mask_of(encoded(BLOCK, "JPEG", quality=60)), BLOCK > 0)


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (encoded(BLOCK.T.copy()), "mask_size", r"mask m.png has 20 x 30 px, its image 30 x 20 px"),
        (encoded(np.zeros_like(BLOCK)), "mask_blank", "marks no pixel"),
        (b"no image", "mask_unknown_format", "mask m.png: the content is none of"),
        (b"", "mask_empty", "no bytes"),
    ],
)
def test_a_wrong_mask_is_named(data, code, message):
    with pytest.raises(MaskError, match=message) as caught:
        mask_of(data)
    assert caught.value.code == code


def test_resizing_takes_the_nearest_pixel():
    mask = np.zeros((4, 4), bool)
    mask[:2, :2] = True
    np.testing.assert_array_equal(at_size(mask, 8, 8), np.kron(mask, np.ones((2, 2), bool)))
    np.testing.assert_array_equal(at_size(mask, 2, 2), [[True, False], [False, False]])
    assert at_size(mask, 4, 4) is mask


def test_a_defect_too_small_for_any_pixel_centre_keeps_the_pixel_it_touches():
    mask = np.zeros((100, 100), bool)
    mask[31, 41] = True
    small = at_size(mask, 10, 10)
    assert np.argwhere(small).tolist() == [[3, 4]]


def test_packed_bits_come_back():
    mask = np.random.default_rng(0).random((7, 13)) > 0.5
    np.testing.assert_array_equal(unpack(pack(mask), 7, 13), mask)


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """Six images: good, marked, and four whose image or mask is wrong."""
    root = tmp_path_factory.mktemp("truth")
    picture = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for name in ("good", "marked", "blank", "missing", "small"):
        (root / f"{name}.png").write_bytes(encoded(picture))
    (root / "broken.png").write_bytes(b"broken")
    (root / "m_marked.png").write_bytes(encoded(BLOCK))
    (root / "m_blank.png").write_bytes(encoded(np.zeros_like(BLOCK)))
    (root / "m_small.png").write_bytes(encoded(BLOCK[:10].copy()))
    images = [
        LabelledImage(
            key=f"{name}.png",
            uri=f"/{name}.png",
            label=int(name != "good"),
            defect_type="dent" if name != "good" else "good",
            mask=None if name == "good" else f"m_{name}.png",
            product="part",
            split="test",
        )
        for name in ("good", "marked", "blank", "broken", "missing", "small")
    ]
    store = parse_dataset(f"folder:{root}").store
    with DecodeChild() as child:
        table = decode_truth(
            store, truth_table(images), limits=LIMITS, preprocess=Preprocess(size=32), side_px=None, child=child
        )
    return picture, table


def test_every_image_is_one_row_and_wrong_masks_have_a_code(decoded):
    _, table = decoded
    assert table.schema == decoded_schema(32)
    rows = table.to_pylist()
    assert [row["error_code"] for row in rows] == [
        None,
        None,
        "mask_blank",
        "unknown_format",
        "mask_missing",
        "mask_size",
    ]
    assert "m_missing.png" in rows[4]["error_message"]


def test_good_rows_have_the_pixels_of_the_model_and_the_bits_of_the_mask(decoded):
    picture, table = decoded
    good, marked, *wrong = table.to_pylist()
    expected = Preprocess(size=32).apply(picture)
    assert good[PIXELS] == marked[PIXELS] == expected.tobytes()
    assert (good["width"], good["height"], good[MASK]) == (30, 20, None)
    np.testing.assert_array_equal(unpack(marked[MASK], 20, 30), BLOCK > 0)
    assert all(row[PIXELS] == bytes(32 * 32 * 3) and row[MASK] is None for row in wrong)
