"""The packages and versions that a bundle's metadata ask for, compared with those that are installed."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import zoo
from strangers import change_json

from medkit.bundles.bundle import Bundle
from medkit.bundles.requirements import explained, missing_packages, other_versions, version_notes, with_versions_here


def test_names_of_packages() -> None:
    """By distributions in any spelling, or by modules, as authors write them."""
    names = ("scikit-image", "scikit_image", "skimage", "PyYAML", "yaml", "PIL", "python", "pytorch-ignite", "ignite")
    asked = {"required_packages_version": dict.fromkeys((*names, "no_such_package", "another-one"), "1")}
    assert missing_packages(asked) == ["no_such_package", "another-one"]


@pytest.mark.parametrize(
    ("stated", "fits"),
    [
        (version("click"), True), (".".join(version("click").split(".")[:2]), True), (">=1.0", True), ("~=1.0", False),
        (f"{version('click').split('.')[0]}", True), ("0.1", False), (">=1.0,<2", False), ("*", True), ("", True),
        (None, True), (f"{version('click')}rc1", True), ("0.1a0+g123", False),
    ],
)  # fmt: skip
def test_versions(stated: Any, fits: bool) -> None:
    assert (other_versions({"required_packages_version": {"click": stated}}) == []) == fits


def test_notes_name_all_at_once(tmp_path: Path) -> None:
    root = zoo.write(tmp_path / "b", "enhancer", weights=False)
    needed = {"no_such": "1", "nor_this": "2", "click": "0.1"}
    optional = {"but_optional": "3"}
    change_json(
        root / "configs" / "metadata.json", monai_version="1.0.0", required_packages_version=needed,
        optional_packages_version=optional,
    )  # fmt: skip
    bundle = Bundle(root, "b")
    missing, others = version_notes(bundle)
    assert missing == "its metadata ask for no_such and nor_this, which are not installed"
    assert others.startswith("was made with monai 1.0.0 (here: ")
    assert f"click 0.1 (here: {version('click')})" in others
    text = explained(ModuleNotFoundError("No module named 'no_such'"), bundle)
    assert text.endswith("its metadata ask for all of no_such, nor_this and but_optional")
    text = explained(TypeError("__init__() got an unexpected keyword argument 'img_size'"), bundle)
    assert "img_size'; it was made with monai 1.0.0 (here: " in text


def test_a_bundle_that_is_made_here_states_the_versions_of_here() -> None:
    stated = {"monai_version": "0.1", "required_packages_version": {"click": "1.0", "rich": ">=1", "absent": "2"}}
    found = with_versions_here(stated)
    assert found["monai_version"] == version("monai")
    assert found["required_packages_version"] == {"click": version("click"), "rich": ">=1", "absent": "2"}
    assert not other_versions(found)
    assert "pytorch_version" not in found
    assert "+" not in with_versions_here({"pytorch_version": "2.0"})["pytorch_version"]
    assert stated["monai_version"] == "0.1"
