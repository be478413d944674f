"""Images with a class each: class folders, tables of labels, datalists; subjects, and who validates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medkit.errors import InputError, UsageError
from medkit.training.own_classes import ClassSet, find_classes, is_planar
from medkit.training.splits import Split

KEYS = ("image", "label")


def put(folder: Path, *names: str) -> Path:
    """Write files with different contents, which nothing reads."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} {number}")
    return folder


def classes(data: Path, labels: Path | None = None, known: Sequence[str] = (), seed: int = 0) -> ClassSet:
    return find_classes(data, labels, KEYS, known, planar=True, split=Split(seed=seed))


def labelled(found: ClassSet, root: Path) -> dict[str, str]:
    """Image -> name of its class, of all items."""
    items = (*found.data.training, *found.data.validation)
    return {str(Path(item["image"]).relative_to(root)): found.names[item["label"]] for item in items}


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    names = [f"{kind}/{n:02}.png" for kind in ("cat", "ant", "bee") for n in range(10)]
    found = classes(put(tmp_path, *names, "cat/notes.txt"))
    assert found.names == ("ant", "bee", "cat")
    assert labelled(found, tmp_path) == {name: name.split("/")[0] for name in names}
    assert [sum(item["label"] == n for item in found.data.validation) for n in range(3)] == [2, 2, 2]


def test_the_bundle_s_own_classes_keep_their_numbers(tmp_path: Path) -> None:
    put(tmp_path, *(f"{kind}/{n}.png" for kind in ("normal", "mass") for n in range(4)))
    assert classes(tmp_path, known=["normal", "mass"]).names == ("normal", "mass")
    assert classes(tmp_path, known=["normal", "pneumonia"]).names == ("mass", "normal")


def test_no_person_trains_and_validates(tmp_path: Path) -> None:
    names = [f"{kind}/sub-{p:02}_{n}.png" for kind in "ab" for p in range(10) for n in range(5)]
    found = classes(put(tmp_path, *names), seed=3)
    sides = [{Path(i["image"]).name[:6] for i in part} for part in (found.data.training, found.data.validation)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 2, "the same persons validate both classes"
    folders = put(tmp_path / "f", *(f"{k}/{p}/{n}.png" for k in "ab" for p in "uvwxyz" for n in range(3)))
    found = classes(folders)
    sides = [{Path(i["image"]).parent.name for i in part} for part in (found.data.training, found.data.validation)]
    assert not sides[0] & sides[1]


def test_equal_files_are_of_one_person(tmp_path: Path) -> None:
    put(tmp_path, *(f"{kind}/{n}.png" for kind in "ab" for n in range(6)))
    for n in (3, 4, 5):
        (tmp_path / "a" / f"{n}.png").write_text("the same")
    for seed in range(5):
        found = classes(tmp_path, seed=seed)
        held = {Path(i["image"]).name for i in found.data.validation if found.names[i["label"]] == "a"}
        assert not held & {"3.png", "4.png", "5.png"} or {"3.png", "4.png", "5.png"} <= held
    (tmp_path / "b" / "0.png").write_text("the same")
    with pytest.raises(InputError, match="the equal file"):
        classes(tmp_path)


def test_parts_of_a_set_are_kept_and_the_test_part_is_left_out(tmp_path: Path) -> None:
    names = [f"{part}/{kind}/{part}{n}.png" for part in ("train", "val", "test") for kind in "ab" for n in range(3)]
    found = classes(put(tmp_path, *names))
    assert {Path(i["image"]).name[:-5] for i in found.data.training} == {"train"}
    assert {Path(i["image"]).name[:-5] for i in found.data.validation} == {"val"}
    put(tmp_path, "val/b/train0.png")
    (tmp_path / "val/b/train0.png").write_bytes((tmp_path / "train/b/train0.png").read_bytes())
    with pytest.raises(InputError, match=r"train0\.png validates"):
        classes(tmp_path)


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_a_table_of_names_or_numbers(tmp_path: Path, separator: str) -> None:
    put(tmp_path / "images", *(f"{n:02}.png" for n in range(12)), "deep/12.png", "unused.png")
    cells = [f"{n:02}.png" for n in range(10)] + ["10", "images/11.png", "12.png"]
    rows = [separator.join((cell, str(n % 3), f"p{n // 2}")) for n, cell in enumerate(cells)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join([separator.join(("File", "Label", "Subject")), *rows, ""]))
    found = classes(tmp_path / "images", table)
    assert found.names == ("0", "1", "2")
    expected = {f"{n:02}.png": str(n % 3) for n in range(12)} | {"deep/12.png": "0"}
    assert labelled(found, tmp_path / "images") == expected
    persons = [{int(Path(i["image"]).stem) // 2 for i in p} for p in (found.data.training, found.data.validation)]
    assert not persons[0] & persons[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\n00.png,a\nzz.png,b\n", r"line 3: expected one image called zz\.png .*got none"),
        ("file,label\n00.png,a\n00.png,b\n", r"00\.png has several rows"),
        ("file,label\n00.png,a\n01.png,\n", r"line 3: no class for 01\.png"),
        ("file,colour\n00.png,a\n", "no column that holds their classes"),
        ("place,label\n00.png,a\n", "no column that names the images"),
        ("file,label,split\n00.png,a,east\n", "expected train, validation or test"),
        ("file,label\n00.png,a\n01.png,b\n", "class a: expected images of two persons or more"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, text: str, words: str) -> None:
    put(tmp_path / "images", "00.png", "01.png")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        classes(tmp_path / "images", tmp_path / "t.csv")


def test_datalists_of_names_and_of_numbers(tmp_path: Path) -> None:
    put(tmp_path, *(f"{n}.png" for n in range(6)))
    path = tmp_path / "dataset.json"

    def written(labels: Sequence[object], **more: object) -> ClassSet:
        items = [{"image": f"{n}.png", "label": label} for n, label in enumerate(labels)]
        path.write_text(json.dumps({"training": items[:3], "validation": items[3:], **more}))
        return classes(tmp_path, known=["normal", "mass"])

    assert written([0, 1, 0, 1, 0, 1]).names == ("normal", "mass")
    assert written([0, 1, 2, 0, 1, 2]).names == ("0", "1", "2")
    assert written(["x", "y", "z"] * 2).names == ("x", "y", "z")
    found = written([0, 1, 2, 0, 1, 2], class_names=["p", "q", "r"])
    assert [found.names[i["label"]] for i in found.data.validation] == ["p", "q", "r"]
    with pytest.raises(InputError, match="class w: expected one of p and q"):
        written(["p", "q", "w"] * 2, class_names=["p", "q"])


def test_folders_that_hold_no_classes(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    with pytest.raises(InputError, match="there is no folder"):
        classes(tmp_path)
    put(tmp_path, "one/a.png")
    with pytest.raises(InputError, match="each of two classes or more"):
        classes(tmp_path)
    with pytest.raises(UsageError, match="needs a folder of images"):
        classes(tmp_path / "a.png", tmp_path / "b.png")


def test_the_first_image_tells_planes_from_volumes(tmp_path: Path) -> None:
    import nibabel
    from PIL import Image

    assert is_planar(tmp_path) is None
    (tmp_path / "b").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 3)), np.eye(4)), tmp_path / "b" / "v.nii.gz")
    assert is_planar(tmp_path) is False
    (tmp_path / "a").mkdir()
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / "a" / "p.png")
    assert is_planar(tmp_path) is True
