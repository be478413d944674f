"""Shards: every input in exactly one of them, also if each makes its list for itself while results appear."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


def listing(folder: Path) -> str:
    return "".join(f"{path}\n" for path in sorted(folder.glob("*.nii.gz")))


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3)))[::2])
@pytest.mark.parametrize("how", ["stdin", "arguments", "folder"])
@pytest.mark.parametrize("again", [[], ["--skip-existing"]])
def test_shards_that_list_for_themselves(
    toy: Run, scan: Make, tmp_path: Path, order: tuple[int, ...], how: str, again: list[str]
) -> None:
    """Results land beside the inputs, so every shard finds another list."""
    inputs = [scan(f"j/s{n}.nii.gz", seed=n) for n in range(5)]
    for k in order:
        text = listing(tmp_path / "j")
        given = {"stdin": [], "arguments": text.split(), "folder": [tmp_path / "j"]}[how]
        done = toy("run", "double", *given, "--shard", f"{k}/3", *again, input=text if how == "stdin" else "")
        assert done.code == 0, done.err
        assert f"shard {k}/3: " in done.err
    results = {path.name for path in (tmp_path / "j").glob("*_double.nii.gz")}
    assert results == {path.name.replace(".nii", "_double.nii") for path in inputs}


def test_a_list_is_dealt_out_by_position(toy: Run, blob: Make, tmp_path: Path) -> None:
    names = [blob(f"{n}.nii.gz") for n in "abcdef"]
    (tmp_path / "list").write_text("".join(f"{path}\n" for path in reversed(names)))
    done = toy("run", "fragile", "--list", tmp_path / "list", "--shard", "2/3", "-o", tmp_path / "o")
    assert [path.name for path in done.paths] == ["e_copy.nii.gz", "b_copy.nii.gz"]  # in the list's order
    assert "shard 2/3: 2 of 6 inputs" in done.err


def test_piped_shards_do_not_wait_for_the_last_line(start: Callable[..., object], blob: Make, tmp_path: Path) -> None:
    process = start("run", "fragile", "--shard", "1/1", "-o", "o")
    process.stdin.write(f"{blob('a.nii.gz')}\n")
    assert process.stdout.readline().endswith("a_copy.nii.gz\n")
    process.stdin.close()
    assert process.wait(30) == 0


def test_records_and_paths_of_a_file_are_in_the_same_shard(toy: Run, blob: Make, tmp_path: Path) -> None:
    path = blob("a.nii.gz")
    found = {"line": set(), "record": set()}
    for k in range(1, 6):
        for form, text in (("line", f"{path}\n"), ("record", f'{{"path": "{path}", "id": 7}}\n')):
            if toy("run", "fragile", "--shard", f"{k}/5", "-o", tmp_path / f"{form}{k}", input=text).lines:
                found[form].add(k)
    assert len(found["line"]) == 1
    assert found["line"] == found["record"]


def test_groups_stay_whole(toy: Run, scan: Make, tmp_path: Path) -> None:
    names = [f"sub-{s}_ses-{n}_T1w.nii.gz" for s in "abcde" for n in "123"]
    text = "".join(f"{scan(name, seed=i)}\n" for i, name in enumerate(names))
    members = []
    for k in (1, 2, 3):
        done = toy("run", "merge", "--group-by", "sub", "--json", "--shard", f"{k}/3", "-o", tmp_path / "o", input=text)
        assert done.code == 0, done.err
        members += [record["medkit"]["metrics"]["members"] for record in done.records]
    assert members == [3] * 5


def test_lists_of_failures_have_a_file_for_each_shard(toy: Run, blob: Make, tmp_path: Path) -> None:
    text = "".join(f"{blob(f'fail{n}.nii.gz')}\n" for n in range(6))
    (tmp_path / "list").write_text(text)
    for k in (1, 2, 3):
        failed = ["--failed", tmp_path / "failed.txt", "--list", tmp_path / "list"]
        assert toy("run", "fragile", *failed, "--shard", f"{k}/3").code == 1
    lists = sorted(tmp_path.glob("failed.txt*"))
    assert [path.name for path in lists] == [f"failed.txt.{k}-of-3" for k in (1, 2, 3)]
    assert sorted("".join(path.read_text() for path in lists).splitlines()) == text.splitlines()
