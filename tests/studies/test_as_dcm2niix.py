"""`medkit dicom convert` against Debian's dcm2niix: geometry, values, b-values, directions, sidecars."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicoms import image, write
from places import SHARED
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage

Run = Callable[..., "Outcome"]  # noqa: F821
pytestmark = pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix (a Debian package) is not installed")

NEAR = 0.05
"""mm by which a corner of the image may lie elsewhere: positions in headers are rounded."""
KEYS = (
    *("EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "PhaseEncodingDirection", "PhaseEncodingAxis"),
    *("Manufacturer", "MagneticFieldStrength", "SliceThickness", "ImageType", "SeriesNumber"),
    *("InPlanePhaseEncodingDirectionDICOM", "EffectiveEchoSpacing", "TotalReadoutTime", "SliceTiming", "Modality"),
    *("ScanningSequence", "SequenceName", "MRAcquisitionType", "SoftwareVersions", "BodyPartExamined", "Units"),
    *("ConvolutionKernel", "XRayTubeCurrent", "XRayExposure", "DecayCorrection", "RadionuclideHalfLife"),
)
"""Keys of sidecars that have to be equal where both state them; of these the first ones have to be there."""
REQUIRED = KEYS[:9]


@dataclass(frozen=True)
class Volume:
    """A NIfTI file, along the axes of the body."""

    path: Path
    affine: np.ndarray
    values: np.ndarray

    @staticmethod
    def read(path: Path) -> Volume:
        found = nib.as_closest_canonical(nib.load(path))
        return Volume(path, found.affine, np.asarray(found.dataobj, float))

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads(self._beside(".json").read_text())

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name.removesuffix(".gz").removesuffix(".nii") + suffix)

    @property
    def gradients(self) -> tuple[np.ndarray, np.ndarray]:
        """b-values, and directions (3, T) RAS+, as FSL's files state them for the file's own axes."""
        affine = nib.load(self.path).affine
        axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        vectors = np.loadtxt(self._beside(".bvec"))
        if np.linalg.det(axes) > 0:
            vectors[0] *= -1
        return np.loadtxt(self._beside(".bval")), axes @ vectors

    def apart(self, other: Volume) -> float:
        """mm between the corners."""
        ends = np.array(self.values.shape[:3]) - 1
        corners = np.array([[*(np.array(corner) * ends), 1.0] for corner in np.ndindex(2, 2, 2)])
        return float(np.abs(corners @ (self.affine - other.affine).T).max())


@pytest.fixture
def both(medkit: Run, tmp_path: Path) -> Callable[..., Iterator[tuple[Volume, Volume]]]:
    """Convert a folder with both programs; pairs of theirs and ours."""

    def convert(place: Path, *options: str) -> Iterator[tuple[Volume, Volume]]:
        theirs, ours = tmp_path / "theirs", tmp_path / "ours"
        theirs.mkdir()
        command = ["dcm2niix", "-f", "%s_%r_%d", "-z", "n", "-o", str(theirs), str(place)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        done = medkit("dicom", "convert", place, "-o", ours, "--all", "--no-suv", *options)
        assert done.code == 0, done.err
        own = [Volume.read(path) for path in done.paths]
        for path in sorted(theirs.glob("*.nii")):
            other = Volume.read(path)
            like = [one for one in own if one.values.shape == other.values.shape]
            assert like, f"{path.name}: {other.values.shape}"
            yield other, min(like, key=lambda one: (one.apart(other), np.abs(one.values - other.values).max()))

    return convert


def check(theirs: Volume, ours: Volume, near: float = NEAR) -> None:
    """The same place, values and facts."""
    assert ours.apart(theirs) < near
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-5, atol=1e-6 * np.abs(theirs.values).max())
    stated, expected = ours.facts, theirs.facts
    assert [key for key in REQUIRED if key in expected and key not in stated] == []
    for key in set(KEYS) & set(stated) & set(expected):
        if isinstance(expected[key], float | int):
            assert stated[key] == pytest.approx(expected[key], rel=1e-4), key
        else:
            assert stated[key] == expected[key], key


def real(name: str) -> Path:
    place = SHARED / "data" / name
    if not place.exists():
        pytest.skip(f"{name} is not at hand")
    return place


@pytest.mark.parametrize(
    "name",
    [
        *("dicom/chest_ct_cip", "dicom/dicom_mosaic", "sarcoma_ct_pet_mr/STS_002/CT", "sarcoma_ct_pet_mr/STS_002/PET"),
        *("sarcoma_ct_pet_mr/STS_002/MR_T1", "sarcoma_ct_pet_mr/STS_001_raw_pet"),
        *(
            "dicom/dicom_seg_sr_dcmqi/segmentations/24x38x3/multiframe",
            "dicom/dicom_seg_sr_dcmqi/segmentations/ct-3slice",
        ),
    ],
)
def test_real_series(both: Run, name: str) -> None:
    pairs = list(both(real(name)))
    assert len(pairs) == 1
    # whole-body PET in steps of 3.26 to 3.27 mm
    check(*pairs[0], near=0.1 if name.endswith("raw_pet") else NEAR)


def test_enhanced_multiframe(both: Run) -> None:
    """Time points in several files (Siemens); a magnitude image and a map in Hz in one (Philips' scaling)."""
    pairs = list(both(real("dicom/enhanced_multiframe")))
    assert len({ours.path for _, ours in pairs}) == len(pairs) == 3
    for theirs, ours in pairs:
        assert ours.apart(theirs) < NEAR
        np.testing.assert_allclose(ours.values, theirs.values, rtol=2e-5, atol=2e-5 * np.abs(theirs.values).max())
        assert ours.facts["RepetitionTime"] == pytest.approx(theirs.facts["RepetitionTime"])


def test_rounded_positions(both: Run) -> None:
    """Steps of 6.96 to 7.07 mm: dcm2niix takes the first of them for all, which ends 1.4 mm away; ours is the mean."""
    ((theirs, ours),) = both(real("dicom/brain_mr_oblique"))
    np.testing.assert_array_equal(ours.values, theirs.values)
    np.testing.assert_allclose(ours.affine[:, [0, 1, 3]], theirs.affine[:, [0, 1, 3]], atol=1e-3)
    assert ours.apart(theirs) < 2


def test_nibabels_files(both: Run, tmp_path: Path) -> None:
    """Two volumes of a Siemens diffusion mosaic."""
    folder = Path(nib.__file__).parent / "nicom/tests/data"
    (tmp_path / "in").mkdir()
    for b in (0, 1000):
        with gzip.open(folder / f"siemens_dwi_{b}.dcm.gz") as packed:
            (tmp_path / f"in/{b}.dcm").write_bytes(packed.read())
    ((theirs, ours),) = both(tmp_path / "in")
    check(theirs, ours)
    assert ours.gradients[0].tolist() == [0, 1000]


# ---- diffusion


def rotation(*degrees: float) -> np.ndarray:
    """A rotation about the three axes, one after the other."""
    out = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


PLANES = {
    "axial": np.array([[1.0, 0, 0], [0, 1, 0]]),
    "oblique": (rotation(20, -12, 8) @ np.array([[1.0, 0, 0], [0, 1, 0]]).T).T,
    "sagittal": np.array([[0, 1.0, 0], [0, 0, -1]]),
    "coronal": (rotation(-8, 5, 3) @ np.array([[1.0, 0, 0], [0, 0, -1]]).T).T,
}
B = (0, 1000, 1000, 2000, 1000, 700)
DIRECTIONS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.6, 0, 0.8], [-0.48, 0.6, 0.64], [0.36, -0.48, 0.8]])
"""LPS; for GE in its own frame."""


def siemens(data: Dataset, b: float, direction: np.ndarray) -> None:
    data.Manufacturer = "SIEMENS"
    block = data.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", str(int(b)))
    if b:
        block.add_new(0x0E, "FD", direction.tolist())


def ge(data: Dataset, b: float, direction: np.ndarray) -> None:
    data.Manufacturer = "GE MEDICAL SYSTEMS"
    data.ScanningSequence, data.SoftwareVersions = ["EP", "SE"], "27"
    data.RectilinearPhaseEncodeReordering = "REVERSE_LINEAR"
    block = data.private_block(0x0043, "GEMS_PARM_01", create=True)
    block.add_new(0x39, "IS", [str(int(b) + 1_000_000_000), "0", "0", "0"])
    block = data.private_block(0x0019, "GEMS_ACQU_01", create=True)
    for element, value in zip((0xBB, 0xBC, 0xBD), direction, strict=True):
        block.add_new(element, "DS", f"{value:.6f}")


def philips(data: Dataset, b: float, direction: np.ndarray) -> None:
    data.Manufacturer = "Philips Medical Systems"
    data.DiffusionBValue, data.DiffusionGradientOrientation = float(b), direction.tolist()
    data.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x03, "FL", float(b))
    block = data.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    for element, value in zip((0xB0, 0xB1, 0xB2), direction, strict=True):
        block.add_new(element, "FL", float(value))


def write_diffusion(
    folder: Path, axes: np.ndarray, mark: Callable[..., None], along: str = "COL", sign: int = 1
) -> None:
    """Write a series of a volume for each of `B`, slices of a volume one after the other."""
    normal = np.cross(*axes) * sign
    rng = np.random.default_rng(0)
    number = 0
    for volume, (b, direction) in enumerate(zip(B, DIRECTIONS, strict=True)):
        for k in range(5):
            number += 1
            data = image(
                4, rng.integers(0, 900, (8, 7)), np.array([-10, 5, 3]) + 3 * k * normal, axes.ravel().round(9).tolist(),
                InstanceNumber=number, AcquisitionNumber=1, PatientPosition="HFS", InPlanePhaseEncodingDirection=along,
                EchoTime=80.0, RepetitionTime=4000.0, SpacingBetweenSlices=3.0, StudyDate="20200101",
                StudyTime="120000", AcquisitionTime=f"1200{4 * volume:02}", SeriesTime="120000",
            )  # fmt: skip
            mark(data, b, direction)
            write(folder / f"{number:03}.dcm", data)


@pytest.mark.parametrize(("along", "sign"), [("COL", 1), ("ROW", -1)], ids=["columns", "rows"])
@pytest.mark.parametrize("mark", [siemens, ge, philips])
@pytest.mark.parametrize("plane", PLANES)
def test_diffusion(both: Run, tmp_path: Path, plane: str, mark: Callable[..., None], along: str, sign: int) -> None:
    write_diffusion(tmp_path / "in", PLANES[plane], mark, along, sign)
    ((theirs, ours),) = both(tmp_path / "in")
    check(theirs, ours)
    (their_b, their_directions), (b, directions) = theirs.gradients, ours.gradients
    np.testing.assert_array_equal(b, B)
    np.testing.assert_array_equal(b, their_b)
    np.testing.assert_allclose(directions, their_directions, atol=2e-4)
    if mark is not ge:
        np.testing.assert_allclose(directions, (DIRECTIONS * [-1, -1, 1]).T, atol=2e-4)
    assert (ours.path.parent.name, ours.path.name) == ("dwi", "sub-01_run-4_dwi.nii.gz")


@pytest.mark.parametrize("plane", PLANES)
def test_enhanced_diffusion(medkit: Run, tmp_path: Path, plane: str) -> None:
    """DICOM's own tags, frame by frame in one file."""
    axes, slices = PLANES[plane], 5
    normal = np.cross(*axes)
    stored = np.random.default_rng(0).integers(0, 900, (len(B) * slices, 7, 8)).astype(np.int16)
    data = image(
        4, stored[0].T, (0, 0, 0), SOPClassUID=EnhancedMRImageStorage, Manufacturer="SIEMENS",
        NumberOfFrames=len(stored),
        ImageType=["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"], PatientPosition="HFS", StudyDate="20200101",
        StudyTime="120000", SeriesTime="120000",
    )  # fmt: skip
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(data, name)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.PixelData = stored.tobytes()
    shared = Dataset()
    shared.PlaneOrientationSequence = Sequence([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = axes.ravel().round(9).tolist()
    shared.PixelMeasuresSequence = Sequence([Dataset()])
    shared.PixelMeasuresSequence[0].PixelSpacing = [2.0, 1.5]
    shared.PixelMeasuresSequence[0].SliceThickness = 3.0
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for volume, (b, direction) in enumerate(zip(B, DIRECTIONS, strict=True)):
        for k in range(slices):
            frame = Dataset()
            frame.PlanePositionSequence = Sequence([Dataset()])
            frame.PlanePositionSequence[0].ImagePositionPatient = (3 * k * normal).round(6).tolist()
            frame.FrameContentSequence = Sequence([Dataset()])
            content = frame.FrameContentSequence[0]
            content.StackID, content.InStackPositionNumber = "1", k + 1
            content.TemporalPositionIndex, content.DimensionIndexValues = volume + 1, [1, k + 1, volume + 1]
            content.FrameAcquisitionDateTime = f"2020010112{volume:02}00"
            frame.MRDiffusionSequence = Sequence([Dataset()])
            weighting = frame.MRDiffusionSequence[0]
            weighting.DiffusionBValue, weighting.DiffusionDirectionality = float(b), "DIRECTIONAL" if b else "NONE"
            if b:
                weighting.DiffusionGradientDirectionSequence = Sequence([Dataset()])
                weighting.DiffusionGradientDirectionSequence[0].DiffusionGradientOrientation = direction.tolist()
            frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = Sequence(frames)
    write(tmp_path / "in/1.dcm", data)
    subprocess.run(["dcm2niix", "-f", "x", "-o", str(tmp_path), str(tmp_path / "in")], check=True, capture_output=True)
    done = medkit("dicom", "convert", tmp_path / "in", "-o", tmp_path / "ours")
    theirs, ours = nib.load(tmp_path / "x.nii"), nib.load(done.paths[0])
    # this release takes all frames for slices of one volume, those of one place one after the other
    stacked = np.asarray(ours.dataobj).reshape(8, 7, -1)
    np.testing.assert_array_equal(stacked, np.asarray(theirs.dataobj))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    their_b, their_directions = Volume.read(tmp_path / "x.nii").gradients
    b, directions = Volume.read(done.paths[0]).gradients
    np.testing.assert_array_equal(b, B)
    np.testing.assert_array_equal(their_b, B)
    np.testing.assert_allclose(directions, (DIRECTIONS * [-1, -1, 1]).T, atol=2e-4)
    np.testing.assert_allclose(directions, their_directions, atol=2e-4)
