"""A bundle's configs: read as data, walked through, and opened with the values of medkit and of the user."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from strangers import change_json, write_sound

from medkit.bundles import config
from medkit.bundles.bundle import Bundle
from medkit.bundles.config import build_without_monai, class_name, put_code_first, read_config, walk
from medkit.bundles.parsed import BundleConfig
from medkit.errors import BundleError, UsageError

pytestmark = pytest.mark.usefixtures("own_modules")


@pytest.fixture
def own_modules() -> Iterator[None]:
    """Take back what the tests change in `sys.path` and `sys.modules`."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name in ("own_net", "nets"):
            del sys.modules[name]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(write_sound(tmp_path / "halves"), "halves")


def test_walk_goes_from_the_top_down_in_order() -> None:
    content = {"a": [1, {"b": None}], "c": "x"}
    assert list(walk(content)) == [
        ((), content), (("a",), content["a"]), (("a", "0"), 1), (("a", "1"), {"b": None}), (("a", "1", "b"), None),
        (("c",), "x"),
    ]  # fmt: skip


def test_walk_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(BundleError, match="nested too deeply"):
        list(walk(circle))
    monkeypatch.setattr(config, "MAX_VALUES", 10)
    assert len(list(walk(list(range(9))))) == 10
    with pytest.raises(BundleError, match="too many values"):
        list(walk(list(range(11))))


@pytest.mark.parametrize(
    ("node", "name"), [({"_target_": "torch.nn.Conv3d"}, "Conv3d"), ({"_target_": "UNet"}, "UNet"), ({}, ""), ("x", "")]
)
def test_class_names(node: Any, name: str) -> None:
    assert class_name(node) == name


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("a.json", "{", "not valid JSON"), ("a.yaml", "a: [1", "not valid YAML"), ("b.json", None, "cannot be read")],
)
def test_configs_that_cannot_be_read(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(BundleError, match=words) as caught:
        read_config(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_values_are_put_where_the_config_has_the_id(bundle: Bundle) -> None:
    opened = BundleConfig(bundle, ["inference"], "infer")
    opened.put({"output_dir": "out", "nowhere": 1})
    assert opened.get("output_dir") == "out"
    assert opened.get("nowhere", 2) == 2
    opened.override({"output_dir": "other"})
    assert opened.get("output_dir") == "other"
    with pytest.raises(UsageError, match="--set nowhere"):
        opened.override({"output_dir": "third", "nowhere": 1})
    assert opened.get("output_dir") == "other", "nothing is put in along with an unknown id"
    assert sys.path[0] == str(bundle.root)


def test_errors_name_the_config(bundle: Bundle) -> None:
    change_json(bundle.root / "configs" / "inference.json", inferer={"_target_": "NoSuchInferer"})
    opened = BundleConfig(bundle, ["inference"], "infer")
    with pytest.raises(BundleError, match=r"inference\.json: .*NoSuchInferer"):
        opened.get("inferer")
    (bundle.root / "configs" / "inference.json").write_text("{")
    with pytest.raises(BundleError, match=r"inference\.json"):
        BundleConfig(bundle, ["inference"], "infer")


def test_code_of_another_bundle_is_forgotten(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own_net.py").write_text(f"origin = {name!r}\n")
    for name in ("a", "b", "a"):
        put_code_first(tmp_path / name)
        import own_net  # type: ignore[import-not-found]

        assert own_net.origin == name
    assert sys.path.count(str(tmp_path / "a")) == 1


def test_objects_of_the_bundles_own_code_are_built_without_monai(bundle: Bundle) -> None:
    (bundle.root / "nets").mkdir()
    (bundle.root / "nets" / "__init__.py").write_text(
        "class Net:\n    def __init__(self, width, depth):\n        self.sizes = width, depth\n"
    )
    node = {"_target_": "nets.Net", "width": "@width", "depth": 3}
    built = build_without_monai(bundle, {"width": 8, "net": node}, "net")
    assert built is not None
    assert built.sizes == (8, 3)
    for other in (
        {"width": 8},
        {"width": 8, "net": node | {"_target_": "torch.nn.Conv3d"}},
        {"width": 8, "net": node | {"depth": "$1 + 2"}},
        {"width": 8, "net": node | {"depth": {"_target_": "x"}}},
        {"width": "$4 * 2", "net": node},
        {"net": node},
    ):
        assert build_without_monai(bundle, other, "net") is None
