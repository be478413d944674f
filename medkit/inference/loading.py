"""Loading bundles: how they are run, what computes their networks, and which one of several takes a case."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import AUTO, Bundle
from medkit.bundles.contract import contract_of
from medkit.errors import BundleError, UsageError, listed
from medkit.inference.backends import TORCH
from medkit.inference.choice import bundle_for_case
from medkit.inference.prompts import Prompts, prompts_of
from medkit.inference.runner import BundleRunner, LoadedBundle
from medkit.pipe.records import sha256_of
from medkit.run.task import Case, Result, Runtime, Stages

if TYPE_CHECKING:
    import torch

    from medkit.inference.backend_choice import Asked

log = logging.getLogger("medkit")

RunnerFactory = Callable[[LoadedBundle], BundleRunner]
"""Makes a runner of a loaded bundle."""


@dataclass(frozen=True)
class RunSettings:
    """How a bundle is run."""

    overrides: Mapping[str, Any]
    """Config id -> value (`--set`)."""
    precision: str = "auto"
    """`bf16`, `fp16`, `float32`, or `auto`: what is fast on the device."""
    memory: int | None = None
    """Bytes that this process may take in all; None: what is free on the machine."""
    probabilities: bool = False
    """Whether a segmentation also returns the probabilities that its labels are made of."""
    min_score: float | None = None
    """The lowest score of boxes that are kept; None: as the bundle decides."""
    sees_layers: bool = False
    """Whether a task looks into networks: that of a file in TorchScript or torch.export is built again by its config,
    where that is possible, because a program does not show its layers."""
    backend: str | None = None
    """`torch`, `onnxruntime`, `openvino` or `auto`; None: torch, or what is installed for a network in ONNX."""


def bundle_identity(bundle: Bundle) -> dict[str, Any]:
    """Return a bundle's entry in sidecars: its name, its version and the digests of its weights and configs."""
    return {
        "name": bundle.name,
        "version": bundle.version,
        "weights_sha256": sha256_of(bundle.root / "models") if (bundle.root / "models").is_dir() else None,
        "configs_sha256": sha256_of(bundle.root / "configs"),
    }


def load_stages(
    runtime: Runtime, *, bundle: Bundle, settings: RunSettings, runner: RunnerFactory | None = None
) -> Stages:
    """Load a bundle and return the three stages of its work on a case. Raises what `open_bundle` raises."""
    loaded = open_bundle(runtime, bundle, settings, runner)
    return Stages(loaded.prepare, loaded.compute, loaded.finish, loaded.together)


def open_bundle(
    runtime: Runtime, bundle: Bundle, settings: RunSettings, runner: RunnerFactory | None = None
) -> BundleRunner:
    """Load a bundle, whose code is trusted. Raises BundleError, and WeightsMissingError if it has no weights."""
    from medkit.inference.opened import InferenceConfig
    from medkit.machine.precision import choose_device, choose_precision

    device = choose_device(runtime.device)
    prompts = prompts_of(bundle, contract_of(bundle), settings.overrides) if runner is None else Prompts()
    ids = {name: value for name, value in settings.overrides.items() if name not in prompts.given}
    if prompts.given:
        names = listed(list(prompts.given))
        log.warning("bundle %s: %s is no id of its config: its code gets it with each image", bundle.name, names)
    config = InferenceConfig(bundle, device, ids)
    reason = config.own_evaluator()
    if reason and runner is not None:
        raise BundleError(
            f"{config.path}: {reason}, which decides how the network is called; only medkit run bundle runs it"
        )
    parts = config.open_evaluator() if reason else config.open(sees_layers=settings.sees_layers)
    precision = choose_precision(settings.precision, device)
    loaded = (runner or BundleRunner)(LoadedBundle(bundle, parts, device, precision, settings.memory))
    loaded.preprocessing.prompts = prompts
    loaded.postprocessing.keeps_probabilities = settings.probabilities
    loaded.min_score = settings.min_score
    loaded.network.backend = _backend(loaded, settings, device, precision)
    return loaded


def _backend(loaded: BundleRunner, settings: RunSettings, device: torch.device, precision: str) -> Asked:
    """Return what computes a loaded bundle's network. Raises UsageError if what the user asked for cannot."""
    from medkit.inference.backend_choice import asked_for

    bundle, network = loaded.bundle, loaded.network
    asked = asked_for(settings.backend, network.network, device, settings.precision, precision)
    if asked.backend != TORCH and (reason := loaded.only_torch):
        if settings.backend != AUTO:
            raise UsageError(f"--backend {asked.backend}: bundle {bundle.name}: {reason}; torch computes it")
        asked = replace(asked, backend=TORCH)
    if asked.backend != AUTO:
        return asked
    labels = loaded.contract.kind == "labels" and loaded.postprocessing.picks_largest
    changed = {"configs": list(bundle.configs), "set": dict(settings.overrides)}
    return replace(asked, identity=bundle_identity(bundle) | changed, labels=labels)


def load_choice(
    runtime: Runtime, *, bundles: Sequence[Bundle], settings: RunSettings, runner: RunnerFactory | None = None
) -> Stages:
    """Return the three stages of the work on a case by the bundle that fits it, loaded when a case first needs it."""
    loaded: dict[str, tuple[Stages, dict[str, Any]]] = {}

    def prepare(case: Case) -> tuple[Stages, Mapping[str, Any], Any]:
        bundle, reason = bundle_for_case(case, bundles)
        if bundle.name not in loaded:
            stages = load_stages(runtime, bundle=bundle, settings=settings, runner=runner)
            # the digests of its identity need all weights to be read: once, not for every case
            loaded[bundle.name] = (stages, bundle_identity(bundle))
        stages, identity = loaded[bundle.name]
        return stages, {"choice": identity | {"reason": reason}}, stages.prepare(case)

    def compute(case: Case, value: Any) -> Any:
        stages, choice, prepared = value
        return stages, choice, stages.compute(case, prepared)

    def together(cases: Sequence[Case], values: Sequence[Any]) -> Sequence[Any]:
        first = values[0][0]
        if first.together is None or any(stages is not first for stages, _, _ in values):
            return [compute(case, value) for case, value in zip(cases, values, strict=True)]
        done = first.together(cases, [prepared for _, _, prepared in values])
        return [(first, choice, result) for (_, choice, _), result in zip(values, done, strict=True)]

    def finish(case: Case, value: Any) -> Result:
        stages, choice, computed = value
        result: Result = stages.finish(case, computed)
        return replace(result, details={**result.details, **choice})

    return Stages(prepare, compute, finish, together)
