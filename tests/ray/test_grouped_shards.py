"""A shard of several products: each row decoded for, and scored by, its own detector, without a running Ray."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
import torch
import unit.tiny_model as tiny
from PIL import Image

from zsad.batch_config import BatchConfig
from zsad.bundle import DetectorConfig
from zsad.detector import Detector
from zsad.detector_index import DetectorIndex, Entry
from zsad.distributed.gallery import _tiles
from zsad.distributed.stages import STATS, Plan, ShardScorer, decode_block
from zsad.images import DecodeLimits, Preprocess, decode_image
from zsad.report.ledger import canonical_json
from zsad.report.manifest import ListingOptions, write_manifest
from zsad.scoring import PIXELS
from zsad.storage import open_store

BATCH_SIZE = 4
SIZES = {"a": 32, "b": 40, "c": 32}


def png(seed):
    sink = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """Two sizes and three objects over one tiny backbone, calibrated."""
    torch.set_num_threads(1)
    folder = tiny.write_folder(tmp_path_factory.mktemp("backbone"))
    backbone = str(folder)
    from zsad.backbone import load_backbone

    config = DetectorConfig(
        backbone=backbone,
        backbone_sha256=load_backbone(backbone, "cpu", "fp32").sha256,
        precision="fp32",
        method="winclip",
        settings={},
        preprocess=Preprocess(size=32),
        object_name="object",
        defect_words=("scratch",),
    )
    normals = np.random.default_rng(7).integers(0, 256, (16, 40, 48, 3), dtype=np.uint8)
    made = {}
    for name, size in SIZES.items():
        own = replace(config, preprocess=Preprocess(size=size), object_name=f"part {name}")
        made[name] = Detector(own, {}, batch_size=BATCH_SIZE).calibrated(normals, source="random")
    return made


@pytest.fixture
def plan(detectors, tmp_path):
    """A run of one shard with interleaved products, one broken image, one key without and one with a bad detector."""
    source, output = open_store(str(tmp_path / "images")), open_store(str(tmp_path / "report"))
    for number in range(5):
        for name in "abcd":
            source.put(f"{number}/{name}.png", png((number, ord(name))))
    source.put("3/b.png", b"")
    source.put("4/e.png", png(1))
    source.put("loose.txt", b"no image")
    entries = {("d",): Entry(ref="m/{part}", error="no bundle")}
    for name, detector in detectors.items():
        bundle = f"detectors/{name}"
        detector.save(output.uri(bundle))
        preprocess = detector.config.preprocess
        entries[(name,)] = Entry(ref=f"m/{name}", bundle=bundle, fingerprint=name, preprocess=preprocess)
    output.put("detectors/e/detector.json", b"{}")
    output.put("detectors/e/tensors.safetensors", b"")
    entries[("e",)] = Entry(ref="m/e", bundle="detectors/e", preprocess=Preprocess(size=32))
    index = DetectorIndex(ref="m/{part}", partition="{number}/{part}.png", fields=("part",), entries=entries)
    output.put("runs/r/detectors.json", canonical_json(index.to_dict()))
    write_manifest(source, output, "r", ListingOptions(rows_per_shard=100))
    config = BatchConfig(
        input=source.url,
        output=output.url,
        detector="s3://m/{part}",
        partition="{number}/{part}.png",
        batch_size=BATCH_SIZE,
        maps="none",
    )
    return Plan(config=config, run_id="r", config_hash="h", fence=1)


def test_rows_keep_their_order_and_are_decoded_for_their_detector(plan):
    decoded = decode_block(plan, [0], pa.table({"id": [0]}))
    keys = decoded["key"].to_pylist()
    assert keys == [info.key for info in plan.source.list()]
    for key, pixels, code in zip(keys, decoded[PIXELS].to_pylist(), decoded["error_code"].to_pylist(), strict=True):
        name = key[2:3]
        if name == "d" or key == "loose.txt":
            assert (code, pixels) == ("no_detector", b"")
        elif key == "3/b.png":
            assert code == "empty"
        else:
            size = SIZES.get(name, 32)
            image = decode_image(plan.source.get(key, max_bytes=10**6), DecodeLimits())
            assert (code, pixels) == (None, Preprocess(size=size).apply(image).tobytes())


def test_each_row_has_the_values_of_its_own_detector(plan, detectors):
    scorer = ShardScorer(plan)
    table = scorer(decode_block(plan, [0], pa.table({"id": [0]})))
    rows = {plan.source.key(row["uri"]): row for row in table.to_pylist()}
    assert len(rows) == 22
    for name, detector in detectors.items():
        keys = [f"{number}/{name}.png" for number in range(5) if (number, name) != (3, "b")]
        images = [decode_image(plan.source.get(key, max_bytes=10**6), DecodeLimits()) for key in keys]
        for key, finding in zip(keys, detector.inspect(images), strict=True):
            row = rows[key]
            assert (row["status"], row["score"], row["raw_score"]) == ("ok", finding.score, finding.raw_score)
            assert (row["detector"], row["part"]) == (f"m/{name}", name)
    codes = {key: row["error_code"] for key, row in rows.items() if row["error_code"]}
    assert codes == dict.fromkeys([f"{n}/d.png" for n in range(5)], "no_detector") | {
        "3/b.png": "empty",
        "4/e.png": "no_detector",
        "loose.txt": "no_detector",
    }
    assert "no bundle" in rows["0/d.png"]["error_message"]
    assert "format version" in rows["4/e.png"]["error_message"]
    assert "does not fit --partition" in rows["loose.txt"]["error_message"]


def test_objects_without_a_detector_are_not_fetched(plan):
    decoded = decode_block(plan, [0], pa.table({"id": [0]}))
    stats = decoded[STATS][0].as_py()
    wanted = [info.size_bytes for info in plan.source.list() if info.key[2:3] in "abce" and info.key != "loose.txt"]
    manifest = sum(info.size_bytes for info in plan.output.list("runs/r/manifest/0"))
    index = sum(info.size_bytes for info in plan.output.list("runs/r/detectors.json"))
    read = int(stats.split('"bytes_read": ')[1].split(",")[0])
    assert sum(wanted) <= read <= sum(wanted) + manifest + index


def test_the_gallery_looks_with_the_same_detectors(plan, detectors):
    uris = [plan.source.uri(f"{number}/{name}.png") for number in range(2) for name in "cab"]
    etags = {info.uri: info.etag for info in plan.source.list() if info.uri in uris}
    changed = etags.popitem()[0]
    tiles = dict(_tiles(plan, {**etags, changed: "another"}))
    assert sorted(tiles) == sorted(uris)
    other = tiles.pop(changed)  # not what was scored
    assert other.thumbnail is None
    assert other.reason.startswith("changed: ")
    for uri, tile in tiles.items():
        name = uri.rpartition("/")[2][0]
        image = decode_image(plan.source.get(plan.source.key(uri), max_bytes=10**6), DecodeLimits())
        (finding,) = detectors[name].inspect([image])
        np.testing.assert_array_equal(tile.anomaly_map, finding.anomaly_map)
        assert tile.thumbnail.shape == (30, 50, 3)
