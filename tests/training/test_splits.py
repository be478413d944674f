"""Who trains, validates and is held out: by subject, the same for the same seed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medkit.errors import InputError, UsageError
from medkit.training.data import find_items
from medkit.training.own_classes import find_classes
from medkit.training.splits import DataList, Split, drawn, fold_of, share_out, subject_of


def put(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} {number}")
    return folder


def bids(folder: Path, subjects: int, sessions: int = 2) -> Path:
    names = [f"sub-{s:02}/ses-{n}/anat/sub-{s:02}_ses-{n}_T1w.nii.gz" for s in range(subjects) for n in range(sessions)]
    return put(folder, *names)


def persons(items: Any) -> set[str]:
    return {Path(item["image"]).name[:6] for item in items}


def test_a_subject_is_what_the_item_or_the_name_says(tmp_path: Path) -> None:
    data = DataList((), (), tmp_path, subjects={str(tmp_path / "x.png"): "anna"})
    for item, subject in (
        ({"image": "/d/a.nii.gz", "subject": 7}, "7"),
        ({"image": "/d/sub-3_T1w.nii.gz", "Participant_ID": "p3"}, "p3"),
        ({"image": "/d/sub-3_ses-1_T1w.nii.gz"}, "sub-3"),
        ({"image": "/d/sub-4/t1.nii.gz"}, "sub-4"),
        ({"image": ["/d/sub-5_T1w.nii.gz", "/d/sub-5_T2w.nii.gz"], "subject": ""}, "sub-5"),
        ({"image": str(tmp_path / "x.png")}, "anna"),
        ({"image": str(tmp_path / "a" / "scan.nii.gz")}, "a/scan.nii.gz"),
        ({"image": "/elsewhere/scan.nii.gz"}, "/elsewhere/scan.nii.gz"),
    ):
        assert subject_of(item, ["image"], data) == subject


def test_each_subject_validates_in_one_fold(tmp_path: Path) -> None:
    folder = bids(tmp_path, 11)
    validating: Counter[str] = Counter()
    for fold in range(1, 6):
        found = find_items(folder, ["image"], Split(5, fold, seed=3))
        assert not persons(found.training) & persons(found.validation)
        assert len(found.training) + len(found.validation) == 22
        assert len(persons(found.validation)) in (2, 3)
        validating.update(persons(found.validation))
        assert found == find_items(folder, ["image"], Split(5, fold, seed=3))
    assert set(validating.values()) == {1}
    assert len(validating) == 11
    orders = {str(persons(find_items(folder, ["image"], Split(5, 1, seed=seed)).validation)) for seed in range(6)}
    assert len(orders) > 1


def test_folds_do_not_depend_on_where_the_data_are(tmp_path: Path) -> None:
    found = []
    for place in ("here", "there/deep"):
        folder = put(tmp_path / place, *(f"case_{n:02}.nii.gz" for n in range(9)))
        found.append([Path(i["image"]).name for i in find_items(folder, ["image"], Split(3, 2)).validation])
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_the_last_tenth_keeps_subjects_together(tmp_path: Path) -> None:
    found = find_items(bids(tmp_path / "a", 4, 3), ["image"])
    assert persons(found.validation) == {"sub-03"}
    assert len(found.validation) == 3
    assert find_items(bids(tmp_path / "b", 1, 4), ["image"]).validation == ()


def test_a_share_of_the_subjects_is_held_out(tmp_path: Path) -> None:
    folder = bids(tmp_path, 10)
    found = find_items(folder, ["image"], Split(test_fraction=0.3, seed=1))
    sides = [persons(part) for part in (found.training, found.validation, found.test)]
    assert list(map(len, sides)) == [6, 1, 3]
    assert len(set().union(*sides)) == 10
    held = [find_items(folder, ["image"], Split(4, fold, 0.3, 1)).test for fold in (1, 2, 3, 4)]
    assert all(persons(test) == sides[2] for test in held), "the test is the same in every fold"


def test_a_datalist_states_its_test(tmp_path: Path) -> None:
    put(tmp_path, "a.nii", "b.nii", "c.nii", "d.nii", "e.nii")
    content = {
        "training": [{"labels": "a.nii"}, {"labels": "b.nii"}],
        "test": [{"image": "c.nii", "label": "d.nii"}, "e.nii"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = find_items(tmp_path, ["labels"])
    assert found.test == ({"image": f"{tmp_path}/c.nii", "label": f"{tmp_path}/d.nii"}, {"image": f"{tmp_path}/e.nii"})
    with pytest.raises(UsageError, match="--test-fraction"):
        find_items(tmp_path, ["labels"], Split(test_fraction=0.5))


@pytest.mark.parametrize(
    ("given", "words"), [((5, None), "need each other"), ((None, 1), "need each other"), ((3, 4), "from 1 to 3")]
)
def test_folds_that_do_not_exist(given: tuple[int | None, int | None], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Split(*given)


def test_too_few_subjects(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected at least 5 subjects, got 4"):
        find_items(bids(tmp_path / "a", 4), ["image"], Split(5, 1))
    with pytest.raises(InputError, match="leaves nothing"):
        find_items(bids(tmp_path / "b", 1), ["image"], Split(test_fraction=0.5))


def test_a_stated_validation_joins_the_folds_and_else_stays() -> None:
    items = [{"image": f"/d/sub-{n}_T1w.nii"} for n in range(6)]
    data = DataList(tuple(items[:4]), tuple(items[4:]), Path("/d"))
    assert share_out(data, ["image"], Split()) == data
    found = [share_out(data, ["image"], Split(3, fold)).validation for fold in (1, 2, 3)]
    assert sorted(item["image"] for part in found for item in part) == [item["image"] for item in items]
    held = share_out(data, ["image"], Split(test_fraction=0.25))
    assert held.validation == data.validation
    assert len(held.test) == 1


def test_classes_are_spread_evenly(tmp_path: Path) -> None:
    folder = put(tmp_path, *(f"{k}/{k}{n:02}.png" for k, count in (("rare", 6), ("many", 30)) for n in range(count)))
    for fold in (1, 2, 3):
        data = find_classes(folder, None, ("image", "label"), (), planar=True, split=Split(3, fold)).data
        assert Counter(item["label"] for item in data.validation) == {0: 10, 1: 2}
        assert Counter(item["label"] for item in data.training) == {0: 20, 1: 4}
    data = find_classes(folder, None, ("image", "label"), (), planar=True, split=Split(test_fraction=0.5)).data
    assert Counter(item["label"] for item in data.test) == {0: 15, 1: 3}


def test_the_test_part_of_class_folders_is_held_out(tmp_path: Path) -> None:
    names = [f"{part}/{kind}/{part}{n}.png" for part in ("train", "val", "test") for kind in "ab" for n in range(3)]
    data = find_classes(put(tmp_path, *names), None, ("image", "label"), (), planar=True).data
    assert {Path(item["image"]).name[:4] for item in data.test} == {"test"}
    assert len(data.test) == 6


def test_subjects_of_two_classes_are_in_one_fold() -> None:
    groups = {"a": {"u", "v", "w"}, "b": {"u", "v", "x", "y"}}
    parts = fold_of(groups, 2, 0, "somewhere")
    assert set(parts) == {"u", "v", "w", "x", "y"}
    assert set(parts.values()) == {1, 2}
    assert drawn(groups, 0.5, 0) == drawn(groups, 0.5, 0)
