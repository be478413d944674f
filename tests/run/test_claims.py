"""Claims: who may write the files of a case, commits that are cut short, what a killed run leaves."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medkit.errors import OutputError, Stopped
from medkit.pipe.records import Record, read_sidecar, sha256_of
from medkit.run import claims
from medkit.run.claims import Claim, remove_leftovers
from medkit.run.existing import is_whole
from medkit.run.outputs import Targets

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


@pytest.fixture
def targets(tmp_path: Path) -> Targets:
    """Two outputs and a sidecar in a folder of their own."""
    return Targets({"image": tmp_path / "o/x_copy.nii.gz", "table": tmp_path / "o/x_facts.tsv"})


def fill(claim: Claim, text: str) -> Record:
    """Makes the files of a case in the claim's folder and gives their record."""
    for path in claim.targets.outputs.values():
        (claim.part / path.name).write_text(text + path.name)
    outputs = {
        role: {"path": str(path), "sha256": sha256_of(claim.part / path.name)}
        for role, path in claim.targets.outputs.items()
    }
    source = claim.targets.main.parent.parent / "x.nii.gz"
    return Record(claim.targets.main, sources=(source,), medkit={"status": "ok", "outputs": outputs})


def produce(targets: Targets, text: str) -> None:
    with Claim(targets) as claim:
        claim.commit(fill(claim, text))


def content(targets: Targets) -> dict[str, str]:
    """Every file of the folder but sidecars, by name."""
    folder = targets.main.parent
    return {p.name: p.read_text() for p in folder.rglob("*") if p.is_file() and p != targets.sidecar}


def test_files_appear_whole_and_together(targets: Targets) -> None:
    with Claim(targets) as claim:
        record = fill(claim, "1")
        assert [p for p in targets.main.parent.iterdir() if not p.name.startswith(".")] == []
        assert claim.part.name == f".x_copy.nii.gz.{socket.gethostname()}.{os.getpid()}.part"
        claim.commit(record)
        assert is_whole(record, targets)
    assert sorted(p.name for p in targets.main.parent.iterdir()) == ["x_copy.json", "x_copy.nii.gz", "x_facts.tsv"]
    assert read_sidecar(targets.sidecar) == record


def test_the_sidecar_comes_last_and_an_old_one_goes_first(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    produce(targets, "old")
    moves: list[tuple[str, str]] = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        moves.append((Path(source).name, Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    produce(targets, "new")
    assert moves[0][0] == "x_copy.json"
    assert moves[0][1].startswith(".")
    assert moves[-1] == ("x_copy.json", "x_copy.json")
    assert {m[1] for m in moves[1:-1]} == {"x_copy.nii.gz", "x_facts.tsv"}


def test_everything_is_on_disk_before_it_has_its_name(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        events.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def moved(source: Path, target: Path) -> None:
        events.append("move " + Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    produce(targets, "1")
    for path in targets.names:
        assert events.index(f"sync {path.name}") < events.index(f"move {path.name}")
    assert events[-1] == "sync o"


def interrupted(targets: Targets, text: str, at: int, error: BaseException) -> None:
    """Produces, but the `at`-th rename of the commit raises."""
    calls = 0
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(type(error)):
            produce(targets, text)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_commit_that_fails_leaves_nothing_new(targets: Targets, at: int, error: BaseException) -> None:
    interrupted(targets, "new", at, error)
    assert content(targets) == {}
    assert not targets.sidecar.exists()


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_commit_that_fails_while_replacing_keeps_the_old_sidecar(targets: Targets, at: int) -> None:
    produce(targets, "old")
    interrupted(targets, "new", at, OSError("disk full"))
    record = read_sidecar(targets.sidecar)
    assert record is not None
    assert all(text.startswith("old") for text in content(targets).values())
    assert is_whole(record, targets) is (at <= 2)  # a file already replaced is gone, so the next run makes it again


def test_a_claim_is_exclusive(targets: Targets) -> None:
    with Claim(targets), pytest.raises(OutputError, match="another process is writing it"), Claim(targets):
        pass
    with Claim(targets):
        pass


def killed(targets: Targets, text: str, moved: int) -> Path:
    """What a process leaves that was killed after `moved` renames of its commit; its folder."""
    claim = Claim(targets)
    claim.part = targets.main.with_name(f".{targets.main.name}.{socket.gethostname()}.999999999.part")
    claim.__enter__()
    record = fill(claim, text)
    (claim.part / targets.sidecar.name).write_text(json.dumps(record.to_json(targets.sidecar.parent)))
    steps = [(targets.sidecar, claim.part / ".replaced.json")] if targets.sidecar.exists() else []
    steps += [(claim.part / p.name, p) for p in (*reversed(targets.outputs.values()), targets.sidecar)]
    for source, target in steps[:moved]:
        os.replace(source, target)
    os.close(claim._descriptor)
    return claim.part


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_the_next_run_takes_back_half_of_a_commit(targets: Targets, moved: int) -> None:
    part = killed(targets, "new", moved)
    with Claim(targets) as claim:
        assert not part.exists()
        left = {n: t for n, t in content(targets).items() if not n.startswith(".")}
        assert left == ({} if moved < 3 else {"x_copy.nii.gz": "newx_copy.nii.gz", "x_facts.tsv": "newx_facts.tsv"})
        claim.commit(fill(claim, "again"))
    assert set(content(targets)) == {"x_copy.nii.gz", "x_facts.tsv"}


def test_a_done_case_is_only_tidied(targets: Targets) -> None:
    part = killed(targets, "new", 3)
    remove_leftovers(targets)
    assert not part.exists()
    assert sorted(p.name for p in targets.main.parent.iterdir()) == ["x_copy.json", "x_copy.nii.gz", "x_facts.tsv"]


@pytest.mark.parametrize("call", ["ftruncate", "pwrite", "pread"])
def test_a_signal_while_a_claim_is_taken_leaves_nothing(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def interrupted(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(Stopped), Claim(targets):
        pytest.fail("it is not taken")
    monkeypatch.undo()
    assert list(targets.main.parent.iterdir()) == []


def test_a_signal_while_a_claim_is_given_back_leaves_nothing(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    undo, calls = claims._undo, []

    def interrupted(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 1:
            raise Stopped
        undo(*given)

    with pytest.raises(Stopped), Claim(targets):
        monkeypatch.setattr(claims, "_undo", interrupted)
    assert len(calls) == 2
    assert list(targets.main.parent.iterdir()) == []


@pytest.mark.parametrize("text", ["../../etc", ".y.host.1.part", "x", "", ".x_copy.nii.gz.a/b.part", "\udcff"])
def test_a_claim_with_odd_content_removes_nothing(targets: Targets, tmp_path: Path, text: str) -> None:
    targets.main.parent.mkdir()
    (tmp_path / "o/.y.host.1.part").mkdir()
    (tmp_path / "o/.x_copy.nii.gz.claim").write_bytes(os.fsencode(text))
    produce(targets, "1")
    assert (tmp_path / "o/.y.host.1.part").exists()


def test_without_locks_a_living_process_keeps_its_folder(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    part = killed(targets, "new", 1)
    own = part.with_name(part.name.replace("999999999", str(os.getppid())))
    part.rename(own)
    claim_file = targets.main.with_name(".x_copy.nii.gz.claim")
    claim_file.write_text(own.name)

    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Claim(targets):
        assert own.exists()
    own.rename(part)
    claim_file.write_text(part.name)
    with Claim(targets):
        assert not part.exists()


def test_leftovers_of_other_names_stay(toy: Run, blob: Make, tmp_path: Path) -> None:
    (tmp_path / ".other_copy.nii.gz.host.1.part").mkdir()
    blob(".other_copy.nii.gz.claim", ".other_copy.nii.gz.host.1.part")
    assert toy("run", "pair", blob("a.nii.gz")).code == 0
    assert {".other_copy.nii.gz.claim", ".other_copy.nii.gz.host.1.part"} <= {p.name for p in tmp_path.iterdir()}
    shutil.rmtree(tmp_path / ".other_copy.nii.gz.host.1.part")


# ---- results that are folders, such as DICOM series


@pytest.fixture
def series(tmp_path: Path) -> Targets:
    """A file and a folder of files."""
    return Targets({"image": tmp_path / "o/x_copy.nii.gz", "dicom_image": tmp_path / "o/x_copy_dicom"})


def fill_series(claim: Claim, names: str) -> Record:
    """Makes a file, and a folder with a file for each letter."""
    (claim.part / "x_copy.nii.gz").write_text(names)
    folder = claim.part / "x_copy_dicom"
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f"{name} of {names}")
    outputs = {
        role: {"path": str(path), "sha256": sha256_of(claim.part / path.name)}
        for role, path in claim.targets.outputs.items()
    }
    return Record(claim.targets.main, sources=(claim.part,), medkit={"status": "ok", "outputs": outputs})


def test_a_folder_takes_the_place_of_an_older_one(series: Targets) -> None:
    for names in ("abc", "ab"):
        with Claim(series) as claim:
            record = fill_series(claim, names)
            claim.commit(record)
        assert is_whole(record, series)
        assert sorted(p.name for p in series.outputs["dicom_image"].iterdir()) == list(names)
        assert sorted(p.name for p in series.main.parent.iterdir()) == [
            "x_copy.json",
            "x_copy.nii.gz",
            "x_copy_dicom",
        ]
    (series.outputs["dicom_image"] / "a").write_text("changed")
    assert not is_whole(record, series)


def test_a_folder_of_a_commit_that_was_cut_short_is_removed(series: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target) == series.main:
            raise OSError("killed")
        replace(source, target)

    with Claim(series) as claim:
        record = fill_series(claim, "ab")
        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(OSError, match="killed"):
            claim.commit(record)

    assert list(series.main.parent.iterdir()) == []


@pytest.mark.parametrize("below", [".", "deep/er"])
def test_a_file_where_the_folder_of_results_should_be(toy: Run, blob: Make, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    done = toy("run", "pair", blob("a.nii.gz"), "-o", tmp_path / "file" / below)
    assert done.code == 1
    assert f"expected a folder for results, but {tmp_path / 'file'} is none" in done.err
    assert (tmp_path / "file").read_bytes() == b"mine"
