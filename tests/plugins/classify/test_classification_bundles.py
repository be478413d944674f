"""The classification bundles under MONAI's own tools, under `medkit train` and under `medkit run classify`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundled
import nibabel
import numpy as np
import pytest
import torch
from bundled import as_arguments
from medkit_classify.calibration import Calibration
from outcome import Outcome
from PIL import Image as Picture
from places import BUNDLES

from medkit.bundles.bundle import Bundle
from medkit.pipe.records import read_sidecar

pytestmark = pytest.mark.usefixtures("clean_path")

FOLDER = BUNDLES
PLANES = ("chest_xray_classification", "lung_nodule_ct_classification")
VOLUMES = ("adrenal_shape_classification",)
NAMES = (*PLANES, *VOLUMES)
Run = Callable[..., Outcome]


def made(name: str, folder: Path, number: int = 0) -> Path:
    """A picture of a patch's size, or a mask of a ball."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    if name in PLANES:
        rows, columns = np.indices((50, 50)) / 50
        values = 120 + 80 * np.sin(3 * rows + number) * np.cos(2 * columns) + rng.normal(0, 4, (50, 50))
        Picture.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        return folder / f"{number}.png"
    middle = np.array([11.5, 11.5, 11.5 + number // 4])[:, None, None, None]
    ball = ((np.indices((24, 24, 24)) - middle) ** 2).sum(0) < (5 + number % 4) ** 2
    path = folder / f"{number}_mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(ball.astype(np.uint8), np.eye(4)), path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_network_takes_and_gives_what_the_metadata_says(name: str) -> None:
    bundled.verify_network(FOLDER / name)


@pytest.mark.parametrize("name", NAMES)
def test_the_configs_agree(name: str) -> None:
    one, other = (bundled.built(FOLDER / name, config) for config in ("train", "inference"))
    shared_ids = ("network_def", "blocks", "encoder", "pool", "head", "class_names", "classes", "channels", "size")
    for part in (*shared_ids, "dropout"):
        assert one.get(part) == other.get(part), part
    made = json.loads((FOLDER / name / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]
    assert one.get("class_names") == list(made["pred"]["channel_def"].values())
    steps = one.get("load::transforms")[:-2], other.get("preprocessing::transforms")
    assert steps[0][0].pop("reader") == {"_target_": "medkit.training.ScanReader"}
    shared = min(map(len, steps))
    assert steps[0][:shared] == steps[1][:shared], "an image is prepared alike"


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_of_this_network_small_and_calibrated(name: str) -> None:
    root = FOLDER / name
    assert sum(path.stat().st_size for path in (root / "models").iterdir()) < 5_000_000
    weights = torch.load(root / "models" / "model.pt", weights_only=True)
    network = bundled.built(root, "inference").get_parsed_content("network_def")
    network.load_state_dict(weights, strict=True)
    calibration = Calibration.of(Bundle(root, name, "classify"))
    assert not calibration.note
    assert calibration.feature_distance is not None
    assert set(calibration.layers) <= set(dict(network.named_modules()))


@pytest.mark.parametrize("name", NAMES)
def test_every_class_has_a_next_step(name: str) -> None:
    bundle = Bundle(FOLDER / name, name, "classify")
    classes = bundle.metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values()
    assert set(bundle.block["next_step"]) == set(classes)


@pytest.mark.parametrize("name", NAMES)
def test_training_from_a_bundle_with_its_encoder_as_it_is(medkit: Run, tmp_path: Path, name: str) -> None:
    items = [{"image": made(name, tmp_path / "data", n).name, "label": n % 2} for n in range(8)]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"training": items[:6], "validation": items[6:]}))
    small = ["--set", "batch_size=4", "--set", "epoch_length=2", "--steps", "2", "--precision", "float32"]
    given = ["--data", tmp_path / "data" / "dataset.json", "-o", tmp_path / "new", "--init-from", name]
    done = medkit("train", "classify", "--bundle", name, *given, "--freeze", "encoder", *small, "-q")
    assert done.code == 0, done.err
    before, after = (
        torch.load(root / "models" / "model.pt", weights_only=True) for root in (FOLDER / name, tmp_path / "new")
    )
    kept = [k for k in before if k.startswith("encoder") and not k.endswith("num_batches_tracked")]
    assert all(torch.equal(before[k], after[k]) for k in kept)
    assert not torch.equal(before["head.weight"], after["head.weight"])
    calibration = Calibration.of(Bundle(tmp_path / "new", "new", "classify"))
    assert not calibration.note, "it is calibrated when the training ends"
    old = Calibration.of(Bundle(FOLDER / name, name, "classify"))
    assert calibration.threshold != old.threshold
    assert "next_step" not in Bundle(tmp_path / "new", "new").block


@pytest.mark.parametrize("name", ["chest_xray_classification", "adrenal_shape_classification"])
def test_the_answer_is_the_mean_over_sizes_and_the_image_itself_comes_first(name: str) -> None:
    """What the recorder keeps for abstaining is the network's first run."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(FOLDER / name / "configs" / "inference.json")
    seen: list[torch.Tensor] = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.full((len(images), 2), float(len(seen)))

    image = torch.rand(2, 1, *parser.get_parsed_content("size"))
    answer = parser.get_parsed_content("inferer")(image, network)
    assert len(seen) == 6
    assert torch.equal(answer, torch.full((2, 2), 3.5)), "the mean of 1 to 6"
    assert torch.equal(seen[0], image)
    assert torch.equal(seen[1], image.flip(2))
    assert torch.equal(seen[3], seen[2].flip(2))
    larger, smaller = seen[2], seen[4]
    assert larger.shape == smaller.shape == image.shape
    assert not torch.allclose(larger, image, atol=0.1)
    assert larger.std() < image.std(), "resampling smooths"


@pytest.mark.parametrize("name", NAMES)
def test_pretraining_without_labels_gives_an_encoder_to_begin_with(medkit: Run, tmp_path: Path, name: str) -> None:
    images = [made(name, tmp_path / "data", n) for n in range(8)]
    small = ["--set", "batch_size=4", "--set", "epoch_length=2", "--steps", "2", "--precision", "float32", "-q"]
    given = ["--bundle", name, "--config", "train,pretrain", "--data", tmp_path / "data", "-o", tmp_path / "pre"]
    done = medkit("train", "classify", *given, *small)
    assert done.code == 0, done.err
    encoder = torch.load(tmp_path / "pre" / "models" / "model.pt", weights_only=True)
    stated = json.loads((tmp_path / "pre" / "configs" / "metadata.json").read_text())["medkit"]["training"]
    assert stated["metric"] == "pairs found"
    refused = medkit("run", "classify", "--bundle", tmp_path / "pre", "--trust", images[0])
    assert refused.code != 0, "it has no classes yet"
    assert "head.weight" in refused.err
    items = [{"image": path.name, "label": n % 2} for n, path in enumerate(images)]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"training": items[:6], "validation": items[6:]}))
    given = ["--bundle", name, "--data", tmp_path / "data" / "dataset.json", "-o", tmp_path / "new"]
    done = medkit("train", "classify", *given, "--init-from", tmp_path / "pre", "--freeze", "encoder", *small)
    assert done.code == 0, done.err
    weights = torch.load(tmp_path / "new" / "models" / "model.pt", weights_only=True)
    kept = [k for k in weights if k.startswith("encoder") and not k.endswith("num_batches_tracked")]
    assert kept
    assert all(torch.equal(weights[k], encoder[k]) for k in kept)
    done = medkit("run", "classify", "--bundle", tmp_path / "new", "--trust", images[0], "-o", tmp_path / "o")
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", NAMES)
def test_each_bundle_learns_from_facts_beside_its_images(medkit: Run, tmp_path: Path, name: str) -> None:
    items = [
        {"image": made(name, tmp_path / "data", n).name, "label": n % 2, "features": {"age": 30 + n}, "text": "no sign"}
        for n in range(8)
    ]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"training": items[:6], "validation": items[6:]}))
    given = ["--bundle", name, "--config", "train,multimodal", "--data", tmp_path / "data" / "dataset.json"]
    small = ["--set", "batch_size=4", "--set", "epoch_length=2", "--steps", "2", "--precision", "float32", "-q"]
    done = medkit("train", "classify", *given, "-o", tmp_path / "new", "--init-from", name, *small)
    assert done.code == 0, done.err
    bundled.verify_network(tmp_path / "new")
    (tmp_path / "t.csv").write_text(f"case,age,told\n{items[0]['image']},33,no\n")
    facts = ["--features", tmp_path / "t.csv", "--text", "told", "-o", tmp_path / "o"]
    source = tmp_path / "data" / items[0]["image"]
    done = medkit("run", "classify", "--bundle", tmp_path / "new", "--trust", source, *facts)
    assert done.code == 0, done.err
    again = medkit("train", "classify", "--bundle", tmp_path / "new", "--trust", "--data", given[-1], "-o",
                   tmp_path / "more", "--init-from", tmp_path / "new", *small)  # fmt: skip
    assert again.code == 0, again.err
    bundled.verify_network(tmp_path / "more")


CLASSES = ("coarse", "fine", "plain")


def painted(folder: Path, kind: int, number: int) -> None:
    """Write a picture of one of three textures, on which a network of a few steps can be right."""
    rng = np.random.default_rng(10 * number + kind)
    rows, columns = np.indices((48, 48))
    wave = (np.sin(rows / 6), np.sin(2 * rows) * np.cos(2 * columns), np.linspace(-1, 1, 48)[None].repeat(48, 0))[kind]
    folder.mkdir(parents=True, exist_ok=True)
    values = 120 + 80 * wave + rng.normal(0, 5, (48, 48))
    Picture.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")


def test_classes_of_one_s_own_from_folders_to_figures(medkit: Run, tmp_path: Path) -> None:
    """Train on three class folders, without a bundle's name; then evaluate, run and verify the bundle at once."""
    for kind, name in enumerate(CLASSES):
        for number in range(10):
            painted(tmp_path / "set" / ("train" if number < 8 else "test") / name, kind, number)
    small = ["--set", "batch_size=12", "--set", "epoch_length=10", "--steps", "20", "--precision", "float32"]
    done = medkit("train", "classify", "--data", tmp_path / "set" / "train", "-o", tmp_path / "new", *small,
                  "--set", "size=[24,24]", "--set", "changes::occurrence=0.0")  # fmt: skip
    assert done.code == 0, done.err
    metadata = json.loads((tmp_path / "new" / "configs" / "metadata.json").read_text())
    assert list(metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values()) == list(CLASSES)
    assert metadata["medkit"]["base"]["name"] == "chest_xray_classification"
    assert "modality" not in metadata["medkit"]
    assert metadata["medkit"]["codes"] == {}
    assert set(metadata["eval_metrics"]) == {"validation_auc"}
    for config in ("train", "inference"):
        content = json.loads((tmp_path / "new" / "configs" / f"{config}.json").read_text())
        assert content["class_names"] == list(CLASSES)
        assert content["size"] == [24, 24]
    assert not Calibration.of(Bundle(tmp_path / "new", "new", "classify")).note
    images = sorted((tmp_path / "set" / "test").rglob("*.png"))
    done = medkit("run", "classify", "--bundle", tmp_path / "new", *images, "--table", tmp_path / "r.tsv")
    assert done.code == 0, done.err
    with open(tmp_path / "r.tsv") as file:
        columns = file.readline().rstrip("\n").split("\t")
    assert [c for c in columns if c.startswith("probability_")] == [f"probability_{name}" for name in CLASSES]
    done = medkit("evaluate", tmp_path / "r.tsv", "--reference", tmp_path / "set" / "test", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["summary"]["all"]["auc"]["value"] > 0.9


def test_the_number_of_classes_follows_from_the_data(medkit: Run, tmp_path: Path) -> None:
    for kind, name in enumerate(CLASSES):
        for number in range(2):
            painted(tmp_path / "set" / name, kind, number)
    given = ["train", "classify", "--data", tmp_path / "set", "-o", tmp_path / "new"]
    done = medkit(*given, "--set", "classes=2")
    assert done.code == 2
    assert "follow from --data" in done.err
    done = medkit(
        "train",
        "segment",
        "--bundle",
        "brain_mri_segmentation",
        "--data",
        tmp_path / "set",
        "-o",
        tmp_path / "new",
        "--labels",
        tmp_path / "t.csv",
    )
    assert done.code == 2
    assert "learns no classes" in done.err


def test_what_is_laid_over_is_the_same_for_all() -> None:
    for config in ("multimodal", "multimodal_inference", "pretrain"):
        assert len({(FOLDER / name / "configs" / f"{config}.json").read_text() for name in NAMES}) == 1, config


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_probabilities_under_medkit_are_those_under_monai(medkit: Run, tmp_path: Path, name: str) -> None:
    source = made(name, tmp_path / "in", 3)
    given = {"dataset_dir": source.parent, "output_dir": tmp_path / "monai", "device": "cpu"}
    bundled.monai_bundle(FOLDER / name, "run", "--config_file", "configs/inference.json", *as_arguments(given))
    with open(tmp_path / "monai" / "predictions.csv", newline="") as file:
        (row,) = csv.reader(file)
    done = medkit("run", "classify", "--bundle", name, "--precision", "float32", source, "--json")
    assert done.code == 0, done.err
    (record,) = done.records
    found = list(record["medkit"]["metrics"]["findings"][0]["probabilities"].values())
    np.testing.assert_allclose(found, [float(p) for p in row[1:]], atol=1e-4)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("0.png", "chest_xray_classification"),
        ("0_mask.nii.gz", "adrenal_shape_classification"),
        ("chest_ct.nii.gz", "lung_nodule_ct_classification"),
    ],
)
def test_each_image_goes_to_the_bundle_that_fits(medkit: Run, tmp_path: Path, source: str, name: str) -> None:
    more: list[Any] = []
    if source == "chest_ct.nii.gz":
        values = np.random.default_rng(0).integers(-1000, 400, (60, 60, 20)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / source)
        (tmp_path / "points.csv").write_text("x,y,z\n30,30,10\n10,20,5\n")
        more = ["--points", tmp_path / "points.csv"]
    else:
        made(name, tmp_path)
    done = medkit("run", "classify", tmp_path / source, *more)
    assert done.code == 0, done.err
    record = read_sidecar(done.paths[0].with_suffix(".json"))
    assert record is not None
    assert record.medkit["choice"]["name"] == name
    assert len(record.medkit["metrics"]["findings"]) == (2 if more else 1)


def radiograph(path: Path, photometric: str, values: np.ndarray) -> Path:
    """Writes (rows, columns) uint16 as a computed radiograph of 12 bits; MONOCHROME1 with its values turned round."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    found = pydicom.Dataset()
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = generate_uid()
    found.SeriesInstanceUID, found.StudyInstanceUID, found.Modality = generate_uid(), generate_uid(), "DX"
    found.Rows, found.Columns = values.shape
    found.PixelSpacing = [0.2, 0.2]
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, photometric
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 12, 11, 0
    shown = values if photometric == "MONOCHROME2" else values.max() - (values - values.min())
    found.PixelData = shown.astype("<u2").tobytes()
    found.save_as(path, enforce_file_format=True)
    return path


def test_an_x_ray_is_the_same_in_dicom_of_both_kinds_and_as_a_picture(medkit: Run, tmp_path: Path) -> None:
    rows, columns = np.indices((300, 260)) / 260
    values = np.rint(400 + 3200 * np.exp(-(((rows - 0.5) * 2) ** 2) - ((columns - 0.4) * 3) ** 2)).astype(np.uint16)
    Picture.fromarray(values).save(tmp_path / "p.png")
    sources = [
        tmp_path / "p.png",
        radiograph(tmp_path / "a.dcm", "MONOCHROME2", values),
        radiograph(tmp_path / "b.dcm", "MONOCHROME1", values),
    ]
    done = medkit("run", "classify", *sources, "--precision", "float32", "--json")
    assert done.code == 0, done.err
    blocks = [record["medkit"] for record in done.records]
    assert {block["choice"]["name"] for block in blocks} == {"chest_xray_classification"}
    found = [block["metrics"]["findings"][0]["probabilities"]["pneumonia"] for block in blocks]
    assert found == pytest.approx([found[0]] * 3, abs=2e-3)
