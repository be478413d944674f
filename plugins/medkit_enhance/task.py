"""The task `enhance`: its outputs, its bundles' settings, and its memory. The work itself is in `enhancer`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.errors import UsageError
from medkit.inference import Bundle, RunSettings, bundle_task
from medkit.task import Output, Record, Task
from medkit_enhance.enhancer import set_up, summary_of
from medkit_enhance.methods import EnhanceSteps

if TYPE_CHECKING:
    from medkit.space import Grid

MODALITIES = ("auto", "mr", "ct", "other")
"""Values of `--modality`."""
PARTS = "parts"
"""Key of a bundle's metadata for the values of its config with which the network returns two channels: the image
without noise, and the logarithm of its bias field. A bundle without this key returns one: the enhanced image."""
ONE_PART = {"denoise": "noise_alone", "bias": "field_alone"}
"""Step -> key of a bundle's metadata for the values of its config that save the work of the other part, where the
network does only this step."""
_BYTES_PER_VOXEL = 80
"""What NLM takes at its peak, for one voxel of the image, or of its slab (see the tests)."""
_PROGRAM_BYTES = 300 * 2**20
"""Memory of Python and its libraries."""


@dataclass(frozen=True)
class EnhanceChoices:
    """The values of the options that are not steps."""

    modality: str = "auto"
    """One of `MODALITIES`."""
    reference: Path | None = None
    """The image as it should be."""
    difference: bool = False
    """Whether the result minus the input is written as well."""


def enhancement(steps: EnhanceSteps, choices: EnhanceChoices, bundles: Sequence[Bundle], settings: RunSettings) -> Task:
    """Return the task for one set of options; `bundles` are those whose network may do some of the steps.

    Raises UsageError for a single step of a network that returns no parts.
    """
    outputs = [Output("image", "image", "enhanced", as_picture=True)]
    if choices.difference:
        outputs.append(Output("difference", "image", "difference"))
    base, field_only = Task("enhance", outputs, uses_torch=False), None
    if steps.network:
        steps, settings = _fitted_to_network(steps, bundles, settings)
        base = bundle_task("enhance", bundles, settings)
        if steps.only_network:
            overrides = {**_metadata_values(bundles, ONE_PART["bias"]), **settings.overrides}
            field_only = bundle_task("enhance", bundles, replace(settings, overrides=overrides)).setup
    setup = functools.partial(
        set_up,
        steps=steps,
        modality=choices.modality,
        difference=choices.difference,
        network=base.setup,
        field_only=field_only,
    )
    arguments = {what: getattr(steps, what) for what in ("denoise", "bias", "contrast", "image")}
    return replace(
        base,
        outputs=outputs,
        setup=setup,
        arguments={**arguments, **base.arguments, "modality": choices.modality, "difference": choices.difference},
        # other modalities and planes get the methods without a network, unless the user insists on it
        modalities=base.modalities if steps.named and steps.network else (),
        planes=not (steps.named and steps.network),
        accepts=("reference",),
        shared={"reference": choices.reference} if choices.reference else {},
        memory=functools.partial(memory_needed, network=base.memory),
        summary=_summary,
    )


def _summary(record: Record) -> str:
    """Return for the progress line which steps were done, or why none was."""
    return summary_of(record.medkit.get("enhancement", {}).get("steps", ()))


def _fitted_to_network(
    steps: EnhanceSteps, bundles: Sequence[Bundle], settings: RunSettings
) -> tuple[EnhanceSteps, RunSettings]:
    """Return steps and settings for bundles that return two parts, or else only an enhanced image."""
    if all(isinstance(bundle.block.get(PARTS), dict) for bundle in bundles):
        values = _metadata_values(bundles, PARTS)
        if not steps.only_network:
            values |= _metadata_values(bundles, ONE_PART["denoise" if steps.denoise == "network" else "bias"])
        return steps, replace(settings, overrides={**values, **settings.overrides})
    if not steps.only_network:
        raise UsageError(f"--what: bundle {bundles[0].name} returns an enhanced image and no parts of it: --what auto")
    return replace(steps, denoise=None, bias=None, image="network"), settings


def _metadata_values(bundles: Sequence[Bundle], key: str) -> dict[str, Any]:
    """Return the values for the config that the bundles' metadata state under a key."""
    return {name: value for bundle in bundles for name, value in bundle.block.get(key, {}).items()}


def memory_needed(grid: Grid, *, network: Callable[[Grid], int] | None = None) -> int:
    """Return roughly how many bytes an image on this grid takes at its peak."""
    return max(_PROGRAM_BYTES + _BYTES_PER_VOXEL * math.prod(grid.shape), network(grid) if network else 0)
