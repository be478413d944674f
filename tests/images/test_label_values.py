"""Labels in files of floats and of scaled integers: the numbers stay, or the file is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medkit.errors import InputError
from medkit.images.image import read_image

sitk = pytest.importorskip("SimpleITK")

ALLEN = (0, 997, 614454277, 614454280)
"""Numbers of the Allen atlas; float32 holds the last two as one."""


def numbers(values: tuple[float, ...]) -> np.ndarray:
    return np.random.default_rng(0).choice(np.array(values, np.float64), (12, 13, 14))


def saved(path: Path, voxels: np.ndarray, slope: float = 1, intercept: float = 0) -> Path:
    """A NIfTI file with these stored voxels and this scaling."""
    image = nibabel.Nifti1Image(voxels, np.diag([6.0, 6, 6, 1]))
    image.to_filename(path)
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_large_labels_in_doubles_stay_apart(tmp_path: Path, suffix: str) -> None:
    voxels, path = numbers(ALLEN), tmp_path / f"x{suffix}"
    if suffix == ".nii":
        saved(path, voxels)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(voxels.T)), str(path))
    labels = read_image(path, labels=True)
    assert labels.data.dtype == labels.dtype == np.uint32
    np.testing.assert_array_equal(labels.data[0], voxels)
    image = read_image(path)
    assert image.data.dtype == image.dtype == np.float32


def test_large_labels_in_scaled_integers_stay_apart(tmp_path: Path) -> None:
    stored = (numbers(ALLEN) - 1).astype(np.int32)
    labels = read_image(saved(tmp_path / "x.nii", stored, 1, 1), labels=True)
    np.testing.assert_array_equal(labels.data[0], stored.astype(np.int64) + 1)


def test_large_labels_in_single_floats_are_warned_of(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.nii", numbers(ALLEN).astype(np.float32))
    assert any("may have been rounded" in text for text in read_image(path, labels=True).warnings)
    small = saved(tmp_path / "y.nii", numbers((0, 997)).astype(np.float32))
    assert not any("rounded" in text for text in read_image(small, labels=True).warnings)


@pytest.mark.parametrize("kind", [np.uint8, np.int16])
def test_labels_scaled_by_nibabel_are_the_whole_numbers_next_to_them(tmp_path: Path, kind: type) -> None:
    voxels = numbers((0, 2, 12, 47))
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    image.set_data_dtype(kind)
    image.to_filename(tmp_path / "x.nii")
    assert (nibabel.load(tmp_path / "x.nii").get_fdata() != voxels).any()
    labels = read_image(tmp_path / "x.nii", labels=True)
    np.testing.assert_array_equal(labels.data[0], voxels)
    assert labels.data.dtype == np.uint8
    assert any("stored with a scaling" in text for text in labels.warnings)


@pytest.mark.parametrize(
    ("values", "kind", "slope"),
    [
        ((0, 1.0002, 2), np.float32, 1),  # nothing tells by how much the numbers may be wrong
        ((0, 128, 255), np.uint8, 1 / 255),  # probabilities
        ((0, 1, 2), np.int16, 0.5),
        ((0, 1, 3), np.int16, 1.5),  # labels that the scaling may have merged
    ],
)
def test_fractions_are_not_labels(tmp_path: Path, values: tuple[float, ...], kind: type, slope: float) -> None:
    path = saved(tmp_path / "x.nii", numbers(values).astype(kind), slope)
    with pytest.raises(InputError, match=r"x.nii: expected labels \(whole numbers\), got fractions such as \d"):
        read_image(path, labels=True)
