"""Facts that are kept for later runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkit.pipe.remembered import remember, remembered, state_folder


def test_the_latest_entries_stay() -> None:
    for number in range(5):
        remember("a.json", f"key {number}", {"value": number}, most=3)
    remember("a.json", "key 3", {"value": "new"}, most=3)
    assert remembered("a.json") == {"key 2": {"value": 2}, "key 4": {"value": 4}, "key 3": {"value": "new"}}
    assert remembered("b.json") == {}


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remember("a.json", "key", {}, most=3)
    assert remembered("a.json") == {}
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local" / "state" / "medkit"
