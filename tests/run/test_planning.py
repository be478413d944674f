"""From lines to cases: kinds and sources, equal names, groups, inputs that are never replaced."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import names

from medkit.errors import InputError
from medkit.images.image import read_image
from medkit.run.outputs import Output

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


def test_the_kind_needed_is_found_through_the_sources(toy: Run, scan: Make) -> None:
    source = scan("x.nii.gz")
    (labels,) = toy("run", "halves", source).paths
    (record,) = toy("run", "measure", labels, "--json").records
    assert record["kind"] == "table"
    assert record["path"].endswith("x_dseg_class.tsv")
    assert record["Sources"] == [str(labels), str(source)]
    assert {role: Path(e["path"]) for role, e in record["medkit"]["inputs"].items()} == {
        "labels": labels,
        "image": source,
    }
    assert "labels\tx_dseg.nii.gz\nimage\tx.nii.gz" in Path(record["path"]).read_text()


def test_labels_of_unknown_origin_fail_alone(toy: Run, scan: Make) -> None:
    labels, image = scan("a_dseg.nii.gz", kind="labels"), scan("x.nii.gz")
    done = toy("run", "measure", labels, image)
    assert done.code == 1
    assert len(done.lines) == 1
    assert "expected an image, got labels a_dseg.nii.gz and " in done.err
    assert toy("run", "measure", labels).code == 3


def test_a_source_that_is_gone_is_named(toy: Run, scan: Make) -> None:
    source = scan("x.nii.gz")
    (labels,) = toy("run", "halves", source).paths
    source.unlink()
    done = toy("run", "measure", labels)
    assert done.code == 3
    assert "x.nii.gz: no such file" in done.err


def test_named_inputs_of_a_record(toy: Run, blob: Make) -> None:
    moving, labels, fixed = blob("m.nii.gz"), blob("l_dseg.nii.gz"), blob("f.nii.gz")
    for inputs in (
        {"moving": str(moving), "moving_labels": str(labels)},
        {"moving_labels": str(labels), "moving": str(moving)},
    ):
        line = json.dumps({"inputs": inputs})
        done = toy("run", "align", "--reference", fixed, "--json", "--overwrite", input=line)
        assert done.code == 0, done.err
        (record,) = done.records
        assert record["path"].endswith("m_registered.nii.gz")
        assert record["Sources"][0] == str(moving)
        assert {r: e["path"] for r, e in record["medkit"]["inputs"].items()} == {
            "moving": str(moving),
            "moving_labels": str(labels),
            "fixed": str(fixed),
        }


def test_an_unknown_named_input_is_refused(toy: Run, blob: Make) -> None:
    line = json.dumps({"path": str(blob("m.nii.gz")), "inputs": {"moveing_labels": "x"}})
    done = toy("run", "align", "--reference", blob("f.nii.gz"), input=line)
    assert done.code == 3
    assert "unknown input moveing_labels; align knows moving, moving_labels" in done.err


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_equal_names_never_overwrite_each_other(toy: Run, blob: Make, tmp_path: Path, overwrite: list[str]) -> None:
    inputs = [blob(f"{n}/T1.nii.gz") for n in "abc"]
    done = toy("run", "pair", *inputs, "-o", tmp_path / "out", *overwrite)
    assert done.code == 1
    assert done.paths == [tmp_path / "out/T1_copy.nii.gz"]
    assert done.paths[0].read_text() == "a/T1.nii.gz"
    for other in inputs[1:]:
        assert f"{other}: its result T1_copy.nii.gz would replace that of {inputs[0]}" in done.err
    assert "--keep-tree ROOT" in done.err


@pytest.mark.parametrize("listed", [True, False])
def test_equal_names_are_refused_before_any_work(toy: Run, blob: Make, tmp_path: Path, listed: bool) -> None:
    """Unless they arrive one by one: nobody knows then what comes."""
    lines = "".join(f"{blob(name)}\n" for name in ("a/x.nii.gz", "b/y.nii.gz", "b/x.nii.gz"))
    (tmp_path / "list").write_text(lines)
    words = ["run", "pair", "-o", tmp_path / "out", "--json"]
    done = toy(*words, "--list", tmp_path / "list") if listed else toy(*words, input=lines)
    assert done.code == 1
    status = [record["medkit"]["status"] for record in done.records]
    assert status == (["failed", "ok", "ok"] if listed else ["ok", "ok", "failed"])
    assert f"b/x.nii.gz: its result x_copy.nii.gz would replace that of {tmp_path}/a/x.nii.gz" in done.err
    assert "1 of 3 failed" in done.err


def test_an_input_that_comes_twice(toy: Run, blob: Make) -> None:
    done = toy("run", "pair", blob("a.nii.gz"), blob("a.nii.gz"))
    assert (done.code, len(done.lines)) == (1, 1)
    assert "a.nii.gz: comes a second time; its result is made once" in done.err


def test_keep_tree(toy: Run, blob: Make, tmp_path: Path) -> None:
    inputs = [blob(f"in/{n}/T1.nii.gz") for n in ("a", "b/c")]
    done = toy("run", "pair", *inputs, blob("x.nii.gz"), "-o", tmp_path / "out", "--keep-tree", tmp_path / "in")
    assert done.code == 1
    assert done.paths == [tmp_path / "out/a/T1_copy.nii.gz", tmp_path / "out/b/c/T1_copy.nii.gz"]
    assert "does not lie below" in done.err
    assert toy("run", "pair", inputs[0], "--keep-tree", tmp_path / "in").code == 2


def test_names_that_differ_in_their_suffix_alone(toy: Run, blob: Make, tmp_path: Path) -> None:
    done = toy("run", "pair", blob("x.nii"), blob("x.nii.gz"))
    assert done.code == 1
    assert done.paths == [tmp_path / "x_copy.nii.gz"]
    assert done.paths[0].read_text() == "x.nii"


def test_further_outputs_collide_as_well(toy: Run, blob: Make, tmp_path: Path) -> None:
    """`x_transform.nii.gz` is further output of one case and `-o`'s main output of another."""
    first = toy("run", "align", "--reference", blob("f.nii.gz"), blob("x.nii.gz"), "-o", tmp_path / "o")
    assert first.code == 0
    before = (tmp_path / "o/x_transform.nii.gz").read_text()
    second = toy("run", "pair", blob("y.nii.gz"), "-o", tmp_path / "o/x_transform.nii.gz")
    assert second.code == 1
    assert (tmp_path / "o/x_transform.nii.gz").read_text() == before


def test_one_case_whose_outputs_have_one_name_fails(
    clean_environment: None, blob: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import toy as plugin

    from medkit.options import RunOptions
    from medkit.run.task import Task
    from medkit.task import run_task

    twice = [Output("image", "image", "copy"), Output("table", "image", "copy")]
    task = Task("twice", twice, process=functools.partial(plugin._pair, value=""), uses_torch=False)
    with pytest.raises(SystemExit) as stop:
        run_task(task, RunOptions(inputs=(str(blob("x.nii.gz")),)))
    assert stop.value.code == 1
    assert "two of its results would be called x_copy.nii.gz" in caplog.text
    assert names(tmp_path) == ["x.nii.gz"]


def test_output_as_a_file_is_for_one_case(toy: Run, blob: Make, tmp_path: Path) -> None:
    done = toy("run", "pair", blob("a.nii.gz"), blob("b.nii.gz"), "-o", tmp_path / "new/r.nii.gz")
    assert done.code == 1
    assert done.paths == [tmp_path / "new/r.nii.gz"]
    assert names(tmp_path / "new") == ["r.json", "r.nii.gz", "r_facts.tsv"]
    assert (tmp_path / "new/r.nii.gz").read_text() == "a.nii.gz"
    assert "name a folder as --output" in done.err


def test_an_output_of_the_wrong_type_is_a_usage_error(toy: Run, blob: Make, tmp_path: Path) -> None:
    done = toy("run", "pair", blob("a.nii.gz"), "-o", tmp_path / "r.tfm")
    assert done.code == 2
    assert "r.tfm: expected a name that ends in" in done.err


def test_a_dicom_folder_is_named_after_itself(toy: Run, blob: Make, tmp_path: Path) -> None:
    blob("study/series.1/1.dcm")
    done = toy("run", "pair", tmp_path / "study/series.1")
    assert done.paths == [tmp_path / "study/series.1_copy.nii.gz"]
    assert toy("run", "pair", f"{tmp_path}/study/series.1/", "-o", tmp_path / "o").paths == [
        tmp_path / "o/series.1_copy.nii.gz"
    ]


def test_many_single_slices_are_worth_a_warning(toy: Run, blob: Make, tmp_path: Path) -> None:
    slices = [blob(f"series/{n}.dcm") for n in range(8)]
    done = toy("run", "pair", *slices, "-o", tmp_path / "o")
    assert done.err.count("give the folder") == 1


def test_all_lines_as_one_case(toy: Run, scan: Make) -> None:
    inputs = [scan(f"{n}.nii.gz", seed=n) for n in range(3)]
    (record,) = toy("run", "merge", *inputs, "--json").records
    assert record["path"].endswith("0_merged.nii.gz")
    assert record["Sources"] == [str(p) for p in inputs]
    assert list(record["medkit"]["inputs"]) == ["image", "image_2", "image_3"]
    assert record["medkit"]["metrics"] == {"members": 3}


def test_groups_of_bids_names(toy: Run, scan: Make, tmp_path: Path) -> None:
    inputs = [scan(f"sub-{s}_ses-{e}_run-{r}_T1w.nii.gz", seed=r) for s in (1, 2) for e in (1, 2) for r in (1, 2)]
    done = toy("run", "merge", *inputs, "--group-by", "sub,ses", "-o", tmp_path / "o")
    assert sorted(p.name for p in done.paths) == [
        f"sub-{s}_ses-{e}_desc-merged_T1w.nii.gz" for s in (1, 2) for e in (1, 2)
    ]


def test_failed_members_are_passed_on(toy: Run, scan: Make) -> None:
    failed = json.dumps({"path": "/gone.nii.gz", "medkit": {"status": "failed", "task": "x"}})
    done = toy("run", "merge", "--json", input=f"{scan('a.nii.gz')}\n{failed}\n")
    assert done.code == 1
    assert sorted(r["medkit"]["status"] for r in done.records) == ["failed", "ok"]


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_an_input_is_never_replaced(toy: Run, blob: Make, tmp_path: Path, link: Callable[..., None] | None) -> None:
    source = blob("a.nii.gz")
    target = source
    if link:
        target = tmp_path / "link.nii.gz"
        link(source, target)
    done = toy("run", "pair", source, "-o", target, "--overwrite")
    assert done.code == 1
    assert "is an input of this case" in done.err
    assert source.read_text() == "a.nii.gz"


def test_the_fixed_image_is_an_input_too(toy: Run, blob: Make) -> None:
    fixed = blob("f.nii.gz")
    done = toy("run", "align", blob("a.nii.gz"), "--reference", fixed, "-o", fixed, "--overwrite")
    assert done.code == 1
    assert fixed.read_text() == "f.nii.gz"


def test_an_inputs_own_sidecar_is_never_rewritten(toy: Run, blob: Make, tmp_path: Path) -> None:
    source = blob("sub-1_T1w.nii.gz")
    own = blob("sub-1_T1w.json", '{"EchoTime": 0.1}')
    done = toy("run", "pair", source, "-o", tmp_path / "sub-1_T1w.nii", "--overwrite")
    assert done.code == 1
    assert json.loads(own.read_text()) == {"EchoTime": 0.1}


def test_outputs_keep_the_inputs_grid_and_the_input_its_bytes(toy: Run, scan: Make) -> None:
    from medkit.testing import assert_same_grid

    source = scan("x.nii.gz", orientation="LIA", oblique_degrees=15)
    before = source.read_bytes()
    for task in ("double", "halves"):
        (result,) = toy("run", task, source).paths
        assert_same_grid(source, result)
    assert source.read_bytes() == before


def test_a_result_never_replaces_another_cases_input(toy: Run, blob: Make, tmp_path: Path) -> None:
    first, second = blob("a.nii.gz"), blob("a_copy.nii.gz")
    before = second.read_bytes()
    done = toy("run", "pair", first, second, "--overwrite", "--json")
    assert [r["medkit"]["status"] for r in done.records] == ["failed", "ok"]
    assert "would replace an input" in done.err
    assert second.read_bytes() == before


def test_a_pipe_as_an_input_is_refused(toy: Run, scan: Make, tmp_path: Path) -> None:
    """It would be waited for forever, and could be read once only."""
    os.mkfifo(tmp_path / "a.nii.gz")
    done = toy("run", "halves", tmp_path / "a.nii.gz", scan("b.nii.gz"))
    assert (done.code, "a.nii.gz: expected a file that can be read again, got a pipe" in done.err) == (1, True)
    with pytest.raises(InputError, match="got a device"):
        read_image(Path("/dev/zero"))


@pytest.mark.parametrize("length", [255, 240])
def test_a_name_too_long_for_a_result_is_refused_before_the_work(
    toy: Run, scan: Make, tmp_path: Path, length: int
) -> None:
    (tmp_path / "out").mkdir()
    source = scan("b.nii.gz").rename(tmp_path / f"{'é' * (length // 2 - 5)}x.nii.gz")
    done = toy("run", "halves", source, "-o", tmp_path / "out")
    assert (done.code, "bytes too long; choose a shorter -o" in done.err) == (1, True), done.err
    assert not list((tmp_path / "out").iterdir())
    assert toy("run", "halves", source, "-o", tmp_path / "out" / "x.nii.gz").code == 0
