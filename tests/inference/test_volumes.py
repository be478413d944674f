"""Volumes of the structures in a bundle's labels."""

from __future__ import annotations

import numpy as np
import pytest

from medkit.images.image import Image
from medkit.inference.volumes import volumes_of
from medkit.space import Grid

GRID = Grid((4, 5, 6), np.diag([-2.0, 1.5, 3.0, 1.0]))
"""Voxels of 9 mm3."""


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32])
def test_names_numbers_and_what_is_missing(kind: type) -> None:
    data = np.zeros((1, 4, 5, 6), kind)
    data[0, 0, 0, :4] = 1
    data[0, 1, 1, :2] = 7

    found = volumes_of(Image(data, GRID), {"1": "liver", "2": "spleen"})

    assert found == {"volumes_mm3": {"liver": 36.0, "spleen": 0.0, "7": 18.0}}


def test_regions_that_overlap_are_counted_each() -> None:
    data = np.zeros((2, 4, 5, 6), np.uint8)
    data[0, 0] = 1
    data[1, 0, 0] = 1

    assert volumes_of(Image(data, GRID), {"1": "whole"}) == {"volumes_mm3": {"whole": 270.0, "2": 54.0}}


def test_pictures_have_no_volumes() -> None:
    grid = Grid((4, 5, 1), np.eye(4), dims=2)

    assert volumes_of(Image(np.ones((1, 4, 5, 1), np.uint8), grid), {}) == {}
