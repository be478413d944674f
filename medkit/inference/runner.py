"""Running the network of a MONAI bundle on a series of cases: loaded once, reading ahead while results are written.

A task plugin needs two calls in its command, which gets `chosen` from `medkit.inference.options.bundle_options`:

    run_task(bundle_task("segment", chosen.of_task("segment"), chosen.settings), options)
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import AUTO, Bundle
from medkit.bundles.contract import SUFFIX, Contract, contract_of
from medkit.errors import BundleError, MedkitError
from medkit.inference.choice import bundle_for_case, common_contract
from medkit.pipe.records import sha256_of
from medkit.run.outputs import Output
from medkit.run.task import Case, Result, Runtime, Stages, Task, Writable

if TYPE_CHECKING:
    import torch

    from medkit.inference.opened import InferenceParts
    from medkit.inference.transforms import Prepared
    from medkit.space import Grid


@dataclass(frozen=True)
class RunSettings:
    """How a bundle is run."""

    overrides: Mapping[str, Any]
    """Config id -> value (`--set`)."""
    precision: str = "auto"
    """`bf16`, `fp16`, `float32`, or `auto`: what is fast on the device."""
    memory: int | None = None
    """Bytes that this process may take in all; None: what is free on the machine."""


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
    one = len(bundles) == 1
    load = functools.partial(load_stages, bundle=bundles[0]) if one else functools.partial(load_choice, bundles=bundles)
    return Task(
        name=name,
        outputs=_outputs(contract),
        setup=functools.partial(load, settings=settings, runner=runner),
        arguments={"set": dict(settings.overrides), "precision": settings.precision},
        role=contract.keys[0],
        accepts=contract.accepts,
        memory=functools.partial(memory_needed, bundles[0], max(len(contract.classes), 1)),
        bundle=bundle_identity(bundles[0]) if one else {"name": AUTO, "among": [bundle_identity(b) for b in bundles]},
        devices=("cpu", "cuda"),
        staged=True,
    )


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


def _outputs(contract: Contract) -> tuple[Output, ...]:
    first, *others = contract.results
    extension = ".tsv" if contract.kind == "table" else ".nii.gz"
    main = Output(role_of(contract, first), contract.kind, SUFFIX[contract.kind], extension)
    more = (Output(key, contract.kind, "".join(c for c in key if c.isalnum()), extension) for key in others)
    return (main, *more)


def role_of(contract: Contract, key: str) -> str:
    """Return the name of a result among the outputs; `key`: its key in MONAI's dictionary."""
    return {"labels": "labels", "image": "image", "table": "classes"}[contract.kind] if key == "pred" else key


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
    parts = InferenceConfig(bundle, device, settings.overrides).open()
    precision = choose_precision(settings.precision, device)
    return (runner or BundleRunner)(bundle, parts, device, precision, settings.memory)


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

    def __init__(
        self, bundle: Bundle, parts: InferenceParts, device: torch.device, precision: str, limit: int | None
    ) -> None:
        import torch
        from monai.inferers import SliceInferer

        from medkit.inference.network import Network
        from medkit.inference.transforms import Postprocessing, Preprocessing
        from medkit.machine.precision import lay_channels_last

        self.bundle, self.contract, self.precision = bundle, contract_of(bundle), precision
        planes = self.contract.planar and not isinstance(parts.inferer, SliceInferer)
        if not isinstance(parts.network, torch.jit.ScriptModule):
            lay_channels_last(parts.network)
        self.preprocessing = Preprocessing(parts.preprocessing, self.contract, bundle.name, planes=planes)
        self.postprocessing = Postprocessing(parts.postprocessing, self.contract)
        self.network = Network(parts.network, parts.inferer, self.postprocessing, device, precision, limit)

    def prepare(self, case: Case) -> Prepared:
        """Read a case and run the bundle's preprocessing on it. Raises InputError and BundleError."""
        with self.errors_named("preprocessing"):
            return self.preprocessing(case)

    def compute(self, case: Case, prepared: Prepared) -> Prepared:
        """Run the network and add its answer to the item under `pred`. Raises BundleError and MemoryError."""
        with self.errors_named("network"):
            return self.network(prepared)

    def finish(self, case: Case, computed: Prepared) -> Result:
        """Run the bundle's postprocessing and make the files. Raises BundleError."""
        with self.errors_named("postprocessing"):
            item = self.postprocessing(computed)
        outputs: dict[str, Writable] = {}
        metrics: dict[str, Any] = {}
        for key in self.contract.results:
            if key not in item:
                raise BundleError(f"bundle {self.bundle.name}: returned no {key}, only {', '.join(map(str, item))}")
            outputs[role_of(self.contract, key)], found = self._output(item[key], computed.grid)
            metrics = found | metrics  # of several label maps the first one is the main output
        return Result(
            outputs,
            metrics=metrics,
            warnings=computed.warnings,
            details={"precision": self.precision} | self._names(),
            description=f"{self.bundle.name} {self.bundle.version} on {case.path.name}",
        )

    @contextlib.contextmanager
    def errors_named(self, what: str) -> Iterator[None]:
        """Turn errors of the bundle's stage `what` into a BundleError that names both, in one line."""
        from medkit.bundles.config import one_line
        from medkit.machine.memory import ran_out

        try:
            yield
        except Exception as error:
            if isinstance(error, MedkitError) or ran_out(error):
                raise
            raise BundleError(f"bundle {self.bundle.name}: {what}: {one_line(error)}") from error

    def _classes(self, table: Mapping[str, float]) -> dict[str, Any]:
        """Return the most probable class, or that of each aspect."""
        names, aspects = self.contract.classes, self.contract.aspects
        if not aspects:
            return {"class": max(table, key=lambda name: table[name])}
        best = {aspect: max((names[n] for n in own), key=lambda name: table[name]) for aspect, own in aspects.items()}
        return {"classes": best}

    def _output(self, value: Any, grid: Grid) -> tuple[Writable, dict[str, Any]]:
        from medkit.inference.outputs import to_image, to_labels, to_table
        from medkit.inference.volumes import volumes_of

        if self.contract.kind == "table":
            text, table = to_table(value, self.contract.classes, activated=self.postprocessing.activated)
            return text, {**self._classes(table), "probabilities": table}
        if self.contract.kind == "image":
            return to_image(value, grid), {}
        labels = to_labels(value, grid, f"bundle {self.bundle.name}")
        return labels, volumes_of(labels, self._names().get("labels", {}))

    def _names(self) -> dict[str, Any]:
        """Return the names of labels for the sidecar, if they are known."""
        if self.contract.kind != "labels":
            return {}
        if names := self.bundle.block.get("labels"):
            return {"labels": names}
        if not self.postprocessing.labels_are_channels:
            return {}
        return {"labels": {str(n): name for n, name in self.contract.classes.items() if n}}


RunnerFactory = Callable[[Bundle, "InferenceParts", "torch.device", str, int | None], BundleRunner]
"""Make a runner from a loaded bundle, its parts, the device, the precision and the memory limit in bytes."""
