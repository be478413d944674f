"""Running a bundle on images as they are and under every shift, and what that costs its metric."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import Bundle
from medkit.bundles.contract import contract_of
from medkit.errors import InputError, MedkitError, UsageError
from medkit.evaluation.bootstrap import Estimate, estimates
from medkit.evaluation.classes.metrics import INFLATED
from medkit.evaluation.classes.predictions import Prediction
from medkit.evaluation.classes.run import gathered
from medkit.evaluation.results import EvaluationSettings
from medkit.inference.runner import RunSettings, bundle_task, open_bundle, role_of
from medkit.options import RunOptions
from medkit.pipe.records import Record
from medkit.robustness.corruptions import SHIFTS, Corruption
from medkit.robustness.inputs import Spoiler, files_of_case
from medkit.robustness.scores import KINDS, MEASURES, Score, Scorer, difference, measure_of
from medkit.run.outputs import Targets
from medkit.run.task import Case, CasePlan
from medkit.run.worker import CaseWorker, explain

if TYPE_CHECKING:
    from medkit.inference.transforms import Prepared

AS_IT_IS = ("none", 0.0)
"""What stands for the images as they are, in place of a shift and its strength."""

Key = tuple[str, float]
"""A shift's name and its strength."""


@dataclass(frozen=True)
class Item:
    """A case and what its result is compared with."""

    record: Record
    reference: str
    """The path of a label image or an image, or a class."""


@dataclass(frozen=True)
class CorruptionRow:
    """A bundle's metric under a shift."""

    shift: str
    strength: float
    n: int
    """Cases that gave a result both as they are and so."""
    values: Mapping[str, Estimate]
    """Measure -> its value; `fall_<measure>` -> by how much it is worse than on the same images as they are."""


@dataclass(frozen=True)
class Robustness:
    """What shifts cost a bundle."""

    bundle: str
    """Its name and version."""
    settings: EvaluationSettings
    rows: tuple[CorruptionRow, ...]
    """The images as they are, then every shift from little to much."""
    failures: Sequence[str] = field(default_factory=list)
    """A sentence for every case that gave no result, under a shift or at all."""


def shifts_for(kind: str, names: Sequence[str] = ()) -> tuple[Corruption, ...]:
    """The shifts of that name, or all that fit a kind of result: attacks are for classes. Raises UsageError."""
    fitting = {name: shift for name, shift in SHIFTS.items() if shift.spoil or kind == "classes"}
    for name in names:
        if name not in fitting:
            known = ", ".join(fitting)
            raise UsageError(f"--shifts {name}: expected some of {known}, for a bundle that gives {kind}")
    return tuple(fitting[name] for name in names or fitting)


def kind_of(bundle: Bundle) -> str:
    """The kind of evaluation for what a bundle gives: labels, images or classes. Raises BundleError."""
    return KINDS[contract_of(bundle).kind]


def classes_of(bundle: Bundle, aspect: str | None) -> tuple[int, ...]:
    """The channels of the classes that an aspect is about; none for all. Raises UsageError, BundleError."""
    aspects = contract_of(bundle).aspects
    if aspect not in aspects and (aspect is not None or aspects):
        said = ", ".join(aspects) or "one thing alone of an image"
        raise UsageError(f"--aspect {aspect or 'is missing'}: the bundle says {said}")
    return aspects[aspect] if aspect else ()


def measure(
    items: Sequence[Item],
    bundle: Bundle,
    settings: EvaluationSettings,
    how: RunSettings,
    shifts: Sequence[Corruption],
    options: RunOptions,
    tell: Callable[[str], None] = lambda line: None,
    classes: Sequence[int] = (),
) -> Robustness:
    """What `shifts` cost a bundle, whose code is trusted. Raises as the runner does where it cannot be loaded.

    `options` say where to compute; `tell` is called with a sentence as each case is done; `classes` are the channels of
    a classifier that count, none: all.
    """
    with tempfile.TemporaryDirectory(prefix="medkit-robustness-") as folder:
        work = _Work(bundle, settings, how, options, Path(folder), classes)
        scores: dict[Key, list[Score | None]] = {key: [] for key in (AS_IT_IS, *_keys(shifts))}
        references = []
        for number, item in enumerate(items, start=1):
            found, reference = work.scores_of(item, shifts)
            references.append(reference)
            for key, own in scores.items():
                own.append(found.get(key))
            tell(f"robustness [{number}/{len(items)}] {item.record.path.name}")
    clean = scores[AS_IT_IS]
    if not any(clean):
        raise MedkitError("\n".join([*work.failures, "no image gave a result"]))
    rows = [_row(settings, key, clean, own, references) for key, own in scores.items()]
    return Robustness(f"{bundle.name} {bundle.version}", settings, tuple(rows), work.failures)


def _keys(shifts: Sequence[Corruption]) -> Iterator[Key]:
    return ((shift.name, strength) for shift in shifts for strength in shift.strengths)


def _row(
    settings: EvaluationSettings,
    key: Key,
    clean: Sequence[Score | None],
    own: Sequence[Score | None],
    references: Sequence[Any],
) -> CorruptionRow:
    """One shift against the images as they are, over the cases that gave a result both times."""
    both = [(a, b, r) for a, b, r in zip(clean, own, references, strict=True) if a is not None and b is not None]
    if not both:
        none = Estimate(*[float("nan")] * 3)
        names = MEASURES[settings.kind]
        return CorruptionRow(*key, 0, dict.fromkeys([*names, *(f"fall_{name}" for name in names)], none))
    befores, afters, known = zip(*both, strict=True)
    before, after = (measure_of(settings.kind, side, known) for side in (befores, afters))
    inflated = [name for name in MEASURES[settings.kind] if name in INFLATED]
    return CorruptionRow(*key, len(both), estimates(difference(before, after), len(both), settings.seed, inflated))


@dataclass(frozen=True, eq=False)
class _Known:
    """A case as it is."""

    case: Case
    prepared: Prepared
    reference: Any
    score: Score
    number: int
    """That of its class, for classes."""


class _Work:
    """A bundle, loaded, and a folder for what is spoilt."""

    def __init__(
        self,
        bundle: Bundle,
        settings: EvaluationSettings,
        how: RunSettings,
        options: RunOptions,
        folder: Path,
        classes: Sequence[int],
    ) -> None:
        self.contract = contract_of(bundle)
        self.task = bundle_task("bundle", [bundle], how)
        self.options = options
        self.runtime = CaseWorker(self.task, options).runtime
        self.runtime.limit_torch()
        self.runner = open_bundle(self.runtime, bundle, how)
        self.classes = tuple(classes)
        names = tuple(self.contract.classes[n] for n in classes)
        self.scorer = Scorer(settings, role_of(self.contract, self.contract.results[0]), names)
        self.spoiler = Spoiler(folder, settings.seed)
        self.failures: list[str] = []

    def scores_of(self, item: Item, shifts: Sequence[Corruption]) -> tuple[dict[Key, Score], Any]:
        """A case's score as it is and under every shift, where it gives a result; and what it is compared with."""
        files = files_of_case(item.record, self.contract)
        case = Case(CasePlan(item.record, files, Targets({})), self.task, self.options, self.runtime)
        reference: Any = item.reference
        try:
            reference = self.scorer.reference(item.reference)
            known = self._as_it_is(case, reference, spoil=any(shift.spoil for shift in shifts))
        except Exception as error:  # one bad image must not take the scores of the others
            self._fail(case, "", error)
            return {}, reference
        found: dict[Key, Score] = {AS_IT_IS: known.score}
        for shift in shifts:
            for strength in shift.strengths:
                try:
                    found[shift.name, strength] = self._shifted(known, shift, strength)
                except Exception as error:
                    self._fail(case, f"{shift.name} {strength:g}: ", error)
        return found, reference

    def _as_it_is(self, case: Case, reference: Any, *, spoil: bool) -> _Known:
        """Raises InputError for an image that the bundle refuses, and for a class that it does not know."""
        if missing := [path for path in case.inputs.values() if not path.exists()]:
            raise InputError(f"{missing[0]}: no such file")
        if spoil:
            self.spoiler.read(case.inputs)
        prepared = self.runner.prepare(case)
        score = self._score(case, prepared, reference)
        number = int(gathered([score], [reference]).truth[0]) if isinstance(score, Prediction) else 0
        return _Known(case, prepared, reference, score, number)

    def _shifted(self, known: _Known, shift: Corruption, strength: float) -> Score:
        case, prepared = known.case, known.prepared
        if shift.spoil:
            files = self.spoiler.spoilt(case.inputs, shift, strength)
            case = Case(CasePlan(case.record, files, Targets({})), self.task, self.options, self.runtime)
            prepared = self.runner.prepare(case)
        else:
            from medkit.robustness.attacks import attacked

            seed = self.scorer.settings.seed
            prepared = attacked(self.runner.network, prepared, known.number, shift.name, strength, seed, self.classes)
        return self._score(case, prepared, known.reference)

    def _score(self, case: Case, prepared: Prepared, reference: Any) -> Score:
        result = self.runner.finish(case, self.runner.compute(case, prepared))
        return self.scorer.score(result, reference, case.record.path)

    def _fail(self, case: Case, what: str, error: Exception) -> None:
        message = explain(error, self.options)
        named = case.path.name in message
        self.failures.append(f"{what}{message}" if named else f"{case.path}: {what}{message}")
