"""Densities of a CT's structures, and the size of the patient."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from medkit_segment import density
from medkit_segment.density import Person


@pytest.mark.parametrize("order", ["C", "F"])
def test_densities_are_those_of_the_voxels(order: str) -> None:
    values = np.full((4, 5, 6), -850, np.int16, order=order)  # type: ignore[call-overload]
    values[0, 0, :3] = (-980, -500, -950)
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 0] = 2
    labels[3] = 5

    found = density.densities(values, labels, 1e5)

    assert set(found) == {2, 5}
    assert found[2].volume_l == pytest.approx(0.6)
    assert found[2].mean_hu == pytest.approx((-980 - 500 - 950 - 3 * 850) / 6)
    assert (found[2].below_950, found[2].above_600) == pytest.approx((1 / 6, 1 / 6))
    assert found[5].cells()["mean_hu"] == "-850.0"


def test_a_lung_without_air_needs_a_look() -> None:
    """Also a lung that holds a part of the liver; no other structure is asked for air."""
    named = {
        "lung_left": density.Density(2.0, -800.0, 0.0, 0.1),
        "lung_right": density.Density(1.2, -590.0, 0.0, 0.31),
        "bones": density.Density(0.5, 400.0, 0.0, 1.0),
    }
    assert density.airless(named) == [
        "31% of lung_right hold little air: consolidation, fluid, or an organ beside the lung"
    ]


@pytest.mark.parametrize(
    ("side", "elsewhere", "doubts"),
    [
        (12, -850, ["8 ml of gas in lung_left: bowel, a bulla, or air beside the lung"]),
        (4, -850, []),
        (12, -955, []),
    ],
)
def test_gas_without_lung_tissue_needs_a_look(side: int, elsewhere: int, doubts: list[str]) -> None:
    """Not a small piece, nor in a lung with emphysema. The outer voxels of a piece do not count.

    Air around the body is no lung. Voxels of 2 x 1 x 2 mm.
    """
    values = np.full((40, 80, 40), -1000, np.int16)
    labels = np.zeros(values.shape, np.uint8)
    labels[5:35, 10:70, 5:35] = 2
    values[labels == 2] = elsewhere
    values[10 : 10 + side, 20 : 20 + 2 * side, 10 : 10 + side] = -1000
    found = density.densities(values, labels, 4.0)
    names = {2: "lung_left", 3: "lung_right", 5: "bones"}
    assert density.gas(values, labels, found, names, (2.0, 1.0, 2.0)) == doubts


@pytest.mark.parametrize(
    ("stated", "person"),
    [
        ({"PatientSize": 1.8, "PatientSex": "M"}, Person(1.8, "M")),
        ({"PatientSize": "165", "PatientSex": "female"}, Person(1.65, "F")),
        ({"PatientSize": 0, "PatientSex": "O"}, Person(None, None)),
        ({"PatientSize": "tall"}, Person(None, None)),
        (["no object"], Person(None, None)),
    ],
)
def test_the_height_is_read_from_the_json_beside_a_scan(tmp_path: Path, stated: object, person: Person) -> None:
    (tmp_path / "a.nii.json").write_text("{}")
    (tmp_path / "a.json").write_text(json.dumps(stated))
    assert density.person_of(tmp_path / "a.nii.gz") == person


def test_the_height_is_read_from_dicom(tmp_path: Path) -> None:
    header = pydicom.Dataset()
    header.PatientSize, header.PatientSex = 1.7, "F"
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID("1.2.3")
    header.save_as(tmp_path / "1.dcm", enforce_file_format=True)

    person = density.person_of(tmp_path)

    assert person == Person(1.7, "F")
    assert person.predicted_l() == pytest.approx(6.6 * 1.7 - 5.79)
    assert density.person_of(tmp_path / "missing.dcm") == Person(None, None)
