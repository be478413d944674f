"""Volumes of a page: the same places and values, also in the smaller forms."""

from __future__ import annotations

import base64
import gzip
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medkit.images.image import Image
from medkit.space import Grid, apply_affine
from medkit.viewer.layers import Layers
from medkit.viewer.volumes import embedded

HUGE = 10**9


def oblique(shape: tuple[int, int, int]) -> Grid:
    """A flipped, rotated grid of voxels of 0.7 x 0.7 x 1.4 mm."""
    angle = 0.3
    rotation = np.array([[-np.cos(angle), np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([0.7, 0.7, 1.4])
    affine[:3, 3] = (11, -20, 5)
    return Grid(shape, affine)


def opened(entry: dict[str, Any]) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(entry["content"])))


def positions(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return apply_affine(affine, np.argwhere(np.ones(shape)).astype(float)).reshape(*shape, 3)


@pytest.fixture
def ramp() -> Image:
    """An image whose values are a linear function of the place: 10 times the first coordinate in mm."""
    grid = oblique((36, 40, 20))
    return Image(10 * positions(grid.affine, grid.shape)[..., 0][None].astype(np.float32), grid)


@pytest.fixture
def labels() -> Image:
    grid = oblique((36, 40, 20))
    data = np.zeros(grid.shape, np.int32)
    data[4:16, 5:20, 3:12] = 3
    data[16:30, 5:20, 3:12] = 2035
    return Image(data[None], grid)


def test_whole_numbers_stay_as_they_are(ramp: Image) -> None:
    image = ramp.with_data(np.rint(ramp.data).astype(np.int32))
    (volume,) = embedded(Layers(image), HUGE, HUGE)["volumes"]  # type: ignore[index]
    found = opened(volume)
    assert found.get_data_dtype() == np.int16
    assert np.array_equal(np.asarray(found.dataobj), image.data[0])
    assert np.allclose(found.affine, image.grid.affine, atol=1e-5)


def test_fractions_are_kept_to_16_bits(ramp: Image) -> None:
    (volume,) = embedded(Layers(ramp), HUGE, HUGE)["volumes"]  # type: ignore[index]
    step = np.ptp(ramp.data) / 65535
    assert np.abs(opened(volume).get_fdata() - ramp.data[0]).max() < 0.51 * step


def test_coarser_voxels_keep_places_and_values(ramp: Image) -> None:
    """A linear function averaged over a voxel is the function at its middle."""
    found = embedded(Layers(ramp), 0, HUGE)
    assert found is not None
    assert found["note"] == "values in 256 levels, voxels of 2 x 2 x 1 averaged"  # 3 would leave too few
    coarse = opened(found["volumes"][0])
    assert coarse.shape[2] == 20  # slices that are thick already stay
    assert coarse.shape[0] < 36
    expected = 10 * positions(coarse.affine, coarse.shape)[..., 0]
    inside = (expected > np.percentile(expected, 3)) & (expected < np.percentile(expected, 97))
    assert np.abs(coarse.get_fdata() - expected)[inside].max() < 0.51 * np.ptp(ramp.data) / 255 + 0.1


@pytest.mark.parametrize("room", [HUGE, 0])
def test_labels_keep_their_places_numbers_and_names(ramp: Image, labels: Image, room: int) -> None:
    layers = Layers(ramp, labels, labels=True, names={3: "caudate"})
    volume = embedded(layers, room, HUGE)["volumes"][1]  # type: ignore[index]
    assert [(entry["number"], entry["name"]) for entry in volume["labels"]] == [(3, "caudate"), (2035, "")]
    found = opened(volume)
    assert found.get_data_dtype() == np.uint8
    numbers = np.array([0, 3, 2035])[np.asarray(found.dataobj)]
    places = positions(found.affine, found.shape).reshape(-1, 3)
    index = np.rint(apply_affine(np.linalg.inv(labels.grid.affine), places)).astype(int)
    assert np.array_equal(numbers.ravel(), labels.data[0][tuple(index.T)])
    for entry in volume["labels"]:
        middle = np.rint(apply_affine(np.linalg.inv(labels.grid.affine), np.array([entry["place"]]))).astype(int)[0]
        assert labels.data[0][tuple(middle)] == entry["number"]


def test_what_is_too_large_is_left_out(ramp: Image) -> None:
    assert embedded(Layers(ramp), 100, 100) is None


@pytest.mark.parametrize(("shape", "view"), [((9, 8, 7), "all"), ((1, 8, 7), "sagittal"), ((9, 8, 1), "axial")])
def test_the_planes_that_are_shown_first(shape: tuple[int, int, int], view: str) -> None:
    image = Image(np.arange(np.prod(shape), dtype=np.int16).reshape(1, *shape), oblique(shape))
    assert embedded(Layers(image), HUGE, HUGE)["view"] == view  # type: ignore[index]
