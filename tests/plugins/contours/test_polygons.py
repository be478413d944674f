"""From label maps to polygons, their measures, and back to the same voxels."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medkit_contours.filling import filled
from medkit_contours.inputs import read_contours
from medkit_contours.measures import measured
from medkit_contours.polygons import Contour, ContourSet, Structure
from medkit_contours.structures import places_of
from medkit_contours.tracing import contour_set, outlines, slices_of
from outcome import Outcome

from medkit.errors import InputError
from medkit.images.image import Image
from medkit.images.phantom import make_image
from medkit.pipe.names import sidecar_path
from medkit.pipe.records import read_sidecar
from medkit.space import Grid, apply_affine

Run = Callable[..., Outcome]


def turned(degrees: float, about: int) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = (axis for axis in range(3) if axis != about)
    matrix = np.eye(3)
    matrix[[first, first, second, second], [first, second, first, second]] = c, -s, s, c
    return matrix


def affine_of(
    directions: np.ndarray, spacing: tuple[float, float, float], origin: tuple[float, float, float]
) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * spacing, origin
    return affine


SHEARED = np.array([[1, 0, 0], [0, 1, 0.33], [0, 0, 0.94]])
AFFINES = {
    "isotropic": affine_of(np.eye(3), (1, 1, 1), (0, 0, 0)),
    "anisotropic and flipped": affine_of(np.diag([-1, 1, -1]), (0.7, 1.3, 6.5), (213.3, -170.1, 88.8)),
    "axes permuted": affine_of(np.eye(3)[[2, 0, 1]], (3.0, 0.9, 0.95), (-7, 1e3, 0.1)),
    "oblique": affine_of(turned(23, 0) @ turned(-41, 2) @ turned(17, 1), (0.83, 0.91, 2.2), (-33.3, 71.7, 1234.5)),
    "tilted gantry": affine_of(SHEARED, (0.49, 0.49, 4.8), (-120, 1, 2)),
    "microscopic": affine_of(turned(5, 2), (0.004, 0.004, 0.01), (0.1, 0.2, 0.3)),
}


def noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Random labels: holes, islands in them, voxels that meet at corners, contact with every border."""
    return np.random.default_rng(seed).choice(np.array([0, 0, 1, 2, 2, 2, 700], np.uint16), shape)


def traced(labels: np.ndarray, grid: Grid, plane: str = "auto") -> ContourSet:
    places = places_of(Image(labels[None], grid), Path("a_dseg.nii.gz"), "labels")
    slices = slices_of(grid, plane)
    return contour_set(list(outlines(labels, places, slices)), slices, {n: f"s{n}" for n in places})


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("plane", ["auto", "axial", "coronal", "sagittal"])
def test_the_same_voxels_come_back(name: str, plane: str) -> None:
    labels = noise((11, 9, 7))
    grid = Grid(labels.shape, AFFINES[name])

    made = filled(traced(labels, grid, plane), grid)

    np.testing.assert_array_equal(made.labels, labels)
    assert made.shared == 0


@pytest.mark.parametrize("name", AFFINES)
def test_the_same_voxels_come_back_from_the_file(name: str, medkit: Run, tmp_path: Path) -> None:
    labels = noise((8, 9, 5), 3)
    nibabel.save(nibabel.Nifti1Image(labels, AFFINES[name]), tmp_path / "a_dseg.nii.gz")

    contours = medkit("run", "contours", tmp_path / "a_dseg.nii.gz")
    again = medkit("run", "contours", "--to-labels", contours.lines[0])
    other = medkit(
        "run", "contours", "--to-labels", tmp_path / "a_dseg_polygons.json", "-o", tmp_path / "b_dseg.nii.gz"
    )

    for done in (again, other):
        assert done.code == 0, done.err
        image = nibabel.load(done.lines[0])
        np.testing.assert_array_equal(np.asarray(image.dataobj), labels)
        np.testing.assert_allclose(image.affine, AFFINES[name], rtol=1e-6)


def test_a_planar_label_map_comes_back(medkit: Run, tmp_path: Path) -> None:
    path = make_image(tmp_path / "a_dseg.nii.gz", (40, 36), (2.0, 1.5), kind="labels")

    contours = medkit("run", "contours", path)
    again = medkit("run", "contours", "--to-labels", *contours.lines)

    assert again.code == 0, contours.err + again.err
    assert nibabel.load(again.lines[0]).shape == (40, 36)
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(again.lines[0]).dataobj), np.asarray(nibabel.load(path).dataobj)
    )
    table, record = Path(again.lines[0].replace(".nii.gz", ".tsv")), read_sidecar(sidecar_path(Path(again.lines[0])))
    assert {line.split("\t")[3] for line in table.read_text().splitlines()[1:]} == {"n/a"}, "a plane has no depth"
    assert record is not None
    assert "volumes_mm3" not in record.medkit["metrics"]
    outlined = read_sidecar(sidecar_path(Path(contours.lines[0])))
    assert outlined is not None
    assert not [own for own in outlined.medkit["metrics"]["structures"].values() if "volume_mm3" in own]
    meshed = medkit("run", "contours", "--mesh", path, "-o", tmp_path / "meshed")
    assert (meshed.code, "--mesh needs a volume" in meshed.err) == (3, True)


def test_polygons_follow_the_edges_of_voxels(medkit: Run, tmp_path: Path) -> None:
    labels = np.zeros((9, 8, 4), np.uint8)
    labels[2:5, 3:7, 1] = 4
    affine = AFFINES["oblique"]
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "a_dseg.nii.gz")
    (tmp_path / "a_dseg.tsv").write_text("index\tname\n4\tthe box\n")

    done = medkit("run", "contours", tmp_path / "a_dseg.nii.gz")

    assert done.code == 0, done.err
    content = json.loads((tmp_path / "a_dseg_polygons.json").read_text())
    (structure,) = content["structures"]
    (contour,) = structure["contours"]
    assert (structure["number"], structure["name"], contour["slice"], contour["hole"]) == (4, "the box", 1, False)
    corners = apply_affine(affine, np.array([(1.5, 2.5, 1), (4.5, 2.5, 1), (4.5, 6.5, 1), (1.5, 6.5, 1)]))
    assert len(contour["points"]) == 4
    for corner in corners:
        assert np.abs(np.array(contour["points"]) - corner).max(axis=1).min() < 1e-3
    assert (content["frame"], content["unit"]) == ("RAS+", "mm")


def test_half_a_voxel_on_another_grid() -> None:
    """Fine voxels, coarse ones and shifted ones are inside if their centres are."""
    labels = np.zeros((12, 12, 6), np.uint8)
    labels[3:9, 4:8, 2:4] = 1
    contours = traced(labels, Grid(labels.shape, AFFINES["isotropic"]))
    for spacing, shift in ((0.25, -0.375), (0.5, 0.0), (2.0, 0.5), (1.0, 0.4)):
        count = int(14 / spacing)
        affine = affine_of(np.eye(3), (spacing,) * 3, (shift,) * 3)

        made = filled(contours, Grid((count,) * 3, affine)).labels

        centres = apply_affine(affine, np.indices(made.shape).reshape(3, -1).T)
        low, high = np.array([2.5, 3.5, 1.5]), np.array([8.5, 7.5, 3.5])
        sure = (np.abs(centres - low).min(axis=1) > 1e-6) & (np.abs(centres - high).min(axis=1) > 1e-6)
        inside = ((centres > low) & (centres < high)).all(axis=1)
        np.testing.assert_array_equal(made.ravel()[sure] > 0, inside[sure])
        # centres exactly on an edge belong to one side only: the volume is that of the box wherever voxels divide it
        assert spacing > 1 or made.sum() * spacing**3 == pytest.approx(6 * 4 * 2)


def test_an_oblique_grid_is_filled_by_centres() -> None:
    labels = np.zeros((30, 30, 20), np.uint8)
    labels[5:25, 8:22, 4:16] = 1
    contours = traced(labels, Grid(labels.shape, AFFINES["isotropic"]))
    turn = turned(30, 0) @ turned(20, 2)
    affine = affine_of(turn, (0.7, 0.8, 0.9), (-10, -10, -10))
    grid = Grid((60, 60, 60), affine)

    made = filled(contours, grid).labels

    centres = apply_affine(affine, np.indices(grid.shape).reshape(3, -1).T)
    inside = ((centres > (4.5, 7.5, 3.5)) & (centres < (24.5, 21.5, 15.5))).all(axis=1)
    np.testing.assert_array_equal(made.ravel() > 0, inside)


def test_the_smaller_of_overlapping_structures_has_the_voxels() -> None:
    def box(number: int, size: float) -> Structure:
        corners = np.array([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)]) * (size, size, 1)
        return Structure(number, f"s{number}", (Contour(corners, False, None),))

    contours = ContourSet((box(1, 1.4), box(2, 3.4)), np.array([0.0, 0, 1]), 1.0)
    made = filled(contours, Grid((9, 9, 3), affine_of(np.eye(3), (1, 1, 1), (-4, -4, -1))))

    assert made.shared == 9
    assert made.voxels == {1: 9, 2: 49}
    assert (np.bincount(made.labels.ravel()) == [9 * 9 * 3 - 49, 9, 40]).all()


# ---- measures


def shape_of(inside: Callable[[np.ndarray, np.ndarray], np.ndarray], spacing: tuple[float, float]) -> tuple:
    """The outlines of a planar shape given in mm around (100, 60, -30), and their slices."""
    sizes = [int(80 / s) | 1 for s in spacing]
    x, y = ((np.arange(n) - n // 2) * s for n, s in zip(sizes, spacing, strict=True))
    labels = inside(x[:, None], y[None])[..., None].astype(np.uint8)
    corner = (100 - sizes[0] // 2 * spacing[0], 60 - sizes[1] // 2 * spacing[1], -30)
    slices = slices_of(Grid(labels.shape, affine_of(np.eye(3), (*spacing, 5.0), corner)))
    return list(outlines(labels, places_of(Image(labels[None], slices.grid), Path("a"), "labels"), slices)), slices


@pytest.mark.parametrize("spacing", [(0.5, 0.5), (0.4, 0.9)])
def test_a_disc(spacing: tuple[float, float]) -> None:
    (outline,), slices = shape_of(lambda x, y: x**2 + y**2 < 20**2, spacing)

    found = measured(outline, slices)

    assert found.area == pytest.approx(np.pi * 400, rel=3e-3)
    assert found.perimeter == pytest.approx(2 * np.pi * 20, rel=1e-2)
    np.testing.assert_allclose(found.centroid, (100, 60, -30), atol=0.02)
    assert found.fit is not None
    assert found.fit.kind == "ellipse"
    assert (found.fit.semi_major, found.fit.semi_minor) == pytest.approx((20, 20), rel=5e-3)
    assert found.fit.residual < 0.5 * max(spacing)


def test_a_turned_ellipse() -> None:
    c, s = np.cos(np.radians(30)), np.sin(np.radians(30))
    (outline,), slices = shape_of(
        lambda x, y: ((c * x + s * y - 3) / 25) ** 2 + ((c * y - s * x) / 10) ** 2 < 1, (0.5, 0.6)
    )

    fit = measured(outline, slices).fit

    assert fit is not None
    assert (fit.semi_major, fit.semi_minor) == pytest.approx((25, 10), rel=1e-2)
    assert abs(fit.direction @ [c, s]) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(
        slices.points(np.zeros((1, 2)), 0)[0][:2] + fit.centre, [100 + 3 * c, 60 + 3 * s], atol=0.1
    )


def test_a_residual_is_the_distance_to_the_curve() -> None:
    """Of a square of 40 mm and the circle that fits it, by integrals over its sides."""
    (outline,), slices = shape_of(lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 20, (0.5, 0.5))

    fit = measured(outline, slices, "ellipse").fit

    assert fit is not None
    along = np.linspace(-19.75, 19.75, 2001)
    distance = np.hypot(19.75, along) - fit.semi_major
    assert fit.residual == pytest.approx(float(np.sqrt((distance**2).mean())), rel=0.02)


def test_points_on_two_lines_have_no_ellipse() -> None:
    """The outline of a hole of two voxels that meet at a corner."""
    labels = np.ones((6, 6, 1), np.uint8)
    labels[2, 3], labels[3, 2] = 0, 0
    grid = Grid(labels.shape, np.diag([4.17, 4.17, 3.0, 1.0]))
    slices = slices_of(grid)

    body, hole = outlines(labels, places_of(Image(labels[None], grid), Path("a"), "labels"), slices)

    assert hole.hole
    assert measured(hole, slices).fit is None
    assert measured(hole, slices).area == pytest.approx(2 * 4.17**2)
    assert measured(body, slices).fit is not None


def test_a_strip_gets_a_line() -> None:
    c, s = np.cos(np.radians(35)), np.sin(np.radians(35))
    (outline,), slices = shape_of(lambda x, y: (np.abs(c * y - s * x) < 0.4) & (np.abs(c * x + s * y) < 30), (0.5, 0.5))

    fit = measured(outline, slices).fit

    assert fit is not None
    assert (fit.kind, fit.semi_minor) == ("line", None)
    assert abs(fit.direction @ [c, s]) == pytest.approx(1, abs=1e-3)
    assert fit.semi_major == pytest.approx(30, abs=0.5)
    assert fit.residual < 0.8


def test_a_ring_has_an_outline_and_a_hole(medkit: Run, tmp_path: Path) -> None:
    labels = np.zeros((20, 20, 3), np.uint8)
    labels[4:16, 4:16, 1] = 1
    labels[8:12, 8:12, 1] = 0
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([2.0, 2.0, 5.0, 1.0])), tmp_path / "ring_mask.nii.gz")

    done = medkit("run", "contours", tmp_path / "ring_mask.nii.gz", "--json")

    assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / "ring_mask_contours.tsv").read_text().splitlines(), delimiter="\t"))
    areas = {row["hole"]: float(row["area_mm2"]) for row in rows}
    assert areas == {"no": 24.0 * 24, "yes": 8.0 * 8}
    assert [float(rows[0][f"centroid_{axis}"]) for axis in "xyz"] == [19, 19, 5]
    (own,) = done.records[0]["medkit"]["metrics"]["structures"].values()
    assert own == {"index": 1, "contours": 2, "slices": 1, "volume_mm3": (576 - 64) * 5}


# ---- choices and refusals


@pytest.fixture
def label_map(tmp_path: Path) -> Path:
    labels = np.zeros((16, 14, 10), np.uint8)
    labels[2:9, 3:9, 2:7], labels[11:14, 9:12, 3:5] = 2, 5
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([1.5, 1.5, 3.0, 1.0])), tmp_path / "a_dseg.nii.gz")
    (tmp_path / "a_dseg.tsv").write_text("index\tname\n2\tliver\n5\tspleen\n")
    return tmp_path / "a_dseg.nii.gz"


def test_structures_by_name_and_number(label_map: Path, medkit: Run, tmp_path: Path) -> None:
    done = medkit("run", "contours", label_map, "--labels", "spleen", "--json")
    back = medkit(
        "run", "contours", "--to-labels", label_map.with_name("a_dseg_polygons.json"), "--labels", "5", "--json"
    )

    assert list(done.records[0]["medkit"]["metrics"]["structures"]) == ["spleen"]
    assert back.records[0]["medkit"]["labels"] == {"5": "spleen"}
    refused = medkit("run", "contours", label_map, "--labels", "kidney", "-o", tmp_path / "b")
    assert refused.code == 3
    assert "has no structure kidney; it has 2 liver and 5 spleen" in refused.err


def test_the_plane_is_what_was_asked_for(label_map: Path, medkit: Run, tmp_path: Path) -> None:
    for plane, axis, count in (("auto", 2, 5), ("axial", 2, 5), ("coronal", 1, 6), ("sagittal", 0, 7)):
        folder = tmp_path / plane
        done = medkit("run", "contours", label_map, "--labels", "liver", "--plane", plane, "-o", folder, "--json")
        assert done.records[0]["medkit"]["metrics"]["structures"]["liver"]["slices"] == count
        assert json.loads((folder / "a_dseg_polygons.json").read_text())["slice_axis"] == axis


def test_an_empty_label_map_needs_a_look(medkit: Run, tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 6, 6), np.uint8), np.eye(4)), tmp_path / "a_mask.nii.gz")

    done = medkit("run", "contours", tmp_path / "a_mask.nii.gz", "--json")
    mesh = medkit("run", "contours", tmp_path / "a_mask.nii.gz", "--mesh", "-o", tmp_path / "b")

    assert done.code == 0
    assert done.records[0]["medkit"]["look"]
    assert mesh.code == 3
    assert "--mesh needs a structure" in mesh.err


def test_a_background_that_is_not_0_needs_a_look(medkit: Run, tmp_path: Path) -> None:
    labels = np.full((12, 12, 8), 7, np.uint8)
    labels[3:9, 3:9, 2:6] = 1
    nibabel.Nifti1Image(labels, np.diag([5.0, 5, 8, 1])).to_filename(path := tmp_path / "a_dseg.nii.gz")
    for options, told in ([], True), (["--labels", "1"], False):
        (record,) = medkit("run", "contours", path, "--json", "--overwrite", *options).records
        assert record["medkit"]["look"] is told
        texts = ["look at this one: label_7 fills all corners of the image: is it the background, which should be 0?"]
        assert record["medkit"]["warnings"][:1] == texts * told


def test_images_and_contours_are_not_outlined(label_map: Path, medkit: Run, tmp_path: Path) -> None:
    scan = make_image(tmp_path / "scan.nii.gz", (18, 16, 12), (2.0, 2.0, 2.0))
    medkit("run", "contours", label_map)

    done = medkit("run", "contours", scan)
    again = medkit("run", "contours", label_map.with_name("a_dseg_polygons.json"))

    assert (done.code, again.code) == (3, 3)
    assert "expected a label map, got an image of" in done.err or "expected labels (0 or more)" in done.err
    assert "--to-labels makes a label map of them" in again.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to-labels", "--mesh"], "--to-labels and --mesh contradict each other"),
        (["--to-labels", "--align", "."], "--to-labels and --align contradict each other"),
        (["--to-labels", "--plane", "axial"], "--to-labels and --plane contradict each other"),
        (["--reference", "."], "--reference goes with --to-labels or --rtstruct"),
        (["--rtstruct", "--plane", "coronal"], "an RTSTRUCT has the slices of its series"),
    ],
)
def test_options_that_contradict(options: list[str], message: str, label_map: Path, medkit: Run) -> None:
    done = medkit("run", "contours", label_map, *options)

    assert done.code == 2
    assert message in done.err


def test_files_that_are_no_contours(label_map: Path, medkit: Run, tmp_path: Path) -> None:
    medkit("run", "contours", label_map)
    good = json.loads((tmp_path / "a_dseg_polygons.json").read_text())
    bad = {
        "other": ({"a": 1}, "expected a contour file"),
        "version": (good | {"version": 2}, "expected contours of version 1 in RAS+ mm"),
        "frame": (good | {"frame": "LPS"}, "expected contours of version 1 in RAS+ mm"),
        "torn": ({k: v for k, v in good.items() if k != "slice_normal"}, "a damaged contour file"),
        "numbers": (good | {"structures": good["structures"][:1] * 2}, "expected structures with different numbers"),
    }
    for name, (content, message) in bad.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message.replace("+", r"\+")):
            read_contours(path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json: expected a contour file"):
        read_contours(tmp_path / "broken.json")


def test_polygons_that_were_changed_are_not_taken_for_the_result(label_map: Path, medkit: Run, tmp_path: Path) -> None:
    medkit("run", "contours", label_map)
    polygons = tmp_path / "a_dseg_polygons.json"
    polygons.write_text(polygons.read_text().replace("liver", "other"))

    table = medkit("run", "contours", "--to-labels", tmp_path / "a_dseg_contours.tsv")
    itself = medkit("run", "contours", "--to-labels", polygons, "--json")

    assert table.code == 3
    assert "has changed since" in table.err
    assert itself.records[0]["medkit"]["labels"]["2"] == "other"


def test_a_reference_elsewhere(label_map: Path, medkit: Run, tmp_path: Path) -> None:
    medkit("run", "contours", label_map)
    polygons = tmp_path / "a_dseg_polygons.json"
    near, far = (np.diag([1.5, 1.5, 3.0, 1.0]) for _ in range(2))
    near[0, 3], far[0, 3] = 6.0, 500.0
    for name, affine in (("near", near), ("far", far)):
        nibabel.save(
            nibabel.Nifti1Image(np.arange(16 * 14 * 10, dtype=np.int16).reshape(16, 14, 10), affine),
            tmp_path / f"{name}.nii.gz",
        )

    done = medkit("run", "contours", "--to-labels", polygons, "--reference", tmp_path / "near.nii.gz", "--json")
    refused = medkit(
        "run", "contours", "--to-labels", polygons, "--reference", tmp_path / "far.nii.gz", "-o", tmp_path / "b"
    )

    assert done.code == 0, done.err
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(done.records[0]["path"]).dataobj)[:12], np.asarray(nibabel.load(label_map).dataobj)[4:]
    )
    assert "of the contours' points lie outside the reference" in done.records[0]["medkit"]["warnings"][-1]
    assert refused.code == 3
    assert "no voxel of the reference" in refused.err


def test_the_picture_shows_the_contours_over_the_image(medkit: Run, tmp_path: Path) -> None:
    from PIL import Image as Picture

    scan = make_image(tmp_path / "scan.nii.gz", (24, 22, 18), (3.0, 3.0, 3.0))
    labels = make_image(tmp_path / "scan_dseg.nii.gz", (24, 22, 18), (3.0, 3.0, 3.0), kind="labels")
    record = {"path": str(labels), "kind": "labels", "inputs": {"image": str(scan)}}

    done = medkit("run", "contours", "--qc", tmp_path / "qc", input=json.dumps(record))
    bare = medkit("run", "contours", labels, "-o", tmp_path / "bare", "--qc", tmp_path / "bare")

    assert (done.code, bare.code) == (0, 0), done.err + bare.err
    shown, grey = (
        np.asarray(Picture.open(tmp_path / name / "scan_dseg_contours.png")).astype(int) for name in ("qc", "bare")
    )
    assert (np.ptp(shown, axis=2) > 60).mean() > 0.01  # coloured
    assert shown.shape != grey.shape or np.abs(shown - grey).max() > 60
