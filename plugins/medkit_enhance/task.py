"""The task `enhance`: which steps an image needs, and its result on the input's grid, scale and type."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError, UsageError
from medkit.inference import Bundle, RunSettings, bundle_task
from medkit.scanner import Noise, estimate
from medkit.task import Case, Output, Result, Runtime, Stages, Task
from medkit_enhance import bias, contrast, denoise
from medkit_enhance.methods import Steps

if TYPE_CHECKING:
    from medkit.images import Image
    from medkit.space import Grid

MODALITIES = ("auto", "mr", "ct", "other")
PARTS = "parts"
"""Under it a bundle's metadata say which values of its config make it give two channels: the image without noise, and
the logarithm of its bias field. A bundle that says nothing gives one: the enhanced image."""
ALONE = {"denoise": "noise_alone", "bias": "field_alone"}
"""Under it they may say which values spare the work of the other part, where one step alone is the network's."""
_BYTES_PER_VOXEL = 80
"""What NLM takes at its peak, for one voxel of the image, or of its slab (see the tests)."""
_PROGRAM_BYTES = 300 * 2**20


@dataclass(frozen=True)
class EnhanceChoices:
    """What is asked for beside the steps."""

    modality: str = "auto"
    """One of `MODALITIES`."""
    reference: Path | None = None
    """The image as it should be."""
    difference: bool = False
    """Whether the result minus the input is written too."""


def enhancement(steps: Steps, wishes: EnhanceChoices, bundles: Sequence[Bundle], settings: RunSettings) -> Task:
    """The task for one set of options; `bundles` are those whose network may be among the steps.

    Raises UsageError for a single step of a network that gives no parts.
    """
    outputs = [Output("image", "image", "enhanced", as_picture=True)]
    if wishes.difference:
        outputs.append(Output("difference", "image", "difference"))
    base, field_alone = Task("enhance", outputs, uses_torch=False), None
    if steps.network:
        steps, settings = _as_the_network_can(steps, bundles, settings)
        base = bundle_task("enhance", bundles, settings)
        if steps.network_alone:
            spared = replace(settings, overrides={**_stated(bundles, ALONE["bias"]), **settings.overrides})
            field_alone = bundle_task("enhance", bundles, spared).setup
    arguments = {what: getattr(steps, what) for what in ("denoise", "bias", "contrast", "image")}
    return replace(
        base,
        outputs=outputs,
        setup=functools.partial(set_up, steps=steps, wishes=wishes, network=base.setup, field_alone=field_alone),
        arguments={**arguments, **base.arguments, "modality": wishes.modality, "difference": wishes.difference},
        accepts=("reference",),
        shared={"reference": wishes.reference} if wishes.reference else {},
        memory=functools.partial(memory_needed, network=base.memory),
    )


def _as_the_network_can(steps: Steps, bundles: Sequence[Bundle], settings: RunSettings) -> tuple[Steps, RunSettings]:
    """The steps and settings for bundles that give two parts, or, where there is no telling them apart, an image."""
    if all(isinstance(bundle.block.get(PARTS), dict) for bundle in bundles):
        values = _stated(bundles, PARTS)
        if not steps.network_alone:
            values |= _stated(bundles, ALONE["denoise" if steps.denoise == "network" else "bias"])
        return steps, replace(settings, overrides={**values, **settings.overrides})
    if not steps.network_alone:
        raise UsageError(f"--what: bundle {bundles[0].name} gives an enhanced image and no parts of it: --what auto")
    return replace(steps, denoise=None, bias=None, image="network"), settings


def _stated(bundles: Sequence[Bundle], key: str) -> dict[str, Any]:
    """The values for the config that the bundles' metadata state under a key."""
    return {name: value for bundle in bundles for name, value in bundle.block.get(key, {}).items()}


def memory_needed(grid: Grid, *, network: Callable[[Grid], int] | None = None) -> int:
    """Bytes that an image on this grid takes at its peak, roughly."""
    return max(_PROGRAM_BYTES + _BYTES_PER_VOXEL * math.prod(grid.shape), network(grid) if network else 0)


def set_up(
    runtime: Runtime,
    *,
    steps: Steps,
    wishes: EnhanceChoices,
    network: Callable[[Runtime], Any] | None = None,
    field_alone: Callable[[Runtime], Any] | None = None,
) -> Stages:
    """Loads the network where one is among the steps; the three stages of the work on a case.

    `field_alone` is what loads it for images without noise, once there is one.
    """
    loaded = network(runtime) if network else None
    spared = functools.cache(functools.partial(field_alone, runtime)) if field_alone else None
    enhancer = Enhancer(steps, wishes, runtime.threads, loaded, spared)
    return Stages(enhancer.prepare, enhancer.compute, enhancer.finish)


@dataclass
class EnhanceWork:
    """A case on its way, and the story that its sidecar tells."""

    image: Image
    steps: Steps
    modality: str
    noise: Noise
    stages: Stages | None = None
    """The network's; None where it has nothing to do."""
    network: Any = None
    """What they hand to each other."""
    story: list[dict[str, Any]] = field(default_factory=list)
    """What was done, and what was left out and why, in order."""


@dataclass(frozen=True)
class Enhancer:
    """The work on one case after the other."""

    steps: Steps
    wishes: EnhanceChoices
    threads: int
    network: Stages | None = None
    field_alone: Callable[[], Stages] | None = None
    """The network's stages where it need not take noise away."""

    def prepare(self, case: Case) -> EnhanceWork:
        """Reads an image and finds out what it needs. Raises InputError for a step that cannot be done to it."""
        image = case.image()
        if "reference" in case.inputs:
            _check_reference(case, image)
        modality = self.wishes.modality if self.wishes.modality != "auto" else modality_of(image)
        noise = estimate(_values(image))
        work = EnhanceWork(image, suited(self.steps, image, modality, case.path), modality, noise)
        work.stages = self._stages(work)
        if work.stages:
            work.network = work.stages.prepare(case)
        return work

    def _stages(self, work: EnhanceWork) -> Stages | None:
        """Of the network, as far as it has something to do."""
        if not work.steps.network or (work.noise.negligible and work.steps.denoise and work.steps.bias != "network"):
            return None
        return self.field_alone() if self.field_alone and work.noise.negligible else self.network

    def compute(self, case: Case, work: EnhanceWork) -> EnhanceWork:
        """Runs the network."""
        if work.stages:
            work.network = work.stages.compute(case, work.network)
        return work

    def finish(self, case: Case, work: EnhanceWork) -> Result:
        """Runs the other methods, and makes the result."""
        image = work.image
        given = work.stages.finish(case, work.network) if work.stages else None
        values = self._enhanced(_values(image), work, given.outputs["image"] if given else None)
        made = image if values is None else image.like(values.reshape(image.data.shape))
        outputs = {"image": made}
        if self.wishes.difference:
            outputs["difference"] = image.with_data(made.data.astype(np.float32) - image.data)
        from medkit.evaluation import rounded_scores

        metrics: dict[str, Any] = {
            "noise": {"before": work.noise.rounded(), "after": estimate(_values(made)).rounded()},
            "change": relative_change(made, image),
        }
        if "reference" in case.inputs:
            metrics |= {
                "before": rounded_scores(image, case.image("reference")),
                "after": rounded_scores(made, case.image("reference")),
            }
        return Result(
            outputs,
            metrics=metrics,
            warnings=given.warnings if given else (),
            details={
                **(given.details if given else {}),
                "enhancement": {"modality": work.modality, "steps": work.story},
            },
            description=f"{case.path.name} enhanced: {_told(work.story)}",
            figure=functools.partial(_figure, image, made, case.path.name),
        )

    def _enhanced(self, values: np.ndarray, work: EnhanceWork, parts: Any) -> np.ndarray | None:
        """The enhanced image, float32; None where nothing was to be done."""
        spacing = work.image.grid.spacing[[size > 1 for size in work.image.grid.shape]]
        found = None
        if work.steps.image:
            work.story.append({"what": "image", "method": work.steps.image, "done": True})
            found = parts.data[0].reshape(values.shape)
        if work.steps.denoise:
            found = self._denoised(values, work, parts)
        if work.steps.bias:
            before = values if found is None else found
            unbiased = self._unbiased(before, spacing, work, parts)
            found = found if unbiased is None else unbiased
        if work.steps.contrast:
            by = {
                "clahe": contrast.by_clahe,
                "gamma": contrast.by_gamma,
                "homomorphic": contrast.by_homomorphic,
                "butterworth": contrast.by_butterworth,
            }[work.steps.contrast]
            found = by(values, spacing)
            work.story.append({"what": "contrast", "method": work.steps.contrast, "done": True})
        return found

    def _denoised(self, values: np.ndarray, work: EnhanceWork, parts: Any) -> np.ndarray | None:
        entry: dict[str, Any] = {"what": "denoise", "method": work.steps.denoise, "done": not work.noise.negligible}
        work.story.append(entry)
        if work.noise.negligible:
            least = min(level for level in (work.noise.relative, work.noise.quiet) if level is not None)
            entry["reason"] = f"noise of {100 * least:.2g} % of the range: left alone"
            return None
        if work.steps.denoise == "network":
            found: np.ndarray = parts.data[0].reshape(values.shape)
            return found
        return (denoise.by_bm4d if work.steps.denoise == "bm4d" else denoise.by_nlm)(values, work.noise)

    def _unbiased(self, values: np.ndarray, spacing: np.ndarray, work: EnhanceWork, parts: Any) -> np.ndarray | None:
        method = work.steps.bias
        if method == "network":
            log_field = parts.data[1].reshape(values.shape)
        elif method == "n4":
            log_field = bias.by_n4(values, spacing, self.threads)
        else:
            log_field = bias.by_homomorphic(values, spacing)
        weak = (found := bias.strength(log_field, values)) < bias.WEAK
        work.story.append({"what": "bias", "method": method, "done": not weak, "strength": round(found, 4)})
        if weak:
            work.story[-1]["reason"] = f"a field that varies by {100 * found:.2g} %: left alone"
            return None
        return bias.corrected(values, log_field)


def _values(image: Image) -> np.ndarray:
    """The first channel without axes of one voxel: (I, J, K), or (I, J) of a plane."""
    return image.data[0].squeeze() if image.grid.is_planar else image.data[0]


def modality_of(image: Image) -> str:
    """`ct` for Hounsfield units; else `mr` for volumes, and `other` for planes, which may be anything."""
    from medkit.images import is_ct

    if is_ct(image.data[0][::2, ::2].astype(np.float32)):
        return "ct"
    return "other" if image.grid.is_planar else "mr"


def suited(steps: Steps, image: Image, modality: str, path: Path) -> Steps:
    """The steps for this image: without those that it is not for, unless the user named them.

    Raises InputError for those.
    """
    if modality == "ct" and steps.contrast:
        raise InputError(f"{path}: is a CT, which keeps its Hounsfield units: {steps.contrast} would change them")
    if modality == "ct" and steps.bias and steps.insist:
        raise InputError(f"{path}: is a CT, which has no bias field (--modality mr where it is none)")
    if steps.network and (modality != "mr" or image.grid.is_planar):
        if steps.named:
            what = "a plane" if image.grid.is_planar else f"modality {modality}"
            raise InputError(f"{path}: the network takes volumes of MR, got {what}; --method nlm takes any image")
        steps = steps.without_network()
    if steps.bias and modality != "mr" and not steps.insist:
        steps = steps.without_bias()
    return steps


def relative_change(made: Image, image: Image) -> float:
    """Root mean square of the change over that of the image, five digits."""
    before = image.data.astype(np.float32)
    change, power = (float(np.square(x).mean(dtype=np.float64)) for x in (made.data - before, before))
    return round(math.sqrt(change / (power or 1.0)), 5)


def _check_reference(case: Case, image: Image) -> None:
    path, reference = case.inputs["reference"], case.image("reference")
    if reference.grid.digest() != image.grid.digest():
        raise InputError(f"{path}: expected the grid of {case.path.name}; medkit run register can bring it there")


def _told(story: list[dict[str, Any]]) -> str:
    done = [f"{entry['what']} by {entry['method']}" for entry in story if entry["done"]]
    return ", ".join(done) or "nothing to be done"


def _figure(image: Image, made: Image, name: str) -> np.ndarray:
    from medkit.figures import comparison_mosaic

    return comparison_mosaic(image, made, title=f"enhance  {name}")
