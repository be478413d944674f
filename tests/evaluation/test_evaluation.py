"""Scores against independent ones: MONAI, scikit-image, brute force, and the acceptance check of the project."""

from __future__ import annotations

import math
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist
from skimage.metrics import hausdorff_distance, peak_signal_noise_ratio, structural_similarity

from medkit.errors import InputError, UsageError
from medkit.evaluation.matching import files_of, kind_between, match, of_kind
from medkit.evaluation.measures.grids import reoriented
from medkit.evaluation.measures.images import compare_images
from medkit.evaluation.measures.label_maps import LabelMap, names_next_to, parse_labels, present, translated
from medkit.evaluation.measures.labels import compare_labels, surface
from medkit.evaluation.results import EvaluationSettings, Pair
from medkit.evaluation.run import evaluate, summarised
from medkit.images.image import read_image

SPACING = (0.8, 1.5, 3.0)
OBLIQUE = np.array([[0.7, -0.4, 0, -20], [0.35, 1.2, 0.3, 11], [0, 0.2, 2.5, 5], [0, 0, 0, 1]])


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.indices(shape)
    offsets = [(axis - c) * s for axis, c, s in zip(grid, centre, SPACING, strict=False)]
    return sum(o**2 for o in offsets) < radius**2


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Two label images with anisotropic spacing: 1 at the border, 2 in the middle, 5 only left, 300 only right."""
    a, b = np.zeros((30, 22, 14), np.uint16), np.zeros((30, 22, 14), np.uint16)
    a[ball(a.shape, (2, 8, 6), 6)], b[ball(b.shape, (3, 10, 5), 7)] = 1, 1
    a[ball(a.shape, (20, 11, 7), 5)], b[ball(b.shape, (17, 11, 7), 6)] = 2, 2
    a[28, 20, 12], b[28, 0, 12] = 5, 300
    return a, b


def brute(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """HD95 and ASSD in mm by comparing every surface voxel with every other."""

    def points(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        found = []
        for voxel in np.argwhere(padded):
            around = [padded[tuple(voxel + step)] for axis in np.eye(3, dtype=int) for step in (axis, -axis)]
            if not all(around):
                found.append((voxel - 1) * SPACING)
        return np.array(found)

    distances = cdist(points(a), points(b))
    there, back = distances.min(axis=1), distances.min(axis=0)
    return max(np.percentile(there, 95), np.percentile(back, 95)), np.concatenate([there, back]).mean()


def test_labels_equal_brute_force(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    table = compare_labels(a, b, SPACING)
    assert list(table) == [1, 2, 5, 300]
    for label in (1, 2):
        x, y = a == label, b == label
        hd95, assd = brute(x, y)
        assert table[label]["dice"] == pytest.approx(2 * (x & y).sum() / (x.sum() + y.sum()))
        assert table[label]["hd95_mm"] == pytest.approx(hd95)
        assert table[label]["assd_mm"] == pytest.approx(assd)
        assert table[label]["volume_error_mm3"] == pytest.approx((x.sum() - y.sum()) * 3.6)
        assert table[label]["volume_error_percent"] == pytest.approx(100 * (x.sum() / y.sum() - 1))


def test_volumes_and_distances_on_a_sheared_grid(pair: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """As from a CT with a tilted gantry: the numbers are those of points in mm."""
    a, b = pair
    sheared = np.diag([0.8, 1.5, 3.0, 1])
    sheared[1, 2] = 3 * math.tan(math.radians(25))
    for name, voxels in (("a", a), ("b", b)):
        image = nib.Nifti1Image(voxels, sheared)
        image.set_sform(sheared, 1)
        image.set_qform(None, 0)
        nib.save(image, tmp_path / f"{name}.nii")
    scores = evaluate([Pair("x", tmp_path / "a.nii", tmp_path / "b.nii")], EvaluationSettings("labels"))
    for row in scores.scores[0].rows:
        if (label := int(row.label)) in (1, 2):
            x, y = a == label, b == label
            edges = [np.argwhere(surface(side, (0, 1, 2))) @ sheared[:3, :3].T for side in (x, y)]
            apart = cdist(*edges)
            there, back = apart.min(axis=1), apart.min(axis=0)
            hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
            assert row.values["hd95_mm"] == pytest.approx(hd95, rel=1e-5)
            assert row.values["assd_mm"] == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)
            assert row.values["volume_error_mm3"] == pytest.approx((x.sum() - y.sum()) * 3.6, rel=1e-5)


@pytest.mark.parametrize("kind", ["labels", "images"])
def test_several_frames_are_refused_without_advice(tmp_path: Path, kind: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 3, (6, 7, 8, 2)).astype(np.uint8)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(voxels[..., 0], np.eye(4)), tmp_path / "b.nii")
    for pair in (Pair("x", tmp_path / "a.nii", tmp_path / "b.nii"), Pair("x", tmp_path / "b.nii", tmp_path / "a.nii")):
        (failure,) = evaluate([pair], EvaluationSettings(kind)).failures
        assert "a.nii: expected an image of one frame, got 2 frames" in failure.error
        assert "--frame" not in failure.error


def test_distances_equal_monai_s(pair: tuple[np.ndarray, np.ndarray]) -> None:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    a, b = pair
    table = compare_labels(a, b, SPACING, [1, 2])
    x, y = (torch.from_numpy(np.stack([side == 1, side == 2])[None]) for side in (a, b))
    hd95 = compute_hausdorff_distance(x, y, include_background=True, percentile=95, spacing=SPACING)[0]
    assd = compute_average_surface_distance(x, y, include_background=True, symmetric=True, spacing=SPACING)[0]
    assert [table[n]["hd95_mm"] for n in (1, 2)] == pytest.approx(hd95.tolist())
    assert [table[n]["assd_mm"] for n in (1, 2)] == pytest.approx(assd.tolist())


def test_a_plane_has_a_contour_and_not_a_full_surface() -> None:
    a, b = np.zeros((20, 1, 24), np.uint8), np.zeros((20, 1, 24), np.uint8)
    a[4:14, 0, 5:16], b[6:17, 0, 5:20] = 1, 1
    contours = [surface(side == 1, (0, 2))[:, 0] for side in (a, b)]
    assert contours[0].sum() == 2 * (10 + 11) - 4
    farthest = hausdorff_distance(*contours)  # in voxels
    assert farthest == 5.0
    assert 0 < compare_labels(a, b, (1, 1, 1))[1]["hd95_mm"] <= farthest


def test_what_one_side_lacks(pair: tuple[np.ndarray, np.ndarray]) -> None:
    table = compare_labels(*pair, SPACING, [5, 300, 9])
    assert table[5]["dice"] == table[300]["dice"] == 0
    assert math.isnan(table[5]["hd95_mm"])
    assert math.isnan(table[5]["volume_error_percent"])
    assert table[5]["volume_error_mm3"] == pytest.approx(3.6)
    assert table[300]["volume_error_percent"] == -100
    assert all(math.isnan(value) for value in table[9].values())


def test_large_label_numbers() -> None:
    voxels = np.array([0, 3, 9_000_000, 9_000_001, 3], np.int64).reshape(5, 1, 1)
    assert present(voxels) == {3, 9_000_000, 9_000_001}
    assert not translated(voxels, {}).any()
    assert translated(voxels, {3: 1, 9_000_001: 2}).ravel().tolist() == [0, 1, 0, 2, 1]
    assert compare_labels(voxels, voxels, (1, 1, 1))[9_000_000]["dice"] == 1


def test_images_equal_scikit_image() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(300, 50, (12, 15, 11)).astype(np.float32)
    b = (a + rng.normal(0, 30, a.shape) * np.linspace(0.1, 2, 12)[:, None, None]).astype(np.int16)
    values = compare_images(a, b)
    span = float(b.max() - b.min())
    assert values["data_range"] == span
    assert values["mse"] == pytest.approx(((a - b) ** 2).mean(), rel=1e-5)
    assert values["psnr_db"] == pytest.approx(
        peak_signal_noise_ratio(b.astype(np.float32), a, data_range=span), rel=1e-5
    )
    expected = structural_similarity(a, b.astype(np.float32), data_range=span)
    assert values["ssim"] == pytest.approx(expected, abs=1e-4)
    assert values["ncc"] == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-5)
    other = compare_images(a, b, data_range=2 * span)
    assert other["psnr_db"] - values["psnr_db"] == pytest.approx(20 * math.log10(2))
    half = np.indices(a.shape)[0] < 6
    inside = compare_images(a, b, half, span)
    assert inside["mse"] == pytest.approx(((a - b)[half] ** 2).mean(), rel=1e-5)
    assert inside["psnr_db"] == pytest.approx(20 * math.log10(span) - 10 * math.log10(inside["mse"]))
    everywhere = structural_similarity(a, b.astype(np.float32), data_range=span, full=True)[1]
    assert inside["ssim"] == pytest.approx(everywhere[3:6, 3:-3, 3:-3].mean(), abs=1e-4)


def test_equal_images_have_an_infinite_psnr() -> None:
    a = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    assert compare_images(a, a)["psnr_db"] == math.inf


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_other_axes_are_the_same_grid(tmp_path: Path, axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    voxels = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
    turned = nib.Nifti1Image(voxels, OBLIQUE).as_reoriented(np.array(list(zip(axes, flips, strict=True))))
    nib.save(nib.Nifti1Image(voxels, OBLIQUE), tmp_path / "a.nii")
    nib.save(turned, tmp_path / "b.nii")
    a, b = (read_image(tmp_path / name) for name in ("a.nii", "b.nii"))
    assert np.array_equal(reoriented(b, a.grid), voxels)


def test_another_place_is_another_grid(tmp_path: Path) -> None:
    voxels = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
    moved, stretched = OBLIQUE.copy(), OBLIQUE.copy()
    moved[0, 3] += 0.05
    stretched[:3, 2] *= 1.01
    for name, affine in (("a", OBLIQUE), ("moved", moved), ("stretched", stretched)):
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii")
    a = read_image(tmp_path / "a.nii")
    assert reoriented(read_image(tmp_path / "moved.nii"), a.grid) is None
    assert reoriented(read_image(tmp_path / "stretched.nii"), a.grid) is None


def test_the_interval_is_scipy_s() -> None:
    values = np.random.default_rng(4).gamma(2, 3, 12)
    ours = summarised([*values, math.nan, math.inf])
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0))
    assert ours.n == 12
    assert ours.mean == pytest.approx(values.mean())
    assert ours.sd == pytest.approx(values.std(ddof=1))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)
    assert summarised(values, seed=1) == summarised(values, seed=1) != summarised(values, seed=2)


def test_a_single_case_has_no_interval() -> None:
    one = summarised([0.5])
    assert (one.n, one.mean) == (1, 0.5)
    assert math.isnan(one.sd)
    assert math.isnan(one.low)
    assert summarised([]).n == 0


def test_label_maps(tmp_path: Path) -> None:
    path = tmp_path / "map.tsv"
    path.write_text("manual\tours\tname\n100\t3\tcortex left\n101\t3\tcortex left\n7\t0\tskin\n8\t9\ta\n6\t9\tb\n")
    table = LabelMap.read(path)
    assert table.numbers == {100: 3, 101: 3, 7: 0, 8: 9, 6: 9}
    assert table.names == {3: "cortex left", 0: "skin"}
    assert table.targets == (3, 9)
    assert translated(np.array([0, 7, 100, 101, 8, 55]), table.numbers).tolist() == [0, 0, 3, 3, 9, 0]


@pytest.mark.parametrize("text", ["", "a\n1\n", "a\tb\n1\tx\n", "a\tb\n1\t2\n1\t3\n", "a\tb\n"])
def test_label_maps_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.tsv").write_text(text)
    with pytest.raises(InputError, match=r"map\.tsv"):
        LabelMap.read(tmp_path / "map.tsv")


def test_names_of_labels_lie_beside_the_image(tmp_path: Path) -> None:
    (tmp_path / "a_dseg.tsv").write_text("index\tname\tcolor\n2\tleft thing\t#fff\n3\tright thing\t#000\n")
    assert names_next_to(tmp_path / "a_dseg.nii.gz") == {2: "left thing", 3: "right thing"}
    assert names_next_to(tmp_path / "b_dseg.nii.gz") == {}


def test_lists_of_labels() -> None:
    assert parse_labels("2,3, 10-13,11") == (2, 3, 10, 11, 12, 13)
    for text in ("", "a", "3-1", "0,2", "-4", "1-"):
        with pytest.raises(UsageError):
            parse_labels(text)


# ---- pairs


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., list[Path]]:
    """Makes empty files: tree("a/x.nii.gz", ...)."""

    def make(*names: str) -> list[Path]:
        paths = [tmp_path / name for name in names]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return paths

    return make


@pytest.mark.parametrize(
    ("result", "reference"),
    [
        ("case_01.nii.gz", "case_01.nii.gz"),
        ("case_01.mha", "case_01.nii.gz"),
        ("oasis_1000_t1_dseg.nii.gz", "oasis_1000_labels.nii.gz"),
        ("anna_registered.nii.gz", "anna.nii.gz"),
        ("case_01.nii.gz", "case_01_0000.nii.gz"),
        ("sub-01_space-mni_desc-registered_T1w.nii.gz", "sub-01_T1w.nii.gz"),
        ("sub-01_ses-2_T1w_dseg.nii.gz", "sub-01_ses-2_dseg.nii.gz"),
        ("img_0001_pred.nii.gz", "img_0001_gt.nii.gz"),
        ("anna/seg.nii.gz", "anna/labels.nii.gz"),
        ("anna_points.csv", "anna_landmarks.mrk.json"),
    ],
)
def test_names_that_fit(tree: Callable[..., list[Path]], tmp_path: Path, result: str, reference: str) -> None:
    ours, other = tree(f"out/{result}", "out/sub-77_other.nii.gz")
    theirs, *_ = tree(f"truth/{reference}", "truth/sub-78_other.nii.gz", "truth/sub-79_other.csv")
    kind = "points" if result.endswith(".csv") else "labels" if re.search("labels|dseg", reference) else "images"
    found = match([ours, other], str(tmp_path / "truth"), kind)
    assert found.found == {ours: theirs}
    assert list(found.missing) == [other]


def test_names_that_do_not_tell(tree: Callable[..., list[Path]], tmp_path: Path) -> None:
    one, two, three = tree("out/a_t1_dseg.nii.gz", "out/a_t2_dseg.nii.gz", "out/b_run-1_dseg.nii.gz")
    tree("truth/a_labels.nii.gz", "truth/b_run-2_labels.nii.gz")
    found = match([one, two, three], str(tmp_path / "truth"), "labels")
    assert not found.found
    assert "a_t1_dseg.nii.gz, a_t2_dseg.nii.gz" in found.missing[one]
    assert "no name in the folder fits" in found.missing[three]
    assert [path.name for path in found.unused] == ["a_labels.nii.gz", "b_run-2_labels.nii.gz"]


def test_equal_names_in_several_folders(tree: Callable[..., list[Path]], tmp_path: Path) -> None:
    ours = tree("out/bert/mri/aseg.mgz", "out/ernie/mri/aseg.mgz")
    theirs = tree("truth/bert/mri/aseg.mgz", "truth/ernie/mri/aseg.mgz")
    assert match(ours, str(tmp_path / "truth"), "labels").found == dict(zip(ours, theirs, strict=True))


def test_patterns(tree: Callable[..., list[Path]], tmp_path: Path) -> None:
    one, ten, folder, none = tree("o/x_1_t1.nii.gz", "o/x_10_t1.nii.gz", "o/10/seg.nii.gz", "o/x_7.nii.gz")
    first, tenth, _ = tree("t/s1/x_1_labels.nii.gz", "t/s10/x_10_labels.nii.gz", "t/s2/x_10_labels.nii.gz")
    found = match([one, ten, folder, none], str(tmp_path / "t/s{id}/x_{id}_labels.nii.gz"), "labels")
    assert found.found == {one: first, ten: tenth, folder: tenth}
    assert f"as {tmp_path}/t/sx_7/x_x_7_labels.nii.gz would; there {{id}} is 1, 10" in found.missing[none]
    with pytest.raises(InputError, match="no file matches this pattern"):
        match([one], str(tmp_path / "nothing_{id}.nii.gz"), "labels")


def test_one_reference_for_all(tree: Callable[..., list[Path]], tmp_path: Path) -> None:
    ours = tree("a.nii.gz", "b.nii.gz")
    (mni,) = tree("mni.nii.gz")
    assert match(ours, str(mni), "images").found == {ours[0]: mni, ours[1]: mni}
    with pytest.raises(InputError, match="no such file"):
        match(ours, str(tmp_path / "nothing"), "images")


def test_files_of_a_folder(tree: Callable[..., list[Path]], tmp_path: Path) -> None:
    image, _, _, points, field, text, *_ = tree(
        *("f/a.nii.gz", "f/a.json", "f/.b.nii.gz", "f/a.csv", "f/a_transform.nii.gz", "f/a_transform.tfm", "f/n.docx"),
    )
    assert files_of(tmp_path / "f", "images") == [image]
    assert files_of(tmp_path / "f", "points") == [points]
    assert files_of(tmp_path / "f", "transforms") == [field, text]
    (slice_,) = tree("dicom/IM001.dcm")
    assert files_of(slice_.parent, "images") == [slice_.parent]


def test_kinds(tree: Callable[..., list[Path]]) -> None:
    plain, other, label, points, nnunet = tree("a.nii", "b.nii", "a_dseg.nii", "a_dseg.tsv", "labelsTr/a.nii")
    assert kind_between([plain], [other]) == "images"
    assert kind_between([plain], [label]) == kind_between([plain], [nnunet]) == "labels"
    assert kind_between([points], [points, plain]) == "points"
    assert kind_between([label, points], [label, points]) == "labels"
    assert of_kind([label, points], "labels") == [label]
    assert of_kind([plain, label, points], "images") == [plain]
    assert of_kind([plain, points], "points") == [points]
    with pytest.raises(UsageError, match="--kind"):
        kind_between([plain], [plain, label])


# ---- real scans


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # score.py leaves its table open
def test_dice_is_that_of_the_acceptance_check(shared_data: Path, tmp_path: Path) -> None:
    """Two brains on one grid by cutting, with the structures of another numbering: score.py's mean Dice."""
    score = runpy.run_path(str(shared_data.parent / "checks" / "score.py"))
    folder = shared_data / "brain_t1_manual"
    table = folder / "neuromorphometrics_to_freesurfer.tsv"
    images = [nib.load(folder / f"oasis_{n}_labels.nii.gz") for n in (1003, 1023)]
    size = np.min([image.shape for image in images], axis=0)
    a, b = (np.asarray(image.dataobj)[tuple(map(slice, size))] for image in images)
    ours = translated(a, LabelMap.read(table).numbers)
    for name, voxels in (("ours_dseg", ours), ("truth_labels", b)):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{name}.nii")
    shared, missing = score["per_label"](ours.astype(int), score["remap"](b.astype(int), table))
    assert len(shared) == 31
    assert not missing
    pair = Pair("oasis", tmp_path / "ours_dseg.nii", tmp_path / "truth_labels.nii")
    (scores,) = evaluate([pair], EvaluationSettings("labels", label_map=LabelMap.read(table))).scores
    assert scores.values["dice"] == pytest.approx(np.mean(list(shared.values())))
    assert {int(row.label): row.values["dice"] for row in scores.rows} == pytest.approx(shared)
    assert next(row.name for row in scores.rows if row.label == "16") == "brain-stem"
