"""A loaded bundle, from a case to its result; reading, computing and writing are calls of their own."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import Bundle
from medkit.bundles.contract import PLACES, Contract, OutputKind, contract_of
from medkit.bundles.requirements import explained
from medkit.errors import BundleError, MedkitError, listed
from medkit.run.outputs import Output
from medkit.run.task import Case, Result, Writable

if TYPE_CHECKING:
    import torch

    from medkit.inference.opened import InferenceParts
    from medkit.inference.transforms import Prepared
    from medkit.space import Grid


log = logging.getLogger("medkit")

PROBABILITIES = Output("probabilities", "image", "probseg")


@dataclass(frozen=True)
class LoadedBundle:
    """What a runner is made of."""

    bundle: Bundle
    parts: InferenceParts
    """The objects of its config."""
    device: torch.device
    precision: str
    """`bf16`, `fp16` or `float32`."""
    limit: int | None = None
    """Bytes that this process may take in all; None: what is free on the machine."""


class BundleRunner:
    """A loaded bundle. Its methods `prepare`, `compute` and `finish` may run at once, each in a thread of its own."""

    together: Callable[[Sequence[Case], Sequence[Any]], Sequence[Any]] | None = None
    """`compute` for several cases at once, in a task whose cases are small."""
    prepares_for_task = False
    """Whether the runner is that of the task that the bundle is for; else errors advise to take the task's command."""
    only_torch: str | None = None
    """Why only torch can compute the network, in words; None if other libraries can too."""

    def __init__(self, loaded: LoadedBundle) -> None:
        import torch

        from medkit.inference import places
        from medkit.inference.evaluator import EvaluatorNetwork
        from medkit.inference.network import Network
        from medkit.inference.transforms import Postprocessing, Preprocessing
        from medkit.machine.precision import lay_channels_last

        bundle, parts = loaded.bundle, loaded.parts
        self.bundle, self.contract, self.device = bundle, contract_of(bundle), loaded.device
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
        self.network: Network = kind(
            parts.network, parts.inferer, self.postprocessing, loaded.device, loaded.precision, loaded.limit
        )
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
        with self.errors_named("preprocessing", None, case):
            return self.preprocessing(case)

    def compute(self, case: Case, prepared: Prepared) -> Prepared:
        """Run the network and add its answer to the item under `pred`. Raises BundleError and MemoryError.

        A network that draws random numbers, as diffusion models do, draws the same for each case, so that no result
        depends on the cases before it.
        """
        import torch

        torch.manual_seed(case.runtime.seed)
        with self.errors_named("network", tuple(prepared.item["image"].shape), case):
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
    def errors_named(self, what: str, shape: tuple[int, ...] | None = (), case: Case | None = None) -> Iterator[None]:
        """Turn errors of the bundle's stage `what` into a BundleError that names both, in one line.

        `shape`: of the prepared image, (C, I, J, K); None if it could not be prepared, () if that does not matter.
        `case`: the one at hand, whose image may be the reason.
        """
        from medkit.inference.hints import hints
        from medkit.inference.inputs import is_picture
        from medkit.machine.memory import ran_out

        try:
            yield
        except Exception as error:
            if isinstance(error, MedkitError) or ran_out(error):
                raise
            text = explained(error, self.bundle)
            planes = self.preprocessing.reader.planar
            task = None if self.prepares_for_task else self.bundle.task
            grid = None if case is None or is_picture(case.path) else case.image().grid
            more = "" if shape == () else hints(text, self.contract, shape, task=task, planes=planes, grid=grid)
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


def role_of(contract: Contract, key: str) -> str:
    """Return the name of a result among the outputs; `key`: its key in MONAI's dictionary."""
    if key != "pred":
        return key
    return "classes" if contract.kind == "table" else contract.kind
