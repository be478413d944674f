"""Running a bundle on original and corrupted images, and comparing its metric."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import Bundle
from medkit.bundles.contract import contract_of
from medkit.errors import BundleError, InputError, MedkitError, UsageError
from medkit.evaluation.bootstrap import Estimate, estimates
from medkit.evaluation.classes.metrics import INFLATED
from medkit.evaluation.classes.predictions import Prediction
from medkit.evaluation.classes.run import gathered
from medkit.evaluation.results import EvaluationSettings
from medkit.inference.loading import RunSettings, open_bundle
from medkit.inference.runner import role_of
from medkit.inference.task import bundle_task
from medkit.options import RunOptions
from medkit.pipe.records import Record
from medkit.robustness.corruptions import CORRUPTIONS, Corruption
from medkit.robustness.inputs import FileCorrupter, files_of_case
from medkit.robustness.scores import KINDS, MEASURES, Score, Scorer, difference, measure_of
from medkit.run.failures import explain
from medkit.run.outputs import Targets
from medkit.run.task import Case, CasePlan
from medkit.run.worker import CaseWorker
from medkit.terminal.progress import working_on

if TYPE_CHECKING:
    from medkit.inference.transforms import Prepared

ORIGINAL = ("none", 0.0)
"""Key of the original images, in place of a corruption and its strength."""

Key = tuple[str, float]
"""Name of a corruption, and its strength."""


@dataclass(frozen=True)
class Item:
    """A case and its reference."""

    record: Record
    reference: str
    """Path of a label image or an image, or a class."""


@dataclass(frozen=True)
class CorruptionRow:
    """A bundle's metric under a corruption of one strength."""

    corruption: str
    strength: float
    n: int
    """Number of cases with a result for both the original and the corrupted image."""
    values: Mapping[str, Estimate]
    """Measure -> its value; `fall_<measure>` -> how much worse it is than on the same cases' original images."""


@dataclass(frozen=True)
class Robustness:
    """A bundle's metric on original and corrupted images."""

    bundle: str
    """Name and version of the bundle."""
    settings: EvaluationSettings
    rows: tuple[CorruptionRow, ...]
    """The original images, then every corruption in ascending order of strength."""
    failures: Sequence[str] = field(default_factory=list)
    """A sentence for every case without a result, for one corruption or at all."""


def corruptions_for(kind: str, names: Sequence[str] = ()) -> tuple[Corruption, ...]:
    """Return the corruptions of these names, or all that fit a kind of result; attacks need classes.

    Raises UsageError for a name that does not fit.
    """
    fitting = {name: each for name, each in CORRUPTIONS.items() if each.corrupt or kind == "classes"}
    for name in names:
        if name not in fitting:
            known = ", ".join(fitting)
            raise UsageError(f"--shifts {name}: expected some of {known}, for a bundle that returns {kind}")
    return tuple(fitting[name] for name in names or fitting)


def kind_of(bundle: Bundle) -> str:
    """Return the kind of evaluation for a bundle's results: labels, images or classes. Raises BundleError."""
    kind = contract_of(bundle).kind
    if kind not in KINDS:
        raise BundleError(f"bundle {bundle.name}: finds {kind}: --robustness measures labels, images and classes")
    return KINDS[kind]


def classes_of(bundle: Bundle, aspect: str | None) -> tuple[int, ...]:
    """Return the channels of an aspect's classes; empty for all. Raises UsageError, BundleError."""
    aspects = contract_of(bundle).aspects
    if aspect not in aspects and (aspect is not None or aspects):
        known = ", ".join(aspects) or "no aspects"
        raise UsageError(f"--aspect {aspect or 'is missing'}: the bundle has {known}")
    return aspects[aspect] if aspect else ()


def measure(
    items: Sequence[Item],
    bundle: Bundle,
    settings: EvaluationSettings,
    how: RunSettings,
    corruptions: Sequence[Corruption],
    options: RunOptions,
    tell: Callable[[str], None] = lambda line: None,
    classes: Sequence[int] = (),
) -> Robustness:
    """Return the metric of a bundle, whose code is trusted, on original and corrupted images.

    `options` state where to compute; `tell` is called with a line after each case; `classes` are the channels of a
    classifier that count (empty: all). Raises MedkitError if no image gave a result, and BundleError and
    WeightsMissingError if the bundle cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="medkit-robustness-") as folder:
        work = _Work(bundle, settings, how, options, Path(folder), classes)
        scores: dict[Key, list[Score | None]] = {key: [] for key in (ORIGINAL, *_keys(corruptions))}
        references = []
        for number, item in enumerate(items, start=1):
            with working_on(item.record.path.name):
                found, reference = work.scores_of(item, corruptions)
            references.append(reference)
            for key, own in scores.items():
                own.append(found.get(key))
            tell(f"robustness [{number}/{len(items)}] {item.record.path.name}")
    clean = scores[ORIGINAL]
    if not any(clean):
        raise MedkitError("\n".join([*work.failures, "no image gave a result"]))
    rows = [_row(settings, key, clean, own, references) for key, own in scores.items()]
    return Robustness(f"{bundle.name} {bundle.version}", settings, tuple(rows), work.failures)


def _keys(corruptions: Sequence[Corruption]) -> Iterator[Key]:
    return ((corruption.name, strength) for corruption in corruptions for strength in corruption.strengths)


def _row(
    settings: EvaluationSettings,
    key: Key,
    clean: Sequence[Score | None],
    own: Sequence[Score | None],
    references: Sequence[Any],
) -> CorruptionRow:
    """Compare one corruption with the original images, over the cases that have both results."""
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
class _Original:
    """A case with its original images."""

    case: Case
    prepared: Prepared
    reference: Any
    score: Score
    number: int
    """Number of its class, for classes."""


class _Work:
    """A loaded bundle, and a folder for corrupted files."""

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
        self.corrupter = FileCorrupter(folder, settings.seed)
        self.failures: list[str] = []

    def scores_of(self, item: Item, corruptions: Sequence[Corruption]) -> tuple[dict[Key, Score], Any]:
        """Return a case's scores, original and under every corruption, as far as it has results; and its reference."""
        files = files_of_case(item.record, self.contract)
        case = Case(CasePlan(item.record, files, Targets({})), self.task, self.options, self.runtime)
        reference: Any = item.reference
        try:
            reference = self.scorer.reference(item.reference)
            original = self._original(case, reference, files=any(each.corrupt for each in corruptions))
        except Exception as error:  # one bad image must not take the scores of the others
            self._fail(case, "", error)
            return {}, reference
        found: dict[Key, Score] = {ORIGINAL: original.score}
        for corruption in corruptions:
            for strength in corruption.strengths:
                try:
                    found[corruption.name, strength] = self._corrupted(original, corruption, strength)
                except Exception as error:
                    self._fail(case, f"{corruption.name} {strength:g}: ", error)
        return found, reference

    def _original(self, case: Case, reference: Any, *, files: bool) -> _Original:
        """Run a case's original images; `files`: also read them to be corrupted.

        Raises InputError for an image that the bundle refuses, and for a class that it does not know.
        """
        if missing := [path for path in case.inputs.values() if not path.exists()]:
            raise InputError(f"{missing[0]}: no such file")
        if files:
            self.corrupter.read(case.inputs)
        prepared = self.runner.prepare(case)
        score = self._score(case, prepared, reference)
        number = int(gathered([score], [reference]).truth[0]) if isinstance(score, Prediction) else 0
        return _Original(case, prepared, reference, score, number)

    def _corrupted(self, original: _Original, corruption: Corruption, strength: float) -> Score:
        case, prepared = original.case, original.prepared
        if corruption.corrupt:
            files = self.corrupter.corrupted(case.inputs, corruption, strength)
            case = Case(CasePlan(case.record, files, Targets({})), self.task, self.options, self.runtime)
            prepared = self.runner.prepare(case)
        else:
            from medkit.robustness.attacks import attacked

            seed, method = self.scorer.settings.seed, corruption.name
            prepared = attacked(self.runner.network, prepared, original.number, method, strength, seed, self.classes)
        return self._score(case, prepared, original.reference)

    def _score(self, case: Case, prepared: Prepared, reference: Any) -> Score:
        result = self.runner.finish(case, self.runner.compute(case, prepared))
        return self.scorer.score(result, reference, case.record.path)

    def _fail(self, case: Case, what: str, error: Exception) -> None:
        message = explain(error, self.options)
        named = case.path.name in message
        self.failures.append(f"{what}{message}" if named else f"{case.path}: {what}{message}")
