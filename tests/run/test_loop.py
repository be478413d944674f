"""A run over many cases: lines and records, failures, progress, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import names
from waiting import wait_for

Run = Callable[..., "Outcome"]  # noqa: F821
Start = Callable[..., "subprocess.Popen[str]"]
Make = Callable[..., Path]


def sidecar(path: Path) -> dict[str, object]:
    data: dict[str, object] = json.loads((path.parent / (path.name.split(".")[0] + ".json")).read_text())
    return data


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
        *("seed", "seconds", "peak_rss_mb", "metrics", "warnings", "look", "reasons", "command"),
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


def test_an_empty_shard_is_no_failure(toy: Run, blob: Make, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{blob('a.nii.gz')}\n")
    assert toy("run", "pair", "--list", tmp_path / "list", "--shard", "2/2").code == 0


def test_shards_cover_all_and_share_none(toy: Run, blob: Make, tmp_path: Path) -> None:
    inputs = [blob(f"{n:02}.nii.gz") for n in range(7)]
    parts = [toy("run", "pair", *inputs, "-o", tmp_path / "o", "--shard", f"{k}/3").paths for k in (1, 2, 3)]
    assert len([p for part in parts for p in part]) == 7
    assert len({p for part in parts for p in part}) == 7


def test_shard_auto_takes_the_rank_of_the_array(toy: Run, blob: Make) -> None:
    inputs = ["--list", blob("list", "".join(f"{blob(f'{n}.nii.gz')}\n" for n in "abcd"))]
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
    assert "\n  new\\nline.nii.gz: " in done.err.replace(f"{tmp_path}/", ""), "the list at the end has the reason"
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


@pytest.mark.parametrize("bad", ["fail", "exit", "odd", "nothing"])
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


@pytest.mark.parametrize("change", ["replaced", "written over", "removed"])
def test_an_input_that_changes_during_the_work(start: Start, blob: Make, tmp_path: Path, change: str) -> None:
    """A result would state the digest of other content than it was made from."""
    source = blob("a.nii.gz", "first")
    process = start("run", "wait", "--marks", tmp_path, source, blob("b.nii.gz"), "-o", tmp_path / "o")
    wait_for(lambda: (tmp_path / "a.started").exists())
    if change == "replaced":
        blob("new", "other").replace(source)
    elif change == "written over":
        source.write_text("other")
    else:
        source.rename(tmp_path / "elsewhere")
    (tmp_path / "go").touch()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert change == "removed" or f"{source}: has changed while the case was worked on; run it again" in err
    assert names(tmp_path / "o") == ["b_waited.json", "b_waited.nii.gz"]


def test_a_folder_of_results_that_goes_away(start: Start, blob: Make, tmp_path: Path) -> None:
    process = start("run", "wait", "--marks", tmp_path, blob("a.nii.gz"), blob("b.nii.gz"), "-o", tmp_path / "o")
    wait_for(lambda: (tmp_path / "a.started").exists())
    (tmp_path / "o").rename(tmp_path / "elsewhere")
    (tmp_path / "go").touch()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"a.nii.gz: {tmp_path / 'o'}: this folder for results was removed while the case was worked on" in err
    assert names(tmp_path / "o") == ["b_waited.json", "b_waited.nii.gz"]


def test_progress_goes_to_stderr_and_can_be_turned_off(toy: Run, blob: Make) -> None:
    assert toy("run", "pair", blob("a.nii.gz")).err.startswith("pair [1/1] a.nii.gz  ")
    for more in (["--no-progress"], ["-q"]):
        assert toy("run", "pair", blob("a.nii.gz"), "--overwrite", *more).err == ""
    for variable in ("MEDKIT_NO_PROGRESS", "MEDKIT_QUIET"):
        assert toy("run", "pair", blob("a.nii.gz"), "--overwrite", env={variable: "1"}).err == ""


def test_keys_of_others_travel_with_a_case(toy: Run, scan: Make, tmp_path: Path) -> None:
    """Done, kept and failed ones; a result's sidecar has them, so plain paths lose nothing."""
    line = json.dumps({"path": str(scan("a.nii.gz")), "my_id": 17}) + "\n"
    again = json.dumps({"path": str(tmp_path / "a.nii.gz"), "my_id": 18}) + "\n"
    assert toy("run", "double", "--json", input=line).records[0]["my_id"] == 17
    assert toy("run", "double", "--json", "--skip-existing", input=again).records[0]["my_id"] == 18
    assert toy("run", "double", "--json", input=again).records[0]["my_id"] == 18
    assert toy("run", "halves", "--json", input=f"{tmp_path / 'a_double.nii.gz'}\n").records[0]["my_id"] == 17


def test_a_group_passes_on_the_keys_in_which_all_agree(toy: Run, scan: Make, tmp_path: Path) -> None:
    records = [{"path": str(scan(f"{n}.nii.gz", seed=i)), "site": "x", "n": n} for i, n in enumerate("ab")]
    done = toy("run", "merge", "--json", input="".join(json.dumps(r) + "\n" for r in records))
    assert (done.records[0]["site"], done.records[0].get("n")) == ("x", None)
