"""What the command line asks for, and which bundle can do it. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medkit.errors import UsageError
from medkit.inference import Bundle
from medkit_sr.target import Target

if TYPE_CHECKING:
    from medkit.inference import RunSettings

METHODS = ("network", "backprojection", "bspline")
STYLES = ("faithful", "sharp")


@dataclass(frozen=True)
class ResolveChoices:
    """The user's choices."""

    target: Target
    method: str | None = None
    """One of `METHODS`; None: the best one available for each image."""
    style: str = "faithful"
    """One of `STYLES`."""
    shared: Mapping[str, Path] = field(default_factory=dict)
    """Files that all cases use: `reference`, the true fine image, and `guide`, another contrast."""
    fuse: bool = False
    """Whether all scans of a case become one image."""
    sequence: bool = False
    """Whether a case is a sequence of planes."""


def with_style(settings: RunSettings, style: str, bundles: Sequence[Bundle]) -> tuple[RunSettings, tuple[Bundle, ...]]:
    """Return the settings with the config values of a style, and the bundles that have it.

    Bundles state the values under `styles` in their metadata. Raises UsageError if no bundle has the style.
    """
    if style == "faithful":
        return settings, tuple(bundles)
    stated = [(b, values) for b in bundles if isinstance(values := (b.block.get("styles") or {}).get(style), dict)]
    if not stated:
        raise UsageError(f"--style {style}: no bundle has it: {', '.join(b.name for b in bundles)}")
    overrides = {name: value for _, values in stated for name, value in values.items()}
    return replace(settings, overrides={**overrides, **settings.overrides}), tuple(b for b, _ in stated)


def dims_of(bundle: Bundle) -> int:
    """Return the number of axes of a bundle's network: 2 for planes, 3 for volumes."""
    shape = bundle.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    return len(shape)


def fitting(bundles: Sequence[Bundle], dims: int, modality: str) -> tuple[Bundle | None, str]:
    """Return the first bundle for images with `dims` axes of this modality, or None, and the reason.

    modality: `MR`, `CT` or another of DICOM's modalities.
    """
    what = "planes" if dims == 2 else f"volumes of {modality}"
    fit = [b for b in bundles if dims_of(b) == dims and (dims == 2 or b.modality in (None, modality))]
    return (fit[0], f"takes {what}") if fit else (None, f"no network takes {what}")


def has_weights(bundle: Bundle) -> bool:
    """Return whether the bundle's weights for the style `faithful` are installed."""
    return bundle.has_weights
