"""Results that a person should look at: the record, the progress line, the picture, the last line, `--strict`."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow
from places import REPOSITORY

from medkit.errors import OutputError
from medkit.figures.layout import TITLE_LINES, WARNING, under_title
from medkit.options import RunOptions
from medkit.pipe.lines import Emitter
from medkit.pipe.records import Record
from medkit.pipe.signals import StopRequest
from medkit.run.looks import LOOK_AT_THIS, CasesToLookAt, need_a_look, reason_to_look
from medkit.run.loop import TaskRun
from medkit.run.task import Case, Result, Table, Task

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]
CLOSING = "medkit: fragile: 2 of 3 need a look: doubt1, doubt2\n"


@pytest.fixture
def three(blob: Make) -> list[Path]:
    """Two inputs whose results need a look, and one whose does not."""
    return [blob("doubt1.nii.gz"), blob("a.nii.gz", b"a"), blob("doubt2.nii.gz", b"b")]


def test_the_record_the_lines_and_the_end(toy: Run, three: list[Path], tmp_path: Path) -> None:
    done = toy("run", "fragile", *three, "-o", tmp_path / "o", "--json")
    assert done.code == 0
    assert [record["medkit"]["look"] for record in done.records] == [True, False, True]
    assert done.records[0]["medkit"]["warnings"] == ["look at this one: too bright", "too flat"]
    assert [record["medkit"]["reasons"] for record in done.records] == [2, 0, 2]
    assert json.loads((tmp_path / "o/doubt1_copy.json").read_text())["medkit"]["look"] is True
    assert re.sub(r"\d+\.\d s", "0.0 s", done.err) == (
        "fragile [1/3] doubt1.nii.gz  0.0 s  needs a look: too bright (and 1 more)\n"
        "fragile [2/3] a.nii.gz  0.0 s\n"
        "fragile [3/3] doubt2.nii.gz  0.0 s  needs a look: too bright (and 1 more)\n" + CLOSING
    )


def test_a_warning_about_an_input_is_no_reason_to_look(toy: Run, scan: Make) -> None:
    done = toy("run", "double", scan("a.nii.gz"), "--json", "--strict")
    assert done.code == 0
    assert "toy" in done.records[0]["medkit"]["warnings"]
    assert done.records[0]["medkit"]["look"] is False
    assert "look" not in done.err
    (record,) = toy("run", "double", scan("doubt.nii.gz"), "--json").records
    assert record["medkit"]["warnings"][0] == "look at this one: too bright"
    assert record["medkit"]["warnings"][-1] == "toy"
    assert record["medkit"]["reasons"] == len(record["medkit"]["warnings"]) - 1, "the input's warning is no reason"


def test_half_an_image_without_values_is_a_reason_whatever_the_task(toy: Run, tmp_path: Path) -> None:
    holes = np.arange(512, dtype=np.float32).reshape(8, 8, 8)
    holes[::2] = np.nan
    nibabel.Nifti1Image(holes, np.diag([9.0, 9, 9, 1])).to_filename(tmp_path / "holes.nii.gz")
    why = "50% of the voxels are NaN or infinite"
    more = ("--json", "--strict", "--qc", tmp_path / "qc", "-o", tmp_path)
    for task in ("double", "halves"):
        done = toy("run", task, tmp_path / "holes.nii.gz", *more)
        assert done.code == 1
        assert done.records[0]["medkit"]["look"] is True
        assert done.records[0]["medkit"]["warnings"][0] == f"look at this one: {why}"
        assert f"needs a look: {why}\n" in done.err
        assert done.err.endswith(f"medkit: {task}: 1 of 1 need a look: holes\n")
    bars = [Pillow.open(path).convert("RGB") for path in (tmp_path / "qc").glob("*.png")]
    assert bars
    assert all(WARNING in {colour for _, colour in bar.getcolors(1 << 20)} for bar in bars)


def test_one_file_has_the_words() -> None:
    """What is written and what is taken away again agree: plugins have the words from `medkit.task`."""
    code = [*(REPOSITORY / "medkit").rglob("*.py"), *(REPOSITORY / "plugins").rglob("*.py")]
    with_words = [path.relative_to(REPOSITORY) for path in code if f'"{LOOK_AT_THIS.strip()[:10]}' in path.read_text()]
    assert with_words == [Path("medkit/run/looks.py")]


@pytest.mark.parametrize("more", [["-q"], ["--no-progress"]])
def test_the_last_line_stays_without_progress(toy: Run, three: list[Path], more: list[str]) -> None:
    assert toy("run", "fragile", *three, *more).err == CLOSING


def test_strict_writes_the_results_and_exits_with_1(toy: Run, three: list[Path], tmp_path: Path) -> None:
    done = toy("run", "fragile", *three, "-o", tmp_path / "o", "--strict")
    assert done.code == 1
    assert [path.name for path in done.paths if path.exists()] == [
        f"{n}_copy.nii.gz" for n in ("doubt1", "a", "doubt2")
    ]
    assert toy("run", "fragile", three[1], "-o", tmp_path / "p", "--strict").code == 0
    assert toy("run", "fragile", three[0], "-o", tmp_path / "q", env={"MEDKIT_STRICT": "1"}).code == 1


def test_kept_results_are_counted_again(toy: Run, three: list[Path], tmp_path: Path) -> None:
    run = ["run", "fragile", *three, "-o", tmp_path / "o", "--skip-existing"]
    toy(*run)
    done = toy(*run, "--strict")
    assert done.code == 1
    assert "fragile [1/3] doubt1.nii.gz  kept  needs a look: too bright (and 1 more)\n" in done.err
    assert done.err.endswith(CLOSING)


def test_child_processes(toy: Run, three: list[Path], tmp_path: Path) -> None:
    done = toy("run", "fragile", *three, "-o", tmp_path / "o", "--workers", "1", "--strict", "-q")
    assert (done.code, done.err) == (1, CLOSING)


def test_stages(toy: Run, three: list[Path], tmp_path: Path) -> None:
    done = toy("run", "staged", *three, "-o", tmp_path / "o", "--marks", tmp_path, "--strict", "-q")
    assert (done.code, done.err) == (1, CLOSING.replace("fragile", "staged"))


def test_one_case_of_all_lines(toy: Run, scan: Make, tmp_path: Path) -> None:
    done = toy("run", "merge", scan("doubt.nii.gz"), scan("b.nii.gz"), "-o", tmp_path / "o", "--strict")
    assert done.code == 1
    assert "merge [1/1] doubt_merged.nii.gz" in done.err
    assert done.err.endswith("medkit: merge: 1 of 1 need a look: doubt\n")


def test_a_failed_case_is_no_look(toy: Run, blob: Make, three: list[Path], tmp_path: Path) -> None:
    done = toy("run", "fragile", *three, blob("fail.nii.gz"), "-o", tmp_path / "o", "--json", "-q")
    assert done.code == 1
    assert [record["medkit"]["look"] for record in done.records] == [True, False, True, False]
    assert done.err.endswith("medkit: fragile: 2 of 4 need a look: doubt1, doubt2\n")


def test_the_total_is_known_unless_lines_still_arrive(toy: Run, three: list[Path], tmp_path: Path) -> None:
    lines = "".join(f"{path}\n" for path in three)
    (tmp_path / "list").write_text(lines)
    assert "fragile [1/3] " in toy("run", "fragile", "--list", tmp_path / "list", "-o", tmp_path / "a").err
    assert "fragile [1] " in toy("run", "fragile", "-o", tmp_path / "b", input=lines).err
    shard = toy("run", "fragile", "--list", tmp_path / "list", "-o", tmp_path / "c", "--shard", "1/3").err
    assert "fragile [1/1] " in shard


def test_show_tells_it(toy: Run, three: list[Path], tmp_path: Path) -> None:
    made = toy("run", "fragile", *three, "-o", tmp_path / "o").paths
    assert "needs a look" in toy("show", made[0]).out
    assert "needs a look" not in toy("show", made[1]).out


def test_the_picture_has_the_reasons_in_its_title(toy: Run, scan: Make, tmp_path: Path) -> None:
    inputs = [scan("doubt.nii.gz"), scan("a.nii.gz")]
    assert toy("run", "double", *inputs, "-o", tmp_path / "o", "--qc", tmp_path / "qc").code == 0
    pictures = [np.asarray(Pillow.open(tmp_path / f"qc/{name}_double.png")) for name in ("doubt", "a")]
    assert pictures[0].shape[0] == pictures[1].shape[0] + 8 + 2 * 20
    assert (pictures[0][48:] == pictures[1]).mean() > 0.98  # all but the name of the file
    assert any((row == WARNING).all(axis=-1).any() for row in pictures[0][:48])


@pytest.mark.parametrize("shape", [(9, 9), (9, 700, 3)])
def test_a_title_above_any_picture(shape: tuple[int, ...]) -> None:
    picture = np.full(shape, 80, np.uint8)
    titled = under_title(picture, [f"reason {number}" for number in range(9)])
    assert titled.shape == (8 + 20 * TITLE_LINES + 9, max(620, shape[1]), 3)
    assert (titled[-9:, : shape[1]] == 80).all()


def test_long_lists_and_equal_names_and_odd_names() -> None:
    names = [f"case{n}" for n in range(14)]
    assert need_a_look(names, 20) == f"14 of 20 need a look: {', '.join(names[:10])} and 4 more"
    cases = CasesToLookAt()
    for path, look in (("/a/T1.nii", True), ("/b/T1.nii", False), ("/a/x\ny.nii", True)):
        cases.add(Record(Path("/r"), sources=(Path(path),), medkit={"look": look}))
    assert cases.names == ["/a/T1.nii", r"x\ny"]


def test_a_long_reason_is_cut() -> None:
    reason = reason_to_look(Record(Path("/a"), medkit={"look": True, "warnings": ["word\rword " * 100]}))
    assert reason is not None
    assert len(reason) <= 100
    assert reason.startswith(r"word\rword word")


# ---- tables


def _note(case: Case) -> Result:
    text = case.path.read_text()
    return Result({}, metrics={"text": text}, warnings=["doubtful"] if text == "bad" else [])


def _rows(record: Record) -> list[dict[str, str]]:
    return [{"text": record.medkit["metrics"]["text"]}, {"text": "second row"}]


def run_table(path: Path, files: list[Path], columns: list[str] | None = None, **options: Any) -> tuple[int, list[Any]]:
    """Run a task with a table; return the exit code and the records."""
    stream = io.BytesIO()
    given = RunOptions(inputs=tuple(map(str, files)), json=True, **options)
    task = Task("note", [], process=_note, table=Table(path, columns or ["text"], _rows), uses_torch=False)
    with StopRequest() as stop:
        code = TaskRun(task, given, Emitter(stream, json=True, null=False), stop).all()
    return code, [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_table_holds_the_reason_and_is_counted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    for file, text in zip(files, ("good", "bad"), strict=True):
        file.write_text(text)
    table = tmp_path / "t.tsv"
    assert run_table(table, files)[0] == 0
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("image", "look", "text"),
        *(("a", "n/a", text) for text in ("good", "second row")),
        *(("b", "doubtful", text) for text in ("bad", "second row")),
    ]
    block = json.loads((tmp_path / "t.json").read_text())["medkit"]
    assert (block["look"], block["warnings"]) == (True, ["1 of 2 need a look: b"])
    capsys.readouterr()
    code, records = run_table(table, files, skip_existing=True, strict=True)
    assert code == 1
    assert [(r["medkit"]["skipped"], r["medkit"]["look"]) for r in records] == [(True, False), (True, True)]
    assert capsys.readouterr().err.splitlines() == [
        "note [1/2] a  kept",
        "note [2/2] b  kept  needs a look: doubtful",
        "medkit: note: 1 of 2 need a look: b",
    ]
    files[1].write_text("good")
    assert run_table(table, files, skip_existing=True, strict=True)[0] == 0
    block = json.loads((tmp_path / "t.json").read_text())["medkit"]
    assert (block["look"], block["warnings"]) == (False, [])


def test_rows_of_other_columns_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("good")
    run_table(tmp_path / "t.tsv", [tmp_path / "a"])
    with pytest.raises(OutputError, match="other columns"):
        run_table(tmp_path / "t.tsv", [tmp_path / "a"], columns=["text", "more"], skip_existing=True)
