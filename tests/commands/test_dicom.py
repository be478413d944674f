"""`medkit dicom list`: what lies in places, without names unless they are asked for."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicoms import NAMES, STUDY, header, image, write, write_series

Run = Callable[..., "Outcome"]  # noqa: F821


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with a scan, a localizer, a report and a second study."""
    place = tmp_path / "study"
    write_series(place, 2)
    write_series(place / "more", 1, 3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write(place / "report.dcm", header(9, Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"))
    write_series(place / "other", 4, StudyInstanceUID=f"{STUDY}.7", Modality="CT")
    return place


def test_the_table_in_a_pipe(medkit: Run, study: Path) -> None:
    done = medkit("dicom", "list", study)
    assert done.code == 0, done.err
    head, *rows = (line.split("\t") for line in done.out.splitlines())
    assert head == ["study", "series", "modality", "type", "size", "spacing", "frames", "files", "use", "path"]
    assert rows == [
        ["1", "1", "MR", "ORIGINAL/PRIMARY/LOCALIZER", "8 x 7 x 3", "1.5 x 2 x 3", "1", "3", "left out: a localizer",
         str(study / "more")],
        ["1", "2", "MR", "ORIGINAL/PRIMARY/M", "8 x 7 x 4", "1.5 x 2 x 3", "1", "4", "a case", str(study)],
        ["1", "9", "SR", "ORIGINAL/PRIMARY/M", "", "", "", "1", "left out: no image", f"{study}#series=9"],
        ["2", "4", "CT", "ORIGINAL/PRIMARY/M", "8 x 7 x 4", "1.5 x 2 x 3", "1", "4", "a case", str(study / "other")],
    ]  # fmt: skip
    assert not any(word in done.out + done.err for word in NAMES)


def test_names_only_where_they_are_asked_for(medkit: Run, study: Path) -> None:
    plain = medkit("dicom", "list", study, "--json")
    assert not any(word in plain.out for word in NAMES)
    asked = medkit("dicom", "list", study, "--identify")
    assert all(word in asked.out for word in ("Planted^Name", "ID-4711", "19700102", "Planted Hospital"))


def test_records_are_inputs_of_tasks(medkit: Run, toy: Run, study: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in medkit("dicom", "list", study, "--json").out.splitlines()]
    scan = next(one for one in records if one["dicom"]["SeriesNumber"] == "2")
    assert scan["dicom"] == {
        "StudyInstanceUID": STUDY, "SeriesInstanceUID": f"{STUDY}.2", "SeriesNumber": "2", "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "M"], "size": [8, 7, 4], "spacing_mm": [1.5, 2.0, 3.0], "frames": 1,
        "files": 4, "use": "a case",
    }  # fmt: skip
    cases = "".join(json.dumps(one) + "\n" for one in records if one["dicom"]["use"] == "a case")
    assert len(toy("run", "double", "-o", tmp_path / "out", input=cases).paths) == 2
    with_names = medkit("dicom", "list", study, "--json", "--identify").out
    refused = toy("run", "double", "-o", tmp_path / "no", input=with_names)
    assert refused.code == 1
    assert not any(word in refused.err for word in NAMES)
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_listed(medkit: Run, study: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    torn = study / "2_1.dcm"
    torn.write_bytes(torn.read_bytes()[:-9])
    done = medkit("dicom", "list", tmp_path / "nowhere", tmp_path / "empty", study)
    assert done.code == 1
    assert "nowhere: no such file or folder" in done.err
    assert "empty: holds no DICOM files" in done.err
    assert f"cannot be read: {torn}: a DICOM image that cannot be read: truncated" in done.out


def test_only_headers_are_read(medkit: Run, study: Path) -> None:
    """Pixels of any size may follow: here 3.6 GB, which take no room on the disk."""
    data = image(6, np.zeros((8, 7)), (0, 0, 0), Rows=30000, Columns=60000)
    path, size = write(study / "big.dcm", data), 2 * 30000 * 60000
    head = path.read_bytes()[: -len(data.PixelData) - 4]
    with open(path, "wb") as stream:
        stream.write(head + size.to_bytes(4, "little"))
        stream.truncate(stream.tell() + size)
    done = medkit("dicom", "list", path)
    assert done.code == 0, done.err
    assert "60000 x 30000 x 1" in done.out


def test_a_terminal_gets_a_table(study: Path) -> None:
    from rich.console import Console

    from medkit.studies.table import as_table, list_series

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(as_table(list_series([study]), identify=False))
    text = console.export_text()
    assert "left out: a localizer" in text
    assert "8 x 7 x 4" in text
