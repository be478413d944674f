"""A classifier in one file answers what its bundle answers, or refuses."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from brightness import picture, write_bundle
from outcome import Outcome
from PIL import Image as Picture

pytestmark = pytest.mark.usefixtures("clean_path")

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("b") / "toy")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """A dark one, a bright one, and noise, which is unlike those of the training."""
    Picture.fromarray(np.random.default_rng(0).integers(0, 255, (12, 12)).astype(np.uint8)).save(tmp_path / "noise.png")
    return [picture(tmp_path / "dark.png", 0.3), picture(tmp_path / "bright.png", 0.7), tmp_path / "noise.png"]


def classify(medkit: Run, bundle: Path | str, images: list[Path], folder: Path, *more: object) -> Outcome:
    how = ("--bundle", bundle, "--trust", "--precision", "float32", *more)
    return medkit("run", "classify", *how, *images, "--table", folder / "all.tsv")


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a table, without the name of the bundle."""
    with open(folder / "all.tsv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "bundle"} for row in csv.DictReader(file, delimiter="\t")]


@pytest.mark.parametrize("suffix", ["ts", "pt2"])
def test_the_same_answers(medkit: Run, root: Path, images: list[Path], tmp_path: Path, suffix: str) -> None:
    """Classes, confidences, distances, and images without a class; also when the file is installed."""
    one = tmp_path / f"one.{suffix}"
    for folder in "abc":
        (tmp_path / folder).mkdir()
    exported = medkit("bundle", "export", root, "--trust", "-o", one)
    own = classify(medkit, root, images, tmp_path / "a")
    done = classify(medkit, one, images, tmp_path / "b")
    assert (exported.code, own.code, done.code) == (0, 0, 0), exported.err + own.err + done.err
    expected = rows(tmp_path / "a")
    assert [row["class"] for row in expected] == ["dark", "bright", "n/a"]
    assert expected[2]["reason"].startswith("unlike the training images")
    assert expected[0]["confidence"] not in ("n/a", expected[0]["probability"])
    assert rows(tmp_path / "b") == expected

    assert medkit("bundle", "install", one, "--trust").code == 0
    installed = classify(medkit, "one", images, tmp_path / "c")
    assert installed.code == 0, installed.err
    assert rows(tmp_path / "c") == expected
    assert medkit("bundle", "audit", one).code == 0


def test_what_looks_into_the_network(medkit: Run, root: Path, images: list[Path], tmp_path: Path) -> None:
    assert medkit("bundle", "export", root, "--trust", "-o", tmp_path / "one.ts").code == 0
    how = ("--bundle", tmp_path / "one.ts", "--trust", "--explain", "gradcam", "--save-features")
    done = medkit("run", "classify", *how, images[1], "-o", tmp_path / "o")
    assert done.code == 0, done.err
    with np.load(tmp_path / "o/bright_features.npz") as features:
        assert features["features"].shape == (1, 2)


def test_a_calibration_of_other_weights_stays_unused(
    medkit: Run, root: Path, images: list[Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(root, other)
    metadata = json.loads((other / "configs/metadata.json").read_text())
    metadata["medkit"]["calibration"]["weights_sha256"] = "0" * 64
    (other / "configs/metadata.json").write_text(json.dumps(metadata))
    assert medkit("bundle", "export", other, "--trust", "-o", tmp_path / "one.ts").code == 0
    done = medkit("run", "classify", "--bundle", tmp_path / "one.ts", "--trust", images[0], "--json", "-o", tmp_path)
    assert done.code == 0, done.err
    assert "other weights" in done.records[0]["medkit"]["note"]


def test_files_without_the_calibration_are_refused(medkit: Run, root: Path, images: list[Path], tmp_path: Path) -> None:
    """Such as those of MONAI's own export; `run bundle` runs them."""
    assert medkit("bundle", "export", root, "--trust", "-o", tmp_path / "one.ts").code == 0
    with zipfile.ZipFile(tmp_path / "one.ts") as whole, zipfile.ZipFile(tmp_path / "less.ts", "w") as less:
        for info in whole.infolist():
            if "calibration" not in info.filename:
                less.writestr(info, whole.read(info))
    done = classify(medkit, tmp_path / "less.ts", images, tmp_path)
    assert done.code == 1
    assert "its calibration did not come with it" in done.err
    assert rows(tmp_path) == []
    plain = medkit("run", "bundle", "--bundle", tmp_path / "less.ts", "--trust", images[0], "-o", tmp_path / "o")
    assert plain.code == 0, plain.err


def test_a_calibration_that_is_damaged(medkit: Run, root: Path, images: list[Path], tmp_path: Path) -> None:
    assert medkit("bundle", "export", root, "--trust", "-o", tmp_path / "one.ts").code == 0
    with zipfile.ZipFile(tmp_path / "one.ts") as whole, zipfile.ZipFile(tmp_path / "torn.ts", "w") as torn:
        for info in whole.infolist():
            torn.writestr(info, b"?" if "calibration" in info.filename else whole.read(info))
    done = classify(medkit, tmp_path / "torn.ts", images, tmp_path)
    assert done.code != 0
    assert "models/calibration.pt.base64 cannot be read" in done.err


def test_a_network_in_onnx_shows_no_layers(medkit: Run, root: Path, images: list[Path], tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'medkit[onnx]'")
    plain = write_bundle(tmp_path / "plain", calibrated=False)
    for name, bundle in (("one", root), ("two", plain)):
        assert medkit("bundle", "export", bundle, "--trust", "-o", tmp_path / f"{name}.onnx").code == 0
    refused = classify(medkit, tmp_path / "one.onnx", images, tmp_path)
    assert refused.code == 1
    assert "in ONNX does not show: use one in TorchScript or torch.export" in refused.err
    done = classify(medkit, tmp_path / "two.onnx", images, tmp_path / "o")
    assert done.code == 0, done.err
    assert [row["class"] for row in rows(tmp_path / "o")] == ["dark", "bright", "bright"]
