"""Configs that are laid over others and bring another inference: what becomes of the new bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from medkit.bundles.bundle import Bundle
from medkit.training.plan import TrainingPlan
from medkit.training.report import overlay

TRAIN = {"network": "a", "steps": 5, "train": {"handlers": ["first"], "batch": 1}}
INFERENCE = {"network": "a", "preprocessing": {"transforms": ["load"]}, "inferer": "whole"}
METADATA = {"version": "1", "inputs": {"image": {"channels": 1, "names": {"0": "image"}}}}


def write_bundle(root: Path, **configs: Mapping[str, Any]) -> Bundle:
    (root / "configs").mkdir(parents=True)
    for name, content in {"train": TRAIN, "inference": INFERENCE, "metadata": METADATA, **configs}.items():
        (root / "configs" / f"{name}.json").write_text(json.dumps(content))
    return Bundle(root, root.name, "classify")


def configs(root: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in (root / "configs").iterdir()}


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    more = {"network": "b", "train::batch": 2, "+train::handlers": ["second"]}
    there = {
        "_meta_": {"inputs": {"image": {"channels": 2, "names": {"1": "more"}}}, "medkit": {"context": "file"}},
        "network": "b",
        "+preprocessing::transforms": ["add"],
    }
    base = write_bundle(tmp_path / "base", more=more, more_inference=there, other={"steps": 7})
    return TrainingPlan("classify", base, tmp_path / "new", config="train,more,other")


def test_what_is_laid_over_becomes_the_bundles_own(plan: TrainingPlan) -> None:
    write_bundle(plan.output, more={}, more_inference={}, other={})
    overlay.apply(plan, plan.output)
    found = configs(plan.output)
    assert sorted(found) == ["inference", "metadata", "other", "train"]
    assert found["train"] == {"network": "b", "steps": 7, "train": {"handlers": ["first", "second"], "batch": 2}}
    assert found["inference"] == {
        "network": "b", "preprocessing": {"transforms": ["load", "add"]}, "inferer": "whole",
    }  # fmt: skip
    assert configs(plan.bundle.root)["inference"] == INFERENCE, "the base stays"
    assert overlay.with_meta(dict(METADATA), plan) == {
        "version": "1",
        "inputs": {"image": {"channels": 2, "names": {"0": "image", "1": "more"}}},
        "medkit": {"context": "file"},
    }


def test_without_another_inference_all_stays(plan: TrainingPlan, tmp_path: Path) -> None:
    plain = TrainingPlan("classify", plan.bundle, tmp_path / "plain", config="train,other")
    write_bundle(plain.output)
    overlay.apply(plain, plain.output)
    assert configs(plain.output) == {"train": TRAIN, "inference": INFERENCE, "metadata": METADATA}
    assert overlay.with_meta(dict(METADATA), plain) == METADATA
