"""Borders that Hounsfield units show, drawn again in a network's labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from medkit_segment import airway
from medkit_segment.borders import Border, Borders, movable, redraw, with_own_pieces
from medkit_segment.upright import Upright

from medkit.errors import BundleError

SPACING = np.array([2.0, 2.0, 2.0])
LUNG = Border((2, 3), around=1, edge=-400.0, dense=False, band=4.0, closed=6.0, core=-500.0)
BONE = Border((5,), around=1, edge=180.0, dense=True, band=4.0, closed=0.1, core=None)


def ball(radius: float, centre: tuple[float, float, float] = (20, 20, 20)) -> np.ndarray:
    """A ball in a volume of 40^3 voxels of 2 mm; radius in voxels."""
    grid = np.indices((40, 40, 40))
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) < radius**2


def redrawn(labels: np.ndarray, values: np.ndarray, border: Border) -> np.ndarray:
    out = labels.copy()
    redraw(out, movable(labels, values, SPACING, border), values, border)
    return out


@pytest.mark.parametrize("radius", [8.5, 10.0, 11.5])
def test_a_lung_ends_where_its_air_ends(radius: float) -> None:
    truth = ball(10.0)
    values = np.where(truth, -850.0, 40.0)
    labels = np.where(ball(radius), 3, 1).astype(np.uint8)
    np.testing.assert_array_equal(redrawn(labels, values, LUNG) == 3, truth)


def test_a_border_moves_no_farther_than_the_band() -> None:
    values = np.where(ball(16.0), -850.0, 40.0)
    labels = np.where(ball(8.0), 3, 1).astype(np.uint8)
    found = redrawn(labels, values, LUNG) == 3
    assert found.sum() > ball(9.5).sum()
    assert not (found & ~ball(10.5)).any()


def test_next_to_consolidation_the_border_of_the_network_stays() -> None:
    """The lower half of the lung holds no air: nothing tells it from the wall."""
    lung = ball(12.0)
    values = np.where(lung, -850.0, 40.0)
    values[:, :, :20] = 40.0
    labels = np.where(lung, 3, 1).astype(np.uint8)
    found = redrawn(labels, values, LUNG) == 3
    assert found[:, :, :12].sum() > 0.97 * lung[:, :, :12].sum()
    np.testing.assert_array_equal(found[:, :, 24:], lung[:, :, 24:])


def test_a_vessel_at_the_border_stays_in_the_lung() -> None:
    lung = ball(12.0)
    values = np.where(lung & ~ball(1.5, (20, 20, 31)), -850.0, 40.0)
    labels = np.where(lung, 3, 1).astype(np.uint8)
    assert redrawn(labels, values, LUNG)[20, 20, 30] == 3


def test_only_what_surrounds_an_organ_is_taken() -> None:
    """Air of the airway, 4, and outside of the body, 0, stays what it is; each lung grows for itself."""
    lungs = np.where(ball(5.0, (12, 20, 20)), 2, 0) + np.where(ball(5.0, (28, 20, 20)), 3, 0)
    labels = np.where(lungs > 0, lungs, 1).astype(np.uint8)
    labels[12, 20, 25:30], labels[28, 20, 25:30] = 4, 0
    values = np.where(ball(6.0, (12, 20, 20)) | ball(6.0, (28, 20, 20)) | (labels == 4) | (labels == 0), -900.0, 40.0)
    found = redrawn(labels, values, LUNG)
    np.testing.assert_array_equal(found[labels == 4], 4)
    np.testing.assert_array_equal(found[labels == 0], 0)
    np.testing.assert_array_equal(found[:20] == 2, ball(6.0, (12, 20, 20))[:20] & (labels != 4)[:20])
    np.testing.assert_array_equal(found[20:] == 3, ball(6.0, (28, 20, 20))[20:] & (labels != 0)[20:])


def test_bones_are_dense() -> None:
    truth = ball(6.0)
    labels = np.where(ball(7.0, (21, 20, 20)), 5, 1).astype(np.uint8)
    np.testing.assert_array_equal(redrawn(labels, np.where(truth, 400.0, 50.0), BONE) == 5, truth)


def test_finer_voxels_of_the_scan_decide() -> None:
    """The network's grid says where the border may move, the scan's own voxels where it lies."""
    truth = ball(10.4)
    coarse = truth[::2, ::2, ::2]
    spacing = 2 * SPACING
    values = np.where(truth, -850.0, 40.0)
    labels = np.where(coarse, 3, 1).astype(np.uint8)
    found = movable(labels, values[::2, ::2, ::2], spacing, LUNG)

    def spread(array: np.ndarray) -> np.ndarray:
        return array.repeat(2, 0).repeat(2, 1).repeat(2, 2)

    fine = spread(labels)
    assert ((fine == 3) != truth).sum() > 0.05 * truth.sum()
    redraw(fine, type(found)(spread(found.gain), spread(found.loss)), values, LUNG)
    assert ((fine == 3) != truth).sum() < 0.002 * truth.sum()


def test_without_the_organ_nothing_moves() -> None:
    labels = np.ones((8, 8, 8), np.uint8)
    np.testing.assert_array_equal(redrawn(labels, np.full((8, 8, 8), -900.0), LUNG), labels)


def test_metadata() -> None:
    assert Borders.of({}) is None
    organ = {"labels": [2, 3], "around": 1, "edge": -400, "dense": False, "band": 4, "closed": 6, "core": -500}
    assert Borders.of({"borders": {"unit": 1000, "organs": [organ]}}) == Borders(1000.0, (LUNG,))
    assert Borders.of({"borders": {"unit": 1, "organs": [organ], "airway": 4}}) == Borders(1.0, (LUNG,), 4)
    for broken in ({"organs": [organ]}, {"unit": 1000, "organs": [{"labels": [2]}]}, {"unit": "x", "organs": []}):
        with pytest.raises(BundleError, match=r"medkit\.borders: expected unit and organs"):
            Borders.of({"borders": broken})


def chest_with_airway() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intensities, a network's labels without airway, and the trachea; voxels of 2 mm."""
    x, y, z = np.indices((100, 80, 60))
    body = ((x - 50) / 45) ** 2 + ((y - 40) / 32) ** 2 < 1
    labels = body.astype(np.uint8)
    for label, middle in ((2, 28), (3, 72)):
        labels[((x - middle) / 14) ** 2 + ((y - 40) / 20) ** 2 + ((z - 10) / 40) ** 2 < 1] = label
    trachea = ((x - 50) ** 2 + (y - 36) ** 2 < 16) & (z > 15)
    values = np.where(body, 40.0, -1000.0)
    values[(labels == 2) | (labels == 3)] = -850
    values[trachea] = -1000
    return values.astype(np.float32), labels, trachea


def test_the_airway_grows_from_the_trachea() -> None:
    values, labels, trachea = chest_with_airway()
    labels[trachea & (np.arange(60) > 40)] = 4  # what the network found of it
    labels[70:74, 38:42, 8:12] = 4  # and what is none
    scan = Upright(values, SPACING)
    found = airway.relabelled(labels, scan, (labels == 1) | (labels == 5), 4)
    np.testing.assert_array_equal(found == 4, trachea)
    assert (found[70:74, 38:42, 8:12] == 3).all()


def test_without_a_trachea_the_airway_of_the_network_stays() -> None:
    values, labels, trachea = chest_with_airway()
    values[trachea] = 40
    labels[48:53, 34:39, 30:40] = 4
    found = airway.relabelled(labels, Upright(values, SPACING), labels == 1, 4)
    np.testing.assert_array_equal(found, labels)


def test_the_lost_tip_of_a_lung_is_found_and_gas_in_bowel_is_not() -> None:
    """Both lungs, their tips not labelled, and gas in bowel that touches one of them by few voxels."""
    left, right, bowel = ball(8.0, (10, 20, 20)), ball(8.0, (29, 20, 20)), ball(6.0, (10, 20, 6))
    values = np.where(left | right | bowel, -850.0, 40.0)
    values[:, :, 12] = 40.0
    values[10, 20, 12] = -850.0  # a hole in the diaphragm
    labels = np.where(left, 2, np.where(right, 3, 1)).astype(np.uint8)
    labels[:, :, :13] = 1
    labels[:, :, 25:] = 1
    found = with_own_pieces(labels, values, replace(LUNG, attached=-700.0))
    tips = (left | right) & (values < -700) & (np.arange(40) >= 25)
    assert tips.sum() > 100
    np.testing.assert_array_equal(found[left & tips], 2)
    np.testing.assert_array_equal(found[right & tips], 3)
    np.testing.assert_array_equal(found[:, :, :13], 1)
    np.testing.assert_array_equal(found[~tips], labels[~tips])
    assert with_own_pieces(labels, values, LUNG) is labels


@pytest.mark.parametrize("aired", [True, False])
def test_a_piece_without_air_is_no_lung_if_another_piece_has_air(aired: bool) -> None:
    lung, pelvis = ball(7.0, (20, 20, 30)), ball(8.0, (20, 20, 9))
    values = np.where(lung & aired, -850.0, 40.0)
    labels = np.where(lung | pelvis, 3, 1).astype(np.uint8)
    found = with_own_pieces(labels, values, replace(LUNG, attached=-700.0))
    np.testing.assert_array_equal(found == 3, lung if aired else lung | pelvis)
