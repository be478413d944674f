"""Commands that are no tasks count what they work on, for the bar on a terminal."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dicoms import write_series
from strangers import write_sound

from medkit.terminal.progress import Bar

Run = Callable[..., "Outcome"]  # noqa: F821


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    """The bars that commands have made, without a terminal."""
    made: list[Bar] = []

    @contextlib.contextmanager
    def bar_of(name: str, count: int) -> Iterator[Bar]:
        made.append(Bar(name, lambda: count, follows=False))
        yield made[-1]

    for module in ("medkit.commands.deidentify", "medkit.commands.bundle", "medkit.studies.converting"):
        monkeypatch.setattr(f"{module}.bar_of", bar_of)
    return made


def counts(bar: Bar) -> tuple[str, int, int, int | None]:
    """Return a bar's name, what is done, what has failed, and the total."""
    state = bar.state()
    return state.name, state.done, state.failed, state.total


def test_deidentify_counts_files(medkit: Run, tmp_path: Path, bars: list[Bar], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    write_series(tmp_path / "scans", 2)
    torn = sorted((tmp_path / "scans").glob("*.dcm"))[0]
    torn.write_bytes(torn.read_bytes()[:-9])
    done = medkit("deidentify", tmp_path / "scans", "-o", tmp_path / "out")
    assert done.code == 1
    assert [counts(bar) for bar in bars] == [("deidentify", 4, 1, 4)]


def test_dicom_convert_counts_series(medkit: Run, tmp_path: Path, bars: list[Bar]) -> None:
    write_series(tmp_path / "scans", 2)
    write_series(tmp_path / "scans" / "other", 4, Modality="CT")
    done = medkit("dicom", "convert", tmp_path / "scans", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert [counts(bar) for bar in bars] == [("dicom convert", 2, 0, 2)]


def test_verify_has_a_bar_of_its_checks(
    toy: Run, tmp_path: Path, bars: list[Bar], monkeypatch: pytest.MonkeyPatch
) -> None:
    from medkit.bundles import verify

    monkeypatch.setattr(verify, "RUN", ())
    root = write_sound(tmp_path / "halves", weights=False)
    (root / "LICENSE").unlink()
    checks = json.loads(toy("bundle", "verify", root, "--trust", "--json").out)["checks"]
    assert [counts(bar) for bar in bars] == [("verify", len(checks), 1, len(checks))]
