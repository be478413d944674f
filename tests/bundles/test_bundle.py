"""Bundles as folders, and how a command finds the one it is to use; their checks are in test_testing.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_bundle

from medkit.bundles.bundle import Bundle, bundle_for_task, find_bundle, installed, read_metadata
from medkit.errors import BundleError, UsageError, WeightsMissingError
from medkit.plugins import Plugin, Registry
from medkit.specs import BundleSpec


def plugin(distribution: str, *bundles: BundleSpec) -> Plugin:
    return Plugin(distribution, distribution, distribution, "1.0", bundles=bundles)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle's folder."""
    return write_bundle(tmp_path / "halves")


@pytest.fixture
def registry(root: Path) -> Registry:
    """Three bundles of two distributions: `halves` of both, for two tasks."""
    return Registry((
        plugin("medkit-a", BundleSpec("cut", "halves", root), BundleSpec("glue", "pieces", root.with_name("pieces"))),
        plugin("medkit-b", BundleSpec("cut", "halves", root.with_name("b"))),
    ))  # fmt: skip


def test_files_of_a_bundle(root: Path) -> None:
    bundle = Bundle(root, "halves")
    assert bundle.config("train") == root / "configs" / "train.json"
    assert bundle.version == "0.1.0"
    (root / "configs" / "tune.yaml").write_text("a: 1\n")
    assert bundle.config("tune").name == "tune.yaml"
    with pytest.raises(BundleError, match="there is inference, train and tune"):
        bundle.config("metadata2")


def test_missing_weights_have_an_exit_code_of_their_own(root: Path) -> None:
    with pytest.raises(WeightsMissingError, match=r"halves/models/model\.pt") as error:
        _ = Bundle(root, "halves").weights
    assert error.value.exit_code == 4
    (root / "models" / "model.pt").write_bytes(b"")
    assert Bundle(root, "halves").weights.name == "model.pt"


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), ("{", "not valid JSON"), ("[]", "expected a JSON obj")]
)
def test_metadata_that_is_none(root: Path, content: str | None, words: str) -> None:
    path = root / "configs" / "metadata.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(BundleError, match=words):
        read_metadata(root)


def test_names(registry: Registry) -> None:
    assert [(b.name, b.task, b.distribution) for b in installed(registry)] == [
        ("halves", "cut", "medkit-a"), ("pieces", "glue", "medkit-a"), ("halves", "cut", "medkit-b"),
    ]  # fmt: skip
    assert find_bundle("pieces", registry).task == "glue"
    assert find_bundle("medkit-b:halves", registry).distribution == "medkit-b"
    with pytest.raises(UsageError, match="medkit-a:halves or medkit-b:halves"):
        find_bundle("halves", registry)
    with pytest.raises(UsageError, match="there is halves, halves and pieces"):
        find_bundle("nonsense", registry)


def test_folders(registry: Registry, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that a plugin brings is that bundle, however it is reached."""
    (tmp_path / "link").symlink_to(root)
    assert find_bundle(str(tmp_path / "link"), registry).distribution == "medkit-a"
    copy = write_bundle(tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    assert find_bundle("copy", registry) == Bundle(copy, "copy", "halves")
    with pytest.raises(UsageError, match="no such folder"):
        find_bundle("./nowhere", registry)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="metadata"):
        find_bundle("empty", registry)


def test_choosing_for_a_task(registry: Registry, tmp_path: Path) -> None:
    assert bundle_for_task(None, "glue", registry, trust=False).name == "pieces"
    assert bundle_for_task("pieces", "glue", registry, trust=False).name == "pieces"
    for text, task, words in [
        (None, "fold", "bundles for cut and glue"),
        (None, "cut", "medkit-a:halves, medkit-b:halves"),
        ("pieces", "cut", "is for glue, not for cut"),
    ]:
        with pytest.raises(UsageError, match=words):
            bundle_for_task(text, task, registry, trust=True)


def test_code_of_strangers_needs_trust(registry: Registry, root: Path, tmp_path: Path) -> None:
    own = str(write_bundle(tmp_path / "own"))
    with pytest.raises(UsageError, match="--trust"):
        bundle_for_task(own, "halves", registry, trust=False)
    assert bundle_for_task(own, "halves", registry, trust=True).distribution is None
    assert bundle_for_task(str(root), "cut", registry, trust=False).distribution == "medkit-a"
    with pytest.raises(UsageError, match="is for halves, not for cut"):
        bundle_for_task(own, "cut", registry, trust=True)
    (tmp_path / "own" / "configs" / "metadata.json").write_text("{}")  # one that does not say what it is for
    assert bundle_for_task(own, "cut", registry, trust=True).task is None
    with pytest.raises(UsageError, match="no bundle is for it"):
        bundle_for_task(own, "typo", registry, trust=True)
