"""`medkit evaluate --robustness`: shifts, attacks, and what they cost bundles of every kind."""

from __future__ import annotations

import csv
import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import zoo
from outcome import Outcome

from medkit.images.phantom import make_image
from medkit.pipe.records import Record
from medkit.robustness.corruptions import CORRUPTIONS, corrupted
from medkit.robustness.inputs import FileCorrupter, files_of_case, read_channels
from medkit.robustness.run import corruptions_for

pytestmark = pytest.mark.usefixtures("clean_path")

Run = Callable[..., Outcome]
SIDE = 32
OF_FILES = [name for name, corruption in CORRUPTIONS.items() if corruption.corrupt]
COUNT = sum(len(corruption.strengths) for corruption in CORRUPTIONS.values())


@pytest.fixture
def robust(toy: Run) -> Run:
    def run(bundle: Path, *arguments: object, **settings: Any) -> Outcome:
        words = ["evaluate", "--robustness", "--bundle", bundle, "--trust", "--precision", "float32"]
        return toy(*words, *arguments, **settings)

    return run


def rows(done: Outcome) -> dict[tuple[str, float], dict[str, float]]:
    """(shift, strength) -> measure -> value, and `n`."""
    found = json.loads(done.out)["rows"]
    return {
        (row["shift"], row["strength"]): {"n": row["n"]} | {m: e["value"] for m, e in row["values"].items()}
        for row in found
    }


# ---- a classifier whose answer can be worked out


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """A bundle that says which half of a picture is brighter: one weight for each pixel."""
    import torch

    layer = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": SIDE}
    root = zoo.write(tmp_path / "halves", "classification_template", network_def=layer)
    weight = torch.full((2, 1, SIDE, SIDE), 0.02)
    weight[0, :, : SIDE // 2] = weight[1, :, SIDE // 2 :] = -0.02  # of the first class the columns on the right
    torch.save({"weight": weight, "bias": torch.zeros(2)}, root / "models" / "model.pt")
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of twelve pictures of two halves, a little noisy, and a table of the brighter ones."""
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    lines = ["case,class"]
    for n in range(12):
        values = np.random.default_rng(n).normal(100, 40, (SIDE, SIDE))  # rows, columns
        values[:, SIDE // 2 :] += (1 - 2 * (n % 2)) * (1 + n // 2)
        values[0, :2] = 0, 255
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(tmp_path / f"pictures/p{n:02}.png")
        lines.append(f"p{n:02},thing {n % 2}")
    (tmp_path / "truth.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "pictures"


def test_a_classifier(robust: Run, toy: Run, halves: Path, pictures: Path, tmp_path: Path) -> None:
    table, truth = tmp_path / "falls.csv", tmp_path / "truth.csv"
    done = robust(halves, pictures, truth, "--json", "--csv", table, "--plots", tmp_path / "plots")
    assert done.code == 0, done.err
    found = rows(done)
    assert len(found) == 1 + COUNT
    assert {row["n"] for row in found.values()} == {12}
    clean = found["none", 0]
    how = ["--bundle", halves, "--trust", "--precision", "float32", "-o", tmp_path / "o"]
    assert toy("run", "bundle", *how, *pictures.glob("*.png")).code == 0
    said = toy("evaluate", tmp_path / "o", truth, "--json")
    theirs = json.loads(said.out)["summary"]["all"]
    for name in ("auc", "accuracy", "ece"):
        assert clean[name] == pytest.approx(theirs[name]["value"], abs=1e-6), name
    assert clean["auc"] > 0.8
    assert found["pgd", 0.03]["accuracy"] == found["fgsm", 0.03]["accuracy"] == 0
    assert found["fgsm", 0.03]["fall_accuracy"] == pytest.approx(clean["accuracy"])
    assert found["fgsm", 0.005]["auc"] < clean["auc"]
    for row in found.values():  # an error that grows is a fall
        assert row["fall_ece"] == pytest.approx(row["ece"] - clean["ece"])
    assert (tmp_path / "plots/robustness.png").read_bytes().startswith(b"\x89PNG")
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert float(lines[-1]["fall_auc"]) == pytest.approx(found["pgd", 0.03]["fall_auc"])
    assert float(lines[-1]["fall_auc_low"]) <= float(lines[-1]["fall_auc"]) <= float(lines[-1]["fall_auc_high"])


def test_it_repeats(robust: Run, halves: Path, pictures: Path, tmp_path: Path) -> None:
    arguments = (halves, pictures, tmp_path / "truth.csv", "--json", "--shifts", "noise,pgd")
    first, again, other = (robust(*arguments, "--seed", seed) for seed in (1, 1, 2))
    assert first.code == 0, first.err
    assert first.out == again.out
    assert rows(first)["noise", 0.2]["ece"] != rows(other)["noise", 0.2]["ece"]
    assert rows(first)["none", 0] == rows(other)["none", 0]


def test_the_table(robust: Run, halves: Path, pictures: Path, tmp_path: Path) -> None:
    done = robust(halves, *sorted(pictures.iterdir())[:4], "--reference", tmp_path / "truth.csv", "--shifts", "blur")
    assert done.code == 0, done.err
    words = [line.split() for line in done.lines]
    assert words[0][:6] == ["shift", "strength", "AUC", "95%", "from", "95%"]
    assert [row[:2] for row in words[1:5]] == [["none", "-"], ["blur", "0.7"], ["blur", "1.5"], ["blur", "3"]]
    assert [row[-1] for row in words[1:5]] == ["4"] * 4
    assert done.lines[-1] == "blur: standard deviation in voxels of the finest axis"
    assert done.err.splitlines()[0] == "robustness [1/4] p00.png"


# ---- attacks


def opened(root: Path) -> Any:
    from medkit.bundles.bundle import Bundle
    from medkit.inference.loading import RunSettings, open_bundle
    from medkit.run.task import Runtime

    return open_bundle(Runtime("cpu", 1, 0), Bundle(root, "b"), RunSettings({}, "float32"))


def test_attacks_do_what_they_say(halves: Path) -> None:
    """Of a linear network the sign of the weights is the worst direction, and every step of PGD the same."""
    import torch

    from medkit.inference.transforms import Prepared
    from medkit.robustness.attacks import attacked
    from medkit.space import Grid

    runner = opened(halves)
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.uniform(0.2, 0.8, (1, SIDE, SIDE)).astype(np.float32))
    image[0, 0, 0], image[0, 1, 1] = 0, 1
    prepared = Prepared({"image": image}, Grid((SIDE, SIDE, 1), np.eye(4), dims=2))

    def logits(item: Prepared) -> torch.Tensor:
        with torch.no_grad():
            return runner.network.network(item.item["image"][None]).flatten()

    clean = logits(prepared)
    for method in ("fgsm", "pgd"):
        bad = attacked(runner.network, prepared, 1, method, 0.01, seed=3)
        change = bad.item["image"] - image
        assert float(change.abs().max()) <= 0.01 + 1e-6
        assert bad.item["image"].min() >= 0
        assert bad.item["image"].max() <= 1
        fall = (clean[1] - clean[0]) - (logits(bad)[1] - logits(bad)[0])
        assert float(fall) == pytest.approx(0.01 * 0.04 * SIDE**2, rel=0.01)
        same = attacked(runner.network, prepared, 1, method, 0.01, seed=3)
        torch.testing.assert_close(same.item["image"], bad.item["image"], rtol=0, atol=0)
    assert torch.equal(prepared.item["image"], image)


def test_a_network_of_one_output_is_attacked_both_ways(tmp_path: Path) -> None:
    import torch

    from medkit.inference.transforms import Prepared
    from medkit.robustness.attacks import attacked
    from medkit.space import Grid

    layer = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 4}
    root = zoo.write(tmp_path / "one", "classification_template", network_def=layer)
    torch.save({"weight": torch.ones(1, 1, 4, 4), "bias": torch.zeros(1)}, root / "models" / "model.pt")
    image = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
    prepared = Prepared({"image": image}, Grid((4, 4, 1), np.eye(4), dims=2))
    sums = [
        float(attacked(opened(root).network, prepared, truth, "fgsm", 0.1, 0).item["image"].sum()) for truth in (0, 1)
    ]
    assert sums[0] > float(image.sum()) > sums[1]


# ---- bundles that give labels and images


@pytest.fixture
def threshold(tmp_path: Path) -> Path:
    """A bundle that labels what is brighter than half the scan's range."""
    import torch

    layer = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    root = zoo.write(tmp_path / "threshold", "segmentation_template", network_def=layer)
    state = {"weight": torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1), "bias": torch.tensor([0.5, 0.0])}
    torch.save(state, root / "models" / "model.pt")
    return root


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two scans with a smooth object, and its labels where half the range is exceeded."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "scans").mkdir()
    for n in range(2):
        i, j, k = np.mgrid[:20, :18, :14] - np.array([9.5, 8.5, 6.5])[:, None, None, None]
        voxels = np.rint(1000 * np.exp(-(i**2 + j**2 + k**2) / (40 + 10 * n))).astype(np.int16)
        affine = np.diag([-3.0, 3.5, 5.0, 1.0])
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"scans/s{n}_T1w.nii.gz")
        bright = voxels / voxels.max() > 0.5  # the bundle pads with 0 first
        nib.save(nib.Nifti1Image(7 * bright.astype(np.uint8), affine), tmp_path / f"labels/s{n}_labels.nii.gz")
    return tmp_path / "scans"


def test_labels(robust: Run, threshold: Path, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "map.tsv").write_text("theirs\tours\n7\t1\n")
    done = robust(threshold, scans, tmp_path / "labels", "--json", "--label-map", tmp_path / "map.tsv")
    assert done.code == 0, done.err
    assert json.loads(done.out)["measure"] == "dice"
    found = rows(done)
    assert len(found) == 1 + sum(len(CORRUPTIONS[name].strengths) for name in OF_FILES)
    assert found["none", 0]["dice"] == 1
    for name in ("darker", "blur", "motion", "resolution"):
        dice = [found[name, strength]["dice"] for strength in CORRUPTIONS[name].strengths]
        assert 1 > dice[0] > dice[-1], name
        assert found[name, CORRUPTIONS[name].strengths[0]]["fall_dice"] == pytest.approx(1 - dice[0])
    without = robust(threshold, scans, tmp_path / "labels", "--json", "--shifts", "blur")
    assert rows(without)["none", 0]["dice"] == 0  # 7 and 1 are not the same


def test_images(robust: Run, toy: Run, scans: Path, tmp_path: Path) -> None:
    import torch

    layer = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 1, "kernel_size": 1}
    root = zoo.write(tmp_path / "same", "enhancer", network_def=layer)
    torch.save({"weight": torch.ones(1, 1, 1, 1, 1), "bias": torch.zeros(1)}, root / "models" / "model.pt")
    made = toy("run", "bundle", "--bundle", root, "--trust", *scans.iterdir(), "-o", tmp_path / "out")
    assert made.code == 0, made.err
    done = robust(root, scans, "--reference", tmp_path / "out/{id}_T1w_pred.nii.gz", "--json", "--shifts", "noise")
    assert done.code == 0, done.err
    found = rows(done)
    assert found["none", 0]["ssim"] == pytest.approx(1, abs=1e-3)
    assert found["noise", 0.03]["ssim"] > found["noise", 0.2]["ssim"]
    assert found["noise", 0.03]["psnr_db"] > found["noise", 0.2]["psnr_db"]


def test_one_bad_case_does_not_stop_the_others(robust: Run, threshold: Path, scans: Path, tmp_path: Path) -> None:
    (scans / "s2_T1w.nii.gz").write_bytes(b"torn")
    make_image(scans / "s3_T1w.nii.gz", (20, 18, 14), (3.0, 3.5, 5.0))
    make_image(tmp_path / "labels/s2_labels.nii.gz", (20, 18, 14), (3.0, 3.5, 5.0))
    done = robust(threshold, scans, tmp_path / "labels", "--json", "--shifts", "bias")
    assert done.code == 1
    assert "s2_T1w.nii.gz: " in done.err
    assert "s3_T1w.nii.gz: no reference" in done.err
    assert {row["n"] for row in rows(done).values()} == {2}
    assert len(json.loads(done.out)["failed"]) == 1


def test_a_class_that_the_bundle_does_not_know(robust: Run, halves: Path, pictures: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text(truth.read_text().replace("p03,thing 1", "p03,something else"))
    done = robust(halves, pictures, truth, "--json", "--shifts", "fgsm")
    assert done.code == 1
    assert "p03.png: class 'something else': expected one of thing 0, thing 1" in done.err
    assert {row["n"] for row in rows(done).values()} == {11}


def test_a_signal_leaves_nothing(
    robust: Run, threshold: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    seen = []

    def stopped(self: FileCorrupter, *arguments: object) -> None:
        seen.extend((tmp_path / "temporary").iterdir())
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FileCorrupter, "corrupted", stopped)
    done = robust(threshold, scans, tmp_path / "labels", "--csv", tmp_path / "falls.csv")
    assert (done.code, done.out) == (75, "")
    assert "stopped by SIGTERM" in done.err
    assert seen
    assert not [p for p in seen if p.exists()]
    assert not (tmp_path / "falls.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--shifts", "fgsm"], 2, "--shifts fgsm: expected some of noise, blur"),
        (["--shifts", "fog"], 2, "--shifts fog"),
        (["--kind", "images"], 2, "the results of the bundle are labels"),
        (["--data-range", "2"], 2, "--data-range"),
        (["--mask", "x"], 2, "--mask"),
    ],
)
def test_usage(
    robust: Run, threshold: Path, scans: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    done = robust(threshold, scans, tmp_path / "labels", *arguments)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_it_takes_a_bundle(toy: Run, scans: Path, tmp_path: Path) -> None:
    done = toy("evaluate", "--robustness", scans, tmp_path / "labels")
    assert done.code == 2
    assert "--bundle" in done.err
    done = toy("evaluate", "--robustness", "--bundle", zoo.write(tmp_path / "b", "enhancer"), scans, scans)
    assert done.code == 2
    assert "--trust" in done.err


# ---- shifts


def volume(dtype: str = "float32") -> np.ndarray:
    rng = np.random.default_rng(0)
    image = rng.normal(100, 10, (2, 24, 20, 12))
    image[:, 6:18, 5:15, 3:9] += 300
    return image.astype(dtype)


@pytest.mark.parametrize("name", OF_FILES)
@pytest.mark.parametrize("shape", ["volume", "plane"])
def test_shifts_grow_and_repeat(name: str, shape: str) -> None:
    image = volume() if shape == "volume" else volume()[:1, :, :, 5:6]
    corruption, spacing = CORRUPTIONS[name], np.array([1.0, 1.0, 2.0])
    changes = []
    for strength in corruption.strengths:
        bad = corrupted(corruption, strength, image, spacing, seed=4)
        assert bad.shape == image.shape
        assert bad.dtype == image.dtype
        assert np.isfinite(bad).all()
        for channel in range(len(image)):
            assert bad[channel].min() >= image[channel].min()
        np.testing.assert_array_equal(corrupted(corruption, strength, image, spacing, seed=4), bad)
        changes.append(float(np.abs(bad - image).mean()))
    assert 0 < changes[0] < changes[1] < changes[2]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16"])
@pytest.mark.parametrize("name", OF_FILES)
def test_whole_numbers_stay_whole(name: str, dtype: str) -> None:
    limits = np.iinfo(dtype)
    image = volume().clip(limits.min, 255).astype(dtype)
    image[0, 0, 0, 0], image[0, 1, 1, 1] = limits.min, limits.max
    bad = corrupted(CORRUPTIONS[name], CORRUPTIONS[name].strengths[-1], image, np.ones(3), seed=0)
    assert bad.dtype == image.dtype
    assert (bad != image).any()


def test_noise_is_as_strong_as_it_says() -> None:
    image = np.broadcast_to(np.linspace(0, 1000, 50)[:, None, None], (50, 40, 30))[None].astype(np.float32)
    bad = corrupted(CORRUPTIONS["noise"], 0.1, image, np.ones(3), seed=1)
    inner = (bad - image)[:, 20:]  # where nothing was cut off
    assert inner.std() == pytest.approx(0.1 * 0.98 * 1000, rel=0.03)


def test_coarse_axes_are_not_coarsened_further() -> None:
    rng = np.random.default_rng(0)
    along = np.zeros((1, 16, 16, 8), np.float32) + rng.normal(size=8).astype(np.float32)  # varies along k alone
    kept = corrupted(CORRUPTIONS["resolution"], 2.0, along, np.array([1.0, 1.0, 4.0]), seed=0)
    np.testing.assert_allclose(kept, along, atol=1e-5)
    changed = corrupted(CORRUPTIONS["resolution"], 2.0, along, np.array([1.0, 1.0, 1.0]), seed=0)
    assert np.abs(changed - along).max() > 0.1


def test_the_bias_field_is_smooth_and_positive() -> None:
    flat = np.full((1, 30, 30, 30), 500.0, np.float32)
    flat[0, 0, 0, 0] = 0
    field = corrupted(CORRUPTIONS["bias"], 0.3, flat, np.ones(3), seed=2)[0, 1:, 1:, 1:] / 500
    assert field.min() > 0
    assert np.log(field).std() == pytest.approx(0.3, rel=0.1)
    assert np.corrcoef(np.log(field[1:]).ravel(), np.log(field[:-1]).ravel())[0, 1] > 0.95


# ---- files


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "jpg"])
def test_pictures_keep_their_form(tmp_path: Path, mode: str) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    values = {
        "L": rng.integers(0, 255, (20, 30), np.uint8),
        "RGB": rng.integers(0, 255, (20, 30, 3), np.uint8),
        "I;16": rng.integers(0, 40000, (20, 30), np.uint16),
    }.get(mode, np.full((20, 30), 90, np.uint8))
    path = tmp_path / ("p.jpg" if mode == "jpg" else "p.png")
    Image.fromarray(values).save(path)
    channels = read_channels(path)
    assert channels.data.shape == (3 if mode == "RGB" else 1, 20, 30, 1)
    target = tmp_path / f"again{channels.suffix}"
    channels.write(channels.data, target)
    np.testing.assert_array_equal(np.asarray(Image.open(target)), np.asarray(Image.open(path)))


def test_volumes_keep_their_grid(tmp_path: Path) -> None:
    path = make_image(tmp_path / "a.nii.gz", (12, 10, 8), (2.0, 3.0, 4.0), orientation="LPI", oblique_degrees=10.0)
    channels = read_channels(path)
    channels.write(channels.data, tmp_path / "b.nii")
    ours, theirs = nib.load(tmp_path / "b.nii"), nib.load(path)
    np.testing.assert_array_equal(np.asanyarray(ours.dataobj), np.asanyarray(theirs.dataobj))
    np.testing.assert_allclose(ours.affine, theirs.affine)


def test_all_images_of_a_case_are_corrupted_and_labels_are_not(tmp_path: Path) -> None:
    from medkit.bundles.bundle import Bundle
    from medkit.bundles.contract import contract_of

    brats = contract_of(Bundle(zoo.write(tmp_path / "b", "brats_mri_segmentation"), "b"))
    paths = {name: make_image(tmp_path / f"{name}.nii.gz", (8, 8, 8), (2.0, 2.0, 2.0)) for name in ("t1c", "t1", "t2")}
    record = Record(paths["t1c"], inputs={"t1": paths["t1"], "t2": paths["t2"]})
    files = files_of_case(record, brats)
    assert list(files) == ["image", "t1", "t2"]
    files["label"] = tmp_path / "label.nii.gz"
    (tmp_path / "corrupted").mkdir()
    corrupter = FileCorrupter(tmp_path / "corrupted", seed=0)
    corrupter.read(files)
    bad = corrupter.corrupted(files, CORRUPTIONS["noise"], 0.1)
    assert bad["label"] == files["label"]
    noise = [np.asanyarray(nib.load(bad[r]).dataobj) - nib.load(files[r]).get_fdata() for r in ("image", "t1", "t2")]
    assert len({round(float(n.mean()), 6) for n in noise}) == 3, "each has noise of its own"
    assert [p.name for p in (bad["image"], bad["t1"])] == ["t1c.nii", "t1.nii"]


def test_a_folder_gives_what_the_bundle_takes(tmp_path: Path) -> None:
    from medkit.commands.evaluate.robustness import _in_folder

    image, mask = (make_image(tmp_path / name, (8, 8, 8), (2.0, 2.0, 2.0)) for name in ("a.nii.gz", "a_mask.nii.gz"))
    assert [record.path for record in _in_folder(Record(tmp_path), "images")] == [image]
    assert [record.path for record in _in_folder(Record(tmp_path), "labels")] == [mask]


def test_which_shifts_there_are() -> None:
    assert [corruption.name for corruption in corruptions_for("classes")] == list(CORRUPTIONS)
    assert [corruption.name for corruption in corruptions_for("labels")] == OF_FILES
    assert [corruption.name for corruption in corruptions_for("labels", ["blur", "bias"])] == ["blur", "bias"]
