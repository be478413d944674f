"""Which cases of a report have volumes, and where these lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medkit.images.image import Image
from medkit.review import volumes
from medkit.review.volumes import PageVolumes
from medkit.space import Grid
from medkit.viewer.layers import Layers


def layers(seed: int) -> Layers:
    """Noise, which no form stores in less than about 5 kB."""
    values = np.random.default_rng(seed).integers(0, 30000, (1, 34, 34, 34), np.int16)
    return Layers(Image(values, Grid((34, 34, 34), np.eye(4))))


def test_the_first_cases_have_volumes_if_there_is_no_room_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "ROOM", 40_000)
    found = PageVolumes(None, 12)
    for number in range(12):
        found.add(f"case {number}", layers(number))
    names = list(found.entries)
    assert 1 < len(names) < 12
    assert names == [f"case {number}" for number in range(len(names))]
    assert found.size <= 20_000
    assert not found.has_room
    assert {entry["note"] for entry in found.entries.values()} == {"values in 256 levels, voxels of 2 x 2 x 2 averaged"}


def test_room_that_cases_leave_goes_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "ROOM", 260_000)
    found = PageVolumes(None, 3)
    found.add("nothing to show", None)
    found.add("one", layers(1))
    found.add("two", layers(2))
    assert [entry["note"] for entry in found.entries.values()] == ["values in 256 levels"] * 2


def test_a_folder_keeps_all_values_and_only_the_volumes_of_its_page(tmp_path: Path) -> None:
    for seed in (1, 2):
        found = PageVolumes(tmp_path / "volumes", 1)
        found.add("case", layers(seed))
        (tmp_path / "volumes" / "mine.html").touch()
        found.remove_others()
    address = found.entries["case"]
    assert sorted(path.name for path in (tmp_path / "volumes").iterdir()) == sorted([Path(address).name, "mine.html"])
    assert '"note":""' in (tmp_path / address).read_text()
