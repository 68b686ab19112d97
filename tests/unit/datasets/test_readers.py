"""Readers of labelled images on miniature data sets: every layout's names, and what is refused."""

import json
from pathlib import Path

import pytest

from zsad.datasets.labelled import LabelledImage
from zsad.datasets.protocols import PROTOCOLS, protocol_table
from zsad.datasets.reference import READERS, parse_dataset
from zsad.errors import ConfigError

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def touch(root: Path, *keys: str) -> None:
    """Empty files: readers look at names only."""
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).touch()


def read(layout: str, root: Path, **options) -> list[LabelledImage]:
    return list(parse_dataset(f"{layout}:{root}").images(**options))


def truths(images: list[LabelledImage]) -> dict[str, tuple]:
    """Key -> (label, type, mask, product, split)."""
    return {i.key: (i.label, i.defect_type, i.mask, i.product, i.split) for i in images}


@pytest.mark.parametrize("layout", ["mvtec", "mpdd", "mad"])
def test_split_folders_give_products_types_and_masks(layout, tmp_path):
    touch(
        tmp_path,
        "nut/train/good/000.png",
        "nut/test/good/000.png",
        "nut/test/bent/000.png",
        "nut/test/cut/7.JPG",
        "nut/ground_truth/bent/000_mask.png",
        "nut/ground_truth/cut/7.png",
        "nut/test/bent/notes.txt",
        "pill/test/good/a.png",
        "readme.md",
        "licences/mit/text.txt",
    )
    assert truths(read(layout, tmp_path)) == {
        "nut/train/good/000.png": (0, "good", None, "nut", "train"),
        "nut/test/good/000.png": (0, "good", None, "nut", "test"),
        "nut/test/bent/000.png": (1, "bent", "nut/ground_truth/bent/000_mask.png", "nut", "test"),
        "nut/test/cut/7.JPG": (1, "cut", "nut/ground_truth/cut/7.png", "nut", "test"),
        "pill/test/good/a.png": (0, "good", None, "pill", "test"),
    }


def test_one_product_may_be_the_root_and_uris_are_absolute(tmp_path):
    touch(tmp_path / "tile", "test/good/0.png", "test/crack/0.png", "ground_truth/crack/0_mask.png")
    images = read("mvtec", tmp_path / "tile")
    assert {image.product for image in images} == {"tile"}
    assert images[0].uri == str(tmp_path / "tile/test/crack/0.png")


def test_a_missing_mask_keeps_its_expected_name_so_that_reading_it_can_name_it(tmp_path):
    touch(tmp_path, "nut/test/bent/000.png", "nut/test/bent/001.png", "nut/ground_truth/bent/001_mask.png")
    assert read("mvtec", tmp_path)[0].mask == "nut/ground_truth/bent/000_mask.png"


def test_a_product_without_any_mask_has_no_truth_of_pixels(tmp_path):
    touch(tmp_path, "01Cat/test/good/0.png", "01Cat/test/Burrs/0.png", "02Pig/test/Burrs/0.png")
    touch(tmp_path, "02Pig/ground_truth/Burrs/0_mask.png")
    masks = {image.key: image.mask for image in read("mad", tmp_path) if image.label}
    assert masks == {"01Cat/test/Burrs/0.png": None, "02Pig/test/Burrs/0.png": "02Pig/ground_truth/Burrs/0_mask.png"}


def test_a_mask_lies_where_its_image_does_below_the_type(tmp_path):
    """Images of the same name in two folders have their own masks; a folder of masks an image fits none."""
    touch(tmp_path, "nut/test/bent/a/1.png", "nut/test/bent/b/1.png", "nut/test/bent/1.png")
    touch(tmp_path, "nut/ground_truth/bent/a/1_mask.png", "nut/ground_truth/bent/b/1.bmp")
    assert {image.key: image.mask for image in read("mvtec", tmp_path)} == {
        "nut/test/bent/a/1.png": "nut/ground_truth/bent/a/1_mask.png",
        "nut/test/bent/b/1.png": "nut/ground_truth/bent/b/1.bmp",
        "nut/test/bent/1.png": "nut/ground_truth/bent/1_mask.png",
    }


@pytest.mark.parametrize("name", ["Good", "OK", "normal"])
def test_normal_folders_are_known_by_any_of_their_names(name, tmp_path):
    touch(tmp_path, f"nut/test/{name}/0.png")
    assert truths(read("mvtec", tmp_path)) == {f"nut/test/{name}/0.png": (0, "good", None, "nut", "test")}


def test_what_a_mac_adds_to_an_archive_is_no_image(tmp_path):
    touch(tmp_path, "nut/test/good/0.png", "nut/test/good/._0.png", "__MACOSX/nut/test/good/._0.png")
    assert [image.key for image in read("mvtec", tmp_path)] == ["nut/test/good/0.png"]


def test_btad_says_ok_and_ko(tmp_path):
    touch(tmp_path, "01/train/ok/1.bmp", "01/test/ok/1.bmp", "01/test/ko/1.bmp", "01/ground_truth/ko/1.png")
    touch(tmp_path, "03/test/ko/1.bmp", "03/ground_truth/ko/1.bmp")
    assert truths(read("btad", tmp_path, split="test")) == {
        "01/test/ok/1.bmp": (0, "good", None, "01", "test"),
        "01/test/ko/1.bmp": (1, "ko", "01/ground_truth/ko/1.png", "01", "test"),
        "03/test/ko/1.bmp": (1, "ko", "03/ground_truth/ko/1.bmp", "03", "test"),
    }


VISA_ROWS = """object,split,label,image,mask
pcb1,train,normal,pcb1/Data/Images/Normal/0.JPG,
pcb1,test,normal,pcb1/Data/Images/Normal/1.JPG,
pcb1,test,anomaly,pcb1/Data/Images/Anomaly/0.JPG,pcb1/Data/Masks/Anomaly/0.png
pcb1,test,anomaly,pcb1/Data/Images/Anomaly/1.JPG,pcb1/Data/Masks/Anomaly/1.png
cashew,test,anomaly,cashew/Data/Images/Anomaly/0.JPG,cashew/Data/Masks/Anomaly/0.png
"""


def test_visa_as_published_takes_types_from_the_objects_own_list(tmp_path):
    touch(tmp_path, "split_csv/1cls.csv", "pcb1/image_anno.csv")
    (tmp_path / "split_csv/1cls.csv").write_text(VISA_ROWS)
    (tmp_path / "pcb1/image_anno.csv").write_text(
        "image,label,mask\n"
        "pcb1/Data/Images/Anomaly/0.JPG,bent,x\n"
        'pcb1/Data/Images/Anomaly/1.JPG,"bent,melt",x\n'
        "pcb1/Data/Images/Normal/1.JPG,normal,\n"
    )
    images = read("visa", tmp_path, split="test")
    assert [(i.label, i.defect_type, i.product, i.extra["types"]) for i in images] == [
        (0, "good", "pcb1", "normal"),
        (1, "bent", "pcb1", "bent"),
        (1, "combined", "pcb1", "bent,melt"),
        (1, "anomaly", "cashew", ""),
    ]
    assert [image.mask for image in images[:2]] == [None, "pcb1/Data/Masks/Anomaly/0.png"]


def test_visa_re_arranged_is_read_like_mvtec(tmp_path):
    touch(tmp_path, "pcb1/test/good/1.JPG", "pcb1/test/bad/0.JPG", "pcb1/ground_truth/bad/0.png")
    assert truths(read("visa", tmp_path))["pcb1/test/bad/0.JPG"] == (
        (1, "bad", "pcb1/ground_truth/bad/0.png", "pcb1", "test")
    )  # fmt: skip


def real_iad(root: Path, *, nested: bool = True, **changes) -> None:
    entry = {"category": "toy", "anomaly_class": "OK", "image_path": "OK/1.jpg", "mask_path": None}
    bad = {"category": "toy", "anomaly_class": "HS", "image_path": "NG/HS/2.jpg", "mask_path": "NG/HS/2.png"}
    listed = {"meta": {"normal_class": "OK", "prefix": "toy/"}, "train": [entry], "test": [{**bad, **changes}]}
    folder = root / "realiad_jsons" / ("realiad_jsons" if nested else "")
    folder.mkdir(parents=True)
    (folder / "toy.json").write_text(json.dumps(listed))
    touch(root, "realiad_256/toy/OK/1.jpg", "realiad_1024/toy/OK/1.jpg")


@pytest.mark.parametrize("nested", [True, False])
def test_real_iad_reads_the_largest_images_and_spells_types_out(tmp_path, nested):
    real_iad(tmp_path, nested=nested)
    assert truths(read("real_iad", tmp_path)) == {
        "realiad_1024/toy/OK/1.jpg": (0, "good", None, "toy", "train"),
        "realiad_1024/toy/NG/HS/2.jpg": (1, "scratch", "realiad_1024/toy/NG/HS/2.png", "toy", "test"),
    }


def test_real_iad_keeps_a_defect_without_mask_for_image_figures(tmp_path):
    real_iad(tmp_path, mask_path=None)
    assert truths(read("real_iad", tmp_path))["realiad_1024/toy/NG/HS/2.jpg"] == (1, "scratch", None, "toy", "test")


@pytest.mark.parametrize("field", ["image_path", "mask_path"])
def test_real_iad_refuses_paths_that_lead_out(field, tmp_path):
    real_iad(tmp_path, **{field: "../../x.jpg"})
    with pytest.raises(ConfigError, match="no path inside the data set"):
        read("real_iad", tmp_path)


def test_index_keeps_further_columns_and_filters_by_them(tmp_path):
    (tmp_path / "index.csv").write_text(
        "path,label,defect_type,mask_path,split,matched\n"
        "a.png,0,good,,test,1\n"
        "b.png,1,crack,masks/b.png,test,1\n"
        "c.png,1,crack,,test,0\n"
        "d.png,0,good,,train,1\n"
    )
    images = read("index", tmp_path)
    assert truths(images)["b.png"] == (1, "crack", "masks/b.png", tmp_path.name, "test")
    assert images[2].extra == {"matched": "0"}
    assert images[2].mask is None
    assert [i.key for i in read("index", tmp_path, split="test", where=("matched=1",))] == ["a.png", "b.png"]
    assert [i.key for i in read("index", tmp_path, where=("matched=1", "defect_type=crack"))] == ["b.png"]
    assert [i.key for i in read("index", tmp_path, limit=1)] == ["a.png", "b.png"]


def test_an_index_of_two_columns_is_enough(tmp_path):
    (tmp_path / "index.csv").write_text("path,label\na.png,0\nb.png,1\n")
    assert truths(read("index", tmp_path)) == {
        "a.png": (0, "good", None, tmp_path.name, "test"),
        "b.png": (1, "anomaly", None, tmp_path.name, "test"),
    }


def test_a_plain_folder_is_good_and_anything(tmp_path):
    touch(tmp_path, "good/1.png", "rust/sub/2.jpeg", "rust/x.txt")
    assert truths(read("folder", tmp_path)) == {
        "good/1.png": (0, "good", None, tmp_path.name, "test"),
        "rust/sub/2.jpeg": (1, "rust", None, tmp_path.name, "test"),
    }


@pytest.mark.parametrize(
    ("layout", "files", "message"),
    [
        ("mvtec", {"nut/good/0.png": ""}, r"no folder there holds test/ \(found nut\)"),
        ("mvtec", {"nut/test/good/0.png": "", "nut/test/1.png": ""}, r"test/1.png lies in no folder"),
        (
            "mvtec",
            {"nut/test/cut/0.png": "", "nut/ground_truth/cut/0.png": "", "nut/ground_truth/cut/0_mask.png": ""},
            r"cut/0.png and .*cut/0_mask.png are masks of one image",
        ),
        ("folder", {"good/1.png": "", "stray.png": ""}, r"stray.png lies in no folder"),
        ("folder", {"good/1.txt": ""}, "has no images"),
        ("index", {"other.csv": ""}, r"index.csv is missing"),
        ("index", {"index.csv": "path,kind\n"}, "no column label"),
        ("index", {"index.csv": "path,label\na.png,2\n"}, r"index.csv line 2: label '2' is neither 0 nor 1"),
        ("index", {"index.csv": "path,label\na.png\n"}, "line 2 has another number of cells"),
        ("index", {"index.csv": "path,label\n../a.png,1\n"}, r"'../a.png' is no path inside"),
        ("index", {"index.csv": "path,label,defect_type\na.png,1,good\n"}, "1 does not go with defect_type 'good'"),
        ("index", {"index.csv": "path,label,defect_type\na.png,0,dent\n"}, "0 does not go with defect_type 'dent'"),
        ("visa", {"split_csv/1cls.csv": VISA_ROWS.replace("anomaly", "odd")}, "neither normal nor anomaly"),
        ("real_iad", {"toy/1.jpg": ""}, "no folder realiad_1024"),
        ("real_iad", {"realiad_256/toy/1.jpg": ""}, "no lists"),
        ("real_iad", {"realiad_256/toy/1.jpg": "", "realiad_jsons/toy.json": "{}"}, "no list of Real-IAD"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(layout, files, message, tmp_path):
    for key, text in files.items():
        touch(tmp_path, key)
        (tmp_path / key).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(layout, tmp_path)


def test_no_folder_and_an_empty_one_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="can't be listed"):
        read("mvtec", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no objects under"):
        read("mvtec", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "no images of split 'val'"),
        ({"where": ("matched=2",)}, "no images of split 'all' with matched=2"),
        ({"where": ("size=2",)}, "no column 'size', only matched, product, defect_type"),
        ({"where": ("matched",)}, "must be COLUMN=VALUE"),
    ],
)
def test_a_choice_that_leaves_nothing_is_refused(options, message, tmp_path):
    (tmp_path / "index.csv").write_text("path,label,matched\na.png,0,1\n")
    with pytest.raises(ConfigError, match=message):
        read("index", tmp_path, **options)


@pytest.mark.parametrize("reference", ["mvtech:/data", "/data/mvtec", "s3://bucket/x", "mvtec"])
def test_an_unknown_layout_is_refused_with_those_there_are(reference):
    with pytest.raises(ConfigError, match="must be LAYOUT:URL with one of mvtec, visa"):
        parse_dataset(reference)
    with pytest.raises(ConfigError, match="did you mean 'mvtec'"):
        parse_dataset("mvtech:/data")


def test_a_reference_may_be_any_url():
    assert parse_dataset("visa:s3://bucket/visa/").url == "s3://bucket/visa"
    with pytest.raises(ConfigError, match="empty"):
        parse_dataset("visa:")


def test_protocols_are_of_layouts_that_can_be_read():
    assert set(PROTOCOLS) <= set(READERS)
    assert len(protocol_table().splitlines()) == 5 * len(PROTOCOLS) + 2


def test_the_documentation_prints_the_protocols_as_they_are():
    docs = Path(__file__).resolve().parents[3] / "docs" / "evaluation.md"
    assert protocol_table() in docs.read_text()


@pytest.mark.parametrize(("name", "normal", "anomalous"), [("magnetic_tile", 280, 386), ("neu_det", 0, 240)])
def test_shared_sets_have_the_images_their_readme_counts(name, normal, anomalous):
    if not (SHARED / name / "index.csv").exists():
        pytest.skip("../shared/data is not here")
    images = read("index", SHARED / name, split="test")
    assert sum(image.label == 0 for image in images) == normal
    assert sum(image.label == 1 for image in images) == anomalous
    assert all((SHARED / name / i.key).exists() and (SHARED / name / (i.mask or i.key)).exists() for i in images)


def test_the_tiles_are_the_same_by_list_and_by_folder():
    if not (SHARED / "magnetic_tile" / "index.csv").exists():
        pytest.skip("../shared/data is not here")
    assert truths(read("mvtec", SHARED / "magnetic_tile")) == truths(read("index", SHARED / "magnetic_tile"))
