"""Reading, checking and writing images, against nibabel and SimpleITK."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medkit.errors import InputError, OutputError
from medkit.images.image import Image, read_grid, read_image
from medkit.space import Grid, lps_affine
from medkit.transforms.resampling import resample

sitk = pytest.importorskip("SimpleITK")

OBLIQUE = np.array([[-15, 0, 0, 4], [0, 2.4, 16, -3], [0, -3.2, 12, 5], [0, 0, 0, 1.0]])
FLIPPED = np.array([[0, 0, 9.0, 2], [-11, 0, 0, 30], [0, -10, 0, 7], [0, 0, 0, 1]])
RNG = np.random.default_rng(0)
VOXELS = RNG.integers(0, 200, (6, 7, 8)).astype(np.int16)
FORMATS = (".nii", ".nii.gz", ".mgh", ".mgz", ".nrrd", ".nhdr", ".mha", ".mhd")


def saved(path: Path, voxels: np.ndarray, affine: np.ndarray = OBLIQUE, **fields: Any) -> Path:
    """A NIfTI file written by nibabel, with header fields set as given."""
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    for name, value in fields.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def patched(path: Path, offset: int, content: bytes) -> Path:
    """`path` with some bytes replaced: for headers that nibabel refuses to write."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(raw)
    return path


def sitk_affine(path: Path) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    dims = image.GetDimension()
    return lps_affine(np.reshape(image.GetDirection(), (dims, dims)), np.array(image.GetSpacing()), image.GetOrigin())


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED], ids=["oblique", "flipped"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_round_trip(tmp_path: Path, suffix: str, affine: np.ndarray, dtype: str) -> None:
    path = tmp_path / f"x{suffix}"
    image = Image(VOXELS[None].astype(dtype), Grid(VOXELS.shape, affine))
    image.write(path)
    again = read_image(path)
    np.testing.assert_array_equal(again.data, image.data)
    np.testing.assert_allclose(again.grid.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(read_grid(path).affine, again.grid.affine)
    stored = "int32" if (dtype, suffix[:3]) == ("uint16", ".mg") else dtype
    assert again.data.dtype == again.dtype == stored
    assert (again.path, again.grid.dims) == (path, 3)
    if suffix.startswith(".mg"):
        raw = path.read_bytes()  # nibabel.load leaves the file open
        theirs = nibabel.MGHImage.from_bytes(gzip.decompress(raw) if suffix == ".mgz" else raw)
        np.testing.assert_allclose(theirs.affine, affine, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(theirs.dataobj), image.data[0])
    else:
        np.testing.assert_allclose(sitk_affine(path), affine, atol=1e-4)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, image.data[0])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_two_axes_stay_two(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    grid = Grid((6, 7, 1), np.diag([-12.0, 14.0, 1.0, 1.0]), dims=2)
    Image(VOXELS[None, :, :, :1], grid).write(path)
    again = read_image(path)
    assert again.data.shape == (1, 6, 7, 1)
    assert again.grid.dims == read_grid(path).dims == 2
    np.testing.assert_allclose(again.grid.affine, grid.affine, atol=1e-6)
    theirs = sitk.ReadImage(str(path))
    assert theirs.GetDimension() == 2
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs).T, VOXELS[:, :, 0])
    np.testing.assert_allclose(sitk_affine(path)[:2, [0, 1, 3]], grid.affine[:2, [0, 1, 3]], atol=1e-6)


def test_geometry_is_kept_bit_for_bit(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.nii.gz", VOXELS, sform_code=4, qform_code=2, xyzt_units=10, descrip=b"secret name")
    image = read_image(source)
    image.with_data(image.data.astype(np.float32)).write(tmp_path / "b.nii.gz")
    first, second = nibabel.load(source).header, nibabel.load(tmp_path / "b.nii.gz").header
    for name in ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "srow_x", "srow_y"):
        assert np.ravel(first[name])[:4].tobytes() == np.ravel(second[name])[:4].tobytes(), name
    assert second["xyzt_units"] == 2
    assert bytes(second["descrip"]).strip(b"\0") == b""
    assert read_grid(tmp_path / "b.nii.gz").digest() == image.grid.digest()


def test_nifti2_stays_nifti2(tmp_path: Path) -> None:
    nibabel.Nifti2Image(VOXELS, OBLIQUE).to_filename(tmp_path / "a.nii")
    image = read_image(tmp_path / "a.nii")
    image.write(tmp_path / "b.nii.gz")
    again = nibabel.load(tmp_path / "b.nii.gz")
    assert isinstance(again, nibabel.Nifti2Image)
    np.testing.assert_array_equal(again.affine, OBLIQUE)
    np.testing.assert_array_equal(np.asarray(again.dataobj), VOXELS)


def test_sheared_grid_has_no_qform(tmp_path: Path) -> None:
    sheared = np.array([[10, 3, 0, 1], [0, 12, 0, 2], [0, 0, 9, 3], [0, 0, 0, 1.0]])
    Image(VOXELS[None], Grid(VOXELS.shape, sheared)).write(tmp_path / "x.nii")
    header = nibabel.load(tmp_path / "x.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(read_grid(tmp_path / "x.nii").affine, sheared)


def test_equal_images_are_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image(VOXELS[None], Grid(VOXELS.shape, OBLIQUE))
    image.write(tmp_path / "a.nii.gz")
    monkeypatch.setattr("time.time", lambda: 1e9)
    image.write(tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[352:] == VOXELS.tobytes(order="F")


def test_scaled_voxels_are_float32(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.nii", VOXELS)
    patched(path, 112, np.array([0.5, -7], "<f4").tobytes())
    image = read_image(path)
    assert image.data.dtype == image.dtype == np.float32
    np.testing.assert_allclose(image.data[0], VOXELS * 0.5 - 7)


def test_big_endian_and_double(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    nibabel.Nifti1Image(VOXELS.astype(">f8") + 0.25, OBLIQUE, header).to_filename(tmp_path / "x.nii.gz")
    image = read_image(tmp_path / "x.nii.gz")
    assert image.data.dtype == np.float32
    assert image.data.flags.writeable
    np.testing.assert_array_equal(image.data[0], VOXELS + np.float32(0.25))


def test_units_of_the_header(tmp_path: Path) -> None:
    metres = OBLIQUE @ np.diag([1e-3, 1e-3, 1e-3, 1])
    metres[:3, 3] = OBLIQUE[:3, 3] / 1e3
    path = saved(tmp_path / "x.nii", VOXELS, metres, xyzt_units=1)
    np.testing.assert_allclose(read_image(path).grid.affine, OBLIQUE, atol=1e-4)


def test_sform_wins_and_disagreement_warns(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS, None)
    image.set_sform(OBLIQUE, 1)
    image.set_qform(np.diag([15.0, 4, 20, 1]), 1)
    image.to_filename(tmp_path / "x.nii")
    read = read_image(tmp_path / "x.nii")
    np.testing.assert_allclose(read.grid.affine, OBLIQUE)
    assert any("disagree" in warning for warning in read.warnings)


@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED], ids=["left-handed", "right-handed"])
def test_qform_alone(tmp_path: Path, affine: np.ndarray) -> None:
    image = nibabel.Nifti1Image(VOXELS, None)
    image.set_qform(affine, 1)
    image.to_filename(tmp_path / "x.nii")
    read = read_image(patched(tmp_path / "x.nii", 254, b"\0\0"))
    np.testing.assert_allclose(read.grid.affine, affine, atol=1e-5)
    assert not any("form" in warning for warning in read.warnings)


def test_qfac_of_zero_means_one(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS, None)
    image.set_qform(FLIPPED, 1)
    image.to_filename(tmp_path / "x.nii")
    read = read_image(patched(patched(tmp_path / "x.nii", 254, b"\0\0"), 76, bytes(4)))
    np.testing.assert_allclose(read.grid.affine, FLIPPED, atol=1e-5)


def test_no_form_is_a_guess(tmp_path: Path) -> None:
    read = read_image(patched(saved(tmp_path / "x.nii", VOXELS, np.diag([12.0, 12, 12, 1])), 252, bytes(4)))
    assert any("neither sform nor qform" in warning for warning in read.warnings)
    np.testing.assert_allclose(read.grid.affine, nibabel.load(tmp_path / "x.nii").affine)


def test_warnings_of_geometry(tmp_path: Path) -> None:
    wide = read_image(saved(tmp_path / "a.nii", VOXELS, np.diag([20.0, 5, 20, 1])))
    assert [warning.split(":")[0] for warning in wide.warnings] == ["strongly anisotropic spacing"]
    small = read_image(saved(tmp_path / "b.nii", VOXELS, np.diag([2.0, 2, 2, 1])))
    assert small.warnings == ("field of view of 16 mm: the anatomy may be cropped",)


def test_voxels_that_are_not_finite(tmp_path: Path) -> None:
    voxels = VOXELS.astype(np.float32)
    voxels[0, 0, :3] = np.nan, np.inf, -np.inf
    image = read_image(saved(tmp_path / "x.nii", voxels, FLIPPED))
    rest = voxels[np.isfinite(voxels)]
    assert image.data[0, 0, 0, :3].tolist() == [0, rest.max(), rest.min()]
    assert any(warning.startswith("3 voxels are NaN") for warning in image.warnings)
    assert image.doubts == ()


def test_many_voxels_that_are_not_finite_are_a_doubt(tmp_path: Path) -> None:
    voxels = VOXELS.astype(np.float32)
    voxels[::2] = np.nan
    image = read_image(saved(tmp_path / "x.nii", voxels, FLIPPED))
    assert image.doubts == ("50% of the voxels are NaN or infinite",)
    assert resample(image, image.grid).doubts == image.with_data(image.data).doubts == image.doubts


@pytest.mark.parametrize(("spacing", "text"), [(1.01e-3, "0.00808 mm"), (900.0, "3.6e+04 mm"), (0.2, "")])
def test_a_size_that_no_body_has_is_a_doubt(tmp_path: Path, spacing: float, text: str) -> None:
    shape = (40, 8, 8) if spacing == 900 else (6, 7, 8)
    path = saved(tmp_path / "x.nii", np.resize(VOXELS, shape), np.diag([spacing] * 3 + [1]))
    found = [doubt.partition(" (")[0] for doubt in read_image(path).doubts]
    assert found == ([f"the longest side measures {text}"] if text else [])
    assert read_image(path, labels=True).doubts == ()  # structures may be microscopic


def test_forms_that_mirror_each_other_are_a_doubt(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2, 2, 1])
    for sign, doubts in ((1, 0), (-1, 1)):
        nifti = nibabel.Nifti1Image(VOXELS, affine)
        nifti.set_sform(affine, 1)
        nifti.set_qform(np.diag([sign, 1.0, 1, 1]) @ affine, 1)
        nifti.to_filename(tmp_path / "x.nii")
        image = read_image(tmp_path / "x.nii")
        assert [text.split(":")[0] for text in image.doubts] == ["left and right are uncertain"] * doubts
        np.testing.assert_array_equal(image.grid.affine, affine)


def test_a_volume_without_an_orientation_is_a_doubt(tmp_path: Path) -> None:
    bare = nibabel.Nifti1Image(VOXELS, None)
    bare.to_filename(tmp_path / "bare.nii")
    nibabel.Nifti1Image(VOXELS[..., :1], None).to_filename(tmp_path / "plane.nii")
    Image(VOXELS[None], Grid(VOXELS.shape, FLIPPED)).write(tmp_path / "x.mgh")
    expected = ("left and right are a guess: the header states no orientation",)
    assert read_image(tmp_path / "bare.nii").doubts == expected
    assert read_image(tmp_path / "bare.nii", labels=True).doubts == expected
    assert read_image(tmp_path / "plane.nii").doubts == ()
    assert read_image(saved(tmp_path / "whole.nii", VOXELS)).doubts == read_image(tmp_path / "x.mgh").doubts == ()
    assert read_image(patched(tmp_path / "x.mgh", 28, b"\0\0")).doubts == expected


@pytest.mark.parametrize(
    ("factor", "one", "text"),
    [
        (1.0, None, None),
        (1.0, 1e6, None),
        (1.0, 1e9, "its values reach from 0 to 1e+09, and 99 % of them lie between 0 and 199: is one voxel damaged?"),
        (1e30, None, "its values reach from 0 to 1.99e+32: is the file damaged, or its scaling wrong?"),
    ],
)
def test_values_that_no_scanner_makes_are_a_doubt(
    tmp_path: Path, factor: float, one: float | None, text: str | None
) -> None:
    voxels = np.random.default_rng(0).integers(0, 200, (20, 20, 20)).astype(np.float32) * np.float32(factor)
    voxels[3, 4, 5] = one or voxels[3, 4, 5]
    assert read_image(saved(tmp_path / "x.nii", voxels)).doubts == ((text,) if text else ())


def test_labels(tmp_path: Path) -> None:
    names = {
        "a.nii": VOXELS.astype(np.float32),
        "b.nii": VOXELS,
        "c.nii": VOXELS * 0,
        "d.nii": VOXELS + np.float32(300),
    }
    types = []
    for name, voxels in names.items():
        image = read_image(saved(tmp_path / name, voxels), labels=True)
        np.testing.assert_array_equal(image.data[0], voxels)
        assert image.data.dtype == image.dtype
        types.append(image.dtype.name)
    assert types == ["uint8", "int16", "int16", "uint16"]


@pytest.mark.parametrize(
    ("voxels", "message"),
    [(VOXELS + 0.5, "whole numbers"), (VOXELS - 100, r"0 or more\), got -100"), (VOXELS * np.nan, "whole numbers")],
)
def test_refused_labels(tmp_path: Path, voxels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_image(saved(tmp_path / "x.nii", voxels), labels=True)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mgz", ".mha"])
def test_frames(tmp_path: Path, suffix: str) -> None:
    frames = np.stack([VOXELS, VOXELS + 1, VOXELS + 2], axis=-1).astype(np.float32)
    path = tmp_path / f"x{suffix}"
    if suffix == ".nii.gz":
        saved(path, frames)
    elif suffix == ".mgz":
        nibabel.MGHImage(frames, OBLIQUE).to_filename(path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(frames.T), isVector=False), str(path))
    with pytest.raises(InputError, match=r"expected one frame, got 3; pick one with --frame N \(0 to 2\)"):
        read_image(path)
    np.testing.assert_array_equal(read_image(path, frame=1).data[0], VOXELS + 1)
    with pytest.raises(InputError, match="no frame 3"):
        read_image(path, frame=3)


@pytest.mark.parametrize("place", [np.nan, np.inf, -np.inf])
def test_voxels_that_begin_nowhere(tmp_path: Path, place: float) -> None:
    path = saved(tmp_path / "x.nii", VOXELS)
    content = bytearray(path.read_bytes())
    content[108:112] = np.float32(place).tobytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.nii: expected the place of the voxels \(vox_offset\) in it, got"):
        read_image(path)


def test_one_frame_in_many_axes(tmp_path: Path) -> None:
    image = read_image(saved(tmp_path / "x.nii", VOXELS[..., None, None]))
    assert image.data.shape == (1, *VOXELS.shape)
    assert read_image(tmp_path / "x.nii", frame=0).grid.digest() == image.grid.digest()
    with pytest.raises(InputError, match="there is no frame 2: the file has one frame, 0"):
        read_image(tmp_path / "x.nii", frame=2)
    assert read_image(tmp_path / "x.nii", frame=2, frame_if_several=True).grid.digest() == image.grid.digest()


def _colours(path: Path) -> None:
    voxels = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.Nifti1Image(voxels, OBLIQUE).to_filename(path)


def _vectors(path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4, 1, 3), np.float32), OBLIQUE)
    image.header.set_intent(1007)
    image.to_filename(path)


def _field(offset: int, content: bytes) -> Callable[[Path], None]:
    return lambda path: patched(saved(path, VOXELS), offset, content) and None


def _whole_file(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(saved(path, VOXELS).read_bytes())) and None


REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "text": ("x.nii.gz", lambda path: path.write_text("a,b\n" * 200), "expected a NIfTI file"),
    "empty": ("x.nii", lambda path: path.write_bytes(b""), "expected a NIfTI file"),
    "truncated": ("x.nii", _whole_file(lambda raw: raw[:-9]), "truncated: the header promises 1024 bytes"),
    "truncated gzip": ("x.nii.gz", _whole_file(lambda raw: raw[:-60]), "truncated"),
    "truncated header": ("x.nii", _whole_file(lambda raw: raw[:200]), "truncated: 200 bytes"),
    "flipped byte": ("x.nii.gz", _whole_file(lambda raw: raw[:-8] + bytes([raw[-8] ^ 1]) + raw[-7:]), "damaged gzip"),
    "huge promise": ("x.nii.gz", lambda path: path.write_bytes(gzip.compress(_huge())), "truncated"),
    "no voxels": ("x.nii", _field(42, b"\0\0"), "no voxels"),
    "NaN": ("x.nii", lambda path: saved(path, np.full((4, 4, 4), np.nan)), "no finite voxel"),
    "constant": ("x.nii", lambda path: saved(path, VOXELS * 0 + 3), "got the value 3 in every voxel"),
    "zero spacing": ("x.nii", _field(280, bytes(16)), "got 0 x 4"),
    "absurd spacing": ("x.nii", lambda path: saved(path, VOXELS, np.diag([2e3, 1, 1, 1])), "got 2000 x 1 x 1 mm"),
    "singular": ("x.nii", lambda path: nibabel.Nifti1Image(VOXELS, SINGULAR).to_filename(path), "singular affine"),
    "NaN affine": ("x.nii", _field(280, np.array([np.nan], "<f4").tobytes()), "finite numbers, got NaN"),
    "complex": ("x.nii", lambda path: saved(path, VOXELS.astype(np.complex64)), "complex"),
    "colours": ("x.nii", _colours, "RGB"),
    "vectors": ("x.nii.gz", _vectors, "displacement field"),
    "type": ("x.nii", _field(70, b"\x37\0"), "type 55"),
    "one axis": ("x.nii", _field(40, b"\x01\0"), "2 or 3 axes, got one"),
    "text nrrd": ("x.nrrd", lambda path: path.write_text("hello"), "x.nrrd"),
    "text mha": ("x.mha", lambda path: path.write_text("hello"), "x.mha"),
    "text mgz": ("x.mgz", lambda path: path.write_text("hello"), "expected an MGH file"),
    "suffix": ("x.doc", lambda path: path.write_text("hello"), "expected a DICOM folder or a file that ends in"),
}
SINGULAR = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def _huge() -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    return bytes(header.binaryblock) + bytes(5000)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    name, make, message = REFUSED[case]
    make(tmp_path / name)
    capfd.readouterr()
    with pytest.raises(InputError, match=message) as refused:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mgz", ".mgh"])
def test_truncated(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"x{suffix}"
    Image(VOXELS[None], Grid(VOXELS.shape, OBLIQUE)).write(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=f"x{suffix}"):
        read_image(path)
    assert capfd.readouterr().out == ""


def test_colours_and_vectors_of_itk(tmp_path: Path) -> None:
    path = str(tmp_path / "x.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(RNG.integers(0, 9, (4, 5, 6, 3)).astype(np.uint8), isVector=True), path)
    with pytest.raises(InputError, match="RGB"):
        read_image(path)
    sitk.WriteImage(sitk.GetImageFromArray(RNG.normal(size=(4, 5, 6, 3)), isVector=True), path)
    with pytest.raises(InputError, match="vectors"):
        read_image(path)
    sitk.WriteImage(sitk.GetImageFromArray(RNG.normal(size=(4, 5, 6, 5)), isVector=True), path)
    assert read_image(path, frame=4).data.shape == (1, 6, 5, 4)


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint64"])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_types_that_itk_does_not_wrap(tmp_path: Path, dtype: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    voxels = (VOXELS // 2).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(voxels.T)), str(path))
    image = read_image(path)
    assert image.data.dtype == dtype
    np.testing.assert_array_equal(image.data[0], voxels)
    image.write(path)
    np.testing.assert_array_equal(read_image(path).data[0], voxels)


def test_numbers_too_large_for_a_format(tmp_path: Path) -> None:
    image = Image(VOXELS[None].astype(np.int64) + 2**40, Grid(VOXELS.shape, OBLIQUE))
    for suffix in (".mgz", ".nrrd"):
        with pytest.raises(OutputError, match="whole numbers up to"):
            image.write(tmp_path / f"x{suffix}")
    image.write(tmp_path / "x.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "x.nii").data, image.data)


def test_missing_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "x.nii")
    with pytest.raises(OutputError, match="expected a name that ends in"):
        Image(VOXELS[None], Grid(VOXELS.shape, OBLIQUE)).write(tmp_path / "x.bmp")


def test_grid_of_a_file_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="spacing"):
        read_grid(saved(tmp_path / "x.nii", VOXELS, np.diag([2e3, 1, 1, 1])))


def test_with_data() -> None:
    image = Image(VOXELS[None], Grid(VOXELS.shape, OBLIQUE), warnings=("noted",))
    other = image.with_data(np.zeros((2, 6, 7, 8), np.float32))
    assert (other.dtype, other.warnings, other.grid) == (np.float32, ("noted",), image.grid)
    with pytest.raises(ValueError, match="shape"):
        image.with_data(np.zeros((1, 5, 7, 8)))


def test_multi_channel_nifti(tmp_path: Path) -> None:
    data = RNG.normal(size=(3, 6, 7, 8)).astype(np.float32)
    Image(data, Grid(VOXELS.shape, OBLIQUE)).write(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(nibabel.load(tmp_path / "x.nii.gz").get_fdata(), np.moveaxis(data, 0, -1))


@pytest.mark.real_data
def test_real_images(shared_data: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    names = ["brain_heads/chris_pd.nii.gz", "spine/t1_t1w.nii.gz", "abdomen_ct/imagesTr_spleen_8.nii.gz"]
    names += ["lung_ct/elastix_lung_baseline_small.mha", "lung_ct/cip_lm-64.nrrd", "templates/colin27_t1_1mm.nii.gz"]
    caplog.set_level(logging.INFO)
    for name in names:
        image = read_image(shared_data / name)
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(shared_data / name))).T
        np.testing.assert_array_equal(image.data[0], theirs)
        np.testing.assert_allclose(image.grid.affine, sitk_affine(shared_data / name), atol=1e-3)
        assert read_grid(shared_data / name).digest() == image.grid.digest()
    assert caplog.records == []
    assert capfd.readouterr().out == ""


@pytest.mark.real_data
def test_real_infinities(shared_data: Path) -> None:
    image = read_image(shared_data / "spine/mt_mtr.nii.gz")
    assert np.isfinite(image.data).all()
    assert any("NaN or infinite" in warning for warning in image.warnings)
