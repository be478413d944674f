"""Outputs of every task mean the same to medkit, nibabel and ITK, whatever forms the input's header has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import zoo
from outcome import Outcome

from medkit.images.image import Image, read_grid, read_image
from medkit.images.phantom import make_image
from medkit.space import Grid
from medkit.transforms.files import read_transform, write_transform
from medkit.transforms.transform import DisplacementField

sitk = pytest.importorskip("SimpleITK")

from readers import affine_for, as_sitk, assert_one_image, by_itk, transform_by_sitk, write_forms  # noqa: E402

ORIENTATIONS = ("axial", "flipped", "oblique", "sheared")
FORMS = {
    **{f"q{q}": (q, 0, False) for q in (1, 2, 4)},
    **{f"s{s}": (0, s, False) for s in (1, 2, 3)},
    **{f"q{q} s{s}": (q, s, False) for q, s in ((1, 1), (1, 2), (2, 1), (4, 4))},
    **{f"q{q} and another s{s}": (q, s, True) for q, s in ((1, 1), (1, 2), (2, 1), (2, 2), (3, 4))},
    "none": (0, 0, False),
}
"""Codes of qform and sform, and whether the two are unlike."""
SHAPES = {"volume": (9, 8, 7), "slice": (9, 8, 1), "sagittal slice": (1, 8, 7), "plane": (9, 8)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_of_all_forms(tmp_path: Path, orientation: str, shape: str) -> None:
    size = SHAPES[shape]
    voxels = np.arange(np.prod(size), dtype=np.int16).reshape(size)
    for name, form in FORMS.items():
        source = write_forms(tmp_path / "in.nii", voxels, affine_for(orientation), *form)
        image = read_image(source)
        for ending in (".nii.gz", ".nrrd", ".mha") if name in ("q1", "none") else (".nii.gz",):
            path = tmp_path / f"{name}{ending}"
            image.write(path)
            kept = slice(None) if ending == ".nii.gz" or image.grid.dims == 3 else slice(2)
            np.testing.assert_allclose(read_grid(path).affine[kept, kept], image.grid.affine[kept, kept], atol=2e-3)
            assert_one_image(path)
        codes = {
            key: int(nibabel.load(tmp_path / f"{name}.nii.gz").header[key]) for key in ("qform_code", "sform_code")
        }
        if max(form[:2]) and orientation != "sheared":
            assert tuple(codes.values()) == form[:2]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_agreeing_forms_are_repeated_bit_for_bit(tmp_path: Path, orientation: str) -> None:
    for name, form in FORMS.items():
        source = write_forms(
            tmp_path / "in.nii", np.arange(504, dtype=np.int16).reshape(9, 8, 7), affine_for(orientation), *form
        )
        read_image(source).write(tmp_path / "out.nii")
        same = source.read_bytes()[:348] == (tmp_path / "out.nii").read_bytes()[:348]
        stripped = min(form[:2]) > 0 and orientation == "sheared"
        assert same == (name != "none" and not form[2] and not stripped), name


@pytest.mark.parametrize(
    "fields",
    [{"pixdim": [1, 1, 1, 1, 0, 0, 0, 0]}, {"xyzt_units": 1}, {"xyzt_units": 3}, {"pixdim": [0, 4, 5, 6, 0, 0, 0, 0]}],
)
def test_spacings_and_units_that_only_some_readers_use(tmp_path: Path, fields: dict[str, Any]) -> None:
    affine = affine_for("oblique")
    affine[:3] *= {1: 1e-3, 3: 1e3}.get(fields.get("xyzt_units", 2), 1)
    source = write_forms(tmp_path / "in.nii", np.arange(504, dtype=np.int16).reshape(9, 8, 7), affine, 0, 1, False)
    header = nibabel.Nifti1Header(source.read_bytes()[:348], check=False)
    for key, value in fields.items():
        header[key] = value
    source.write_bytes(header.binaryblock + source.read_bytes()[348:])
    image = read_image(source)
    np.testing.assert_allclose(image.grid.spacing, [4, 5, 6], atol=1e-4)
    image.write(tmp_path / "out.nii.gz")
    assert_one_image(tmp_path / "out.nii.gz")


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "sagittal slice"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_warps_of_all_forms(tmp_path: Path, orientation: str, shape: str) -> None:
    """Points of the fixed image go where medkit's own transform takes them."""
    size = SHAPES[shape]
    random = np.random.default_rng(0)
    for name, form in FORMS.items():
        grid = read_grid(write_forms(tmp_path / "in.nii", np.zeros(size, np.int16), affine_for(orientation), *form))
        smooth = np.linspace(-3, 3, grid.shape[0])[:, None, None, None] * random.normal(0, 1, 3)
        field = np.ascontiguousarray(np.broadcast_to(smooth, (*grid.shape, 3)), np.float32)
        if grid.dims == 2:
            field[..., 2] = 0
        transform = DisplacementField(field, grid)
        inside = (np.array(list(np.ndindex(*grid.shape))) @ grid.affine[:3, :3].T) + grid.affine[:3, 3]
        for ending in (".nii.gz", ".h5"):
            path = tmp_path / f"{name}{ending}"
            write_transform(transform, path)
            if ending == ".nii.gz":
                assert_one_image(path)
            theirs = transform_by_sitk(path)
            lps = np.array([theirs.TransformPoint((p * [-1, -1, 1])[: grid.dims].tolist()) for p in inside])
            expected = transform.map_points(inside)
            np.testing.assert_allclose(
                lps * [-1, -1, 1][: grid.dims], expected[:, : grid.dims], atol=2e-2, err_msg=path.name
            )
            np.testing.assert_allclose(read_transform(path).map_points(inside), expected, atol=2e-2)


# ---- every task


@pytest.fixture
def scans(tmp_path: Path) -> Callable[[str, str, int], Path]:
    """Write one anatomy in a form and orientation: scans("q1", "oblique", seed)."""

    def write(form: str, orientation: str, seed: int = 0, slices: slice = slice(None)) -> Path:
        plain = make_image(tmp_path / "plain.nii", (22, 20, 16), (4.0, 5.0, 6.0), seed=seed)
        voxels = np.asarray(nibabel.load(plain).dataobj)[..., slices]
        name = f"{form}_{orientation}_{seed}".replace(" ", "_")
        return write_forms(
            tmp_path / f"{name}.nii.gz".replace(".gz", ""), voxels, affine_for(orientation), *FORMS[form]
        )

    return write


def _done(outcome: Outcome) -> list[Path]:
    assert outcome.code == 0, outcome.err
    return [Path(output["path"]) for record in outcome.records for output in record["medkit"]["outputs"].values()]


def _assert_moves(fixed: Path, moving: Path, transform: Path, moved: Path) -> None:
    """Check that ITK resamples `moving` onto `fixed` by a transform file as medkit did."""
    theirs = sitk.Resample(as_sitk(moving), as_sitk(fixed), transform_by_sitk(transform), sitk.sitkLinear, 0.0)
    found, ours = sitk.GetArrayFromImage(theirs).T, read_image(moved).data[0]
    assert np.abs(found.reshape(ours.shape) - ours).mean() < 0.02 * np.ptp(ours)


SOME = [("q1 and another s2", "oblique"), ("none", "oblique"), ("s1", "sheared"), ("q1", "flipped")]
"""Form and orientation of the scans that tasks get."""


@pytest.mark.parametrize(
    ("form", "orientation"), [SOME[0], *(pytest.param(*some, marks=pytest.mark.slow) for some in SOME[1:])]
)
@pytest.mark.parametrize("kind", ["affine", pytest.param("deformable", marks=pytest.mark.slow)])
def test_registrations_and_their_transforms(
    tmp_path: Path, medkit: Callable[..., Outcome], scans: Any, kind: str, form: str, orientation: str
) -> None:
    fixed, moving = scans(form, orientation), scans("s2", "axial", 0)
    done = medkit(
        "run",
        "register",
        "--fixed",
        fixed,
        "--type",
        kind,
        "--quality",
        "fast",
        "--init",
        "centre",
        moving,
        "--json",
        "-o",
        tmp_path / "out",
    )
    image, transform, inverse = _done(done)
    assert_one_image(image)
    _assert_moves(fixed, moving, transform, image)
    convert = {"affine": (".mat", ".h5", ".tfm"), "deformable": (".h5", ".nii")}[kind]
    for number, ending in enumerate(convert):
        (other,) = _done(medkit("transform", "convert", transform, "-o", tmp_path / f"c{number}{ending}", "--json"))
        _assert_moves(fixed, moving, other, image)
    (field,) = _done(
        medkit("transform", "convert", transform, "--fixed", fixed, "-o", tmp_path / "field.nii.gz", "--json")
    )
    assert_one_image(field)
    _assert_moves(fixed, moving, field, image)
    (moved,) = _done(
        medkit(
            "transform",
            "apply",
            moving,
            "--reference",
            fixed,
            "--transform",
            transform,
            "-o",
            tmp_path / "a.nii.gz",
            "--json",
        )
    )
    assert np.abs(read_image(moved).data.astype(float) - read_image(image).data).mean() < 0.5
    assert_one_image(moved)
    arguments = ["--reference", moving] if kind == "deformable" else []
    name = "i.nii.gz" if kind == "deformable" else "i.tfm"
    (inverted,) = _done(medkit("transform", "invert", transform, *arguments, "-o", tmp_path / name, "--json"))
    back = _done(
        medkit(
            "transform",
            "apply",
            fixed,
            "--reference",
            moving,
            "--transform",
            inverse,
            "-o",
            tmp_path / "b.nii.gz",
            "--json",
        )
    )
    _assert_moves(moving, fixed, inverted, back[0])
    if kind == "affine":  # its determinant is the same everywhere
        return
    (determinant,) = _done(
        medkit("transform", "jacobian", transform, "--reference", fixed, "-o", tmp_path / "j.nii.gz", "--json")
    )
    assert_one_image(determinant)
    (whole,) = _done(
        medkit(
            "transform",
            "compose",
            transform,
            inverse,
            "--reference",
            moving,
            "-o",
            tmp_path / ("w" + "".join(field.suffixes)),
            "--json",
        )
    )
    assert_one_image(whole)


def _segment(scan: Path, root: Path) -> list[object]:
    bundle = zoo.write(root, "segmentation_template", network_def={**CONV, "out_channels": 2})
    torch_save(bundle, {"weight": [0.0, 1.0], "bias": [0.5, 0.0]})
    return ["run", "segment", "--bundle", bundle, "--trust", "--outputs", "labels,mask,probabilities", scan]


def _run_bundle(scan: Path, root: Path) -> list[object]:
    bundle = zoo.write(root, "segmentation_template", network_def={**CONV, "out_channels": 2})
    torch_save(bundle, {"weight": [0.0, 1.0], "bias": [0.5, 0.0]})
    return ["run", "bundle", "--bundle", bundle, "--trust", scan]


def _classify(scan: Path, root: Path) -> list[object]:
    bundle = zoo.write(root, "classification_template")
    return ["run", "classify", "--bundle", bundle, "--trust", "--explain", "occlusion", scan]


CONV = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "kernel_size": 1}
TASKS: dict[str, Callable[[Path, Path], list[object]]] = {
    "segment": _segment,
    "run bundle": _run_bundle,
    "classify": _classify,
    "denoise": lambda scan, _: ["run", "enhance", "--what", "denoise", "--method", "nlm", scan],
    "contrast": lambda scan, _: ["run", "enhance", "--what", "contrast", "--method", "gamma", "--difference", scan],
    "sr": lambda scan, _: ["run", "sr", "--method", "backprojection", "--scale", "2", scan],
}


def torch_save(bundle: Path, state: dict[str, list[float]]) -> None:
    import torch

    weights = {"weight": torch.tensor(state["weight"]).view(-1, 1, 1, 1, 1), "bias": torch.tensor(state["bias"])}
    torch.save(weights, bundle / "models" / "model.pt")


@pytest.mark.usefixtures("clean_path")
@pytest.mark.parametrize(
    "task", ["contrast", *(pytest.param(t, marks=pytest.mark.slow) for t in TASKS if t != "contrast")]
)
def test_images_of_every_task(tmp_path: Path, medkit: Callable[..., Outcome], scans: Any, task: str) -> None:
    sheared = [] if task == "sr" else [("s1", "sheared")]
    for form, orientation in [*SOME[:2], *sheared, ("q1", "flipped")]:
        scan = scans(form, orientation, slices=slice(8, 9) if task == "classify" else slice(None))
        folder = tmp_path / f"{form}_{orientation}"
        written = [
            path
            for path in _done(medkit(*TASKS[task](scan, folder / "bundle"), "--json", "-o", folder))
            if path.suffix in (".gz", ".nii")
        ]
        assert written
        for path in written:
            assert_one_image(path)
            if task != "sr":
                np.testing.assert_allclose(read_grid(path).affine, read_grid(scan).affine, atol=2e-3)


@pytest.mark.slow
def test_templates(tmp_path: Path, medkit: Callable[..., Outcome], scans: Any) -> None:
    images = [scans("none", "axial", 0), scans("q1 and another s2", "oblique", 0), scans("s1", "sheared", 0)]
    done = medkit(
        "run", "template", "--quality", "fast", "--iterations", 1, *images, "--json", "-o", tmp_path / "t.nii.gz"
    )
    average, *transforms = _done(done)
    assert_one_image(average)
    for path in transforms:
        assert_one_image(path)
        transform_by_sitk(path)


@pytest.mark.parametrize("ending", [".png", ".nii.gz", ".nrrd"])
def test_pictures_of_the_plane(tmp_path: Path, medkit: Callable[..., Outcome], ending: str) -> None:
    values = np.asarray(nibabel.load(make_image(tmp_path / "v.nii", (40, 36), (2.0, 2.0))).dataobj)
    values = (255 * (values - values.min()) / np.ptp(values)).astype(np.uint8)
    fixed, moving = tmp_path / f"f{ending}", tmp_path / f"m{ending}"
    grid = Grid((40, 36, 1), np.diag([-2.0, -2, 1, 1]), 2)
    for path, data in ((fixed, values), (moving, np.roll(values, 3, axis=0))):
        Image(data[None, :, :, None], grid).write(path)
    done = medkit("run", "register", "--fixed", fixed, "--type", "affine", moving, "-o", tmp_path, "--json")
    image, transform, _ = _done(done)
    _assert_moves(fixed, moving, transform, image)
    for path in (fixed, image):
        _, voxels = by_itk(path)
        np.testing.assert_array_equal(np.squeeze(voxels), read_image(path).data[0, :, :, 0])
        if ending != ".png":
            assert_one_image(path)
