"""`medkit bundle new`: of an architecture, or of a bundle; what is made trains, is tested, runs and verifies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from tiny import write_bundle
from train_command import call as call_medkit
from train_command import undone

from medkit.bundles.safety.trust import is_trusted
from medkit.bundles.verify import FAILED, bundle_problems, verify_bundle
from medkit.training.creation.architectures import ARCHITECTURES

Call = Callable[..., int]


@pytest.fixture
def call(clean_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """Runs medkit in this process, in a folder of its own; gives the exit code."""
    monkeypatch.chdir(tmp_path)
    with undone():
        yield call_medkit


def metadata(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "configs" / "metadata.json").read_text())
    return found


def config(root: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "configs" / f"{name}.json").read_text())
    return found


def write_scan(folder: Path, name: str, seed: int) -> dict[str, str]:
    """Write an image with a bright ball of a place of its own, and its label."""
    generator = np.random.default_rng(seed)
    centre = generator.uniform(8, 16, 3)
    distance = np.linalg.norm(np.indices((24, 22, 20)) - centre[:, None, None, None], axis=0)
    label = (distance < 6).astype(np.uint8)
    image = (label + generator.normal(scale=0.2, size=label.shape) + 2).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(image, affine), folder / f"{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(label, affine), folder / f"{name}_ball.nii.gz")
    return {"image": f"{name}.nii.gz", "label": f"{name}_ball.nii.gz"}


def test_what_is_made_trains_is_tested_runs_and_verifies(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    items = [write_scan(data, f"scan{n}", n) for n in range(5)]
    listing = {"training": items[:2], "validation": items[2:3], "test": items[3:]}
    (data / "dataset.json").write_text(json.dumps(listing))
    made = ("--from", "attentionunet", "--classes", "ball", "--patch", 16, "--spacing", 2)
    assert call("bundle", "new", "balls", *made) == 0
    root = tmp_path / "balls"
    assert capsys.readouterr().out == f"{root}\n"
    assert list(bundle_problems(root)) == []
    assert call("run", "bundle", data / "scan0.nii.gz", "--bundle", root) == 4, "it has no weights"
    learn = ("--data", data, "--steps", 12, "--set", "epoch_length=12", "--set", "learning_rate=0.01", "--threads", 1)
    assert call("train", "segment", "--bundle", root, "-o", tmp_path / "trained", *learn) == 0
    found = metadata(tmp_path / "trained")
    test = found["medkit"]["training"]["test"]
    assert (test["items"], test["subjects"], test["failed"]) == (2, 2, [])
    assert test["by"] == "`medkit run segment` and `medkit evaluate`"
    assert 0 <= test["summary"]["dice"]["value"] <= 1
    assert set(test["by_label"]) == {"ball"}
    assert found["eval_metrics"]["test_dice"] == test["summary"]["dice"]["value"]
    card = (tmp_path / "trained" / "docs" / "README.md").read_text()
    assert "## Test\n\n2 items of 2 subjects, held out" in card
    assert "| ball | 0." in card
    assert is_trusted(tmp_path / "trained"), "the test has changed its metadata, and medkit made it"
    checks = list(verify_bundle(tmp_path / "trained"))
    assert [(check.name, check.messages) for check in checks if check.status == FAILED] == []
    assert {check.name for check in checks if check.status == "ok"} >= {"weights", "case", "in_out", "export"}


SMALLEST = {
    "unet": (16, 16, 32), "dynunet": (16, 32, 16), "segresnet": (8, 8, 8), "attentionunet": (16, 8, 8),
    "basicunet": (16, 16, 32),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_smallest_patch_that_is_allowed_can_be_trained(call: Call, tmp_path: Path, name: str) -> None:
    """Smaller ones are refused, see `test_wrong_wishes`."""
    data = tmp_path / "data"
    data.mkdir()
    items = [write_scan(data, f"scan{n}", n) for n in range(3)]
    (data / "dataset.json").write_text(json.dumps({"training": items[:2], "validation": items[2:]}))
    patch = ",".join(map(str, SMALLEST[name]))
    made = ("--from", name, "--classes", "ball", "--patch", patch, "--spacing", 2)
    assert call("bundle", "new", "balls", *made) == 0
    learn = ("train", "segment", "--bundle", tmp_path / "balls", "--data", data, "--set", "epoch_length=2",
             "--threads", 1, "--no-check")  # fmt: skip
    assert call(*learn, "--steps", 2, "-o", tmp_path / "trained") == 0
    assert metadata(tmp_path / "trained")["medkit"]["training"]["steps"] == 2


@pytest.mark.parametrize(("name", "patch"), [("unet", 16), ("attentionunet", 8)])
def test_a_training_says_that_its_patches_are_too_small(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, patch: int
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    items = [write_scan(data, f"scan{n}", n) for n in range(3)]
    (data / "dataset.json").write_text(json.dumps({"training": items[:2], "validation": items[2:]}))
    assert call("bundle", "new", "balls", "--from", name, "--classes", "ball", "--patch", 32, "--spacing", 2) == 0
    capsys.readouterr()
    learn = ("--set", f"patch_size=[{patch}, {patch}, {patch}]", "--threads", 1)
    train = ("train", "segment", "--bundle", tmp_path / "balls", "--data", data, "--no-check", *learn)
    assert call(*train, "--steps", 2, "-o", tmp_path / "trained") == 1
    said = capsys.readouterr().err
    network = ARCHITECTURES[name].node(1, 2)["_target_"]
    assert f"{patch} x {patch} x {patch} voxels are too small to train {network}" in said
    assert "1 x 1 x 1 is left" in said
    assert "Expected more than 1" not in said


def test_an_architecture_has_what_was_asked_for(call: Call, tmp_path: Path) -> None:
    wanted = ("--classes", "liver, tumour", "--channels", "native,contrast", "--modality", "CT", "--spacing", "1,1,3")
    assert call("bundle", "new", "two", "--from", "DynUNet", *wanted, "--patch", 32, "-o", "there/two") == 0
    root = tmp_path / "there" / "two"
    inference, train = config(root, "inference"), config(root, "train")
    assert inference["network_def"] == train["network_def"]
    assert (inference["network_def"]["in_channels"], inference["classes"]) == (2, 3)
    assert inference["spacing"] == [1, 1, 3]
    steps = [step["_target_"] for step in inference["preprocessing"]["transforms"]]
    assert "ScaleIntensityRanged" in steps
    found = metadata(root)
    assert found["medkit"] == {"task": "segment", "modality": "CT", "labels": {"1": "liver", "2": "tumour"}}
    assert found["authors"] == "not stated"


def test_of_a_bundle_neither_weights_nor_claims_remain(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_bundle(tmp_path / "halves")
    (base / "models" / "model.pt").write_bytes(b"weights")
    (base / "docs" / "curve.png").write_bytes(b"curve")
    assert call("bundle", "new", "mine", "--from", base) == 2, "its code is not trusted"
    assert not (tmp_path / "mine").exists()
    assert call("bundle", "new", "mine", "--from", base, "--trust") == 0
    root = tmp_path / "mine"
    assert config(root, "train") == config(base, "train")
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()) == [
        "LICENSE", "configs/inference.json", "configs/metadata.json", "configs/train.json", "docs/README.md",
        "docs/base_README.md", "docs/base_data_license.txt",
    ]  # fmt: skip
    found = metadata(root)
    own = json.dumps({key: value for key, value in found.items() if key != "medkit"})
    assert "telling two halves apart" not in own
    assert found["medkit"]["base"]["stated"]["task"] == "telling two halves apart"
    assert "Written by its authors" not in (root / "docs" / "README.md").read_text()
    capsys.readouterr()
    assert call("bundle", "new", "mine", "--from", base) == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert call("bundle", "new", "mine", "--from", base, "--overwrite") == 0
    assert call("bundle", "new", "x", "--from", base, "-o", tmp_path / "halves" / "docs") == 1
    assert (tmp_path / "halves" / "docs" / "README.md").exists()


def test_other_classes_of_a_segmentation(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("bundle", "new", "tissues", "--from", "infant_mri_segmentation", "--classes", "wm,gm,csf") == 0
    error = capsys.readouterr().err
    assert "label_values is now 0 to 3" in error
    assert "mirrored_channels, a number for each class" in error
    root = tmp_path / "tissues"
    for name in ("train", "inference"):
        content = config(root, name)
        assert (content["classes"], content["label_values"]) == (4, [0, 1, 2, 3])
    found = metadata(root)
    made = found["network_data_format"]["outputs"]["pred"]
    assert made["num_channels"] == 4
    assert made["channel_def"] == {"0": "background", "1": "wm", "2": "gm", "3": "csf"}
    assert found["medkit"]["labels"] == {"1": "wm", "2": "gm", "3": "csf"}
    assert not {"codes", "volumes_mm3", "trust"} & set(found["medkit"])
    assert list(bundle_problems(root)) == []


def test_other_classes_of_a_classifier(call: Call, tmp_path: Path) -> None:
    assert call("bundle", "new", "pets", "--from", "chest_xray_classification", "--classes", "cat,dog,bee") == 0
    assert config(tmp_path / "pets", "train")["class_names"] == ["cat", "dog", "bee"]
    assert config(tmp_path / "pets", "inference")["class_names"] == ["cat", "dog", "bee"]
    made = metadata(tmp_path / "pets")["network_data_format"]["outputs"]["pred"]
    assert list(made["channel_def"].values()) == ["cat", "dog", "bee"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--from", "unett", "--classes", "a"], 2, "unet"),
        (["--from", "unet"], 2, "--classes is needed"),
        (["--from", "unet", "--classes", "a,a"], 2, "different names"),
        (["--from", "unet", "--classes", "a", "--patch", "40"], 2, "multiples of 16"),
        (["--from", "unet", "--classes", "a", "--patch", "8.5"], 2, "whole numbers"),
        (["--from", "unet", "--classes", "a", "--patch", "16"], 2, "the smallest patch is 16 x 16 x 32"),
        (["--from", "dynunet", "--classes", "a", "--patch", "16"], 2, "the smallest patch is 16 x 16 x 32"),
        (["--from", "basicunet", "--classes", "a", "--patch", "16,16,16"], 2, "16 x 16 x 16 voxels become 1"),
        (["--from", "attentionunet", "--classes", "a", "--patch", "8"], 2, "the smallest patch is 8 x 8 x 16"),
        (["--from", "segresnet", "--classes", "a", "--patch", "4"], 2, "multiples of 8"),
        (["--from", "unet", "--classes", "a", "--spacing", "1,2"], 2, "one or three"),
        (["--from", "infant_mri_segmentation", "--patch", "32"], 2, "has its own"),
        (["--from", "lowfield_to_highfield"], 1, "has no config train"),
    ],
)
def test_wrong_wishes(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    assert call("bundle", "new", "it", *words) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
