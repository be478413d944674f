"""Mosaics: the right place in every orientation, colours that stay, and a picture for every odd input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkit.figures import overlays
from medkit.figures.layout import WARNING
from medkit.figures.mosaic import overlay_mosaic, sample_sheet, write_png
from medkit.figures.overlays import CHECKER_TINT, LEVEL_COLOURS, label_colours
from medkit.figures.planes import VIEWS, Plane, choose_axes, choose_planes, label_points
from medkit.figures.sampling import sample, sample_labels
from medkit.figures.window import choose_window
from medkit.images.image import Image, read_image
from medkit.space import Grid

CENTRE = np.array([12.0, -7.0, 30.0])
ENDS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
HEADER_NOTE = slice(46, 66)
"""Rows of the header's third line, that of warnings, where a title is given."""


def turned(degrees: float) -> np.ndarray:
    """(3, 3), a turn about an axis that is none of the grid's."""
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    k = np.cross(np.eye(3), axis)
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def grid(codes: str = "RAS", spacing: tuple[float, ...] = (2, 2, 2), size: float = 110, degrees: float = 0) -> Grid:
    """A grid of `size` mm around CENTRE whose axes run towards the letters of `codes`."""
    directions = turned(degrees) @ np.array([ENDS[code] for code in codes], float).T
    shape = tuple(max(1, round(size / s)) for s in spacing)
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)  # type: ignore[arg-type]


def points(where: Grid) -> np.ndarray:
    """(I, J, K, 3), RAS+ mm from CENTRE of every voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, where.shape), indexing="ij"), axis=-1)
    return index @ where.affine[:3, :3].T + where.affine[:3, 3] - CENTRE


def head(where: Grid, shift: tuple[float, float, float] = (0, 0, 0)) -> Image:
    """A grey ellipsoid with a bright core and air around it."""
    radius = np.linalg.norm((points(where) - shift) / (42, 48, 45), axis=-1)
    return Image((100.0 * (radius < 1) + 80.0 * (radius < 0.5)).astype(np.float32)[None], where)


def balls(where: Grid) -> Image:
    """Label 1 in the centre, 2 to its right, 3 before it and 4 above it; 5 on the three other sides."""
    labels = np.zeros(where.shape, np.int16)
    for label, offset in ((1, (0, 0, 0)), (2, (25, 0, 0)), (3, (0, 25, 0)), (4, (0, 0, 25))):
        labels[np.linalg.norm(points(where) - offset, axis=-1) < 8] = label
    for offset in np.eye(3) * -25:
        labels[np.linalg.norm(points(where) - offset, axis=-1) < 8] = 5
    return Image(labels[None], where)


def spots(picture: np.ndarray, label: int) -> list[np.ndarray]:
    """Centres (x, y) of what is drawn in a label's colour, one for each row of tiles it appears in."""
    y, x = np.nonzero((picture == label_colours(np.array(label))).all(axis=-1))
    keep = y > 70  # below the header, whose label numbers have the same colours
    x, y = x[keep], y[keep]
    groups = np.split(np.arange(len(y)), np.flatnonzero(np.diff(y) > 60) + 1)
    extremes = [(x[g].min() + x[g].max(), y[g].min() + y[g].max()) for g in groups]
    return [np.array(e) / 2 for e in extremes]


GRIDS = {
    "RAS": grid(),
    "LPI": grid("LPI"),
    "PSR": grid("PSR"),
    "SAL": grid("SAL"),
    "thick axial": grid("LAS", (1, 1, 5)),
    "thick sagittal": grid("PSR", (1, 1, 4)),
    "oblique": grid("LPS", (1.5, 1.5, 1.5), degrees=20),
}


def planes_of(image: Image, labels: Image | None = None, slices: int = 5) -> list[list[Plane]]:
    frame = choose_axes(image.grid)
    marked = label_points(labels, frame) if labels else None
    return choose_planes(image, choose_window(image), frame, marked, slices)


def places(plane: Plane) -> np.ndarray:
    """(rows, columns, 3), RAS+ mm of every pixel."""
    rows, columns = plane.shape
    return plane.origin + np.arange(rows)[:, None, None] * plane.down + np.arange(columns)[:, None] * plane.across


@pytest.mark.parametrize("name", ["RAS", "LPI", "PSR", "SAL", "oblique"])
def test_marker_is_where_the_letters_say(name: str) -> None:
    picture = overlay_mosaic(head(GRIDS[name]), balls(GRIDS[name]), kind="labels", title="t", slices=1)
    axial, coronal, sagittal, _legend = spots(picture, 1)
    right, front, above = spots(picture, 2), spots(picture, 3), spots(picture, 4)
    length = np.linalg.norm(right[0] - axial)
    assert length > 40
    for found, centre, direction in (
        (right[0], axial, (-1, 0)),
        (front[0], axial, (0, -1)),
        (right[1], coronal, (-1, 0)),
        (above[0], coronal, (0, -1)),
        (front[1], sagittal, (-1, 0)),
        (above[1], sagittal, (0, -1)),
    ):
        np.testing.assert_allclose((found - centre) / length, direction, atol=0.09)


@pytest.mark.parametrize("name", GRIDS)
def test_letters_and_captions_tell_the_directions(name: str) -> None:
    for plane in (plane for row in planes_of(head(GRIDS[name])) for plane in row):
        left, right, top, bottom = (np.array(ENDS[letter]) for letter in plane.view.marks)
        pixel = np.linalg.norm(plane.down)
        np.testing.assert_allclose(np.linalg.norm(plane.across), pixel)  # square pixels whatever the voxels
        for end, step in ((right, plane.across), (-left, plane.across), (bottom, plane.down), (-top, plane.down)):
            assert end @ step > 0.9 * pixel
        if name != "oblique" or plane.view.name == "axial":
            assert plane.caption.startswith(plane.view.name)
            end, distance = plane.caption.split()[1:3]
            assert np.dot(ENDS[end], plane.origin) == pytest.approx(float(distance), abs=0.051)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sampling_reads_the_right_place(name: str, axis: int) -> None:
    where = GRIDS[name]
    positions = Image((points(where) + CENTRE)[..., axis].astype(np.float32)[None], where)
    for plane in (plane for row in planes_of(head(where)) for plane in row):
        at = places(plane)
        index = (at - where.affine[:3, 3]) @ np.linalg.inv(where.affine[:3, :3]).T
        well_inside = ((index > 0.6) & (index < np.array(where.shape) - 1.6)).all(axis=-1)
        assert well_inside.mean() > 0.3
        np.testing.assert_allclose(sample(positions, plane)[well_inside], at[well_inside][:, axis], atol=0.01)
        outside = ((index < -1.5) | (index > np.array(where.shape) + 0.5)).any(axis=-1)
        assert not sample(positions, plane)[outside].any()


def test_large_pixels_are_means_around_their_own_place() -> None:
    where = grid(spacing=(0.5, 0.5, 0.5), size=60)
    positions = Image(points(where)[..., 0].astype(np.float32)[None], where)
    step = np.array([1.5, 0, 0]), np.array([0, 0, -1.5])
    plane = Plane(VIEWS[1], 0, (20, 20), CENTRE + np.array([-14, 0, 14]), step[1], step[0])
    np.testing.assert_allclose(sample(positions, plane), (places(plane) - CENTRE)[..., 0], atol=1e-3)
    noise = Image(np.random.default_rng(0).standard_normal((1, *where.shape)).astype(np.float32), where)
    assert sample(noise, plane).std() < 0.6


@pytest.mark.parametrize("name", ["LPI", "PSR", "oblique", "thick axial"])
def test_tiles_are_cropped_around_the_content(name: str) -> None:
    for plane in (plane for row in planes_of(head(GRIDS[name], shift=(4, 3, 0))) for plane in row):
        away = places(plane)[[0, -1], [0, -1]].mean(axis=0) - CENTRE - (4, 3, 0)
        away -= (
            away
            @ np.cross(plane.down, plane.across)
            * np.cross(plane.down, plane.across)
            / (np.linalg.norm(plane.down) ** 4)
        )
        assert np.linalg.norm(away) < 3
        assert np.linalg.norm(plane.across) * plane.shape[1] < 108


def test_labels_are_those_of_the_nearest_voxel() -> None:
    where = grid("PSR", (3, 1.5, 2), degrees=10)
    values = np.random.default_rng(0).integers(0, 2036, where.shape).astype(np.int32)
    plane = planes_of(head(where))[0][2]
    index = (places(plane) - where.affine[:3, 3]) @ np.linalg.inv(where.affine[:3, :3]).T
    clear = ((index > 0) & (index < np.array(where.shape) - 1)).all(axis=-1)
    clear &= (np.abs(index % 1 - 0.5) > 0.01).all(axis=-1)
    expected = values[tuple(np.rint(index[clear]).astype(int).T)]
    assert np.array_equal(sample_labels(Image(values[None], where), plane)[clear], expected)


def test_overlay_on_another_grid_is_drawn_where_it_lies() -> None:
    fixed = GRIDS["RAS"]
    same = overlay_mosaic(head(fixed), balls(fixed), kind="labels", title="t", slices=1)
    other = overlay_mosaic(head(fixed), balls(GRIDS["oblique"]), kind="labels", title="t", slices=1)
    np.testing.assert_allclose(spots(other, 2), spots(same, 2), atol=4)


def test_thick_slices_are_shown_as_they_are_and_only_once() -> None:
    where = grid("PSR", (1, 1, 11))
    own, across = planes_of(head(where))[:-1], planes_of(head(where))[-1]
    shown = [plane for row in own for plane in row]
    centres = points(where)[0, 0, :, 0] + CENTRE[0]
    assert {plane.view.name for plane in shown} == {"sagittal"}
    assert len(shown) == len({plane.position for plane in shown}) <= 10
    assert all(np.abs(centres - plane.position).min() < 1e-3 for plane in shown)
    assert {plane.view.name for plane in across} == {"axial", "coronal"}


def test_slices_meet_small_labels_and_close_in_on_them() -> None:
    where = grid(spacing=(1, 1, 1))
    lesion = np.zeros(where.shape, np.uint8)
    lesion[70:73, 40:43, 20:23] = 1
    rows = planes_of(head(where), Image(lesion[None], where))
    assert all(sample_labels(Image(lesion[None], where), plane).any() for row in rows for plane in row)
    assert np.linalg.norm(rows[0][0].across) < 0.5 * np.linalg.norm(planes_of(head(where))[0][0].across)


def test_stray_voxels_take_no_slice() -> None:
    where = grid(spacing=(1, 1, 1))
    data = np.zeros(where.shape, np.uint8)
    data[30:80, 30:80, 30:80] = 1
    data[0, 0, 0] = data[-1, -1, -1] = 1
    rows = planes_of(head(where), Image(data[None], where))
    assert all((sample_labels(Image(data[None], where), plane) != 0).sum() > 100 for row in rows for plane in row)


def test_label_colours_depend_on_the_number_alone() -> None:
    table = label_colours(np.arange(1, 2036))
    assert np.array_equal(label_colours(np.array([[2035, 7]]))[0], table[[2034, 6]])
    apart = np.linalg.norm(table[:24, None].astype(float) - table[None, :24], axis=-1) + 1e3 * np.eye(24)
    assert apart.min() > 40
    assert (table.max(axis=1).astype(int) - table.min(axis=1) > 80).all()  # never mistaken for grey
    where = GRIDS["RAS"]
    only_two = balls(where).with_data(np.where(balls(where).data == 2, 2, 0).astype(np.int16))
    assert len(spots(overlay_mosaic(head(where), only_two, kind="labels", title="t"), 2)) > 0


def contour(picture: np.ndarray) -> np.ndarray:
    """Columns of the first row of tiles that hold the outline's colour."""
    blue = (picture[70:300] == LEVEL_COLOURS[0]).all(axis=-1)
    return np.flatnonzero(blue.any(axis=0))


def test_contours_follow_the_overlay() -> None:
    fixed = head(GRIDS["RAS"])
    aligned = overlay_mosaic(fixed, fixed, title="t", slices=1)
    moved = overlay_mosaic(fixed, head(GRIDS["LPI"], shift=(10, 0, 0)), title="t", slices=1)
    pixel = np.linalg.norm(planes_of(fixed, slices=1)[0][0].across)
    assert contour(aligned).max() - contour(moved).max() == pytest.approx(10 / pixel, abs=3)  # right is left
    half_maximum = (np.ptp(contour(aligned)) * pixel) / 2
    assert half_maximum == pytest.approx(42, abs=2)


def test_checkerboard_takes_turns() -> None:
    first, second = np.full((64, 48, 3), 200, np.uint8), np.full((64, 48, 3), 100, np.uint8)
    board = overlays._checkerboard(first, second)
    assert (board[0, 0] == 200).all()
    assert np.array_equal(board[0, 8], (100 * np.array(CHECKER_TINT)).astype(np.uint8))
    assert (board[..., 0] == 200).mean() == pytest.approx(0.5)


def test_checkerboards_show_every_view_at_its_middle() -> None:
    rows = planes_of(head(GRIDS["RAS"]))
    assert overlays.middle_tiles(rows, only_first=False) == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    assert all(row == 0 for row, _ in overlays.middle_tiles(rows, only_first=True))


def test_ct_is_windowed_in_hounsfield_units() -> None:
    where = GRIDS["RAS"]
    body = np.where(head(where).data > 0, 40, -1000).astype(np.int16)
    body[:, 20:30, 20:30, 20:30] = 1200
    window = choose_window(Image(body, where))
    assert (window.low, window.high, window.unit) == (-160, 240, " HU")
    lungs = np.where(head(where).data > 150, -800, body).astype(np.int16)
    assert choose_window(Image(lungs, where)).low == -160  # a little air: a stomach, the base of the lungs
    lungs[(head(where).data > 0) & (points(where)[..., 0] > -20)] = -800
    assert choose_window(Image(lungs, where)).low == -1000
    assert choose_window(head(where)).unit == ""


def test_ct_contours_are_lines_and_the_outside_is_black() -> None:
    where = grid("LAS", degrees=15)
    scan = Image(np.where(head(where).data > 0, 40, -1000).astype(np.int16), where)
    picture = overlay_mosaic(head(grid(size=160)), scan, title="t")
    blue = (picture[70:] == LEVEL_COLOURS[0]).all(axis=-1).mean()
    assert 0 < blue < 0.05
    scan = Image(np.where(head(where).data > 0, 40, -100).astype(np.int16), where)
    scan.data[0, :, :9] = -1000
    corner = overlay_mosaic(scan, slices=1)[60:80, 20:40]
    assert not corner.any()


def test_outliers_do_not_set_the_grey_window() -> None:
    image = head(GRIDS["RAS"])
    image.data[0, 3, 3, 3] = 1e6
    assert choose_window(image).high < 200


def warned(picture: np.ndarray) -> bool:
    return bool((picture[HEADER_NOTE] == WARNING).all(axis=-1).any())


def filled(where: Grid, value: float, dtype: Any = np.float32, channels: int = 1) -> Image:
    return Image(np.full((channels, *where.shape), value, dtype), where)


def test_what_cannot_be_shown_is_said() -> None:
    where, affine = GRIDS["RAS"], np.eye(4)
    affine[:3, 3] = 5000
    away = Grid((20, 20, 20), affine)
    fixed = head(where)
    assert not warned(overlay_mosaic(fixed, balls(where), kind="labels", title="t"))
    assert not warned(overlay_mosaic(fixed, fixed, title="t"))
    assert warned(overlay_mosaic(fixed, filled(where, 0, np.uint8), kind="labels", title="t"))
    assert warned(overlay_mosaic(fixed, filled(away, 3, np.uint8), kind="labels", title="t"))
    assert warned(overlay_mosaic(fixed, filled(where, 7), title="t"))
    assert warned(overlay_mosaic(fixed, Image(np.random.default_rng(0).random((1, 20, 20, 20)), away), title="t"))


ODD_GRIDS = {
    "one voxel": Grid((1, 1, 1), np.eye(4)),
    "a line": Grid((1, 1, 50), np.eye(4)),
    "axial slice": grid("LPS", (1, 1, 110)),
    "coronal slice": grid("RSA", (1, 1, 110)),
    "oblique slice": grid("RAS", (1, 110, 1), degrees=25),
    "2D file": Grid((64, 48, 1), np.diag([0.5, 0.5, 1, 1]), dims=2),
    "two slices": grid("RAS", (1, 1, 55)),
    "flat and long": Grid((4, 4, 90), np.diag([0.1, 0.1, 30, 1])),
    "needle": Grid((300, 2, 2), np.diag([10, 0.01, 0.01, 1])),
    "microscope": Grid((30, 40, 20), np.diag([1e-3, 1e-3, 1e-3, 1])),
    "sheared": Grid((30, 30, 12), np.array([[1, 0, 0, 0], [0, 1, 1.3, 0], [0, 0, 4, 0], [0, 0, 0, 1.0]])),
}


@pytest.mark.parametrize("name", ODD_GRIDS)
@pytest.mark.parametrize("kind", ["image", "labels"])
def test_odd_grids(name: str, kind: Any) -> None:
    where = ODD_GRIDS[name]
    values = np.random.default_rng(1).integers(0, 2036, (1, *where.shape)).astype(np.int32)
    for overlay in (None, Image(values, where), head(GRIDS["RAS"]), filled(where, 0, np.uint8)):
        check(overlay_mosaic(Image(values.astype(np.float32), where), overlay, kind=kind, title=name))


def check(picture: np.ndarray) -> None:
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert picture.shape[0] < 4800
    assert 600 < picture.shape[1] < 1500


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_odd_values(kind: Any) -> None:
    where = GRIDS["LPI"]
    fixed = head(where)
    for background in (filled(where, 5), filled(where, 0, np.uint8), filled(where, -3.5, np.float32, 4), balls(where)):
        check(overlay_mosaic(background, fixed, kind=kind))
        check(overlay_mosaic(fixed, background, kind=kind))
    wild = head(where)
    wild.data[0, 3:5, 4:9, 5:9] = [[[-3e38]], [[3e38]]]  # what an infinite voxel is replaced with
    check(overlay_mosaic(wild, wild, kind="image"))
    few = np.zeros((3, *where.shape), np.float32)
    few[0, 17, 31, 5] = 2035
    check(overlay_mosaic(fixed, Image(few, where), kind=kind))
    check(overlay_mosaic(Image(few, where), Image(few, where), kind=kind))
    check(overlay_mosaic(fixed, Image(np.asfortranarray(few[0])[None].astype(">f4"), where), kind=kind))


@pytest.mark.parametrize("slices", [0, 1, 2, 7, 30])
def test_any_number_of_slices(slices: int) -> None:
    check(overlay_mosaic(head(GRIDS["RAS"]), head(GRIDS["thick axial"]), slices=slices))
    check(overlay_mosaic(head(GRIDS["thick axial"]), balls(GRIDS["RAS"]), kind="labels", slices=slices))


@pytest.mark.parametrize("title", ["", "ligne 1\nligne é", "患者 \t\x00", "x" * 4000])
def test_any_title(title: str) -> None:
    check(overlay_mosaic(head(GRIDS["RAS"]), title=title))


def test_first_channel_is_shown() -> None:
    where = GRIDS["RAS"]
    two = Image(np.concatenate([head(where).data, filled(where, 9).data]), where)
    assert np.array_equal(overlay_mosaic(two), overlay_mosaic(head(where)))


def test_png_is_exact_and_repeatable(tmp_path: Path) -> None:
    from PIL import Image as Pillow

    picture = overlay_mosaic(head(GRIDS["RAS"]), balls(GRIDS["RAS"]), kind="labels")
    for name in ("a.png", "b.tmp"):
        write_png(picture, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.tmp").read_bytes()
    with Pillow.open(tmp_path / "a.png") as opened:
        assert np.array_equal(np.asarray(opened), picture)


@pytest.mark.real_data
def test_right_hemisphere_is_on_the_left(shared_data: Path, tmp_path: Path) -> None:
    scan = read_image(shared_data / "brain_t1_manual" / "oasis_1000_t1.nii.gz")
    labels = read_image(shared_data / "brain_t1_manual" / "oasis_1000_labels.nii.gz", labels=True)
    picture = overlay_mosaic(scan, labels, kind="labels", title="oasis 1000", slices=1)
    white_matter = [spots(picture, label)[0] for label in (44, 45)]  # right, left
    assert white_matter[0][0] < white_matter[1][0] - 20
    write_png(overlay_mosaic(scan, labels, kind="labels", title="oasis 1000"), tmp_path / "qc.png")
    assert (tmp_path / "qc.png").stat().st_size < 600_000


def test_a_sheet_of_samples() -> None:
    """Right is left, up is up, and the slice goes through the labels; of a planar sample there is only one."""
    image, labels = np.zeros((10, 12, 8), np.float32), np.zeros((10, 12, 8), np.uint8)
    image[9, 3, 7], labels[9, 3, 7] = 1, 4
    sheet = sample_sheet([(image, labels)] * 5 + [(image[:, 3], None)], columns=4)
    assert sheet.shape == (2 * (16 + 3), 4 * (40 + 3), 3)
    bright = np.argwhere(sheet[:16, :20].max(axis=2) > 200)
    assert bright.min(axis=0).tolist() == [0, 0]
    assert bright.max(axis=0).tolist() == [1, 1]
    assert np.array_equal(sheet[0, 20], label_colours(np.array(4)))
    assert np.array_equal(sheet[19 : 19 + 16, 43 : 43 + 20], sheet[:16, :20])
