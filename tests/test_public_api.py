"""The names that plugins and configs may use: each is there, and each `_target_` of a bundle is one of them."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
from places import BUNDLES

FACES = (
    *("dicom_objects", "errors", "evaluation", "figures", "images", "inference", "options", "scanner", "space"),
    *("specs", "synthesis", "task", "testing", "training", "transforms"),
)
CONFIGS = sorted(p for p in BUNDLES.glob("*/configs/*.json") if p.stem != "metadata")


@pytest.mark.parametrize("face", FACES)
def test_every_promised_name_is_there(face: str) -> None:
    module = importlib.import_module(f"medkit.{face}")
    for name in module.__all__:
        assert getattr(module, name) is not None


def targets(value: Any) -> Iterator[str]:
    """Every `_target_` in a config."""
    if isinstance(value, dict):
        if isinstance(value.get("_target_"), str):
            yield value["_target_"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from targets(item)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_every_target_resolves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monai.bundle.config_item import ComponentLocator

    monkeypatch.syspath_prepend(str(path.parents[1]))
    known = ComponentLocator()
    for name in set(targets(json.loads(path.read_text()))):
        if name.startswith("$"):
            continue
        if "." not in name:
            assert known.get_component_module_name(name), name
            continue
        assert locate(name) is not None, name
        if name.startswith("medkit."):
            _, face, *_ = name.split(".")
            public = name.split(".")[2]
            assert public in sys.modules[f"medkit.{face}"].__all__, f"{name} is not one of the names of medkit.{face}"
