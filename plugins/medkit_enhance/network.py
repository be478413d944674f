"""The network of an enhancement bundle, run through `medkit.runner`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medkit.bundle import Bundle
from medkit.inference.contract import read_config
from medkit.runner import RunSettings, load_runner
from medkit.task import Runtime, Stages

WHAT = "what"
"""The id by which a bundle's inference config says what it gives."""
PARTS = "parts"
"""Its value for two channels: the image without noise, and the logarithm of its bias field."""


def load(runtime: Runtime, bundle: Bundle, overrides: Mapping[str, Any]) -> Stages:
    """Loads a bundle; its results have both parts where it can give them, else one channel, the enhanced image.

    Raises BundleError, and WeightsMissingError where it has no weights.
    """
    bundle.weights  # noqa: B018 (raises before anything is imported)
    chosen = dict(overrides)
    if WHAT in read_config(bundle.config("inference")):
        chosen.setdefault(WHAT, PARTS)
    return load_runner(runtime, bundle=bundle, settings=RunSettings(chosen))
