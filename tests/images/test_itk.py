"""NRRD and MetaImage headers: units of length, lists of layers, files that are too short."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from medkit.errors import InputError, OutputError
from medkit.images.image import Image, read_grid, read_image
from medkit.space import Grid
from medkit.transforms.files import read_transform

VOXELS = np.random.default_rng(0).integers(0, 200, (6, 7, 8)).astype(np.uint8)


def nrrd(path: Path, *fields: str, voxels: np.ndarray = VOXELS, pixel: str = "") -> Path:
    """An NRRD file in LPS with 5000 x 6000 x 7000 units per voxel ; `pixel`: kind of a first axis."""
    none, kind = ("none ", f"{pixel} ") if pixel else ("", "")
    lines = [
        *("NRRD0005", "type: unsigned char", f"dimension: {voxels.ndim}", "space: left-posterior-superior"),
        *(f"sizes: {' '.join(map(str, voxels.shape))}", f"kinds: {kind}domain domain domain", "encoding: raw"),
        *(f"space directions: {none}(5000,0,0) (0,6000,0) (0,0,7000)", "space origin: (1000,2000,3000)", *fields),
    ]
    path.write_bytes(("\n".join(lines) + "\n\n").encode() + voxels.tobytes(order="F"))
    return path


@pytest.mark.parametrize(
    "field",
    [
        'space units: "um" "um" "um"',
        'space units: "\u00b5m" "\u00b5m" "\u00b5m"',
        'space units: "microns" "microns" "microns"',
        'space units: "Micrometers" "Micrometres" "um"',
    ],
)
def test_units_of_nrrd(tmp_path: Path, field: str) -> None:
    path = nrrd(tmp_path / "x.nrrd", field)
    expected = np.diag([-5.0, -6, 7, 1])
    expected[:3, 3] = -1, -2, 3
    np.testing.assert_allclose(read_image(path).grid.affine, expected)
    np.testing.assert_allclose(read_grid(path).affine, expected)


def test_unlike_units_and_nrrd_in_metres(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x.nrrd: expected axes of one unit of length, got \"um\" \"mm\" \"um\""):
        read_grid(nrrd(tmp_path / "x.nrrd", 'space units: "um" "mm" "um"'))
    with pytest.raises(InputError, match="spacing between"):
        read_grid(nrrd(tmp_path / "x.nrrd", 'space units: "mm" "mm" "mm"'))


def test_nrrd_without_directions_is_a_doubt(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "x.nrrd", 'space units: "um" "um" "um"')
    assert read_image(path).doubts == ()
    fields = [b"space", b"space directions", b"space units", b"space origin"]
    lines = path.read_bytes().split(b"\n\n")[0].split(b"\n")
    kept = [line for line in lines if line.partition(b":")[0] not in fields]
    path.write_bytes(b"\n".join(kept) + b"\n\n" + VOXELS.tobytes(order="F"))
    assert read_image(path).doubts == ("left and right are a guess: the header states no orientation",)


@pytest.mark.parametrize(("unit", "stored", "spacing"), [("um", 200, 0.2), ("mm", 2, 2), ("cm", 2, 20), ("?", 2, 2)])
def test_units_of_meta_image(tmp_path: Path, unit: str, stored: int, spacing: float) -> None:
    head = f"ObjectType = Image\nNDims = 3\nBinaryData = True\nDistanceUnits = {unit}\n"
    head += f"ElementSpacing = {stored} {stored} {stored}\n"
    head += "DimSize = 6 7 8\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (tmp_path / "x.mha").write_bytes(head.encode() + VOXELS.tobytes(order="F"))
    np.testing.assert_allclose(read_grid(tmp_path / "x.mha").spacing, spacing)


def test_a_field_of_another_unit_is_refused(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "x.nrrd", 'space units: "um" "um" "um"', voxels=np.stack([VOXELS] * 3), pixel="vector")
    with pytest.raises(InputError, match="displacement field in mm"):
        read_transform(path)


def test_layers_of_a_segmentation_are_frames_and_colours_are_not(tmp_path: Path) -> None:
    layers = np.stack([VOXELS > 40, VOXELS > 80, VOXELS > 120]).astype(np.uint8)
    unit = 'space units: "um" "um" "um"'
    path = nrrd(tmp_path / "x.seg.nrrd", unit, voxels=layers, pixel="list")
    for number, layer in enumerate(layers):
        np.testing.assert_array_equal(read_image(path, frame=number, labels=True).data[0], layer)
    with pytest.raises(InputError, match="expected one frame, got 3"):
        read_image(path)
    for kind in ("RGB-color", "vector"):
        with pytest.raises(InputError, match="colours"):
            read_image(nrrd(tmp_path / "y.nrrd", unit, voxels=layers, pixel=kind), frame=0)


def test_a_meta_image_that_is_too_short_says_so(tmp_path: Path) -> None:
    head = "ObjectType = Image\nNDims = 3\nBinaryData = True\nElementSpacing = 2 2 2\nDimSize = 6 7 8\n"
    head += "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (tmp_path / "x.mha").write_bytes(head.encode() + VOXELS.tobytes(order="F")[:-40])
    with pytest.raises(InputError, match=r"x.mha: cannot be read completely: .*fewer than the header promises"):
        read_image(tmp_path / "x.mha")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_disk_that_fills_up_leaves_no_torn_file(tmp_path: Path, suffix: str) -> None:
    """The limit cuts off what itk writes last, when it closes the file; itk itself takes that for a success."""
    image = Image(np.random.default_rng(0).random((1, 20, 20, 20)).astype(np.float32), Grid((20, 20, 20), np.eye(4)))
    image.write(tmp_path / f"whole{suffix}")
    size = (tmp_path / f"whole{suffix}").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, before[1]))
    try:
        with pytest.raises(OutputError, match=r"disk full|cannot be written"):
            image.write(tmp_path / f"torn{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
