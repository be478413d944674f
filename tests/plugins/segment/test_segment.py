"""`medkit run segment`: labels on the scan's grid, their table, and what is to be looked at."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zoo
from medkit_segment import cleaning, labelling, report
from medkit_segment.cleaning import Pieces
from medkit_segment.report import Expected
from nearest import CENTRES, NAMES, write_bundle
from outcome import Outcome

from medkit.images.phantom import make_image
from medkit.pipe.records import read_sidecar
from medkit.space import Grid

pytestmark = pytest.mark.usefixtures("clean_path")

Run = Callable[..., Outcome]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", tta={"mirror": True})


@pytest.fixture
def segment(medkit: Run, bundle: Path) -> Run:
    def run(*arguments: object, root: Path = bundle, **settings: Any) -> Outcome:
        words = ["--bundle", root, "--trust", "--precision", "float32"]
        return medkit("run", "segment", *words, *arguments, **settings)

    return run


def voxels(path: Path | str) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


# ---- the task


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "PIR", "ASL"])
def test_labels_lie_on_the_scan(segment: Run, tmp_path: Path, orientation: str) -> None:
    source = make_image(tmp_path / "a.nii.gz", (24, 22, 20), (3.0, 3.0, 3.0), orientation, oblique_degrees=7)
    done = segment(source, "--no-clean", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    made, given = nibabel.load(done.paths[0]), nibabel.load(source)
    np.testing.assert_array_equal(made.affine, given.affine)
    assert made.get_data_dtype() == np.uint8
    nearest = np.abs(voxels(source)[..., None] - np.array(CENTRES)).argmin(-1)
    np.testing.assert_array_equal(voxels(done.paths[0]), np.array([0, 4, 9])[nearest])


def test_the_table_and_the_record(segment: Run, tmp_path: Path) -> None:
    source = make_image(tmp_path / "a.nii.gz", (24, 22, 20), (3.0, 3.0, 3.0))
    done = segment(source)
    labels = voxels(done.paths[0])
    rows = table(tmp_path / "a_dseg.tsv")
    assert [(r["index"], r["name"]) for r in rows] == [("4", "left part"), ("9", "right part")]
    assert rows[0]["color"].startswith("#")
    for row in rows:
        assert float(row["volume_mm3"]) == pytest.approx(27.0 * (labels == int(row["index"])).sum())
        assert 0.5 < float(row["confidence"]) <= 1
    record = read_sidecar(tmp_path / "a_dseg.json")
    assert record is not None
    metrics = record.medkit["metrics"]
    assert metrics["total_mm3"] == pytest.approx(27.0 * (labels > 0).sum())
    assert record.medkit["labels"] == NAMES
    assert set(record.medkit["outputs"]) == {"labels", "table"}


def test_volumes_on_a_sheared_grid(segment: Run, tmp_path: Path) -> None:
    given = nibabel.load(make_image(tmp_path / "a.nii.gz", (24, 22, 20), (3.0, 3.0, 3.0)))
    sheared = given.affine.copy()
    sheared[1, 2] = 1.4  # a gantry tilted by 25 degrees: a longer step, the same volume
    scan = nibabel.Nifti1Image(np.asanyarray(given.dataobj), sheared)
    scan.set_qform(None, 0)
    nibabel.save(scan, tmp_path / "b.nii.gz")
    done = segment(tmp_path / "b.nii.gz", "-o", tmp_path / "out")
    labels = voxels(done.paths[0])
    for row in table(tmp_path / "out" / "b_dseg.tsv"):
        count = (labels == int(row["index"])).sum()
        assert count
        assert float(row["volume_mm3"]) == pytest.approx(27.0 * count, rel=1e-4)


def test_all_outputs(segment: Run, tmp_path: Path) -> None:
    source = make_image(tmp_path / "a.nii.gz", (24, 22, 20), (3.0, 3.0, 3.0))
    done = segment(source, "--outputs", "mask,brain,labels,probabilities", "--no-clean", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    out = tmp_path / "out"
    assert [Path(p).name for p in done.paths] == ["a_mask.nii.gz"], "the first one asked for goes down the pipe"
    labels, mask, brain = (voxels(out / f"a_{n}.nii.gz") for n in ("dseg", "mask", "brain"))
    assert set(np.unique(mask)) == {0, 1}
    assert mask[labels > 0].all()
    np.testing.assert_array_equal(brain, np.where(mask, voxels(source), 0))
    probabilities = voxels(out / "a_probseg.nii.gz")
    assert probabilities.shape == (24, 22, 20, 3)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    sure = probabilities.max(-1) > 0.9
    np.testing.assert_array_equal(np.array([0, 4, 9])[probabilities.argmax(-1)][sure], labels[sure])


def test_a_mirror_is_averaged(segment: Run, tmp_path: Path) -> None:
    source = make_image(tmp_path / "a.nii.gz", (24, 22, 20), (3.0, 3.0, 3.0))
    plain = segment(source, "-o", tmp_path / "plain")
    both = segment(source, "--tta", "-o", tmp_path / "both")
    np.testing.assert_array_equal(voxels(plain.paths[0]), voxels(both.paths[0]))  # this network does not care
    record = read_sidecar(tmp_path / "both" / "a_dseg.json")
    assert record is not None
    assert record.medkit["arguments"]["set"] == {"mirror": True}
    none = segment(source, "--tta", root=write_bundle(tmp_path / "plainly"))
    assert none.code == 2
    assert "has none" in none.err


def test_the_other_modality_is_refused(segment: Run, tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "mr", modality="MR")
    values = np.where(np.indices((20, 20, 20))[0] < 8, -1000, 300).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([5.0, 5.0, 5.0, 1.0])), tmp_path / "chest.nii.gz")
    done = segment(tmp_path / "chest.nii.gz", root=root)
    assert done.code == 3
    assert "expected MR for bundle mr, got CT" in done.err
    assert "--method threshold" in done.err


def test_a_ct_in_other_units_is_refused(segment: Run, tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "ct", modality="CT")
    values = np.where(np.indices((20, 20, 20))[0] < 8, 24, 1064).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([5.0, 5.0, 5.0, 1.0])), tmp_path / "sub-1_ct.nii.gz")
    done = segment(tmp_path / "sub-1_ct.nii.gz", root=root)
    assert (done.code, done.paths) == (3, [])
    assert "expected Hounsfield units" in done.err
    assert "1024 was added" in done.err


def test_a_plane_is_no_volume(segment: Run, tmp_path: Path) -> None:
    plane = make_image(tmp_path / "a.nii.gz", (24, 22), (3.0, 3.0))
    done = segment(plane)
    assert (done.code, done.paths) == (3, [])
    assert "a.nii.gz: expected a volume" in done.err


def test_a_network_that_fails_on_a_crumb_of_an_image(segment: Run, tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "b")
    config = json.loads((root / "configs/inference.json").read_text())
    config["preprocessing"]["transforms"].append({"_target_": "SpatialPadd", "keys": "image", "spatial_size": "no"})
    (root / "configs/inference.json").write_text(json.dumps(config))
    done = segment(make_image(tmp_path / "a.nii.gz", (2, 2, 2), (3.0, 3.0, 3.0)), root=root)
    assert (done.code, done.paths) == (1, [])
    assert "the image measures 6 x 6 x 6 mm (2 x 2 x 2 voxels)" in done.err
    assert "medkit run segment prepares images" not in done.err, "that is the command that was used"


def test_a_bundle_of_regions_gives_what_its_postprocessing_makes(medkit: Run, tmp_path: Path) -> None:
    root = zoo.write(tmp_path / "spleen", "spleen_ct_segmentation")
    source = make_image(tmp_path / "a_ct.nii.gz", (20, 18, 14), (4.0, 4.0, 5.0))
    given = ["--bundle", root, "--trust", "--precision", "float32", source]
    plain = medkit("run", "bundle", *given, "-o", tmp_path / "plain")
    done = medkit("run", "segment", *given, "--no-clean", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    np.testing.assert_array_equal(voxels(plain.paths[0]), voxels(done.paths[0]))


@pytest.mark.parametrize("roles", ["", "labels,nonsense"])
def test_outputs_that_are_none(segment: Run, tmp_path: Path, roles: str) -> None:
    source = make_image(tmp_path / "a.nii.gz", (16, 16, 16), (4, 4, 4))
    assert segment(source, "--outputs", roles).code == 2


# ---- labels of channels


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(5, 9, 8, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("values", [1, 100, 1 << 24])
def test_channels(logits: torch.Tensor, monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    monkeypatch.setattr(labelling, "_SLAB_VALUES", values)
    chosen = labelling.most_likely(logits)
    np.testing.assert_array_equal(chosen, logits.argmax(0).numpy())
    whole = logits.softmax(0)
    sure = labelling.certainty(logits, chosen)
    np.testing.assert_allclose(sure[chosen > 0], whole.amax(0).numpy()[chosen > 0], rtol=1e-5)
    assert (sure[chosen == 0] == 1).all()
    np.testing.assert_allclose(np.stack(list(labelling.probabilities(logits))), whole.numpy(), rtol=1e-5)


def test_equal_channels_are_the_first() -> None:
    assert (labelling.most_likely(torch.zeros(4, 3, 3, 3)) == 0).all()


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.3)])
def test_labels_go_to_the_nearest_voxel(axes: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    """As resampling by world coordinates has it, for any order and direction of axes."""
    from medkit.images.image import Image
    from medkit.transforms.resampling import resample

    labels = np.random.default_rng(0).integers(0, 9, (11, 12, 13)).astype(np.uint8)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-5.2, -6.1, -7.3)
    own = np.eye(4)
    own[:3, :3] = np.eye(3)[:, axes] * np.array([1, -1, 1]) * spacing
    own[:3, 3] = -own[:3, :3] @ np.array([7.0, 6.0, 5.0])
    grid = Grid((15, 14, 12), own)
    expected = resample(Image(labels[None], Grid(labels.shape, affine)), grid, interpolation="nearest").data[0]
    np.testing.assert_array_equal(labelling.on_grid(labels, affine, grid), expected)


def test_labels_on_a_turned_grid() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[5:15, 5:15, 5:15] = 3
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    out = labelling.on_grid(labels, np.eye(4), Grid((20, 20, 20), turned))
    assert 0 < (out == 3).sum() < 1000
    assert set(np.unique(out)) == {0, 3}


# ---- cleaning


def test_stray_pieces_join_what_they_lie_in() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:18, 2:18, 2:18] = 1
    labels[3:8, 3:8, 3:8] = 2
    labels[14, 14, 14] = 2  # a stray voxel of 2 in 1
    labels[19, 19, 19] = 1  # apart from the body
    out = cleaning.cleaned(labels, Pieces(connected=True))
    assert out[14, 14, 14] == 1
    assert out[19, 19, 19] == 0
    assert (out == 2).sum() == 125
    assert cleaning.cleaned(labels, Pieces(connected=False))[19, 19, 19] == 0, "a small piece that touches nothing"


def test_organs_that_lie_apart_stay() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[1:4, 1:4, 1:4], labels[10:18, 10:18, 10:18] = 1, 2
    np.testing.assert_array_equal(cleaning.cleaned(labels, Pieces(connected=False)), labels)
    assert (cleaning.cleaned(labels, Pieces(connected=True)) == 1).sum() == 0


def test_scattered_structures_keep_all_pieces() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[1:3, 1:3, 1:3], labels[10:18, 10:18, 10:18] = 1, 1
    labels[1:3, 10:12, 1:3], labels[10:18, 1:8, 1:8] = 2, 2
    out = cleaning.cleaned(labels, Pieces(scattered=(1,)))
    np.testing.assert_array_equal(out == 1, labels == 1)
    assert not out[1:3, 10:12, 1:3].any()


def test_a_separate_body_is_not_too_small() -> None:
    """An arm stays, a piece of the table goes with all its structures."""
    labels = np.zeros((30, 20, 20), np.uint8)
    labels[:12], labels[14:22, 2:18, 2:18] = 1, 1
    labels[24:28, 5:9, 5:9], labels[26:28, 5:9, 5:9] = 1, 5
    out = cleaning.cleaned(labels, Pieces(body=0.05, scattered=(5,)))
    np.testing.assert_array_equal(out[:23], labels[:23])
    assert not out[23:].any()


def test_background_amid_an_organ_belongs_to_it() -> None:
    """Also at the border of the volume, where it is cut; the air around the body stays."""
    labels = np.ones((24, 24, 24), np.uint8)
    labels[:, :3] = 0
    labels[4:12, 6:20, 4:], labels[13:22, 6:20, 4:] = 2, 3
    truth = labels.copy()
    labels[6:9, 8:12, 8:12] = labels[15:18, 8:12, 20:] = 0
    np.testing.assert_array_equal(cleaning.cleaned(labels, Pieces(solid=(2, 3))), truth)
    np.testing.assert_array_equal(cleaning.cleaned(labels, Pieces()), labels)


def test_a_lung_beside_the_body_is_none() -> None:
    """Also where it is as large as the others, at the border of the volume."""
    labels = np.zeros((30, 24, 24), np.uint8)
    labels[:20] = 1
    labels[4:12, 6:20, 4:] = 2
    truth = labels.copy()
    labels[26:, 8:16, 2:22] = 2
    np.testing.assert_array_equal(cleaning.cleaned(labels, Pieces(solid=(2,))), truth)


def test_pieces_in_channels() -> None:
    pieces = Pieces.of({"connected": True, "scattered": [9], "solid": [4, 7]})
    assert pieces.in_channels([0, 4, 9]) == Pieces(connected=True, scattered=(2,), solid=(1,))


def test_nothing_to_clean() -> None:
    empty = np.zeros((5, 5, 5), np.uint8)
    assert not cleaning.cleaned(empty, Pieces(connected=True)).any()
    assert not cleaning.filled(empty > 0, np.ones(3), 4.0).any()


def test_a_mask_is_closed_and_filled() -> None:
    mask = np.zeros((30, 30, 30), bool)
    mask[5:25, 5:25, 5:25] = True
    whole = mask.copy()
    mask[10:14, 10:14, 10:14] = False  # a hole
    mask[15, :, 15] = False  # a groove from face to face
    inside = (slice(6, 24),) * 3  # the groove's mouths stay open
    np.testing.assert_array_equal(cleaning.filled(mask, np.ones(3), 4.0)[inside], whole[inside])
    assert not (cleaning.filled(mask, np.ones(3), 4.0) & ~whole).any()


# ---- what is to be looked at


EXPECTED = Expected.of({1: "one", 2: "two"}, {"volumes_mm3": {"1": [10, 100], "total": [50, 5000]}})


def cube(size: int, low: int, high: int, label: int = 1) -> np.ndarray:
    out = np.zeros((size,) * 3, np.uint8)
    out[low:high, low:high, low:high] = label
    return out


def test_structures_of_implausible_size() -> None:
    rows = report.structures(cube(10, 3, 6), 1.0, {1: 0.9}, EXPECTED)
    assert [(r.volume_mm3, r.look) for r in rows] == [(27.0, ()), (0.0, ())]
    assert report.structures(cube(10, 3, 4), 1.0, None, EXPECTED)[0].look == ("small",)
    assert report.structures(cube(10, 1, 9), 1.0, None, EXPECTED)[0].look == ("large",)
    assert report.structures(cube(10, 1, 1), 1.0, None, EXPECTED)[0].look == ("not found",)
    assert report.structures(cube(10, 3, 6), 1.0, {1: 0.2}, EXPECTED)[0].look == ("unsure",)


@pytest.mark.parametrize(("sure", "dice", "look"), [(0.9, 0.8, ()), (0.7, 0.4, ("unsure",)), (0.2, 0.0, ("unsure",))])
def test_the_dice_to_be_expected_decides_where_it_is_known(sure: float, dice: float, look: tuple[str, ...]) -> None:
    expected = Expected.of({1: "one"}, {"expected_dice": {"1": [-1.0, 2.0]}})
    (row,) = report.structures(cube(10, 3, 6), 1.0, {1: sure}, expected)
    assert (row.expected_dice, row.look) == (pytest.approx(dice), look)
    (header, line, _) = report.as_tsv([row], Grid((10, 10, 10), np.eye(4))).split("\n")
    assert dict(zip(header.split("\t"), line.split("\t"), strict=True))["expected_dice"] == f"{dice:.4f}"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (cube(10, 0, 0), "nothing was found"),
        (cube(10, 4, 6), "in all, expected"),
        (cube(12, 0, 6), "cut off by the field of view"),
    ],
)
def test_label_maps_to_look_at(labels: np.ndarray, words: str) -> None:
    rows = report.structures(labels, 1.0, None, EXPECTED)
    assert any(
        words in text and text.startswith("look at this one") for text in report.warnings(labels, rows, EXPECTED)
    )


def test_an_unsure_network_is_to_be_looked_at() -> None:
    labels = cube(12, 3, 7)
    rows = report.structures(labels, 1.0, {1: 0.4}, EXPECTED)
    assert any("unsure (0.40)" in text for text in report.warnings(labels, rows, EXPECTED))
    rows = report.structures(labels, 1.0, {1: 0.95}, EXPECTED)
    assert report.warnings(labels, rows, EXPECTED) == []


def test_only_structures_that_should_be_whole_are_cut_off() -> None:
    labels = cube(12, 0, 12, label=1)
    labels[4:8, 4:8, 4:8] = 2
    expected = Expected.of({1: "body", 2: "heart"}, {"whole": [2]})
    rows = report.structures(labels, 1.0, None, expected)
    assert report.warnings(labels, rows, expected) == []
    labels[0:8, 4:8, 4:8] = 2
    (cut,) = [text for text in report.warnings(labels, rows, expected) if "cut off" in text]
    assert cut.endswith(": heart"), "the body reaches the faces too, and need not be whole"


def test_structures_that_are_cut_off_are_named() -> None:
    """Those with most voxels on the faces first; more than three are counted."""
    labels = np.zeros((20, 20, 20), np.uint8)
    for label, size in enumerate((2, 6, 3, 5, 4), start=1):
        labels[:size, 4 * label - 4 : 4 * label - 1, 2 : 2 + size] = label
    labels[10:14, 5:8, 5:8] = 6
    expected = Expected.of({n: f"part {n}" for n in (1, 2, 3, 4, 5, 6)}, {})
    found = report.warnings(labels, report.structures(labels, 1.0, None, expected), expected)
    assert found[0].endswith("of the surface): part 2, part 4, part 5 and 2 more")
    labels[labels == 4] = 0
    labels[labels == 5] = 0
    found = report.warnings(labels, report.structures(labels, 1.0, None, expected), expected)
    assert found[0].endswith("of the surface): part 2, part 1 and part 3")


@pytest.mark.parametrize(("right", "told"), [(3, True), (4, False)])
def test_one_of_a_pair_is_much_smaller(right: int, told: bool) -> None:
    labels = cube(20, 3, 10, label=1)
    labels[12 : 12 + right, 12:19, 12:19] = 2
    expected = Expected.of({1: "left", 2: "right"}, {"pairs": [[1, 2]]})
    rows = report.structures(labels, 1000.0, None, expected)
    found = report.warnings(labels, rows, expected)
    assert found == (["look at this one: right 147 ml, left 343 ml"] if told else [])
    one = expected.of_some({1: "left"})
    assert report.warnings(labels, report.structures(labels, 1000.0, None, one), one) == []


@pytest.mark.parametrize(("sure", "strange"), [(0.9, False), (0.6, True)])
def test_images_of_another_subject(sure: float, strange: bool) -> None:
    """The mean of the expected Dice decides, in which a structure that is not found counts as 0."""
    block = {"expected_dice": {"1": [0, 1], "2": [0, 1]}, "trust": {"subject": "a foot", "expected_dice": 0.4}}
    expected = Expected.of({1: "one", 2: "two"}, block)
    found = report.strange(report.structures(cube(12, 3, 7), 1.0, {1: sure}, expected), expected)
    assert bool(found) is strange
    if strange:
        assert "may not be a foot: a mean Dice of 0.30 is expected, at least 0.4" in found[0]


def test_an_image_without_what_shows_the_subject() -> None:
    block = {"volumes_mm3": {"1": [100, 900], "2": [100, 900]}, "trust": {"subject": "a chest", "present": [1, 2]}}
    expected = Expected.of({1: "left", 2: "right", 3: "body"}, block)
    small = report.structures(cube(12, 3, 7), 1.0, None, expected)
    assert report.strange(small, expected) == ["look at this one: this may not be a chest: left 0 ml, right 0 ml"]
    assert report.strange(report.structures(cube(12, 3, 9), 1.0, None, expected), expected) == []


def test_nothing_is_strange_without_a_statement() -> None:
    expected = Expected.of({1: "one"}, {"expected_dice": {"1": [0, 1]}})
    assert report.strange(report.structures(cube(12, 3, 7), 1.0, {1: 0.1}, expected), expected) == []
    stated = Expected.of({1: "one"}, {"trust": {"subject": "a foot", "expected_dice": 0.4}})
    assert report.strange(report.structures(cube(12, 3, 7), 1.0, {1: 0.1}, stated), stated) == []


def test_another_subject_is_on_the_screen(medkit: Run, tmp_path: Path) -> None:
    """Also if only one of the structures is wanted, whose own expected Dice is good."""
    trust = {"subject": "a foot", "expected_dice": 0.6}
    root = write_bundle(tmp_path / "feet", trust=trust, expected_dice={"4": [1, 0], "9": [0, 0]})
    source = make_image(tmp_path / "a.nii.gz", (24, 22, 20), (3.0, 3.0, 3.0))
    done = medkit("run", "segment", "--bundle", root, "--trust", "--labels", "left part", source)
    assert done.code == 0, done.err
    assert "needs a look: this may not be a foot" in done.err
    record = read_sidecar(tmp_path / "a_dseg.json")
    assert record is not None
    assert record.medkit["look"]


# ---- some structures, files of their own, one table


def test_some_structures_and_their_masks(segment: Run, tmp_path: Path) -> None:
    source = make_image(tmp_path / "a.nii.gz", (24, 22, 20), (3.0, 3.0, 3.0))
    done = segment("--labels", "right part", "--split", source, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    labels = voxels(tmp_path / "out" / "a_dseg.nii.gz")
    assert set(np.unique(labels)) == {0, 9}
    assert np.array_equal(voxels(tmp_path / "out" / "a_right_part.nii.gz") > 0, labels == 9)
    assert not (tmp_path / "out" / "a_left_part.nii.gz").exists()
    assert segment("--labels", "liver", source, "-o", tmp_path / "no").code == 2


def test_one_table_of_all_scans(segment: Run, tmp_path: Path) -> None:
    source = make_image(tmp_path / "a.nii.gz", (24, 22, 20), (3.0, 3.0, 3.0))
    done = segment("--table", tmp_path / "t.tsv", source)
    assert done.code == 0, done.err
    rows = table(tmp_path / "t.tsv")
    assert [(row["index"], row["name"]) for row in rows] == [("4", "left part"), ("9", "right part")]
    assert all(float(row["volume_mm3"]) > 0 for row in rows)
    assert all(float(row["confidence"]) > 0 for row in rows)
    assert not list(tmp_path.glob("*dseg*"))
