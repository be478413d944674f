"""Trust: what it covers, when it holds, and what is said when it does not."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
from tiny import write_bundle

from medkit.bundles.safety.trust import (
    BundleContent,
    admit,
    changes,
    fingerprint,
    is_trusted,
    remember,
    remembered,
    trust_file,
)
from medkit.errors import BundleError, UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle with weights and code of its own."""
    root = write_bundle(tmp_path / "halves")
    (root / "models" / "model.pt").write_bytes(b"weights")
    (root / "scripts").mkdir()
    (root / "scripts" / "net.py").write_text("x = 1\n")
    return root


def test_trust_is_asked_once(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--trust"):
        admit(root, trust=False)
    assert not is_trusted(root)
    assert not trust_file().exists()
    admit(root, trust=True)
    admit(root, trust=False)
    assert is_trusted(root)
    shutil.copytree(root, tmp_path / "copy")
    admit(tmp_path / "copy", trust=False)  # the same content is the same bundle


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("configs/train.json", "configs/train.json was changed"),
        ("configs/new.yaml", "configs/new.yaml was added"),
        ("configs/deep/new.txt", "configs/deep/new.txt was added"),
        ("models/model.pt", "models/model.pt was changed"),
        ("models/anything", "models/anything was added"),
        ("scripts/net.py", "scripts/net.py was changed"),
        ("scripts/__pycache__/net.cpython-311.pyc", "pyc was added"),
        (".hidden/x.so", r".hidden/x\.so was added"),
        ("training/x.py", r"training/x\.py was added"),
        ("large_files.yml", "large_files.yml was added"),
        ("parts/more.json", "parts/more.json was added"),
    ],
)
def test_changed_code_is_asked_about_again(root: Path, name: str, words: str) -> None:
    admit(root, trust=True)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("other")
    with pytest.raises(UsageError, match=words):
        admit(root, trust=False)
    admit(root, trust=True)
    admit(root, trust=False)


def test_removed_code_is_asked_about_again(root: Path) -> None:
    admit(root, trust=True)
    (root / "scripts" / "net.py").unlink()
    with pytest.raises(UsageError, match=r"scripts/net\.py was removed since you trusted it"):
        admit(root, trust=False)


@pytest.mark.parametrize("name", ["docs/README.md", "training/log.csv", "training/checkpoint.pt", "data/a.json"])
def test_what_cannot_run_may_change(root: Path, name: str) -> None:
    admit(root, trust=True)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("other")
    admit(root, trust=False)


def test_what_cannot_be_seen_is_not_trusted(root: Path, tmp_path: Path) -> None:
    """A linked folder could change without a trace; a linked file is read, and could not."""
    (tmp_path / "net.py").write_text("x = 1\n")
    (root / "scripts" / "more.py").symlink_to(tmp_path / "net.py")
    admit(root, trust=True)
    (tmp_path / "net.py").write_text("x = 2\n")
    with pytest.raises(UsageError, match=r"scripts/more\.py was changed"):
        admit(root, trust=False)
    (root / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(BundleError, match="elsewhere: is a link"):
        admit(root, trust=True)
    (root / "elsewhere").unlink()
    os.mkfifo(root / "configs" / "pipe.json")
    with pytest.raises(BundleError, match=r"pipe\.json: is a special"):
        admit(root, trust=True)


def take_in(root: Path, macro: str, config: str = "configs/inference.json") -> None:
    """Let a config put a part of another file in the place of its network."""
    (root / config).write_text(json.dumps({"network_def": macro}))


@pytest.mark.parametrize("name", ["docs/net.json", "data/deep/net.yaml", "eval/NET.YML", "training/net.json"])
def test_files_that_a_config_takes_in_are_part_of_the_content(root: Path, name: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"net": 1}))
    before = fingerprint(root)
    assert name not in before.files
    take_in(root, f"%{file}::net")
    admit(root, trust=True)
    file.write_text(json.dumps({"net": "$print()"}))
    with pytest.raises(UsageError, match=f"{name} was changed"):
        admit(root, trust=False)


def test_files_that_are_taken_in_by_others_count_as_well(root: Path) -> None:
    (root / "docs").mkdir(exist_ok=True)
    (root / "docs" / "b.yaml").write_text("net: 1\n")
    take_in(root, f"%{root}/docs/b.yaml#net", "docs/a.json")
    take_in(root, f"%{root}/configs/../docs/a.json::network_def")
    assert {"docs/a.json", "docs/b.yaml"} <= set(fingerprint(root).files)


def test_other_macros_take_in_no_file(root: Path) -> None:
    before = set(fingerprint(root).files)
    for macro in ("%network::0", "%#json", "a%/docs/a.json::net", "$'%x.json'"):
        take_in(root, macro)
        assert set(fingerprint(root).files) == before | {"configs/inference.json"}


@pytest.mark.parametrize("place", ["{outside}", "{root}/../outside.json", "outside.json", "{root}/configs/../../x.yml"])
def test_files_outside_cannot_be_taken_in(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A relative name is found from the working directory, as MONAI does."""
    monkeypatch.chdir(tmp_path)
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    take_in(root, f"%{place.format(root=root, outside=outside)}::net")
    with pytest.raises(BundleError, match="not a file of the bundle"):
        admit(root, trust=True)
    remember(tmp_path, BundleContent({}))
    assert not is_trusted(root)


def test_names_are_part_of_the_content(root: Path) -> None:
    before = fingerprint(root).sha256
    (root / "scripts" / "net.py").rename(root / "scripts" / "other.py")
    assert fingerprint(root).sha256 != before
    assert BundleContent({"a": "1"}).sha256 != BundleContent({"a": "1", "b": "1"}).sha256


def test_where_it_is_remembered(root: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(root)
    assert trust_file() == home / "state" / "medkit" / "trust.json"
    assert json.loads(trust_file().read_text())["bundles"][0]["root"] == str(root)
    monkeypatch.setenv("MEDKIT_TRUST", str(tmp_path / "mine.json"))
    assert not is_trusted(root)
    remember(root)
    remember(root)
    assert len(remembered()) == 1
    monkeypatch.delenv("MEDKIT_TRUST")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert trust_file() == Path("/home/somebody/.local/state/medkit/trust.json")


@pytest.mark.parametrize("content", ["", "[]", '{"bundles": [1]}', '{"bundles": [{"sha256": 1, "files": {}}]}'])
def test_a_spoilt_memory_trusts_nothing(root: Path, content: str) -> None:
    remember(root)
    trust_file().write_text(content)
    with pytest.raises(UsageError, match="cannot be read as a list of trusted bundles"):
        admit(root, trust=False)
    assert trust_file().read_text() == content


def test_a_memory_that_cannot_be_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEDKIT_TRUST", str(tmp_path / "file" / "trust.json"))
    with pytest.raises(UsageError):  # not a folder: what it says cannot be known
        admit(root, trust=False)
    with caplog.at_level(logging.WARNING):
        admit(root, trust=True)
    assert "--trust holds for this run only" in caplog.text


def test_many_at_once_are_all_remembered(tmp_path: Path) -> None:
    roots = [write_bundle(tmp_path / f"b{n}", steps=n) for n in range(8)]
    threads = [threading.Thread(target=remember, args=(root,)) for root in roots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(is_trusted(root) for root in roots)


def test_running_does_not_change_a_bundle(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    admit(root, trust=True)
    monkeypatch.syspath_prepend(root / "scripts")
    __import__("net")
    assert sys.modules.pop("net").x == 1
    admit(root, trust=False)


def test_changes_in_words() -> None:
    many = {str(n): "1" for n in range(9)}
    assert changes({}, many).endswith("4 was added and 4 more")
    assert "\x1b" not in changes({}, {"a\x1b": "1"})
