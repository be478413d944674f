"""`run_task` in this process: cases, names, existing outputs, failures, exit codes, kinds, groups."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


def sidecar(path: Path) -> dict[str, object]:
    data: dict[str, object] = json.loads((path.parent / (path.name.split(".")[0] + ".json")).read_text())
    return data


def names(folder: Path) -> list[str]:
    """All files below a folder, hidden ones too."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# ---- lines and records


def test_a_path_per_case_in_order(toy: Run, blob: Make, tmp_path: Path) -> None:
    inputs = [blob(f"{n}.nii.gz") for n in "cab"]
    done = toy("run", "pair", *inputs, "-o", tmp_path / "out")
    assert done.code == 0
    assert done.paths == [tmp_path / "out" / f"{n}_copy.nii.gz" for n in "cab"]
    assert names(tmp_path / "out") == sorted(
        f"{n}_{s}" for n in "abc" for s in ("copy.json", "copy.nii.gz", "facts.tsv")
    )


def test_relative_inputs_give_absolute_lines(
    toy: Run, blob: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob("d/x.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert toy("run", "pair", "d/x.nii.gz", "-o", "o").paths == [tmp_path / "o" / "x_copy.nii.gz"]
    assert toy("run", "pair", input="d/x.nii.gz").paths == [tmp_path / "d" / "x_copy.nii.gz"]


def test_record_and_sidecar_are_one_object(toy: Run, blob: Make, tmp_path: Path) -> None:
    from medkit.pipe.records import read_sidecar, record_from_json, sha256_of

    source = blob("in/x.nii.gz")
    (record,) = toy("run", "pair", source, "-o", tmp_path / "out", "--json", "--value", "7").records
    assert list(record) == ["path", "kind", "Sources", "SpatialReference", "Description", "GeneratedBy", "medkit"]
    block = record["medkit"]
    assert list(block) == [
        *("task", "status", "skipped", "error", "outputs", "bundle", "arguments", "inputs", "device", "threads"),
        *("seed", "seconds", "peak_rss_mb", "metrics", "warnings"),
    ]
    assert record["Sources"] == [str(source)]
    assert (block["status"], block["skipped"], block["error"]) == ("ok", False, None)
    assert block["inputs"] == {"image": {"path": str(source), "sha256": sha256_of(source)}}
    assert list(block["outputs"]) == ["image", "table"]
    for entry in block["outputs"].values():
        assert entry["sha256"] == sha256_of(Path(entry["path"]))
    assert [g["Name"] for g in record["GeneratedBy"]] == ["medkit", "medkit-toy"]
    written = sidecar(Path(record["path"]))
    assert written["path"] == "x_copy.nii.gz"
    assert written["Sources"] == ["../in/x.nii.gz"]
    assert read_sidecar(tmp_path / "out/x_copy.json") == record_from_json(record)


def test_a_moved_folder_still_works(toy: Run, scan: Make, tmp_path: Path) -> None:
    scan("a/in/x.nii.gz")
    (labels,) = toy("run", "halves", tmp_path / "a/in/x.nii.gz", "-o", tmp_path / "a/out").paths
    (tmp_path / "a").rename(tmp_path / "b")
    moved = tmp_path / "b" / labels.relative_to(tmp_path / "a")
    (table,) = toy("run", "measure", moved).paths
    assert "image\tx.nii.gz" in table.read_text()
    assert str(tmp_path / "b/in/x.nii.gz") in toy("show", moved).out
    again = toy("run", "halves", tmp_path / "b/in/x.nii.gz", "-o", tmp_path / "b/out", "--skip-existing", "--json")
    assert again.records[0]["medkit"]["skipped"] is True


def test_nothing_arrived(toy: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    for done in (
        toy("run", "pair"),
        toy("run", "pair", input="\n\n"),
        toy("run", "pair", "--list", tmp_path / "empty"),
    ):
        assert (done.code, done.out) == (1, "")
        assert "no input arrived" in done.err


@pytest.mark.parametrize("more", [["--dry-run"], ["--shard", "1/2"]])
def test_nothing_arrived_is_noticed_whatever_else_is_asked(toy: Run, more: list[str]) -> None:
    done = toy("run", "pair", *more)
    assert done.code == 1
    assert "no input arrived" in done.err


def test_an_empty_shard_is_no_failure(toy: Run, blob: Make) -> None:
    assert toy("run", "pair", blob("a.nii.gz"), "--shard", "2/2").code == 0


def test_shards_cover_all_and_share_none(toy: Run, blob: Make, tmp_path: Path) -> None:
    inputs = [blob(f"{n:02}.nii.gz") for n in range(7)]
    parts = [toy("run", "pair", *inputs, "-o", tmp_path / "o", "--shard", f"{k}/3").paths for k in (1, 2, 3)]
    assert [len(p) for p in parts] == [3, 2, 2]
    assert len({p for part in parts for p in part}) == 7


def test_shard_auto_takes_the_rank_of_the_array(toy: Run, blob: Make) -> None:
    inputs = [blob(f"{n}.nii.gz") for n in "abcd"]
    rank = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "1"}
    done = toy("run", "pair", *inputs, "--shard", "auto", env=rank | {"SLURM_ARRAY_TASK_COUNT": "2"})
    assert [p.name for p in done.paths] == ["a_copy.nii.gz", "c_copy.nii.gz"]
    assert toy("run", "pair", *inputs, "--shard", "auto", env=rank | {"SLURM_ARRAY_TASK_COUNT": "1"}).code == 2
    assert toy("run", "pair", *inputs, "--shard", "auto").code == 2


def test_null_in_and_out(toy: Run, blob: Make, tmp_path: Path) -> None:
    blob("new\nline.nii.gz"), blob("b.nii.gz")
    done = toy("run", "pair", "-0", input=f"{tmp_path}/new\nline.nii.gz\0{tmp_path}/b.nii.gz\0")
    assert done.code == 0
    assert done.out == f"{tmp_path}/new\nline_copy.nii.gz\0{tmp_path}/b_copy.nii.gz\0"


def test_a_newline_in_an_output_name_fails_its_case_alone(toy: Run, blob: Make, tmp_path: Path) -> None:
    done = toy("run", "pair", blob("new\nline.nii.gz"), blob("b.nii.gz"))
    assert done.code == 1
    assert done.paths == [tmp_path / "b_copy.nii.gz"]
    assert "holds a newline" in done.err
    assert not (tmp_path / "new\nline_copy.nii.gz").exists()
    assert toy("run", "pair", tmp_path / "new\nline.nii.gz", "--json").code == 0


def test_names_that_are_not_utf8(toy: Run, blob: Make) -> None:
    source = blob(os.fsdecode(b"\xff.nii.gz"))
    assert toy("run", "pair", source).paths == [source.with_name(os.fsdecode(b"\xff_copy.nii.gz"))]
    (record,) = toy("run", "pair", source, "--json", "--overwrite").records
    assert Path(record["path"]).exists()
    assert toy("show", record["path"]).code == 0


def test_a_path_that_begins_with_a_brace(toy: Run, blob: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob("{x.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert toy("run", "pair", input="./{x.nii.gz\n").paths == [tmp_path / "{x_copy.nii.gz"]
    refused = toy("run", "pair", input="{x.nii.gz\n")
    assert refused.code == 1
    assert "write ./{" in refused.err


@pytest.mark.parametrize(
    "line", ['{"path": 3}', "{", '{"path": "x", "kind": "cat"}', '{"path":"x","medkit":{"inputs":{"a":1}}}']
)
def test_a_bad_record_fails_alone(toy: Run, blob: Make, tmp_path: Path, line: str) -> None:
    done = toy("run", "pair", input=f"{line}\n{blob('b.nii.gz')}\n")
    assert done.code == 1
    assert done.paths == [tmp_path / "b_copy.nii.gz"]


# ---- kinds and lineage


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


# ---- failures


@pytest.mark.parametrize("bad", ["fail", "exit", "nothing"])
def test_one_bad_case_never_stops_the_others(toy: Run, blob: Make, tmp_path: Path, bad: str) -> None:
    inputs = [blob("a.nii.gz"), blob(f"{bad}.nii.gz"), blob("c.nii.gz")]
    done = toy("run", "fragile", *inputs)
    assert done.code == 1
    assert [p.name for p in done.paths] == ["a_copy.nii.gz", "c_copy.nii.gz"]
    assert "1 of 3 failed" in done.err
    assert done.err.count(f"{bad}.nii.gz") >= 2  # when it happened, and in the list at the end
    assert [n for n in names(tmp_path) if n.startswith(f"{bad}_") or n.startswith(".")] == []


def test_failed_records_go_down_the_pipe_and_lines_do_not(toy: Run, blob: Make) -> None:
    inputs = [blob("a.nii.gz"), blob("fail.nii.gz")]
    first = toy("run", "fragile", *inputs, "--json")
    assert first.code == 1
    ok, failed = first.records
    assert (ok["medkit"]["status"], failed["medkit"]["status"]) == ("ok", "failed")
    assert failed["path"] == str(inputs[1])
    assert failed["medkit"]["error"] == "ValueError: told to fail"
    for task in ("pair", "fragile"):
        second = toy("run", task, "--json", input=first.out)
        assert second.code == 1
        assert second.records[1] == failed
        assert toy("run", task, "--json", input=first.lines[1]).code == 1
    assert len(toy("run", "pair", "--overwrite", input=first.out).lines) == 1


@pytest.mark.parametrize("task", ["pair", "double"])
def test_a_passed_on_refusal_is_not_this_stages_own(toy: Run, blob: Make, tmp_path: Path, task: str) -> None:
    first = toy("run", "double", tmp_path / "missing.nii.gz", "--json")
    assert first.code == 3
    second = toy("run", task, "--json", input=first.out)
    assert second.code == 1
    assert second.out == first.out


def test_every_input_refused_is_exit_3(toy: Run, blob: Make, scan: Make) -> None:
    text, torn = blob("text.nii.gz", "no image"), scan("torn.nii.gz")
    torn.write_bytes(torn.read_bytes()[:-20])
    done = toy("run", "double", text, torn)
    assert done.code == 3
    assert "text.nii.gz" in done.err
    assert toy("run", "double", text, scan("x.nii.gz")).code == 1


def test_missing_weights_are_exit_4(toy: Run, blob: Make, tmp_path: Path) -> None:
    done = toy("run", "unready", blob("a.nii.gz"))
    assert done.code == 4
    assert "toy weights" in done.err
    assert names(tmp_path) == ["a.nii.gz"]


def test_fail_fast(toy: Run, blob: Make, tmp_path: Path) -> None:
    done = toy("run", "fragile", blob("a.nii.gz"), blob("fail.nii.gz"), blob("c.nii.gz"), "--fail-fast")
    assert done.code == 1
    assert done.paths == [tmp_path / "a_copy.nii.gz"]
    assert not (tmp_path / "c_copy.nii.gz").exists()


def test_failed_inputs_are_listed_for_a_rerun(toy: Run, blob: Make, tmp_path: Path) -> None:
    inputs = [blob("a.nii.gz"), blob("fail 1.nii.gz"), blob("fail2.nii.gz")]
    toy("run", "fragile", *inputs, "--failed", tmp_path / "failed")
    assert (tmp_path / "failed").read_text() == f"{inputs[1]}\n{inputs[2]}\n"
    again = toy("run", "pair", "--list", tmp_path / "failed", "-o", tmp_path / "o")
    assert [p.name for p in again.paths] == ["fail 1_copy.nii.gz", "fail2_copy.nii.gz"]
    odd = blob(os.fsdecode(b"fail\n\xff.nii.gz"))
    toy("run", "fragile", "-0", input=bytes(odd) + b"\0", env={"MEDKIT_FAILED": str(tmp_path / "nul")})
    assert (tmp_path / "nul").read_bytes() == bytes(odd) + b"\0"
    toy("run", "pair", inputs[0], "--failed", tmp_path / "failed", "--overwrite")
    assert (tmp_path / "failed").read_bytes() == b""


def test_time_limit(toy: Run, blob: Make, tmp_path: Path) -> None:
    done = toy("run", "fragile", blob("hang.nii.gz"), blob("b.nii.gz"), "--timeout-per-case", "0.2")
    assert done.code == 1
    assert done.paths == [tmp_path / "b_copy.nii.gz"]
    assert "took longer than 0.2 s" in done.err
    assert names(tmp_path) == ["b.nii.gz", "b_copy.json", "b_copy.nii.gz", "hang.nii.gz"]


# ---- equal names


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
    from medkit.run.outputs import Output
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


# ---- BIDS


def test_bids_derivatives(toy: Run, blob: Make, tmp_path: Path) -> None:
    source = blob("raw/sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz")
    blob("raw/sub-1/ses-2/anat/sub-1_ses-2_T1w.json", '{"EchoTime": 0.1}')
    done = toy("run", "align", source, "--reference", blob("tpl-MNI152_T1w.nii.gz"), "-o", tmp_path / "der")
    folder = tmp_path / "der/sub-1/ses-2/anat"
    assert done.paths == [folder / "sub-1_ses-2_space-MNI152_desc-registered_T1w.nii.gz"]
    assert names(folder) == [
        "sub-1_ses-2_from-MNI152_to-T1w_mode-image_xfm.nii.gz",
        "sub-1_ses-2_from-T1w_to-MNI152_mode-image_xfm.nii.gz",
        "sub-1_ses-2_space-MNI152_desc-registered_T1w.json",
        "sub-1_ses-2_space-MNI152_desc-registered_T1w.nii.gz",
    ]
    description = json.loads((tmp_path / "der/dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "medkit"
    assert json.loads((source.parent / "sub-1_ses-2_T1w.json").read_text()) == {"EchoTime": 0.1}


def test_a_dataset_description_is_never_replaced(toy: Run, blob: Make, tmp_path: Path) -> None:
    blob("der/dataset_description.json", "mine")
    toy("run", "pair", blob("sub-1_T1w.nii.gz"), "-o", tmp_path / "der")
    assert (tmp_path / "der/dataset_description.json").read_text() == "mine"


# ---- groups


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


# ---- existing results


def test_an_existing_result_is_an_error(toy: Run, blob: Make, tmp_path: Path) -> None:
    source = blob("a.nii.gz")
    toy("run", "pair", source)
    again = toy("run", "pair", source, blob("b.nii.gz"))
    assert again.code == 1
    assert [p.name for p in again.paths] == ["b_copy.nii.gz"]
    assert "exists already; --skip-existing keeps it" in again.err
    assert toy("run", "pair", source, "--overwrite", "--value", "new").code == 0
    assert "new" in (tmp_path / "a_facts.tsv").read_text()


@pytest.fixture
def done_once(toy: Run, blob: Make, tmp_path: Path) -> Path:
    """A case that was done, its output folder `o`."""
    source = blob("a.nii.gz")
    assert toy("run", "pair", source, "-o", tmp_path / "o").code == 0
    return source


def resumed(toy: Run, source: Path, *more: object) -> bool | None:
    """Whether a run with --skip-existing kept the result; None where it failed."""
    done = toy("run", "pair", source, "-o", source.parent / "o", "--skip-existing", "--json", *more)
    return bool(done.records[0]["medkit"]["skipped"]) if done.code == 0 else None


def test_a_valid_result_is_kept_and_printed_as_if_just_done(toy: Run, done_once: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "o").iterdir()}
    plain = toy("run", "pair", done_once, "-o", tmp_path / "o", "--skip-existing")
    assert plain.paths == [tmp_path / "o/a_copy.nii.gz"]
    assert resumed(toy, done_once) is True
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "o").iterdir()} == before


def test_leftovers_of_a_kept_result_are_removed(toy: Run, done_once: Path, tmp_path: Path) -> None:
    """As of a run that was killed just after it had put the sidecar in place."""
    part = tmp_path / "o/.a_copy.nii.gz.host.1.part"
    part.mkdir()
    (tmp_path / "o/.a_copy.nii.gz.claim").write_text(part.name)
    assert resumed(toy, done_once) is True
    assert names(tmp_path / "o") == ["a_copy.json", "a_copy.nii.gz", "a_facts.tsv"]
    assert not part.exists()


@pytest.mark.parametrize(
    "more", [["--threads", "1"], ["--device", "cpu"], ["--workers", "0"], ["--qc", "qc"], ["--json"]]
)
def test_how_it_is_computed_does_not_matter(toy: Run, done_once: Path, more: list[str]) -> None:
    assert resumed(toy, done_once, *more) is True


@pytest.mark.parametrize("more", [["--value", "2"], ["--seed", "1"], ["--frame", "0"]])
def test_a_result_of_other_arguments_is_redone(toy: Run, done_once: Path, more: list[str]) -> None:
    assert resumed(toy, done_once, *more) is False
    assert resumed(toy, done_once, *more) is True


@pytest.mark.parametrize("name", ["a_copy.nii.gz", "a_facts.tsv"])
@pytest.mark.parametrize("harm", ["torn", "deleted"])
def test_a_torn_result_is_redone(toy: Run, done_once: Path, name: str, harm: str) -> None:
    file = done_once.parent / "o" / name
    whole = file.read_text()
    file.unlink() if harm == "deleted" else file.write_text(whole[:3])
    assert resumed(toy, done_once) is False
    assert file.read_text() == whole


def test_a_changed_input_is_redone(toy: Run, done_once: Path) -> None:
    done_once.write_text("changed")
    assert resumed(toy, done_once) is False
    assert (done_once.parent / "o/a_copy.nii.gz").read_text() == "changed"


@pytest.mark.parametrize("program", [0, 1])
def test_a_result_of_another_version_is_redone(toy: Run, done_once: Path, program: int) -> None:
    file = done_once.parent / "o/a_copy.json"
    data = json.loads(file.read_text())
    data["GeneratedBy"][program]["Version"] = "0.0"
    file.write_text(json.dumps(data))
    assert resumed(toy, done_once) is False


def test_a_result_of_another_source_is_never_replaced(toy: Run, done_once: Path, blob: Make) -> None:
    other = blob("b/a.nii.gz")
    done = toy("run", "pair", other, "-o", done_once.parent / "o", "--skip-existing")
    assert done.code == 1
    assert f"was made from {done_once}" in done.err
    assert (done_once.parent / "o/a_copy.nii.gz").read_text() == "a.nii.gz"
    assert toy("run", "pair", other, "-o", done_once.parent / "o", "--overwrite").code == 0


@pytest.mark.parametrize("name", ["a_copy.nii.gz", "a_facts.tsv"])
def test_a_file_without_a_sidecar_is_never_replaced(toy: Run, blob: Make, tmp_path: Path, name: str) -> None:
    mine = blob(f"o/{name}", "mine")
    for more in ([], ["--skip-existing"]):
        done = toy("run", "pair", blob("a.nii.gz"), "-o", tmp_path / "o", *more)
        assert done.code == 1
        assert "no sidecar states that medkit made it" in done.err
        assert names(tmp_path / "o") == [name]
        assert mine.read_text() == "mine"


def test_a_torn_sidecar_protects_nothing_it_cannot_name(toy: Run, done_once: Path) -> None:
    file = done_once.parent / "o/a_copy.json"
    file.write_text(file.read_text()[:40])
    assert resumed(toy, done_once) is None


def test_further_files_that_the_sidecar_does_not_list_are_not_replaced(toy: Run, done_once: Path) -> None:
    file = done_once.parent / "o/a_copy.json"
    data = json.loads(file.read_text())
    del data["medkit"]["outputs"]["table"]
    file.write_text(json.dumps(data))
    assert resumed(toy, done_once) is None


def test_overwrite_and_skip_existing_contradict(toy: Run, done_once: Path) -> None:
    assert toy("run", "pair", done_once, "--overwrite", "--skip-existing").code == 2


# ---- inputs are sacred


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


# ---- dry runs, pictures, variables


@pytest.mark.parametrize("task", ["double", "halves"])
def test_a_dry_run_writes_nothing(toy: Run, scan: Make, tmp_path: Path, task: str) -> None:
    source = scan("a/sub-1_T1w.nii.gz")
    more = ["--qc", tmp_path / "qc", "--failed", tmp_path / "failed", "-o", tmp_path / "o"]
    done = toy("run", task, source, tmp_path / "missing.nii.gz", "--dry-run", *more)
    assert (done.code, done.out) == (1, "")
    assert f"would run {task} on {source} -> " in done.err
    assert ("about 8 MiB" in done.err) is (task == "double")
    assert "missing.nii.gz: no such file" in done.err
    assert names(tmp_path) == ["a/sub-1_T1w.nii.gz"]
    assert {p.name for p in tmp_path.iterdir()} == {"a"}


def test_a_dry_run_knows_of_existing_results(toy: Run, done_once: Path, tmp_path: Path) -> None:
    arguments = ("run", "pair", done_once, "-o", tmp_path / "o", "--dry-run")
    assert f"would fail: {done_once}: {tmp_path}/o/a_copy.nii.gz: exists already" in toy(*arguments).err
    assert toy(*arguments).code == 1
    kept = toy(*arguments, "--skip-existing")
    assert (kept.code, kept.err) == (0, f"would keep {tmp_path}/o/a_copy.nii.gz, {tmp_path}/o/a_facts.tsv\n")
    for more in (["--overwrite"], ["--skip-existing", "--value", "2"]):
        done = toy(*arguments, *more)
        assert done.code == 0
        assert done.err.startswith("would run pair on ")


def test_pictures(toy: Run, scan: Make, tmp_path: Path) -> None:
    pytest.importorskip("medkit.figures.mosaic")
    for task in ("double", "halves"):
        done = toy("run", task, scan("x.nii.gz"), "--qc", tmp_path / "qc", "-o", tmp_path / "o")
        assert done.code == 0
        assert "no picture" not in done.err
    pictures = sorted((tmp_path / "qc").rglob("*"))
    assert [p.name for p in pictures] == ["x_double.png", "x_dseg.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


def test_pictures_of_equal_names_are_kept_apart(toy: Run, scan: Make, tmp_path: Path) -> None:
    inputs = [scan(f"in/{n}/T1.nii.gz", seed=n) for n in (1, 2)]
    more = ["-o", tmp_path / "o", "--keep-tree", tmp_path / "in", "--qc", tmp_path / "qc"]
    assert toy("run", "double", *inputs, *more).code == 0
    assert len(list((tmp_path / "qc").rglob("*.png"))) == 2


def test_variables_come_between_option_and_default(toy: Run, blob: Make, tmp_path: Path) -> None:
    source, env = (
        blob("a.nii.gz"),
        {"MEDKIT_OUTPUT": str(tmp_path / "variable"), "MEDKIT_JSON": "1", "MEDKIT_SEED": "5"},
    )
    (record,) = toy("run", "pair", source, env=env).records
    assert record["path"] == str(tmp_path / "variable/a_copy.nii.gz")
    assert record["medkit"]["seed"] == 5
    (record,) = toy("run", "pair", source, "-o", tmp_path / "option", "--seed", "6", env=env).records
    assert record["path"] == str(tmp_path / "option/a_copy.nii.gz")
    assert record["medkit"]["seed"] == 6


@pytest.mark.parametrize(("option", "code"), [("--overwrite", 0), ("--skip-existing", 0)])
def test_an_option_outranks_the_variable_of_its_opposite(toy: Run, blob: Make, option: str, code: int) -> None:
    env = (
        {"MEDKIT_OVERWRITE": "1", "MEDKIT_SKIP_EXISTING": ""}
        if option == "--skip-existing"
        else {"MEDKIT_SKIP_EXISTING": "1"}
    )
    assert toy("run", "pair", blob("a.nii.gz"), option, env=env).code == code
    assert toy("run", "pair", blob("a.nii.gz"), env={"MEDKIT_OVERWRITE": "1", "MEDKIT_SKIP_EXISTING": "1"}).code == 2


@pytest.mark.parametrize("command", ["", "RUN_", "RUN_PAIR_"])
@pytest.mark.parametrize("name", ["SHARD", "LIST", "INPUTS"])
def test_options_without_a_variable(toy: Run, blob: Make, tmp_path: Path, command: str, name: str) -> None:
    (tmp_path / "list").write_text("x\n")
    value = {"SHARD": "2/2", "LIST": str(tmp_path / "list"), "INPUTS": "x"}[name]
    done = toy("run", "pair", blob("a.nii.gz"), env={f"MEDKIT_{command}{name}": value})
    assert [p.name for p in done.paths] == ["a_copy.nii.gz"]


@pytest.mark.parametrize("variable", ["MEDKIT_OUTPUT", "MEDKIT_RUN_PAIR_OUTPUT"])
def test_output_as_a_file_has_no_variable(toy: Run, blob: Make, tmp_path: Path, variable: str) -> None:
    done = toy("run", "pair", blob("a.nii.gz"), env={variable: str(tmp_path / "r.nii.gz")})
    assert done.code == (2 if variable == "MEDKIT_OUTPUT" else done.code)
    assert not (tmp_path / "r.nii.gz").exists()


def test_progress_goes_to_stderr_and_can_be_turned_off(toy: Run, blob: Make) -> None:
    assert "pair [1] a_copy.nii.gz" in toy("run", "pair", blob("a.nii.gz")).err
    for more in (["--no-progress"], ["-q"]):
        assert toy("run", "pair", blob("a.nii.gz"), "--overwrite", *more).err == ""
    for variable in ("MEDKIT_NO_PROGRESS", "MEDKIT_QUIET"):
        assert toy("run", "pair", blob("a.nii.gz"), "--overwrite", env={variable: "1"}).err == ""


def test_no_number_that_json_does_not_know(toy: Run, blob: Make) -> None:
    from medkit.pipe.records import Record

    line = Record(blob("a.nii.gz"), medkit={"metrics": {"ncc": float("nan"), "n": float("inf")}}).line()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["medkit"]["metrics"] == {
        "ncc": None,
        "n": None,
    }


def test_leftovers_of_other_names_stay(toy: Run, blob: Make, tmp_path: Path) -> None:
    (tmp_path / ".other_copy.nii.gz.host.1.part").mkdir()
    blob(".other_copy.nii.gz.claim", ".other_copy.nii.gz.host.1.part")
    assert toy("run", "pair", blob("a.nii.gz")).code == 0
    assert {".other_copy.nii.gz.claim", ".other_copy.nii.gz.host.1.part"} <= {p.name for p in tmp_path.iterdir()}
    shutil.rmtree(tmp_path / ".other_copy.nii.gz.host.1.part")


def test_a_result_never_replaces_another_cases_input(toy: Run, blob: Make, tmp_path: Path) -> None:
    first, second = blob("a.nii.gz"), blob("a_copy.nii.gz")
    before = second.read_bytes()
    done = toy("run", "pair", first, second, "--overwrite", "--json")
    assert [r["medkit"]["status"] for r in done.records] == ["failed", "ok"]
    assert "would replace an input" in done.err
    assert second.read_bytes() == before


def test_pictures_of_equal_names_without_an_output_folder(
    toy: Run, scan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "xy":
        scan(f"{name}/a.nii.gz")
    assert toy("run", "double", "x/a.nii.gz", "y/a.nii.gz", "--qc", "qc").code == 0
    assert names(tmp_path / "qc") == ["x/a_double.png", "y/a_double.png"]


def test_a_device_that_the_task_cannot_use_is_a_usage_error(toy: Run, blob: Make, tmp_path: Path) -> None:
    done = toy("run", "pair", blob("a.nii.gz"), "--device", "cuda:1", "-o", tmp_path / "o")
    assert done.code == 2
    assert "computes on cpu only" in done.err
    assert not (tmp_path / "o").exists()
