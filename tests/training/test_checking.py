"""What is found in the data before the first step: all faults at once, by the names of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medkit.errors import InputError
from medkit.training.checking import Findings, check_data
from medkit.training.label_rules import LabelRule
from medkit.training.splits import DataList

KEYS = ("image", "label")
TWO = LabelRule(frozenset({0, 1}))


def write(path: Path, *, labels: bool, values: tuple[int, ...] = (0, 1), spacing: float = 1.0, **moved: Any) -> str:
    """Write an image of noise, or labels with the values, of 6 x 5 x 4 voxels."""
    shape, shift = moved.get("shape", (6, 5, 4)), moved.get("shift", 0.0)
    generator = np.random.default_rng(sum(path.name.encode()))
    data = generator.choice(values, shape).astype(np.uint8) if labels else generator.normal(size=shape)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = shift
    nibabel.save(nibabel.Nifti1Image(data if labels else data.astype(np.float32), affine), path)
    return str(path)


def item(folder: Path, name: str, image: dict[str, Any] | None = None, **label: Any) -> dict[str, str]:
    return {
        "image": write(folder / f"{name}_image.nii.gz", labels=False, **(image or {})),
        "label": write(folder / f"{name}_label.nii.gz", labels=True, **label),
    }


def look(folder: Path, training: list[Any], validation: list[Any], test: tuple[Any, ...] = (), **rule: Any) -> Findings:
    return check_data(DataList(tuple(training), tuple(validation), folder, test), KEYS, rule.get("rule", TWO), 2)


def test_good_data_have_no_faults(tmp_path: Path) -> None:
    found = look(tmp_path, [item(tmp_path, "a"), item(tmp_path, "b")], [item(tmp_path, "c")])
    assert found == Findings((), ())
    found.require_none("here")


def test_all_faults_are_listed_once_with_their_files(tmp_path: Path) -> None:
    torn = item(tmp_path, "torn")
    Path(torn["image"]).write_bytes(Path(torn["image"]).read_bytes()[:150])
    strange = item(tmp_path, "strange", values=(0, 1, 7, 9))
    grid = item(tmp_path, "grid", shape=(6, 5, 3))
    moved = item(tmp_path, "moved", shift=3.0)
    gone = {"image": str(tmp_path / "gone.nii.gz"), "label": item(tmp_path, "x")["label"]}
    found = look(tmp_path, [torn, strange, grid, moved, gone, item(tmp_path, "good")], [item(tmp_path, "v")])
    faults = dict(zip(("torn_image", "gone", "strange", "grid", "moved"), found.faults, strict=True))
    for name, fault in faults.items():
        assert fault.startswith(str(tmp_path / name)), fault
    assert faults["strange"].endswith("expected labels 0 to 1, got 7 and 9 as well")
    assert "6 x 5 x 3 voxels for 6 x 5 x 4" in faults["grid"]
    assert "another place or direction, 5.2 mm away" in faults["moved"]
    with pytest.raises(InputError, match="5 faults in the data") as error:
        found.require_none("--data d")
    assert str(error.value).count("\n") == 5
    assert error.value.exit_code == 3


def test_a_subject_and_a_file_on_two_sides(tmp_path: Path) -> None:
    one, two = (item(tmp_path, f"sub-1_ses-{n}") for n in (1, 2))
    found = look(tmp_path, [one], [two, item(tmp_path, "sub-2")])
    assert len(found.faults) == 1
    assert "sub-1_ses-2_image.nii.gz validates, and" in found.faults[0]
    assert "which trains, is of subject sub-1 too" in found.faults[0]
    a, b, c = (item(tmp_path, name) for name in "abc")
    Path(c["image"]).write_bytes(Path(a["image"]).read_bytes())
    found = look(tmp_path, [a], [b], (c,))
    assert found.faults == (
        f"{c['image']} is in the test, and {a['image']}, which trains, is the same image",
    )  # fmt: skip
    assert look(tmp_path, [a | {"subject": "s"}], [b | {"subject": "s"}]).faults[0].endswith("is of subject s too")


def test_empty_labels_are_a_note_unless_all_are(tmp_path: Path) -> None:
    empty, full = item(tmp_path, "empty", values=(0,)), item(tmp_path, "full")
    found = look(tmp_path, [empty, full], [item(tmp_path, "v")])
    assert found == Findings((), (f"{empty['label']}: no voxel has a label",))
    found = look(tmp_path, [empty], [item(tmp_path, "v")])
    assert found.faults == (f"{empty['label']}: no voxel has a label, as in all images of what trains",)


def test_wild_spacings_are_a_note(tmp_path: Path) -> None:
    coarse = item(tmp_path, "coarse", {"spacing": 4.0}, spacing=4.0)
    found = look(tmp_path, [item(tmp_path, "a"), coarse], [item(tmp_path, "v")])
    assert found.faults == ()
    assert len(found.notes) == 1
    assert "goes from 1 mm" in found.notes[0]
    assert "coarse_image.nii.gz" in found.notes[0] or "coarse_label.nii.gz" in found.notes[0]


def test_labels_that_a_config_maps(tmp_path: Path) -> None:
    mapped = LabelRule(frozenset({0, 1}), {0: 0, 60: 1})
    data = [item(tmp_path, "a", values=(0, 60))], [item(tmp_path, "v", values=(0, 1, 60))]
    assert look(tmp_path, *data, rule=mapped).faults == ()
    assert "the 2 labels 0, 60" in look(tmp_path, [item(tmp_path, "b", values=(0, 5))], data[1], rule=mapped).faults[0]
    unknown = LabelRule(unknown="Lambdad")
    assert look(tmp_path, *data, rule=unknown).notes[-1].endswith("Lambdad")
    other = item(tmp_path, "c", shape=(6, 5, 3), values=(0, 1))
    assert look(tmp_path, [other], [item(tmp_path, "w")], rule=LabelRule(TWO.allowed, resampled=True)).faults == ()


def test_channels_in_one_file_and_pictures(tmp_path: Path) -> None:
    from PIL import Image as Picture

    channels = np.random.default_rng(0).normal(size=(6, 5, 4, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(channels, np.eye(4)), tmp_path / "four.nii.gz")
    item_ = {"image": str(tmp_path / "four.nii.gz"), "label": item(tmp_path, "a")["label"]}
    assert look(tmp_path, [item_], [item(tmp_path, "v")]).faults == ()
    Picture.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)).save(tmp_path / "p.png")
    np.save(tmp_path / "l.npy", np.array([[0, 3]]))
    picture = {"image": str(tmp_path / "p.png"), "label": str(tmp_path / "l.npy")}
    found = look(tmp_path, [picture], [item(tmp_path, "w")])
    assert found.faults == (f"{tmp_path}/l.npy: expected labels 0 to 1, got 3 as well",)
    (tmp_path / "q.png").write_bytes(b"no picture")
    assert "q.png: cannot be read" in look(tmp_path, [picture | {"image": str(tmp_path / "q.png")}], []).faults[0]
