"""Running the network of a MONAI bundle on a series of cases: loaded once, reading ahead while results are written.

A task plugin needs two calls in its command, which gets `chosen` from `medkit.inference.options.bundle_options`:

    run_task(bundle_task("segment", chosen.of_task("segment"), chosen.settings), options)
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import AUTO, INFERENCE, Bundle
from medkit.bundles.contract import PLACES, SUFFIX, Contract, OutputKind, contract_of
from medkit.bundles.requirements import explained, version_notes
from medkit.errors import BundleError, MedkitError, UsageError, listed
from medkit.inference.backends import TORCH
from medkit.inference.choice import bundle_for_case, common_contract
from medkit.inference.prompts import Prompts, prompts_of
from medkit.pipe.records import Record, sha256_of
from medkit.run.outputs import Output
from medkit.run.task import Case, Result, Runtime, Stages, Task, Writable
from medkit.transforms.points import POINT_SUFFIXES

if TYPE_CHECKING:
    import torch

    from medkit.inference.backend_choice import Asked
    from medkit.inference.opened import InferenceParts
    from medkit.inference.transforms import Prepared
    from medkit.space import Grid


log = logging.getLogger("medkit")

EXTENSION: Mapping[OutputKind, str] = {
    "labels": ".nii.gz", "image": ".nii.gz", "table": ".tsv", "boxes": ".tsv", "points": ".tsv",
}  # fmt: skip
"""Kind of output -> suffix of its file."""
PROBABILITIES = Output("probabilities", "image", "probseg")


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
    backend: str | None = None
    """`torch`, `onnxruntime`, `openvino` or `auto`; None: torch, or what is installed for a network in ONNX."""


def bundle_task(
    name: str, bundles: Sequence[Bundle], settings: RunSettings, *, runner: RunnerFactory | None = None
) -> Task:
    """Return the task of running bundles, whose code is trusted (see `medkit.bundles.bundle.candidate_bundles`).

    With several bundles each case gets the one that fits it (see `medkit.inference.choice`). `runner`, picklable, makes
    a loaded bundle's runner, for a task that adds to a bundle's results. Raises BundleError, with the reason, if medkit
    cannot run a bundle, and UsageError if the bundles return different files. No code of a bundle runs before the first
    case.
    """
    contract = common_contract(name, bundles)
    if settings.probabilities and contract.kind != "labels":
        raise UsageError(f"--probabilities: bundle {bundles[0].name} returns no labels that are made of probabilities")
    if settings.min_score is not None and contract.kind != "boxes":
        raise UsageError(f"--min-score: bundle {bundles[0].name} finds no boxes, which have scores")
    for bundle in bundles:
        for note in version_notes(bundle) if bundle.distribution is None else ():
            log.warning("bundle %s: %s", bundle.name, note)
    one = len(bundles) == 1
    load = functools.partial(load_stages, bundle=bundles[0]) if one else functools.partial(load_choice, bundles=bundles)
    return Task(
        name=name,
        outputs=_outputs(contract, settings.probabilities),
        setup=functools.partial(load, settings=settings, runner=runner),
        arguments={"set": dict(settings.overrides), "precision": settings.precision, **_further(bundles, settings)},
        modalities=_modalities(bundles),
        planes=any(contract_of(bundle).planar for bundle in bundles),
        role=contract.keys[0],
        accepts=contract.accepts,
        memory=functools.partial(memory_needed, bundles[0], max(len(contract.classes), 1)),
        bundle=bundle_identity(bundles[0]) if one else {"name": AUTO, "among": [bundle_identity(b) for b in bundles]},
        devices=("cpu", "cuda"),
        staged=True,
        reads=prompts_of(bundles[0], contract, settings.overrides).of_record if one and runner is None else None,
        summary=_count_found if contract.kind in PLACES else None,
    )


def _count_found(record: Record) -> str:
    """Return how many boxes or points were found in a case, for its progress line."""
    found = record.medkit.get("metrics") or {}
    if "points" in found:
        return f"{found['points']} points" if found["points"] != 1 else "1 point"
    best = f", highest score {found['highest_score']:.2f}" if "highest_score" in found else ""
    return (f"{found.get('boxes', 0)} boxes" if found.get("boxes") != 1 else "1 box") + best


def _modalities(bundles: Sequence[Bundle]) -> tuple[str, ...]:
    """Return the modalities of the images that bundles take; none if one of them takes any."""
    stated = [bundle.modality for bundle in bundles if "image" in bundle.kinds]
    return tuple(dict.fromkeys(name for name in stated if name)) if all(stated) else ()


def _further(bundles: Sequence[Bundle], settings: RunSettings) -> dict[str, Any]:
    """Return the arguments for sidecars that are not the usual ones."""
    configs = {"config": list(bundles[0].configs)} if bundles[0].configs != (INFERENCE,) else {}
    score = {"min_score": settings.min_score} if settings.min_score is not None else {}
    backend = {"backend": settings.backend} if settings.backend is not None else {}
    return configs | ({"probabilities": True} if settings.probabilities else {}) | score | backend


def bundle_identity(bundle: Bundle) -> dict[str, Any]:
    """Return a bundle's entry in sidecars: its name, its version and the digests of its weights and configs."""
    return {
        "name": bundle.name,
        "version": bundle.version,
        "weights_sha256": sha256_of(bundle.root / "models") if (bundle.root / "models").is_dir() else None,
        "configs_sha256": sha256_of(bundle.root / "configs"),
    }


def memory_needed(bundle: Bundle, channels: int, grid: Grid) -> int:
    """Return roughly how many bytes an image on `grid` takes; how finely the bundle resamples it is not known yet."""
    from medkit.inference.memory import rough_estimate

    weights = sum(p.stat().st_size for p in (bundle.root / "models").glob("*") if p.is_file())
    return rough_estimate(channels, weights, math.prod(grid.shape))


def _outputs(contract: Contract, probabilities: bool) -> tuple[Output, ...]:
    first, *others = contract.results
    # the centres of boxes are points, so that tasks which take points take them
    kind = "points" if contract.kind in PLACES else contract.kind
    formats = {"boxes": (".tsv", ".csv"), "points": POINT_SUFFIXES}.get(contract.kind, ())
    suffix, extension = SUFFIX[contract.kind], EXTENSION[contract.kind]
    main = Output(role_of(contract, first), kind, suffix, extension, extensions=formats)
    more = [Output(key, contract.kinds[key], contract.suffixes[key], EXTENSION[contract.kinds[key]]) for key in others]
    return (main, *more, *([PROBABILITIES] if probabilities else []))


def role_of(contract: Contract, key: str) -> str:
    """Return the name of a result among the outputs; `key`: its key in MONAI's dictionary."""
    if key != "pred":
        return key
    return "classes" if contract.kind == "table" else contract.kind


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
    parts = config.open_evaluator() if reason else config.open()
    precision = choose_precision(settings.precision, device)
    loaded = (runner or BundleRunner)(bundle, parts, device, precision, settings.memory)
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


class BundleRunner:
    """A loaded bundle. Its methods `prepare`, `compute` and `finish` may run at once, each in a thread of its own."""

    together: Callable[[Sequence[Case], Sequence[Any]], Sequence[Any]] | None = None
    """`compute` for several cases at once, in a task whose cases are small."""
    only_torch: str | None = None
    """Why only torch can compute the network, in words; None if other libraries can too."""

    def __init__(
        self, bundle: Bundle, parts: InferenceParts, device: torch.device, precision: str, limit: int | None
    ) -> None:
        import torch

        from medkit.inference import places
        from medkit.inference.evaluator import EvaluatorNetwork
        from medkit.inference.network import Network
        from medkit.inference.transforms import Postprocessing, Preprocessing
        from medkit.machine.precision import lay_channels_last

        self.bundle, self.contract = bundle, contract_of(bundle)
        planes = self.contract.planar and not hasattr(parts.inferer, "spatial_dim")
        if parts.evaluator is not None:
            self.only_torch = "its own evaluator calls the network"
        elif isinstance(parts.network, torch.nn.Module) and not isinstance(parts.network, torch.jit.ScriptModule):
            lay_channels_last(parts.network)
        self.preprocessing = Preprocessing(
            parts.preprocessing, self.contract, bundle.name, planes=planes, task=bundle.task
        )
        if left_out := [key for key in parts.saved if key not in (*self.contract.results, *self.contract.keys)]:
            log.warning("bundle %s: also saves %s, which medkit does not write", bundle.name, listed(left_out))
        steps, self.form = places.steps_of(parts.postprocessing, bundle, self.contract)
        self.min_score: float | None = None
        self.postprocessing = Postprocessing(steps, self.contract)
        if self.preprocessing.left_out and self.postprocessing.inverts:
            names = listed(self.preprocessing.left_out)
            raise BundleError(f"bundle {bundle.name}: inverts {names}, by which results would depend on chance")
        kind = Network if parts.evaluator is None else functools.partial(EvaluatorNetwork, parts.evaluator)
        if self.contract.kind == "boxes":
            places.compute_boxes_in_float32(parts.network)
        self.network: Network = kind(parts.network, parts.inferer, self.postprocessing, device, precision, limit)
        stated = (bundle.block.get("export") or {}).get("memory")
        if stated and "export" in bundle.block:
            self.network.stated = float(stated["bytes_per_voxel"]), int(stated["channels"])

    @property
    def precision(self) -> str:
        """What the network computes with: `bf16`, `fp16` or `float32`."""
        return self.network.precision

    @property
    def details(self) -> dict[str, Any]:
        """What computed the network, for the sidecar: `precision`, `backend`."""
        return self.network.facts

    def prepare(self, case: Case) -> Prepared:
        """Read a case and run the bundle's preprocessing on it. Raises InputError and BundleError."""
        with self.errors_named("preprocessing", None):
            return self.preprocessing(case)

    def compute(self, case: Case, prepared: Prepared) -> Prepared:
        """Run the network and add its answer to the item under `pred`. Raises BundleError and MemoryError."""
        with self.errors_named("network", tuple(prepared.item["image"].shape)):
            return self.network(prepared)

    def finish(self, case: Case, computed: Prepared) -> Result:
        """Run the bundle's postprocessing and make the files. Raises BundleError."""
        if self.contract.kind in PLACES:
            from medkit.inference import places

            with self.errors_named("postprocessing"):
                answer = places.found_in(computed, self.postprocessing, self.bundle, self.contract, self.form)
            result = places.result_of(answer, case, computed.grid, self.bundle, self.min_score)
            details = self.details
            return replace(result, warnings=(*computed.warnings, *result.warnings), details=details)
        with self.errors_named("postprocessing"):
            item = self.postprocessing(computed)
        outputs: dict[str, Writable] = {}
        metrics: dict[str, Any] = {}
        for key in self.contract.results:
            if key not in item:
                raise BundleError(f"bundle {self.bundle.name}: returned no {key}, only {', '.join(map(str, item))}")
            kind = self.contract.kinds.get(key, self.contract.kind)
            outputs[role_of(self.contract, key)], found = self._output(item[key], computed.grid, kind)
            metrics = found | metrics  # of several label maps the first one is the main output
        if self.postprocessing.keeps_probabilities:
            with self.errors_named("probabilities"):
                outputs[PROBABILITIES.role] = self._probabilities(computed)
        return Result(
            outputs,
            metrics=metrics,
            warnings=computed.warnings,
            details=self.details | self._names(),
            description=f"{self.bundle.name} {self.bundle.version} on {case.path.name}",
        )

    @contextlib.contextmanager
    def errors_named(self, what: str, shape: tuple[int, ...] | None = ()) -> Iterator[None]:
        """Turn errors of the bundle's stage `what` into a BundleError that names both, in one line.

        `shape`: of the prepared image, (C, I, J, K); None if it could not be prepared, () if that does not matter.
        """
        from medkit.inference.hints import hints
        from medkit.machine.memory import ran_out

        try:
            yield
        except Exception as error:
            if isinstance(error, MedkitError) or ran_out(error):
                raise
            text = explained(error, self.bundle)
            planes = self.preprocessing.reader.planar
            more = "" if shape == () else hints(text, self.contract, shape, task=self.bundle.task, planes=planes)
            raise BundleError(f"bundle {self.bundle.name}: {what}: {text}{more}") from error

    def _classes(self, table: Mapping[str, float]) -> dict[str, Any]:
        """Return the most probable class, or that of each aspect."""
        names, aspects = self.contract.classes, self.contract.aspects
        if not aspects:
            return {"class": max(table, key=lambda name: table[name])}
        best = {aspect: max((names[n] for n in own), key=lambda name: table[name]) for aspect, own in aspects.items()}
        return {"classes": best}

    def _probabilities(self, computed: Prepared) -> Writable:
        from medkit.inference.outputs import to_image

        return to_image(self.postprocessing.probabilities(computed), computed.grid)

    def _output(self, value: Any, grid: Grid, kind: OutputKind) -> tuple[Writable, dict[str, Any]]:
        from medkit.inference.outputs import to_image, to_labels, to_table
        from medkit.inference.volumes import volumes_of

        if kind == "table":
            text, table = to_table(value, self.contract.classes, activated=self.postprocessing.activated)
            return text, {**self._classes(table), "probabilities": table}
        if kind == "image":
            return to_image(value, grid), {}
        labels = to_labels(value, grid, f"bundle {self.bundle.name}")
        return labels, volumes_of(labels, self._names().get("labels", {}))

    def _names(self) -> dict[str, Any]:
        """Return the names of labels for the sidecar, if they are known."""
        if self.contract.kind != "labels":
            return {}
        if names := self.bundle.block.get("labels"):
            return {"labels": names}
        if not (self.postprocessing.labels_are_channels or self.contract.numbers):
            return {}
        return {"labels": {str(n): name for n, name in self.contract.classes.items() if n}}


RunnerFactory = Callable[[Bundle, "InferenceParts", "torch.device", str, int | None], BundleRunner]
"""Make a runner from a loaded bundle, its parts, the device, the precision and the memory limit in bytes."""
