"""What medkit writes names nobody by the headers of its inputs: see docs/privacy.md."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import planted
import pytest
import tiny
from chests import Chest
from nibabel import load

Run = Callable[..., "Outcome"]  # noqa: F821
RNG = np.random.default_rng(0)


def head() -> np.ndarray:
    """(I, J, K) int16: something bright with noise on dark ground."""
    i, j, k = np.mgrid[:18, :20, :12] - np.array([9, 10, 6])[:, None, None, None]
    inside = (i / 7) ** 2 + (j / 8) ** 2 + (k / 5) ** 2 < 1
    return (700.0 * inside + RNG.normal(0, 30, inside.shape)).clip(0).astype(np.int16)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with planted files of all formats."""
    folder = tmp_path_factory.mktemp("scans")
    voxels = head()
    planted.nifti(folder / "a.nii.gz", voxels)
    planted.nifti(folder / "b.nii", voxels)
    planted.mgh(folder / "c.mgz", voxels)
    planted.nrrd(folder / "d.nrrd", voxels)
    planted.metaimage(folder / "e.mha", voxels)
    planted.dicom_series(folder / "f", voxels, "MR")
    planted.picture(folder / "g.png", RNG.integers(60, 200, (40, 48)).astype(np.uint8))
    planted.picture(folder / "h.jpg", RNG.integers(60, 200, (40, 48)).astype(np.uint8))
    labels = (voxels > 400).astype(np.int16)
    planted.nifti(folder / "labels_dseg.nii.gz", labels)
    planted.nifti(folder / "others_dseg.nii.gz", np.roll(labels, 1, 0))
    Chest(spacing=(5.0, 5.0, 10.0)).write(folder / "chest.nii.gz")
    chest = np.asarray(load(folder / "chest.nii.gz").dataobj)
    planted.dicom_series(folder / "chest", chest[:, ::-1, :])
    (folder / "chest.nii.gz").unlink()
    assert planted.found_in(folder / "f", folder / "a.nii.gz", folder / "g.png")
    return folder


IMAGES = ("a.nii.gz", "b.nii", "c.mgz", "d.nrrd", "e.mha", "f")
COMMANDS = {
    "enhance": ("run", "enhance", "--method", "nlm", "--what", "denoise", *IMAGES),
    "enhance a picture": ("run", "enhance", "--method", "clahe", "--what", "contrast", "g.png", "h.jpg"),
    "segment": ("run", "segment", "--method", "threshold", "chest"),
    "contours": ("run", "contours", "labels_dseg.nii.gz"),
    "register": ("run", "register", "--type", "rigid", "--fixed", "a.nii.gz", "f"),
    "transform a grid": ("transform", "apply", "d.nrrd", "f", "--reference", "a.nii.gz"),
}
"""What is run -> its words; all take the options of tasks."""


TECHNICAL = (
    *("Manufacturer", "ManufacturersModelName", "SoftwareVersions", "SequenceName", "PulseSequenceName"),
    *("ConvolutionKernel", "AttenuationCorrectionMethod", "ReconstructionMethod", "Radiopharmaceutical"),
)
"""Keys of `medkit dicom convert` whose words are the scanner's."""


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_tasks_write_no_planted_text(
    medkit: Run, scans: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(scans)
    options = ["-o", tmp_path / "out", "--records", tmp_path / "records", "--json", "-v"]
    if words[1] not in ("contours",):
        options += ["--qc", tmp_path / "qc"]
    if words[0] == "transform":
        options += ["--transform", _identity(tmp_path)]
    done = medkit(*words, *options)
    assert done.code == 0, done.err
    assert len(done.lines) >= 1
    results = [Path(record["path"]) for record in done.records]
    shown = "".join(medkit("show", path).out for path in results)
    page = medkit("report", tmp_path / "records", "-o", tmp_path / "page.html", "--csv", tmp_path / "all.csv")
    assert page.code == 0, page.err
    assert planted.found_in(done.out, done.err, shown, page.out, page.err, tmp_path, home) == []


def _identity(folder: Path) -> Path:
    path = folder / "identity.tfm"
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0\n"
    )
    return path


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "labels_dseg.nii.gz", "others_dseg.nii.gz", "--json"),
        ("evaluate", "a.nii.gz", "e.mha"),
        ("run", "segment", "f", "--dry-run"),
        ("dicom", "list", "."),
        ("dicom", "list", ".", "--json"),
    ],
    ids=" ".join,
)
def test_other_commands_print_no_planted_text(
    medkit: Run, scans: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    copy = Path(shutil.copytree(scans, tmp_path / "scans"))
    monkeypatch.chdir(copy)
    before = set(copy.rglob("*"))
    done = medkit(*words)
    assert done.out or done.err
    assert planted.found_in(done.out, done.err, home) == []
    assert planted.found_in(*(set(copy.rglob("*")) - before)) == []


def test_converted_series_have_technical_words_only(medkit: Run, scans: Path, tmp_path: Path) -> None:
    done = medkit("dicom", "convert", scans / "f", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    (sidecar,) = (tmp_path / "out").rglob("*_MR.json")
    data = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({key: value for key, value in data.items() if key not in TECHNICAL}))
    assert planted.found_in(done.out, done.err, tmp_path / "out") == []


def test_errors_print_no_planted_text(medkit: Run, scans: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    planted.dicom_series(mixed, head()[:, :, :3], "MR")
    planted.dicom_series(tmp_path / "other", head()[:, :, :2], "MR", SeriesNumber=4)
    for number, path in enumerate((tmp_path / "other").iterdir()):
        path.rename(mixed / f"9{number}.dcm")
    torn = tmp_path / "torn.dcm"
    torn.write_bytes((scans / "f" / "000.dcm").read_bytes()[:-300])
    short = tmp_path / "short.nrrd"
    short.write_bytes((scans / "d.nrrd").read_bytes()[:600])
    done = medkit("run", "enhance", "--method", "nlm", mixed, torn, short, "-o", tmp_path / "out", "-v")
    assert done.code in (1, 3)
    assert planted.found_in(done.out, done.err) == []


def test_training_writes_no_planted_text(
    medkit: Run, scans: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data = tmp_path / "bundle", tmp_path / "data"
    tiny.write_bundle(bundle)
    data.mkdir()
    for start, name in enumerate("abcd", start=5):
        labels = np.zeros((16, 16, 16), np.uint8)
        labels[..., start:] = 1
        planted.nifti(data / f"{name}.nii.gz", labels, np.eye(4))
    done = medkit(
        *("train", "halves", "--bundle", bundle, "--trust", "--data", data, "-o", tmp_path / "new"),
        *("--device", "cpu", "--steps", "4"),
    )
    assert done.code == 0, done.err
    assert planted.found_in(done.out, done.err, tmp_path / "new", home) == []
    assert json.loads((tmp_path / "new" / "configs" / "metadata.json").read_text())
