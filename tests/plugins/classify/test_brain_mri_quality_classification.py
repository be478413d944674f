"""The bundle brain_mri_quality_classification: what its network is given, what it is trained with, what it says."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import bundled
import nibabel
import numpy as np
import pytest
import torch
from medkit_classify.calibration import Calibration
from outcome import Outcome
from places import BUNDLES

from medkit.bundles.bundle import Bundle
from medkit.pipe.records import read_sidecar
from medkit.synthesis.labels import LabelTable
from medkit.synthesis.ranges import Random

NAME = "brain_mri_quality_classification"
ROOT = BUNDLES / NAME
CPU = torch.device("cpu")
Run = Callable[..., Outcome]

built = functools.partial(bundled.built, ROOT)


@pytest.fixture(autouse=True)
def own_code(clean_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's own package is found, as under MONAI's commands and medkit's."""
    monkeypatch.syspath_prepend(str(ROOT))


def module(name: str = "") -> ModuleType:
    return importlib.import_module(f"{NAME}.{name}" if name else NAME)


def head(shape: tuple[int, int, int] = (120, 140, 120)) -> tuple[np.ndarray, np.ndarray]:
    """A ball of white matter in grey matter around fluid, and its labels."""
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt((x**2).sum(0))
    labels = np.select([radius < 0.15, radius < 0.5, radius < 0.7, radius < 0.75], [4, 2, 3, 24], 0).astype(np.uint8)
    return np.array([0, 0, 900, 600, 200], np.float32)[labels.clip(max=4)] * (labels != 24), labels


# ---- what the network is given


def test_a_scan_is_seen_where_it_lies() -> None:
    """A spot of a scan on a turned grid of odd spacing is at the same mm of what the network is given."""
    quality = module()
    image = np.zeros((90, 100, 80), np.float32)
    image[20:70, 20:80, 15:65] = 100
    image[50:54, 60:64, 40:44] = 900
    affine = np.diag([1.7, 1.3, 1.9, 1]) @ np.eye(4)[[0, 1, 2, 3]]
    affine[:3, 3] = (-40, 13, 7)
    from monai.data import MetaTensor

    given = quality.Describe()({"image": MetaTensor(torch.from_numpy(image[None]), affine=torch.from_numpy(affine))})
    found = given["image"]
    assert found.shape == (quality.COUNT, *quality.SHAPE)
    place = np.array(np.unravel_index(int(found[0].argmax()), quality.SHAPE))
    there = (found.affine.numpy() @ np.append(place, 1))[:3]
    true = (affine @ [51.5, 61.5, 41.5, 1])[:3]
    assert np.abs(there - true).max() < 4


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 0.9, 5.0), (2.0, 2.0, 2.0)])
def test_noise_is_seen_at_any_resolution(spacing: tuple[float, float, float]) -> None:
    quality = module()
    steps = [max(1, round(mm)) for mm in spacing]
    clean = torch.from_numpy(head()[0][:: steps[0], :: steps[1], :: steps[2]].copy())[None]
    grains = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    seen = [quality.described(clean + sigma * grains, spacing)[0] for sigma in (9.0, 90.0)]
    tissue = quality.described(clean, spacing)[0][0] > 0.3
    little, much = (float(given[6][tissue].mean()) for given in seen)
    assert much - little > 0.5, "the logarithm's half: more than a factor of e"
    assert abs(float((seen[1][0] - seen[0][0])[tissue].mean())) < 0.1, "the brightness hardly changes"


def test_labels_become_shares() -> None:
    quality = module()
    image, labels = (torch.from_numpy(x)[None] for x in head())
    given, _ = quality.described(image, (1.0, 1.0, 1.0), labels)
    blind, _ = quality.described(image, (1.0, 1.0, 1.0))
    assert torch.equal(given[:8], blind[:8])
    assert not blind[8:].any()
    voxel = quality.SPACING**3
    for channel, values in ((8, (4, 24)), (9, (3,)), (10, (2,))):
        volume = np.isin(labels.numpy(), values).sum()
        assert float(given[channel].sum()) * voxel == pytest.approx(volume, rel=0.02)
    inside = given[7] > 0.99
    assert torch.equal(given[11], given[7])
    assert float(inside.float().sum()) * voxel == pytest.approx(120 * 140 * 120, rel=0.1)


def test_small_and_flat_scans_are_taken() -> None:
    quality = module()
    for shape in ((3, 4, 5), (40, 40, 1), (1, 1, 1)):
        for values in (torch.zeros(1, *shape), torch.full((1, *shape), float("nan")), torch.randn(1, *shape)):
            assert torch.isfinite(quality.described(values, (1.0, 1.0, 6.0))[0]).all()


# ---- what it is trained with


def test_contrasts_are_what_they_are_called() -> None:
    contrasts = module("contrasts")
    random = Random(0, CPU)
    order = {
        "T1": lambda f, g, w: w > g > f,
        "T2": lambda f, g, w: f > g > w,
        "PD": lambda f, g, w: g > w and 0.5 * g < f,
        "FLAIR": lambda f, g, w: g > w and f < 0.5 * g,
    }
    for name, holds in order.items():
        for _ in range(50):
            values = contrasts.means(name, random)
            assert holds(values[contrasts.FLUID], values[contrasts.CORTEX], values[contrasts.WHITE]), name
    for _ in range(50):
        values = contrasts.means("other", random)
        white, fluid = (float(values[n] / values[contrasts.CORTEX]) for n in (contrasts.WHITE, contrasts.FLUID))
        assert not any(a[0] < white < a[1] and b[0] < fluid < b[1] for a, b in contrasts._RATIOS.values()), (
            "another contrast is none of these"
        )


def test_recolouring_changes_the_contrast_alone() -> None:
    contrasts, quality = module("contrasts"), module()
    image, labels = (torch.from_numpy(x)[None] for x in head())
    given, _ = quality.described(image, (1.0, 1.0, 1.0), labels)
    drawing = module("drawing")
    scan = drawing.Scan(image[0], labels[0], (1.0, 1.0, 1.0), "T1", "usable")
    item = {"image": given, "tissues": scan.tissues(), "label": torch.tensor([0, 2])}
    change = contrasts.Recolourd("image", often=1.0, blind=0.5, mirrored=0.0)
    change.set_random_state(0)
    blind = []
    for _ in range(8):
        made = change({**item, "image": given.clone()})
        number, usability = made["label"].tolist()
        assert usability == 2
        assert torch.equal(made["image"][1:8], given[1:8]), "how good the scan is stays"
        blind.append(not made["image"][8:].any())
        if contrasts.CONTRASTS[number] == "T2":
            fluid, white = ((made["image"][0] * given[n]).sum() / given[n].sum() for n in (8, 10))
            assert fluid > white
    assert 0 < sum(blind) < 8


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two label maps of a head of FreeSurfer's labels, and their tables."""
    folder = tmp_path_factory.mktemp("maps")
    names = {0: "background", 2: "white", 3: "grey", 4: "fluid", 24: "background", 502: "background"}
    rows = [f"{n}\t{i}\t{0 if name == 'background' else n}\t{name}" for i, (n, name) in enumerate(names.items())]
    (folder / "labels.tsv").write_text("\n".join(["index\tintensity_class\ttarget\ttarget_name", *rows]) + "\n")
    priors = [f"{n}\t{i}\t{40 * i}\t5\t5\t2" for i, n in enumerate(names)]
    (folder / "t1_priors.tsv").write_text("\n".join(["index\tt1_class\tmean\tmean_sd\tstd\tstd_sd", *priors]) + "\n")
    for n in range(3):
        labels = head((100, 110, 90 + n))[1].astype(np.uint16)
        x = np.stack(np.meshgrid(*[np.linspace(-1, 1, size) for size in labels.shape], indexing="ij"))
        labels[((x**2).sum(0) < 0.8) & (labels == 0)] = 502
        nibabel.save(nibabel.Nifti1Image(labels, np.diag([1.5, 1.5, 1.5, 1])), folder / f"map_{n}.nii.gz")
    return folder


def test_bad_scans_are_bad(maps: Path) -> None:
    """A noisy scan has more noise than a usable one of the same head, a cropped one less brain."""
    drawing, quality = module("drawing"), module()
    table = LabelTable.read(maps / "labels.tsv", maps / "t1_priors.tsv")
    labels = np.asarray(nibabel.load(maps / "map_0.nii.gz").dataobj)
    encoded = torch.from_numpy(table.encode(labels[None], "map"))
    made = drawing.Head.drawn(encoded, (1.5, 1.5, 1.5), table, Random(3, CPU))
    scans = {kind: made.scan(kind, Random(n, CPU)) for n, kind in enumerate(quality.USABILITY)}
    noise, brain = {}, {}
    for kind, scan in scans.items():
        given, _ = quality.described(scan.image[None], scan.spacing, scan.labels[None])
        tissue = given[9:11].sum(0) > 0.9
        noise[kind] = float(given[6][tissue].mean())
        brain[kind] = float((scan.labels % 500 > 0).sum()) * np.prod(scan.spacing)
        assert scan.usability == kind
    assert noise["noise"] > noise["usable"] + 0.4
    assert brain["cropped"] < 0.97 * brain["usable"]


@pytest.mark.slow
def test_drawn_scans_are_what_a_training_takes(medkit: Run, maps: Path, tmp_path: Path) -> None:
    drawing = module("drawing")
    drawing.draw(maps, tmp_path / "set", scans=8, images=4)
    drawing.gather(tmp_path / "set")
    lists = json.loads((tmp_path / "set" / "dataset.json").read_text())
    images = json.loads((tmp_path / "set" / "images.json").read_text())
    assert (len(lists["training"]), len(lists["validation"])) == (8, 8)
    assert (len(images["training"]), len(images["validation"])) == (4, 8)
    assert ["labels" in item for item in images["validation"]] == [False] * 4 + [True] * 4
    labels = np.asarray(nibabel.load(tmp_path / "set" / images["validation"][4]["labels"]).dataobj)
    assert 0 < labels.max() < 500
    quality = module()
    item, seen = lists["validation"][0], images["validation"][0]
    scan = nibabel.load(tmp_path / "set" / seen["image"])
    given, _ = quality.described(
        torch.from_numpy(np.asarray(scan.dataobj, np.float32))[None], scan.header.get_zooms()[:3]
    )
    with np.load(tmp_path / "set" / item["drawn"]) as kept:
        difference = np.abs(given[:8].numpy() - kept["given"][:8].astype(np.float32))
    assert difference.mean() < 2e-3, "an image says what was kept of the scan"
    small = ["--set", "batch_size=4", "--set", "epoch_length=2", "--steps", "2", "--precision", "float32", "-q"]
    done = medkit("train", "classify", "--bundle", NAME, "--data", tmp_path / "set" / "dataset.json", "-o",
                  tmp_path / "new", *small)  # fmt: skip
    assert done.code == 0, done.err
    bundled.verify_network(tmp_path / "new")
    stated = json.loads((tmp_path / "new" / "configs" / "metadata.json").read_text())["medkit"]["training"]
    assert 0 <= stated["best"] <= 1


def test_labels_of_no_tissue_are_refused(maps: Path) -> None:
    from medkit.errors import InputError

    table = LabelTable(indices=(0, 999), classes=(0, 1), targets=(0, 1), names={0: "background", 1: "thing"})
    with pytest.raises(InputError, match="999"):
        module("drawing").Head.drawn(torch.zeros(1, 4, 4, 4), (1.0, 1.0, 1.0), table, Random(0, CPU))


# ---- the bundle


def test_the_network_takes_and_gives_what_the_metadata_says() -> None:
    bundled.verify_network(ROOT)


def test_the_configs_agree() -> None:
    bundled.configs_agree(ROOT, "network_def", "channels", "dropout")


def test_the_network_can_be_scripted() -> None:
    network = built("inference").get_parsed_content("network_def").eval()
    image = torch.rand(1, 12, 48, 56, 48)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))


def test_the_weights_are_of_this_network_small_and_calibrated() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "models").iterdir()) < 5_000_000
    network = built("inference").get_parsed_content("network_def")
    network.load_state_dict(torch.load(ROOT / "models" / "model.pt", weights_only=True), strict=True)
    calibration = Calibration.of(Bundle(ROOT, NAME, "classify"))
    assert not calibration.note
    assert set(calibration.scalings) == {"contrast", "usability"}
    assert calibration.feature_distance is not None


def scan(path: Path) -> Path:
    image, _ = head()
    noise = np.random.default_rng(0).normal(0, 12, image.shape)
    nibabel.save(nibabel.Nifti1Image((image + noise).clip(0).astype(np.float32), np.diag([1.5, 1.5, 1.5, 1])), path)
    return path


def test_it_uses_the_image_and_the_labels_that_came_down_the_pipe(medkit: Run, tmp_path: Path) -> None:
    source = scan(tmp_path / "a_t1.nii.gz")
    nibabel.save(nibabel.Nifti1Image(head()[1], np.diag([1.5, 1.5, 1.5, 1])), tmp_path / "a_t1_dseg.nii.gz")
    block = {"task": "segment", "status": "ok", "metrics": {"volumes_mm3": {"white": 2160.0}},
             "warnings": ["look at this one: cerebellum is small"]}  # fmt: skip
    sidecar = {"path": "a_t1_dseg.nii.gz", "kind": "labels", "Sources": [source.name], "medkit": block}
    (tmp_path / "a_t1_dseg.json").write_text(json.dumps(sidecar))
    lines = {"image": f"{source}\n", "both": f"{tmp_path / 'a_t1_dseg.nii.gz'}\n"}
    found = {}
    for name, line in lines.items():
        done = medkit("run", "classify", "-o", tmp_path / name, "--report", input=line)
        assert done.code == 0, done.err
        record = read_sidecar(done.paths[0].with_suffix(".json"))
        assert record is not None
        assert record.medkit["choice"]["name"] == NAME
        found[name] = record.medkit
    used = {Path(entry["path"]).name for entry in found["both"]["inputs"].values()}
    assert used == {source.name, "a_t1_dseg.nii.gz"}
    assert found["both"]["context"]["volumes_mm3"] == {"white": 2160.0}
    assert found["both"]["context"]["warnings"] == ["look at this one: cerebellum is small"]
    said = [found[name]["metrics"]["findings"][0]["probabilities"] for name in lines]
    assert said[0] != said[1], "the labels count"
    text = next((tmp_path / "both").glob("*_report.txt")).read_text()
    assert "cerebellum is small" in text
    assert "Contrast: " in text or "no class is given" in text


@pytest.mark.slow
def test_a_whole_pipe_ends_in_an_answer(medkit: Run, shared_data: Path, tmp_path: Path) -> None:
    """register | segment | classify on a real scan: T1, usable, from the image and its labels."""
    fixed, moving = (shared_data / "brain_t1_manual" / f"oasis_{n}_t1.nii.gz" for n in (1000, 1001))
    lines = f"{moving}\n"
    for stage in (["register", "--fixed", fixed, "--type", "affine"], ["segment"], ["classify"]):
        done = medkit("run", *stage, "-o", tmp_path / str(stage[0]), input=lines)
        assert done.code == 0, done.err
        lines = "".join(f"{path}\n" for path in done.paths)
    record = read_sidecar(done.paths[0].with_suffix(".json"))
    assert record is not None
    assert record.medkit["metrics"]["classes"] == {"contrast": "T1", "usability": "usable"}
    assert record.medkit["context"]["after"][0] == "segment"
    assert {Path(e["path"]).parent.name for e in record.medkit["inputs"].values()} == {"register", "segment"}


@pytest.mark.slow
def test_probabilities_under_medkit_are_those_under_monai(medkit: Run, tmp_path: Path) -> None:
    import csv

    (tmp_path / "in").mkdir()
    source = scan(tmp_path / "in" / "a.nii.gz")
    given = {"dataset_dir": source.parent, "output_dir": tmp_path / "monai", "device": "cpu"}
    bundled.monai_bundle(ROOT, "run", "--config_file", "configs/inference.json", *bundled.as_arguments(given))
    with open(tmp_path / "monai" / "predictions.csv", newline="") as file:
        (row,) = csv.reader(file)
    done = medkit("run", "classify", "--bundle", NAME, "--precision", "float32", source, "--json")
    assert done.code == 0, done.err
    (record,) = done.records
    findings = record["medkit"]["metrics"]["findings"]
    found = [p for finding in findings for p in finding["probabilities"].values()]
    np.testing.assert_allclose(found, [float(p) for p in row[1:]], atol=1e-4)
