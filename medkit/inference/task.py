"""Running the network of a MONAI bundle on a series of cases: loaded once, reading ahead while results are written.

A task plugin needs two calls in its command, which gets `chosen` from `medkit.inference.options.bundle_options`:

    run_task(bundle_task("segment", chosen.of_task("segment"), chosen.settings), options)
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import AUTO, INFERENCE, Bundle
from medkit.bundles.contract import PLACES, SUFFIX, Contract, OutputKind, contract_of
from medkit.bundles.requirements import version_notes
from medkit.errors import UsageError
from medkit.inference.choice import common_contract
from medkit.inference.loading import RunnerFactory, RunSettings, bundle_identity, load_choice, load_stages
from medkit.inference.prompts import prompts_of
from medkit.inference.runner import PROBABILITIES, role_of
from medkit.pipe.records import Record
from medkit.run.outputs import Output
from medkit.run.task import Task
from medkit.transforms.points import POINT_SUFFIXES

if TYPE_CHECKING:
    from medkit.space import Grid

log = logging.getLogger("medkit")

EXTENSION: Mapping[OutputKind, str] = {
    "labels": ".nii.gz", "image": ".nii.gz", "table": ".tsv", "boxes": ".tsv", "points": ".tsv",
}  # fmt: skip
"""Kind of output -> suffix of its file."""


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
