"""Which series a task takes, by its modality and what its bundle states, and why it leaves others out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dicoms import write_series

from medkit.studies.choosing import reason_against
from medkit.studies.finding import find_series
from medkit.studies.needs import SeriesNeeds
from medkit.studies.summary import summaries_of

CAPTURE, ORIGINAL = "1.2.840.10008.5.1.4.1.1.7", ["ORIGINAL", "PRIMARY", "AXIAL"]


def reason(folder: Path, needs: SeriesNeeds, slices: int = 4, **tags: Any) -> str:
    write_series(folder, 3, slices, **tags)
    (one,) = summaries_of(find_series(folder).series)
    return reason_against(one, needs)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"Modality": "CT", "ImageType": ORIGINAL}, "segment takes MR"),
        ({}, ""),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}, ""),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}, "derived from another series"),
        ({"ImageType": ["DERIVED", "PRIMARY", "MPR"]}, "derived: a reformation"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "MPR"]}, ""),
        ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]}, "derived: a projection"),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"]}, "derived: a map"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "no magnitude image"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]}, ""),
        ({"SeriesDescription": "AAHead_Scout"}, "a localizer"),
        ({"SeriesDescription": "3-Pl T2* FGRE S"}, "a localizer"),
        ({"SeriesDescription": "t1_mprage localised"}, ""),
        ({"SOPClassUID": CAPTURE}, "a secondary capture"),
        ({"Modality": "RTDOSE"}, "a dose, no scan"),
    ],
)
def test_series_of_a_study(tmp_path: Path, tags: dict[str, Any], expected: str) -> None:
    assert reason(tmp_path / "in", SeriesNeeds("segment", ["MR"]), **tags) == expected


def test_pet_is_called_derived_for_its_corrections(tmp_path: Path) -> None:
    tags = {"Modality": "PT", "ImageType": ["DERIVED", "SECONDARY"]}
    assert reason(tmp_path / "a", SeriesNeeds("register"), **tags) == ""
    assert reason(tmp_path / "b", SeriesNeeds("segment", ["MR", "CT"]), **tags) == "segment takes CT or MR"


def test_planes(tmp_path: Path) -> None:
    """Single slices are for bundles of planes; X-rays are single by nature."""
    assert reason(tmp_path / "a", SeriesNeeds("register"), 1) == "a single slice"
    assert reason(tmp_path / "b", SeriesNeeds("sr", planes=True), 1) == ""
    xray = {"Modality": "DX", "ImageType": ORIGINAL}
    assert reason(tmp_path / "c", SeriesNeeds("classify", ["CR"]), 1, **xray) == ""
    capture = {**xray, "Modality": "CR", "SOPClassUID": CAPTURE}
    assert reason(tmp_path / "d", SeriesNeeds("classify", ["CR"]), 1, **capture) == ""


def test_frames(tmp_path: Path) -> None:
    for time in (1, 2):
        write_series(tmp_path / f"in/{time}", 3, TemporalPositionIdentifier=time)
    (one,) = summaries_of(find_series(tmp_path / "in").series)
    assert reason_against(one, SeriesNeeds("register")) == "2 frames; --frame N picks one"
    assert reason_against(one, SeriesNeeds("register", frame_picked=True)) == ""


def test_a_series_that_cannot_be_read_is_taken_so_that_it_fails(tmp_path: Path) -> None:
    write_series(tmp_path / "in", 3)
    (tmp_path / "in/3_1.dcm").unlink()
    (one,) = summaries_of(find_series(tmp_path / "in").series)
    assert "a slice is missing" in one.problem
    assert reason_against(one, SeriesNeeds("register")) == ""


@pytest.mark.parametrize(
    ("task", "modalities", "planes"),
    [("segment", {"CT", "MR"}, False), ("classify", {"CR", "CT", "MR"}, True), ("sr", set(), True)],
)
def test_what_the_bundles_of_tasks_state(task: str, modalities: set[str], planes: bool) -> None:
    from medkit import plugins
    from medkit.bundles.bundle import AUTO, candidate_bundles
    from medkit.inference.loading import RunSettings
    from medkit.inference.task import bundle_task

    made = bundle_task(task, candidate_bundles(AUTO, task, plugins.registry(), trust=False), RunSettings({}))
    assert (set(made.modalities), made.planes) == (modalities, planes)
