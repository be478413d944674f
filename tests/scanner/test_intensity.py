"""The intensity scale, and that bundles divide images by the same one as trainings do."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from places import BUNDLES

from medkit.scanner.intensity import intensity_scale, otsu_threshold


def head(size: int = 90) -> torch.Tensor:
    """A bright ball in empty air, (1, size, size, size), with some negative voxels."""
    random = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, size)
    inside = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) < 0.6
    bright = 200 + 400 * torch.rand(size, size, size, generator=random)
    return torch.where(inside, bright, torch.where(axis < -0.9, -20.0, 0.0))[None]


def test_the_scale_is_the_99th_percentile_of_bright_voxels() -> None:
    image = head()
    assert float(intensity_scale(image)) == pytest.approx(float(image[image > 0].quantile(0.99)), rel=0.002)
    every_seventh = torch.zeros(7 * 100)
    every_seventh[::7] = torch.arange(1, 101)
    assert float(intensity_scale(every_seventh)) == 99


def test_images_without_bright_voxels_have_the_scale_1() -> None:
    assert float(intensity_scale(torch.zeros(1, 8, 8, 8))) == 1
    assert float(intensity_scale(torch.full((1, 8, 8, 8), -3.0))) == 1
    assert float(intensity_scale(torch.full((1, 8, 8, 8), 1e-9))) == pytest.approx(1e-6)


# ---- the bundles, whose configs run without medkit and so have an expression of their own


def texts(value: Any) -> Iterator[str]:
    """All texts in a config."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(inner)


def scaling() -> list[Any]:
    """The lambdas in bundles' configs that take a 99th percentile, with the bundle's and the config's name."""
    found = []
    for path in sorted(BUNDLES.glob("*/configs/*.json")):
        for text in texts(json.loads(path.read_text())):
            if text.startswith("$lambda") and "quantile(0.99)" in text:
                found.append(pytest.param(text[1:], id=f"{path.parts[-3]}-{path.stem}"))
    return found


def test_the_configs_that_scale_are_found() -> None:
    assert {str(case.id) for case in scaling()} == {
        "brain_mri_mask-inference",
        "brain_mri_registration-inference",
        "brain_mri_segmentation-inference",
        "ct_xray_super_resolution-inference",
        "infant_mri_segmentation-inference",
        "infant_mri_segmentation-train",
        "lowfield_to_highfield-cyclegan",
        "lowfield_to_highfield-inference",
        "mri_super_resolution-inference",
    }


@pytest.mark.parametrize("expression", scaling())
def test_configs_divide_by_the_same_scale(expression: str) -> None:
    function = eval(expression, {"torch": torch})
    image = head()
    found = torch.as_tensor(function(image))
    scale = found if found.dim() == 0 else image.max() / found.max()
    assert float(scale) == pytest.approx(float(intensity_scale(image)), rel=0.002)
    nothing = torch.as_tensor(function(torch.zeros(1, 8, 8, 8)))
    assert float(nothing.max()) == (1 if nothing.dim() == 0 else 0)


@pytest.mark.parametrize("name", ["mri_enhancement", "brain_mri_quality_classification"])
def test_packages_divide_by_the_same_scale(name: str, clean_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BUNDLES / name))
    package = importlib.import_module(name)
    image = head().clamp(min=0)
    scale = package.scale(image) if name == "mri_enhancement" else image.max() / package.brightness(image[0]).max()
    assert float(scale) == pytest.approx(float(intensity_scale(image)), rel=1e-6)


def test_otsu_lies_in_the_middle_of_a_gap() -> None:
    values = np.concatenate([np.linspace(0, 1, 300), np.linspace(5, 7, 500)])
    assert otsu_threshold(values) == pytest.approx(3, abs=0.05)


def test_otsu_of_values_that_do_not_differ() -> None:
    assert otsu_threshold(np.full(9, 4.0)) == 4
    assert otsu_threshold(np.zeros(0)) == 0
