"""`Detector` over the tiny backbone: the same findings whatever the batch, and back from a bundle."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_model
import torch
from safetensors.torch import save

from zsad import detector as module
from zsad.bundle import CONFIG_FILE, TENSORS_FILE
from zsad.calibration import Scale
from zsad.detector import Detector, Finding, load_detector
from zsad.errors import ConfigError, ModelError
from zsad.images import Preprocess, Tiling
from zsad.methods import Prediction, WinCLIP, WinCLIPConfig
from zsad.prompts.bank import Phrase, PromptBank, write_bank
from zsad.regions import upsample


@pytest.fixture(scope="module")
def images():
    """Ten images of different sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + 7 * i, 90 - 5 * i, 3), dtype=np.uint8) for i in range(10)]


@pytest.fixture(scope="module")
def alarmed(tiny_detector):
    """The same detector with scales that call everything an anomaly, and the left half of random maps a region."""
    low = Scale(center=-20.0, spread=5.0)
    peaks = replace(tiny_detector.config.calibration, image=low, map=low)
    return Detector(replace(tiny_detector.config, calibration=peaks), {}, batch_size=4)


def same(a, b):
    """Bit-equal findings."""
    fields = ("score", "raw_score", "threshold", "defect_type", "defect_scores", "regions", "width", "height")
    return all(getattr(a, name) == getattr(b, name) for name in fields) and np.array_equal(a.anomaly_map, b.anomaly_map)


def all_same(found, expected):
    return len(found) == len(expected) and all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_order_is_kept_over_several_batches(tiny_detector, images):
    found = tiny_detector.inspect(images)
    assert [(f.width, f.height) for f in found] == [(i.shape[1], i.shape[0]) for i in images]
    assert all_same(tiny_detector.inspect(images[::-1])[::-1], found)


def test_padding_changes_no_bit(tiny_detector, images):
    whole = tiny_detector.inspect(images)
    assert all_same([tiny_detector.inspect([image])[0] for image in images], whole)
    assert all_same(tiny_detector.inspect(images[:3]) + tiny_detector.inspect(images[3:]), whole)


def test_no_images_give_no_findings(tiny_detector):
    assert tiny_detector.inspect([]) == []


def test_another_batch_size_changes_the_last_bits_at_most(tiny_detector, images):
    other = Detector(tiny_detector.config, {}, batch_size=3)
    raw = [[f.raw_score for f in d.inspect(images)] for d in (tiny_detector, other)]
    np.testing.assert_allclose(raw[0], raw[1], atol=1e-5)


def test_fields_of_a_finding(alarmed, images):
    (found,) = alarmed.inspect(images[:1])
    scales = alarmed.config.calibration
    assert isinstance(found, Finding)
    assert found.score == float(scales.image.apply(found.raw_score))
    assert 0 < found.raw_score < 1
    assert found.is_anomaly
    assert found.threshold == 0.5
    assert found.anomaly_map.shape == (4, 4)
    assert found.anomaly_map.dtype == np.float32
    assert set(found.defect_scores) == {"scratch", "dent"}
    assert sum(found.defect_scores.values()) == pytest.approx(1)
    assert found.defect_type == max(found.defect_scores, key=found.defect_scores.get)
    assert found.explanation == []
    assert len(found.regions) == 1  # the whole map lies above the threshold
    region = found.regions[0]
    assert (region.x, region.y, region.width, region.height) == (0, 0, 90, 20)
    assert region.score == float(upsample(found.anomaly_map, 32, 32).max())
    np.testing.assert_array_equal(found.full_map(), upsample(found.anomaly_map, 20, 90))


def test_a_normal_image_has_no_defects(tiny_detector, images):
    found = tiny_detector.with_threshold(0.9999).inspect(images)
    normal = [f for f in found if not f.is_anomaly]
    assert normal
    assert all((f.defect_type, f.defect_scores, f.regions) == (None, {}, []) for f in normal)


def test_an_anomaly_without_regions_is_named_by_the_patches_near_its_peak(alarmed, images):
    """Far below the threshold a calibrated value is exp(logit): those within ln(0.3) = -1.2 of the highest count."""
    steep = Scale(center=3.0, spread=0.1)
    config = replace(alarmed.config, calibration=replace(alarmed.config.calibration, map=steep))
    (found,) = Detector(config, {}, batch_size=4).inspect(images[:1])
    assert found.is_anomaly
    assert found.regions == []
    logits = np.log(found.raw_map / (1 - found.raw_map)).ravel() / 0.1
    near = logits >= logits.max() + np.log(0.3)
    assert 1 < near.sum() < 16
    patches = alarmed._predict(alarmed._prepare(images[0])[None]).patches_BPD[0].numpy()
    assert found.defect_scores == alarmed.defect_types.classify(patches, near.astype(np.float32))


class OwnTypes:
    """Finds the same everywhere, but for one patch where it is surest of a scratch."""

    def __init__(self, scratch, dent):
        self.types = torch.full((4, 2, 4, 4), 0.1)
        self.types[:, 0, 1, 2] = scratch
        self.types[:, 1] = dent

    def predict(self, pixels):  # noqa: D102
        return Prediction(
            score_B=torch.full((4,), 0.5),
            map_Bhw=torch.full((4, 4, 4), 0.5),
            patches_BPD=torch.zeros(4, 16, 32),
            type_map_BKhw=self.types,
        )


@pytest.mark.parametrize(("scratch", "name"), [(0.3, "scratch"), (0.21, "unknown"), (0.1, "dent")])
def test_a_method_s_own_types_name_image_and_regions(alarmed, images, scratch, name):
    """One patch of 16 is the clearest: 0.3 of 0.5 is a scratch, 0.21 of 0.41 too near to the dent."""
    typed = copy.copy(alarmed)
    typed.method = OwnTypes(scratch, 0.2)
    (found,) = typed.inspect(images[:1])
    assert found.defect_scores == pytest.approx({"scratch": scratch / (scratch + 0.2), "dent": 0.2 / (scratch + 0.2)})
    assert found.defect_type == name
    assert [region.defect_type for region in found.regions] == [name]


def test_the_threshold_itself_is_an_anomaly():
    empty = np.zeros((1, 1), np.float32)
    facts = {"raw_score": 0.0, "defect_type": None, "defect_scores": {}, "regions": []}
    facts |= {"anomaly_map": empty, "raw_map": empty}
    scores = [0.4999, 0.5, 0.6]
    found = [Finding(score=score, threshold=0.5, width=1, height=1, **facts).is_anomaly for score in scores]
    assert found == [False, True, True]


def test_the_threshold_can_be_moved(tiny_detector, images):
    score = tiny_detector.inspect(images[:1])[0].score
    for threshold, expected in ((score * 0.999, True), (min(score * 1.001, 0.9999), False)):
        (found,) = tiny_detector.with_threshold(threshold).inspect(images[:1])
        assert (found.is_anomaly, found.score, found.threshold) == (expected, score, threshold)
    with pytest.raises(ConfigError, match="threshold is 1"):
        tiny_detector.with_threshold(1.0)


def test_one_in_a_hundred_normals_raises_an_alarm(tiny_config):
    normals = np.random.default_rng(1).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    found = Detector(tiny_config, {}).calibrated(normals, source="x").inspect(normals)
    assert sum(f.is_anomaly for f in found) in (2, 3)
    assert sum(bool(f.anomaly_map.max() >= 0.5) for f in found) in (2, 3)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 32, 3), np.float32),
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((0, 32, 3), np.uint8),
        np.zeros((1, 32, 32, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_rgb_image_are_refused(tiny_detector, image):
    with pytest.raises(ConfigError, match=r"must be uint8 RGB \(H, W, 3\), not"):
        tiny_detector.inspect([image])


def test_more_than_a_batch_at_once_is_refused(tiny_detector):
    with pytest.raises(ConfigError, match="5 images are more than the batch size 4"):
        tiny_detector.inspect_pixels(np.zeros((5, 32, 32, 3), np.uint8), [(1, 1)] * 5)


def test_without_calibration_nothing_is_inspected(tiny_config, images):
    bare = Detector(tiny_config, {})
    with pytest.raises(ConfigError, match="no calibration"):
        bare.inspect(images)
    with pytest.raises(ConfigError, match="needs a calibrated detector"):
        bare.with_threshold(0.5)


def test_too_few_normals_are_refused(tiny_config, images):
    with pytest.raises(ConfigError, match="my folder: 7 usable normal images"):
        Detector(tiny_config, {}).calibrated(images[:7], source="my folder")


def test_saved_and_loaded_it_finds_the_same_bit_for_bit(tiny_detector, images, tmp_path):
    tiny_detector.save(str(tmp_path / "bundle"))
    loaded = load_detector(str(tmp_path / "bundle"), device="cpu", batch_size=4)
    assert loaded.config == tiny_detector.config
    assert all_same(loaded.inspect(images), tiny_detector.inspect(images))


@pytest.fixture
def saved(tiny_detector, tmp_path):
    """A bundle whose description can be edited before it is loaded."""

    def edited(**changes):
        tiny_detector.save(str(tmp_path / "bundle"))
        path = tmp_path / "bundle" / CONFIG_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return str(tmp_path / "bundle")

    return edited


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone_sha256": "f" * 64}, "made for .* with weights ffffffffffff.*but those found are"),
        ({"method": "nonsense"}, "unknown method 'nonsense'"),
        ({"precision": "fp64"}, "precision 'fp64'"),
        ({"settings": {"colour": 1}}, "settings of method winclip: .*colour"),
        ({"preprocess": {"size": 36}}, "36 px is no multiple of the patch size 8 px"),
        ({"backbone": "nonsense"}, "unknown backbone 'nonsense'"),
    ],
)
def test_bundles_that_do_not_fit_are_refused(saved, changes, words):
    with pytest.raises(ModelError, match=words):
        load_detector(saved(**changes), device="cpu")


@pytest.mark.parametrize("changes", [{"defect_words": []}, {"defect_words": [""]}])
def test_a_bundle_without_defect_words_is_refused(saved, changes):
    with pytest.raises(ModelError):
        load_detector(saved(**changes), device="cpu")


def test_settings_out_of_range_are_refused(saved):
    with pytest.raises((ModelError, ConfigError), match="temperature is 7"):
        load_detector(saved(settings={"temperature": 7}), device="cpu")


def test_damaged_tensors_are_refused(saved, tmp_path):
    url = saved()
    (tmp_path / "bundle" / TENSORS_FILE).write_bytes(save({"x": torch.ones(3)})[:-1])
    with pytest.raises(ModelError, match="no valid safetensors file"):
        load_detector(url, device="cpu")


def test_batches_hold_at_least_one_image(tiny_config):
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Detector(tiny_config, {}, batch_size=0)


@pytest.fixture
def few_procedural(monkeypatch):
    """Calibration on 8 random images instead of 256 drawn ones."""
    asked = []

    def normals(size):
        asked.append(size)
        return np.random.default_rng(2).integers(0, 256, (8, size, size, 3), dtype=np.uint8)

    monkeypatch.setattr(module, "procedural_normals", normals)
    monkeypatch.setattr(module, "DEFECT_WORDS", ("scratch", "dent"))
    return asked


def test_a_bare_backbone_is_calibrated_on_procedural_images(tiny_folder, few_procedural, images):
    found = load_detector(str(tiny_folder), device="cpu")
    assert few_procedural == [32]
    assert found.config.preprocess == Preprocess(size=32, interpolation="bicubic")
    assert (found.config.object_name, found.config.method) == ("object", "winclip")
    assert found.config.calibration.source == "procedural normal images"
    assert len(found.inspect(images)) == 10


def test_given_normals_replace_the_stored_calibration(tiny_detector, saved, few_procedural, images):
    found = load_detector(saved(), device="cpu", normals=images, batch_size=4)
    assert few_procedural == []
    calibration = found.config.calibration
    assert (calibration.num_normals, calibration.source) == (10, "normal images given by the user")
    assert calibration.image != tiny_detector.config.calibration.image


def test_another_object_is_calibrated_anew(saved, few_procedural, tiny_detector):
    url = saved()
    assert load_detector(url, device="cpu", object_name="object").config == tiny_detector.config
    assert few_procedural == []
    other = load_detector(url, device="cpu", object_name="cable")
    assert other.config.object_name == "cable"
    assert few_procedural == [32]


def test_other_words_keep_the_calibration_of_scores_that_do_not_hear_them(saved, few_procedural, tiny_detector, images):
    found = load_detector(saved(), device="cpu", defect_words=["hole", "missing part"], batch_size=4)
    assert few_procedural == []
    assert found.config == replace(tiny_detector.config, defect_words=("hole", "missing part"))
    before, after = (d.with_threshold(0.0001).inspect(images) for d in (tiny_detector, found))
    assert [f.score for f in before] == [f.score for f in after]
    assert all(set(f.defect_scores) == {"hole", "missing part"} for f in after)


@pytest.mark.parametrize("words", [[], ["hole", ""], ["hole", "hole"]])
def test_word_lists_that_can_not_be_used_are_refused(saved, words):
    with pytest.raises(ConfigError, match="defect word"):
        load_detector(saved(), device="cpu", defect_words=words)


def test_all_detectors_share_one_backbone(tiny_folder, few_procedural):
    first, second = (load_detector(f"{tiny_folder}{method}", device="cpu") for method in ("", ":alfa"))
    assert first.backbone is second.backbone


# Resolution


@pytest.fixture
def in_tiles(saved, few_procedural):
    """The stored detector over 2 x 2 tiles of 32 px that share 8 px: a square of 56 px, 7 x 7 patches."""
    return load_detector(saved(), device="cpu", batch_size=4, tiles=2)


def test_tiles_are_calibrated_anew_at_the_size_of_the_square(in_tiles, few_procedural, tiny_detector):
    assert few_procedural == [56]
    tiling = Tiling(per_side=2, overlap_px=8, tile_px=32)
    assert in_tiles.config.preprocess == Preprocess(size=56, tiling=tiling)
    assert in_tiles.config.calibration != tiny_detector.config.calibration
    assert in_tiles.config.fingerprint() != tiny_detector.config.fingerprint()


@pytest.mark.parametrize("same_again", [{}, {"size": 32}, {"tiles": 1}, {"size": 32, "tiles": 1}])
def test_the_stored_resolution_keeps_its_calibration(saved, few_procedural, tiny_detector, same_again):
    assert load_detector(saved(), device="cpu", **same_again).config == tiny_detector.config
    assert few_procedural == []


def test_another_input_size_is_calibrated_anew(saved, few_procedural, images):
    found = load_detector(saved(), device="cpu", size=48)
    assert few_procedural == [48]
    assert found.config.preprocess == Preprocess(size=48)
    assert found.inspect(images[:1])[0].anomaly_map.shape == (6, 6)


def test_an_input_size_between_patches_is_the_callers_mistake(saved):
    with pytest.raises(ConfigError, match=r"input size 36 px .* take 32 or 40 px"):
        load_detector(saved(), device="cpu", size=36)


def test_tiled_findings_do_not_depend_on_their_batch(in_tiles, images):
    whole = in_tiles.inspect(images)
    assert [f.anomaly_map.shape for f in whole] == [(7, 7)] * 10
    assert all_same([in_tiles.inspect([image])[0] for image in images], whole)
    assert all_same(in_tiles.inspect(images[::-1])[::-1], whole)


def test_a_tiled_bundle_comes_back_bit_for_bit(in_tiles, images, few_procedural, tmp_path):
    in_tiles.save(str(tmp_path / "tiled"))
    asked = len(few_procedural)
    loaded = load_detector(str(tmp_path / "tiled"), device="cpu", batch_size=4)
    assert loaded.config == in_tiles.config
    assert all_same(loaded.inspect(images), in_tiles.inspect(images))
    assert len(few_procedural) == asked
    assert load_detector(str(tmp_path / "tiled"), device="cpu", tiles=1).config.preprocess == Preprocess(size=32)


def test_tiled_regions_lie_on_the_finer_grid(in_tiles, images):
    """One patch of the fine grid is the smallest region: 64 px of a square of 56 px, not of 32 px."""
    score, peak = Scale(center=-20.0, spread=5.0), Scale(center=0.0, spread=1.0)
    forced = replace(in_tiles.config, calibration=replace(in_tiles.config.calibration, image=score, map=peak))
    detector = Detector(forced, {}, batch_size=4)
    hot = torch.full((1, 7, 7), 0.1)
    hot[0, 2, 3:5] = 0.99
    prediction = replace(detector._predict(detector._prepare(images[0])[None]), map_Bhw=hot)
    found = detector._finding(prediction, 0, (112, 56))
    (region,) = found.regions
    assert (region.x, region.y) == (48, 16)  # columns 3-4 of 7 x 16 px, row 2 of 7 x 8 px
    assert (region.width, region.height) == (32, 8)
    hot[0, 2, 4] = 0.1
    assert detector._finding(replace(prediction, map_Bhw=hot * 0.55), 0, (112, 56)).regions == []  # a part of a patch


def test_a_backbone_of_other_weights_is_noticed(tiny_config, tmp_path):
    other = tiny_model.write_folder(tmp_path, tiny_model.random_model(seed=1))
    with pytest.raises(ModelError, match="install the same ones or make the bundle anew"):
        Detector(replace(tiny_config, backbone=str(other)), {})


class OneIfNew:
    """A method that scores 0 what it remembers and 1/2 anything else, and writes down every score it gave."""

    scores: list[float] = []  # noqa: RUF012

    def __init__(self, config, backbone, subject, tensors=None):
        self.config, self.tensors = config, dict(tensors or {})

    def remember(self, batches):  # noqa: D102
        return {"memory.pixels": torch.cat(list(batches))}

    def predict(self, pixels):  # noqa: D102
        known = self.tensors.get("memory.pixels", torch.zeros(0, *pixels.shape[1:], dtype=torch.uint8))
        score = torch.tensor([0.0 if any(torch.equal(image, old) for old in known) else 0.5 for image in pixels])
        type(self).scores += score.tolist()
        flat = torch.ones(len(pixels), 16, 32)
        return Prediction(score_B=score, map_Bhw=score[:, None, None].expand(-1, 4, 4), patches_BPD=flat)


@pytest.fixture
def one_if_new(tiny_config, monkeypatch):
    monkeypatch.setitem(module.METHODS, "winclip", (OneIfNew, WinCLIPConfig))
    monkeypatch.setattr(OneIfNew, "scores", [])
    return Detector(tiny_config, {}, batch_size=4)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 30])
def test_no_threshold_is_fitted_on_a_remembered_image(one_if_new, count):
    normals = np.random.default_rng(3).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    found = one_if_new.with_normals(normals, source="x")
    assert set(OneIfNew.scores) == {0.5}  # one leak would have scored 0
    assert len(found.method.tensors["memory.pixels"]) == min(count, 16)
    assert found.config.calibration.num_normals == count
    assert ("all their orientations" in found.config.calibration.source) == (count < 8)


def test_new_normals_pass_and_strange_images_do_not(tiny_config):
    """Images of one flat grey each, remembered by their neighbours in brightness; noise is what was never seen."""
    rng = np.random.default_rng(4)
    greys = [np.full((32, 32, 3), value, np.uint8) for value in rng.permutation(np.arange(60, 188, 2))]
    found = Detector(tiny_config, {}, batch_size=4).with_normals(greys[:32], source="x")
    assert sum(f.is_anomaly for f in found.inspect(greys[32:])) <= 3
    noise = list(rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    assert all(f.is_anomaly for f in found.inspect(noise))


def test_a_memory_comes_back_from_the_bundle(tiny_config, images, tmp_path):
    knowing = Detector(tiny_config, {}, batch_size=4).with_normals(images, source="x")
    knowing.save(str(tmp_path / "bundle"))
    loaded = load_detector(str(tmp_path / "bundle"), device="cpu", batch_size=4)
    assert loaded.method.tensors["memory.patches"].shape == (10 * 16, 32)
    assert all_same(loaded.inspect(images), knowing.inspect(images))


def test_a_memory_without_thresholds_is_refused(tiny_config, images, tmp_path, few_procedural):
    """Procedural images are strangers to a memory: thresholds from them would let everything pass."""
    Detector(tiny_config, {}, batch_size=4).with_normals(images, source="x").save(str(tmp_path / "bundle"))
    with pytest.raises(ConfigError, match="give the normal images anew"):
        load_detector(str(tmp_path / "bundle"), device="cpu", object_name="cable")
    assert few_procedural == []
    found = load_detector(str(tmp_path / "bundle"), device="cpu", object_name="cable", normals=images)
    assert found.config.calibration.num_normals == 10


def test_methods_that_can_not_remember_only_calibrate(tiny_config, monkeypatch, images):
    class Forgetful:
        def __init__(self, *arguments):
            self.tensors, self.predict = {}, WinCLIP(*arguments).predict

    monkeypatch.setitem(module.METHODS, "winclip", (Forgetful, WinCLIPConfig))
    found = Detector(tiny_config, {}, batch_size=4).with_normals(images, source="x")
    assert dict(found.method.tensors) == {}
    with pytest.raises(ConfigError, match="at least 8"):
        Detector(tiny_config, {}, batch_size=4).with_normals(images[:7], source="x")


# Prompts and settings of the method


@pytest.fixture
def bank(tmp_path):
    """A prompt bank for a cable; returns its address."""
    phrases = (Phrase(text="an even {0} coat", side="normal"), Phrase(text="a nick", side="abnormal"))
    write_bank(str(tmp_path / "cable.json"), PromptBank(object_name="cable", phrases=phrases))
    return str(tmp_path / "cable.json")


def alfa_over(folder, bank, **changes):
    return load_detector(f"{folder}:alfa", device="cpu", prompts=bank, batch_size=4, **changes)


@pytest.mark.parametrize("aligner", ["patch_only", "ridge"])
def test_alfa_comes_back_from_its_bundle_with_its_phrases(tiny_folder, bank, few_procedural, images, tmp_path, aligner):
    made = alfa_over(tiny_folder, bank, settings={"aligner": aligner, "mode": "topk"})
    assert made.config.object_name == "cable"
    assert made.config.settings == {
        "normal": ["an even {0} coat"],
        "abnormal": ["a nick"],
        "aligner": aligner,
        "mode": "topk",
    }
    made.save(str(tmp_path / "bundle"))
    loaded = load_detector(str(tmp_path / "bundle"), device="cpu", batch_size=4)
    assert loaded.config == made.config
    found, again = made.inspect(images), loaded.inspect(images)
    assert all_same(found, again)
    assert [f.explanation for f in found] == [f.explanation for f in again]
    prompts = {prompt for f in found for prompt, _, _ in f.explanation}
    assert {"cable with an even {0} coat", "cable with a nick"} <= set(loaded.method.prompts)
    assert prompts <= set(loaded.method.prompts)
    assert all(len(f.explanation) == 6 for f in found)


def test_alfa_remembers_normals_and_comes_back(tiny_folder, bank, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DEFECT_WORDS", ("scratch", "dent"))
    made = alfa_over(tiny_folder, bank, normals=images[:3])
    assert made.config.calibration.num_normals == 3
    made.save(str(tmp_path / "bundle"))
    loaded = load_detector(str(tmp_path / "bundle"), device="cpu", batch_size=4)
    assert all_same(loaded.inspect(images), made.inspect(images))


def test_an_object_by_name_wins_over_the_banks(tiny_folder, bank, few_procedural):
    assert alfa_over(tiny_folder, bank, object_name="wire").config.object_name == "wire"


def test_a_bank_for_a_method_that_reads_none_is_refused(tiny_folder, bank, few_procedural):
    with pytest.raises(ConfigError, match="method winclip reads no prompt bank"):
        load_detector(str(tiny_folder), device="cpu", prompts=bank)
    assert few_procedural == []


def test_settings_by_name_change_the_method_and_the_thresholds(saved, few_procedural, tiny_detector, images):
    found = load_detector(saved(), device="cpu", settings={"dense": "windows", "map_weight": 0.0}, batch_size=4)
    assert few_procedural == [32]
    assert found.config.settings == {"dense": "windows", "map_weight": 0.0}
    before, after = (d.inspect(images[:1])[0] for d in (tiny_detector, found))
    assert before.raw_score != after.raw_score
    with pytest.raises(ConfigError, match="no setting 'colour'"):
        load_detector(saved(), device="cpu", settings={"colour": 1})
