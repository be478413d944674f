"""Legends, scales and deformed grids: what a colour in a picture means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medkit.figures.deformation import FOLD, Deformation, draw_deformation
from medkit.figures.layout import TITLE_LINES, WARNING, text_width, under_title, wrapped_text
from medkit.figures.legend import amount_text, legend, voxel_counts
from medkit.figures.mosaic import (
    Member,
    comparison_mosaic,
    heat_mosaic,
    heat_tiles,
    members_mosaic,
    overlay_mosaic,
    value_mosaic,
)
from medkit.figures.overlays import label_colours
from medkit.figures.planes import VIEWS, Plane
from medkit.figures.scales import ColourScale, scale_bar
from medkit.images.image import Image
from medkit.space import Grid

GRID = Grid((30, 30, 30), np.diag([2.0, 2.0, 2.0, 1.0]))


def labels(dtype: str = "uint8", **voxels: int) -> Image:
    """Labels `n1`, `n2`, ... with that many voxels."""
    data = np.zeros(GRID.shape, dtype)
    at = 0
    for name, count in voxels.items():
        data.ravel()[at : at + count] = int(name[1:])
        at += count
    return Image(data[None], GRID)


def ball() -> Image:
    index = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), axis=-1)
    return Image((np.linalg.norm(index - 14.5, axis=-1) < 11).astype(np.float32)[None] * 100, GRID)


def count_of(picture: np.ndarray, colour: tuple[int, ...] | np.ndarray) -> int:
    return int((picture == np.asarray(colour)).all(axis=-1).sum())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_voxels_are_counted(dtype: str, order: str) -> None:
    image = labels(dtype, n1=100, n7=3)
    image = image.with_data(np.asarray(image.data[0], order=order)[None])  # type: ignore[call-overload]
    assert voxel_counts(image) == {1: 100, 7: 3}


def test_amounts_have_three_digits_and_their_unit() -> None:
    voxel = Grid((9, 9, 9), np.eye(4))
    assert [amount_text(n, voxel) for n in (234567, 12345, 1234, 123)] == ["235 ml", "12.3 ml", "1.23 ml", "0.123 ml"]
    assert amount_text(10, Grid((9, 9, 1), np.diag([2.0, 2.0, 1.0, 1.0]), dims=2)) == "40.0 mm²"


def test_legend_has_a_square_of_each_label_and_rows_of_what_is_absent() -> None:
    image = labels(n1=1000, n2=500)
    one = legend(image, {1: "liver", 2: "spleen"}, 800)
    assert one.shape[1] == 800
    for label in (1, 2):
        assert count_of(one, label_colours(np.array(label))) == 144
    assert count_of(one, label_colours(np.array(3))) == 0
    with_absent = legend(image, {1: "liver", 2: "spleen", 3: "kidney"}, 800)
    assert with_absent.shape[0] > one.shape[0]
    assert count_of(with_absent, label_colours(np.array(3))) == 0


def test_long_legends_go_into_columns_and_are_cut() -> None:
    data = np.zeros(GRID.shape, np.uint8)
    for label in range(1, 101):
        data.ravel()[label * 200 : label * 200 + label] = label
    picture = legend(Image(data[None], GRID), {n: f"a rather long name of structure {n}" for n in range(1, 101)}, 1243)
    squares = [label for label in range(1, 101) if count_of(picture, label_colours(np.array(label))) >= 144]
    assert squares == list(range(41, 101))  # the largest 60
    assert picture.shape[0] < 19 * 24


def test_labels_have_a_legend_under_the_mosaic() -> None:
    picture = overlay_mosaic(ball(), labels(n3=9000), kind="labels", names={3: "heart"})
    assert count_of(picture[-30:, :60], label_colours(np.array(3))) == 144


def test_scales_show_their_ends_and_middle() -> None:
    scale = ColourScale.diverging(5.0, " HU")
    ends = scale.colours(np.array([-9.0, -5.0, 0.0, 5.0, 9.0])).astype(int)
    assert (ends[0] == ends[1]).all()
    assert (ends[3] == ends[4]).all()
    assert ends[1][2] > 200 > ends[1][0]  # blue
    assert ends[3][0] > 200 > ends[3][2]  # orange
    assert ends[2].max() < 40
    bar = scale_bar(scale, "difference")
    assert count_of(bar, ends[1]) >= 12
    assert count_of(bar, ends[3]) >= 12
    around = ColourScale.diverging(0.5, around=1.0)
    assert (around.low, around.high) == (0.5, 1.5)


def plane(size: int = 120) -> Plane:
    """An axial plane of pixels of 1 mm."""
    return Plane(VIEWS[0], 0.0, (size, size), np.zeros(3), np.array([0, -1.0, 0]), np.array([-1.0, 0, 0]))


def test_a_shift_moves_the_grid_and_has_one_colour() -> None:
    tile = np.zeros((120, 120, 3), np.uint8)
    (still,), scale, square, folds = draw_deformation([tile], [plane()], lambda points: points)
    assert (square, folds) == (20.0, False)
    lines = np.flatnonzero((still[10] != 0).any(axis=-1))
    assert lines.tolist() == [0, 20, 40, 60, 80, 100]
    (moved,), scale, _, folds = draw_deformation([tile], [plane()], lambda points: points + np.array([3.0, 0, 4.0]))
    assert scale.high == 5.0
    assert not folds
    assert np.flatnonzero((moved[10] != 0).any(axis=-1)).tolist() == [3, 23, 43, 63, 83, 103]
    assert count_of(moved, scale.colours(np.array(5.0))) > 1000


def test_folds_are_marked_where_they_are() -> None:
    def fold(points: np.ndarray) -> np.ndarray:
        moved = points.copy()
        right = points[:, 0] < -60
        moved[right, 0] = -120 - points[right, 0]  # what lies beyond comes back
        return moved

    (picture,), _, _, folds = draw_deformation([np.zeros((120, 120, 3), np.uint8)], [plane()], fold)
    assert folds
    marked = (picture == np.array(FOLD)).all(axis=-1)
    assert marked[5:115, 65:115].all()
    assert not marked[:, :58].any()


def test_registrations_have_a_row_with_the_grid() -> None:
    image = ball()
    without = overlay_mosaic(image, image)
    picture = overlay_mosaic(image, image, deformation=Deformation("the warp", lambda points: points + 1.0))
    assert picture.shape[0] > without.shape[0] + 150
    assert np.array_equal(picture[80 : without.shape[0]], without[80:])


def test_differences_have_headings_and_a_scale() -> None:
    before, after = ball(), ball()
    after.data[0, 14:, 14:17, 14:17] += 50
    after.data[0, :14, 14:17, 14:17] -= 50
    picture = comparison_mosaic(before, after)
    third = picture[:, 2 * picture.shape[1] // 3 :]
    orange, blue = ColourScale.diverging(50.0).colours(np.array([50.0, -50.0]))
    right_is_left = [np.nonzero((third[:-30] == colour).all(axis=-1))[1].mean() for colour in (orange, blue)]
    assert right_is_left[0] < right_is_left[1]
    assert count_of(picture[-24:], orange) >= 12  # the scale
    assert count_of(comparison_mosaic(before, before)[:-24], orange) == 0


def test_saliency_is_drawn_where_it_is() -> None:
    image = ball()
    heat = image.with_data(np.zeros_like(image.data))
    heat.data[0, 20:, :, :] = 1.0  # the right side
    picture = heat_mosaic(image, heat, what="saliency")
    without = heat_mosaic(image, image.with_data(np.zeros_like(image.data)), what="saliency")
    warm = (picture != without).any(axis=-1)[: picture.shape[0] // 3, : picture.shape[1] // 5]
    columns = np.flatnonzero(warm.any(axis=0))
    assert columns.min() < 10
    assert columns.max() == pytest.approx(picture.shape[1] / 5 * 0.34, abs=10)


def test_planes_of_pictures_have_no_letters_and_no_position() -> None:
    grid = Grid((60, 60, 1), np.diag([-1.0, -1.0, 1.0, 1.0]), dims=2)
    data = np.random.default_rng(0).random((1, 60, 60, 1)).astype(np.float32)
    marked = overlay_mosaic(Image(data, grid, Path("x.nii.gz")))
    plain = overlay_mosaic(Image(data, grid, Path("x.png")))
    assert count_of(marked, WARNING) > 0
    assert count_of(plain, WARNING) == 0
    assert count_of(heat_tiles([("a", Image(data, grid, Path("x.png")), Image(data, grid))], what="s"), WARNING) == 0


def test_a_template_has_its_members_next_to_it() -> None:
    image = ball()
    moved = ball().with_data(np.roll(ball().data, 4, axis=1))
    still = Member("still.nii.gz", image, lambda points: points)
    back = Member("moved.nii.gz", moved, lambda points: points + np.array([8.0, 0, 0]))
    lost = Member("lost.nii.gz", moved, lambda points: points + 1000.0)
    pictures = [members_mosaic(image, [lambda: still, lambda one=one: one]) for one in (back, still, lost)]  # type: ignore[misc]
    assert pictures[0].shape == pictures[1].shape
    difference = np.abs(pictures[0][70:].astype(int) - pictures[1][70:])
    assert (difference > 40).mean() < 0.002  # mapped back, both are the same
    assert (np.abs(pictures[2][70:].astype(int) - pictures[1][70:]) > 40).mean() > 0.05


def test_values_are_black_where_nothing_changes() -> None:
    data = np.ones((1, *GRID.shape), np.float32)
    data[0, 20:] = 1.5
    picture = value_mosaic(Image(data, GRID), around=1.0, what="Jacobian determinant")
    assert count_of(picture[:-24], ColourScale.diverging(0.5).colours(np.array(0.5))) > 5000
    assert count_of(picture[:-24], ColourScale.diverging(0.5).colours(np.array(-0.5))) == 0


def test_long_reasons_are_wrapped_and_counted() -> None:
    picture = np.zeros((50, 700, 3), np.uint8)
    assert under_title(picture, ["short"]).shape[0] == 78
    words = "look at this one: " + "the scan differs from the others " * 5
    lines = wrapped_text(words, 684, 15)
    assert len(lines) > 1
    assert " ".join(lines) == words.strip()
    assert all(text_width(line, 15) <= 684 for line in lines)
    assert under_title(picture, [words]).shape[0] == 58 + 20 * len(lines)
    assert under_title(picture, [words] * 9).shape[0] <= 58 + 20 * TITLE_LINES
    assert text_width(wrapped_text("x" * 900, 300, 13)[0], 13) <= 300
