"""What a command line asks for, and which bundle can do it; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medkit.errors import UsageError
from medkit.inference import WEIGHTS, Bundle
from medkit_sr.target import Target

if TYPE_CHECKING:
    from medkit.inference import RunSettings

METHODS = ("network", "backprojection", "bspline")
STYLES = ("faithful", "sharp")


@dataclass(frozen=True)
class ResolveChoices:
    """What is asked for."""

    target: Target
    method: str | None = None
    """One of `METHODS`; None: the best that can be done to an image."""
    style: str = "faithful"
    """One of `STYLES`."""
    shared: Mapping[str, Path] = field(default_factory=dict)
    """Files that all cases use: `reference`, the image as it should be, and `guide`, another contrast."""
    fuse: bool = False
    """Whether all scans of a case become one image."""
    sequence: bool = False
    """Whether a case is planes one after the other."""


def with_style(settings: RunSettings, style: str, bundles: Sequence[Bundle]) -> tuple[RunSettings, tuple[Bundle, ...]]:
    """The bundles that have a style, and settings with its values for their configs (`styles` of their metadata).

    Raises UsageError where no bundle has it.
    """
    if style == "faithful":
        return settings, tuple(bundles)
    stated = [(b, found) for b in bundles if isinstance(found := (b.block.get("styles") or {}).get(style), dict)]
    if not stated:
        raise UsageError(f"--style {style}: no bundle has it: {', '.join(b.name for b in bundles)}")
    values = {name: value for _, found in stated for name, value in found.items()}
    return replace(settings, overrides={**values, **settings.overrides}), tuple(b for b, _ in stated)


def dims_of(bundle: Bundle) -> int:
    """Along how many axes a bundle's network works: 2 for planes, 3 for volumes. Raises BundleError."""
    shape = bundle.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    return len(shape)


def fitting(bundles: Sequence[Bundle], dims: int, modality: str) -> tuple[Bundle | None, str]:
    """The bundle for an image of so many axes and this modality (`MR`, `CT` or what DICOM calls it), and why, or why
    none."""
    what = "planes" if dims == 2 else f"volumes of {modality}"
    own = [b for b in bundles if dims_of(b) == dims and (dims == 2 or b.modality in (None, modality))]
    if not own:
        return None, f"no network takes {what}"
    return own[0], f"takes {what}"


def has_weights(bundle: Bundle) -> bool:
    """Whether its faithful weights are there."""
    return (bundle.root / WEIGHTS).is_file()
