"""What `enhance` does with each image: decide which steps it needs, run them, and keep its grid, scale and type."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError
from medkit.scanner import Noise, estimate, span
from medkit.task import Case, Result, Runtime, Stages
from medkit_enhance import bias, contrast, denoise
from medkit_enhance.methods import EnhanceSteps

if TYPE_CHECKING:
    from medkit.images import Image

CONTRASTS = {
    "clahe": contrast.by_clahe,
    "gamma": contrast.by_gamma,
    "homomorphic": contrast.by_homomorphic,
    "butterworth": contrast.by_butterworth,
}
"""Method -> function that strengthens contrast."""


def set_up(
    runtime: Runtime,
    *,
    steps: EnhanceSteps,
    modality: str,
    difference: bool,
    network: Callable[[Runtime], Any] | None = None,
    field_only: Callable[[Runtime], Any] | None = None,
) -> Stages:
    """Load the network if it does some of the steps, and return the three stages of the work on a case.

    `modality` and `difference` are as in `EnhanceChoices`. `field_only` loads the network for images without noise,
    when the first of them comes.
    """
    loaded = network(runtime) if network else None
    loaded_field_only = functools.cache(functools.partial(field_only, runtime)) if field_only else None
    enhancer = Enhancer(steps, modality, difference, runtime.threads, loaded, loaded_field_only)
    return Stages(enhancer.prepare, enhancer.compute, enhancer.finish)


@dataclass
class EnhanceWork:
    """A case between its stages."""

    image: Image
    steps: EnhanceSteps
    modality: str
    noise: Noise
    stages: Stages | None = None
    """The network's stages; None where it has nothing to do."""
    handed_on: Any = None
    """What the network's stages hand to each other."""
    done: list[dict[str, Any]] = field(default_factory=list)
    """For the sidecar: each step in order, with the reason if it was left out."""


@dataclass(frozen=True)
class Enhancer:
    """The settings of a run: enhances one case at a time."""

    steps: EnhanceSteps
    modality: str
    difference: bool
    threads: int
    network: Stages | None = None
    field_only: Callable[[], Stages] | None = None
    """Returns the network's stages for images without noise."""

    def prepare(self, case: Case) -> EnhanceWork:
        """Read an image and decide what it needs. Raises InputError for a step that cannot be applied to it."""
        image = case.image(blended=True)
        if "reference" in case.inputs:
            _check_reference(case, image)
        modality = self.modality if self.modality != "auto" else modality_of(image)
        noise = estimate(_values(image))
        work = EnhanceWork(image, suited(self.steps, image, modality, case.path), modality, noise)
        work.stages = self._network_stages(work)
        if work.stages:
            work.handed_on = work.stages.prepare(case)
        return work

    def _network_stages(self, work: EnhanceWork) -> Stages | None:
        """Return the network's stages for this image; None if the network has nothing to do."""
        if not work.steps.network or (work.noise.negligible and work.steps.denoise and work.steps.bias != "network"):
            return None
        return self.field_only() if self.field_only and work.noise.negligible else self.network

    def compute(self, case: Case, work: EnhanceWork) -> EnhanceWork:
        """Run the network."""
        if work.stages:
            work.handed_on = work.stages.compute(case, work.handed_on)
        return work

    def finish(self, case: Case, work: EnhanceWork) -> Result:
        """Run the other methods and return the result."""
        image = work.image
        network = work.stages.finish(case, work.handed_on) if work.stages else None
        parts: Any = network.outputs["image"] if network else None
        values = self._enhanced(_values(image), work, parts)
        made = image if values is None else image.like(values.reshape(image.data.shape))
        outputs = {"image": made}
        if self.difference:
            outputs["difference"] = image.with_data(made.data.astype(np.float32) - image.data)
        return Result(
            outputs,
            metrics=_metrics(case, work, made),
            warnings=network.warnings if network else (),
            details={
                **(network.details if network else {}),
                "enhancement": {"modality": work.modality, "steps": work.done},
            },
            description=f"{case.path.name} enhanced: {summary_of(work.done)}",
            figure=functools.partial(_figure, image, made, f"enhance  {case.path.name}  {summary_of(work.done)}"),
        )

    def _enhanced(self, values: np.ndarray, work: EnhanceWork, parts: Image | None) -> np.ndarray | None:
        """Return the enhanced image, float32; None where nothing was to be done. `parts` is the network's output."""
        spacing = work.image.grid.spacing[[size > 1 for size in work.image.grid.shape]]
        found = None
        if work.steps.image:
            assert parts is not None
            work.done.append({"what": "image", "method": work.steps.image, "done": True})
            found = parts.data[0].reshape(values.shape)
        if work.steps.denoise:
            found = self._denoised(values, work, parts)
        if work.steps.bias:
            unbiased = self._unbiased(values if found is None else found, spacing, work, parts)
            found = found if unbiased is None else unbiased
        if work.steps.contrast:
            found = CONTRASTS[work.steps.contrast](values, spacing)
            work.done.append({"what": "contrast", "method": work.steps.contrast, "done": True})
        return found

    def _denoised(self, values: np.ndarray, work: EnhanceWork, parts: Image | None) -> np.ndarray | None:
        """Return the image without noise; None if the noise is negligible."""
        entry: dict[str, Any] = {"what": "denoise", "method": work.steps.denoise, "done": not work.noise.negligible}
        work.done.append(entry)
        if work.noise.negligible:
            least = min(level for level in (work.noise.relative, work.noise.quiet) if level is not None)
            entry["reason"] = f"noise of {100 * least:.2g} % of the range is left alone"
            return None
        if work.steps.denoise == "network":
            assert parts is not None
            found: np.ndarray = parts.data[0].reshape(values.shape)
            return found
        return (denoise.by_bm4d if work.steps.denoise == "bm4d" else denoise.by_nlm)(values, work.noise)

    def _unbiased(
        self, values: np.ndarray, spacing: np.ndarray, work: EnhanceWork, parts: Image | None
    ) -> np.ndarray | None:
        """Return the image without bias field; None if the field is weak."""
        method = work.steps.bias
        # a field multiplies: intensities that start below 0 are counted from the lowest ones
        low = min(span(work.image.data)[0], 0.0)
        if low < 0:
            values = values - np.float32(low)
        if method == "network":
            assert parts is not None
            log_field = parts.data[1].reshape(values.shape)
        elif method == "n4":
            log_field = bias.by_n4(values, spacing, self.threads)
        else:
            log_field = bias.by_homomorphic(values, spacing)
        strength = bias.strength(log_field, values)
        weak = strength < bias.WEAK
        work.done.append({"what": "bias", "method": method, "done": not weak, "strength": round(strength, 4)})
        if weak:
            work.done[-1]["reason"] = f"a field that varies by {100 * strength:.2g} % is left alone"
            return None
        found = bias.corrected(values, log_field)
        return found + np.float32(low) if low < 0 else found


def modality_of(image: Image) -> str:
    """Return `ct` for Hounsfield units; else `mr` for volumes, and `other` for planes, which may be anything."""
    from medkit.images import is_ct

    if is_ct(image.data[0][::2, ::2].astype(np.float32)):
        return "ct"
    return "other" if image.grid.is_planar else "mr"


def suited(steps: EnhanceSteps, image: Image, modality: str, path: Path) -> EnhanceSteps:
    """Return the steps without those that do not suit this image.

    Raises InputError for a step that does not suit it and that the user asked for.
    """
    if modality == "ct" and steps.contrast:
        raise InputError(f"{path}: is a CT, which keeps its Hounsfield units: {steps.contrast} would change them")
    if modality == "ct" and steps.bias and steps.insist:
        raise InputError(f"{path}: is a CT, which has no bias field (--modality mr if it is not a CT)")
    if steps.network and (modality != "mr" or image.grid.is_planar):
        if steps.named:
            what = "a plane" if image.grid.is_planar else f"modality {modality}"
            raise InputError(f"{path}: the network takes volumes of MR, got {what}; --method nlm takes any image")
        steps = steps.without_network()
    if steps.bias and modality != "mr" and not steps.insist:
        steps = steps.without_bias()
    return steps


def relative_change(made: Image, image: Image) -> float:
    """Return the root mean square of the change over that of the image, with five digits."""
    before = image.data.astype(np.float32)
    change, power = (float(np.square(x).mean(dtype=np.float64)) for x in (made.data - before, before))
    return round(math.sqrt(change / (power or 1.0)), 5)


def _metrics(case: Case, work: EnhanceWork, made: Image) -> dict[str, Any]:
    """Return the noise before and after, the change, and the scores against a reference where there is one."""
    metrics: dict[str, Any] = {
        "noise": {"before": work.noise.rounded(), "after": estimate(_values(made)).rounded()},
        "change": relative_change(made, work.image),
    }
    if "reference" in case.inputs:
        from medkit.evaluation import rounded_scores

        metrics["before"] = rounded_scores(work.image, case.image("reference"))
        metrics["after"] = rounded_scores(made, case.image("reference"))
    return metrics


def _values(image: Image) -> np.ndarray:
    """Return the first channel without axes of one voxel: (I, J, K), or (I, J) of a plane."""
    return image.data[0].squeeze() if image.grid.is_planar else image.data[0]


def _check_reference(case: Case, image: Image) -> None:
    path, reference = case.inputs["reference"], case.image("reference")
    if reference.grid.digest() != image.grid.digest():
        raise InputError(f"{path}: expected the grid of {case.path.name}; medkit run register can bring it there")


def summary_of(done: Sequence[Mapping[str, Any]]) -> str:
    """Return in words which steps were done; if none was, why the image is as it was."""
    names = [f"{entry['what']} by {entry['method']}" for entry in done if entry["done"]]
    if names:
        return ", ".join(names)
    reasons = [f"{entry['what']}: {entry['reason']}" for entry in done if entry.get("reason")]
    return f"unchanged ({'; '.join(reasons) or 'no step suits it'})"


def _figure(image: Image, made: Image, title: str) -> np.ndarray:
    from medkit.figures import comparison_mosaic

    return comparison_mosaic(image, made, title=title)
