"""`medkit run register --lesion-mask`: what it names is left out of the comparison, alone or within a mask."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medkit_register.masks import compared, doubts_about_mask, volume_of
from medkit_register.pyramid import Pyramid

from medkit.images import read_image

Run = Callable[..., "Outcome"]  # noqa: F821
SHAPE = (40, 44, 36)


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], Path]:
    """Files of 4 mm: a head, the same one moved and with a bright lesion, and masks."""
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    radius = (x**2 * np.array([1.6, 1.1, 1.3]).reshape(3, 1, 1, 1)).sum(0)
    head = np.where(radius < 0.7, 500 + 250 * np.sin(5 * x[0] + 1) * np.sin(6 * x[1]) * np.sin(4 * x[2]), 0)
    lesion = ((x - np.array([0.3, 0.2, 0.1]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 0.08
    mask = radius < 0.9
    moved = np.diag([4.0, 4, 4, 1])
    moved[:3, 3] = (6, -5, 4)
    made = {
        "fixed": (head, np.diag([4.0, 4, 4, 1])),
        "moving": (np.where(lesion, 2500, head), moved),
        "lesion": (lesion, moved),
        "rest": (~lesion, moved),
        "mask": (mask, moved),
        "part": (mask & (x[0] < 0.2), moved),
        "mask_without_lesion": (mask & ~lesion, moved),
        "fixed_lesion": (lesion, np.diag([4.0, 4, 4, 1])),
        "fixed_rest": (~lesion, np.diag([4.0, 4, 4, 1])),
        "everything": (np.ones(SHAPE), moved),
    }
    for name, (data, affine) in made.items():
        nibabel.Nifti1Image(data.astype(np.int16), affine).to_filename(tmp_path / f"{name}.nii.gz")
    return lambda name: tmp_path / f"{name}.nii.gz"


def transform_of(toy: Run, files: Callable[[str], Path], out: Path, *more: object, line: str | None = None) -> str:
    inputs = [] if line else [files("moving")]
    done = toy(
        *("run", "register", "--fixed", files("fixed"), "--type", "affine", *inputs, *more, "-o", out),
        input=line,
        env={"TOY_PLUGINS": "medkit_register"},
    )
    assert done.code == 0, done.err
    return (out / "moving_transform.tfm").read_text()


def test_a_lesion_is_left_out(toy: Run, files: Callable[[str], Path], tmp_path: Path) -> None:
    plain = transform_of(toy, files, tmp_path / "plain")
    rest = transform_of(toy, files, tmp_path / "rest", "--moving-mask", files("rest"))
    assert transform_of(toy, files, tmp_path / "lesion", "--lesion-mask", files("lesion")) == rest != plain
    line = json.dumps({"path": str(files("moving")), "inputs": {"lesion_mask": str(files("lesion"))}})
    assert transform_of(toy, files, tmp_path / "record", line=f"{line}\n") == rest
    inside = ("--moving-mask", files("mask"), "--lesion-mask", files("lesion"))
    within = transform_of(toy, files, tmp_path / "both", *inside)
    assert within == transform_of(toy, files, tmp_path / "within", "--moving-mask", files("mask_without_lesion"))


def test_a_lesion_of_the_fixed_image(toy: Run, files: Callable[[str], Path], tmp_path: Path) -> None:
    rest = transform_of(toy, files, tmp_path / "rest", "--fixed-mask", files("fixed_rest"))
    assert transform_of(toy, files, tmp_path / "lesion", "--fixed-lesion-mask", files("fixed_lesion")) == rest


def test_a_lesion_everywhere_is_refused(toy: Run, files: Callable[[str], Path]) -> None:
    done = toy(
        *("run", "register", "--fixed", files("fixed"), "--type", "rigid", files("moving")),
        *("--lesion-mask", files("everything")),
        env={"TOY_PLUGINS": "medkit_register"},
    )
    assert done.code == 3
    assert "everything.nii.gz: the lesion leaves nothing of the image to compare" in done.err


def test_each_of_many_images_has_its_lesion(toy: Run, files: Callable[[str], Path], tmp_path: Path) -> None:
    single = transform_of(toy, files, tmp_path / "single", "--lesion-mask", files("lesion"))
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("anna", "ben"):
        (scans / f"{name}.nii.gz").symlink_to(files("moving"))
    (tmp_path / "anna_lesion.nii.gz").symlink_to(files("lesion"))
    words = ("run", "register", "--fixed", files("fixed"), "--type", "affine", *sorted(scans.iterdir()), "--json")
    done = toy(
        *(*words, "--lesion-mask", tmp_path / "{id}_lesion.nii.gz", "-o", tmp_path / "many"),
        env={"TOY_PLUGINS": "medkit_register"},
    )
    assert done.code == 1
    assert f"ben.nii.gz: no file named {{id}}_lesion.nii.gz fits its name, as {tmp_path}/ben_lesion.nii.gz" in done.err
    assert (tmp_path / "many/anna_transform.tfm").read_text() == single
    assert done.records[0]["medkit"]["inputs"]["lesion_mask"]["path"] == str(tmp_path / "anna_lesion.nii.gz")


@pytest.mark.parametrize("side", ["moving", "fixed"])
def test_little_that_is_compared_needs_a_look(
    toy: Run, files: Callable[[str], Path], tmp_path: Path, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("run", "register", "--fixed", files("fixed"), "--type", "rigid", "--init", "header", files("moving"))
    words += (f"--{side}-mask", files("part"), "--json")
    warnings = []
    for number, least in enumerate((0.1, 0.9)):  # too small for the engine are masks of a tenth of this phantom
        monkeypatch.setattr("medkit_register.masks.LITTLE", least)
        done = toy(*words, "-o", tmp_path / f"out_{number}", env={"TOY_PLUGINS": "medkit_register"})
        assert done.code == 0, done.err
        warnings.append([w for w in done.records[0]["medkit"]["warnings"] if "of the object" in w])
    assert warnings[0] == []
    assert warnings[1][0].endswith("and --lesion-mask (--fixed-lesion-mask) what to leave out")
    assert f"% of the object in {side}.nii.gz is compared" in warnings[1][0]
    assert done.records[0]["medkit"]["look"]


def test_how_much_is_compared(files: Callable[[str], Path]) -> None:
    def doubts(name: str) -> tuple[str, ...]:
        image = read_image(files("moving"))
        mask = compared(
            image.grid, None if name == "rest" else files(name), files("lesion") if name == "rest" else None
        )
        return doubts_about_mask(image, Pyramid(volume_of(image, mask)), files("moving"))

    lesion, head = (np.asarray(nibabel.load(files(name)).dataobj) > 0 for name in ("lesion", "moving"))
    (text,) = doubts("lesion")
    share = float(text.split()[1])
    assert share == pytest.approx(100 * lesion.sum() / head.sum(), rel=0.3)
    assert doubts("mask") == doubts("rest") == ()
