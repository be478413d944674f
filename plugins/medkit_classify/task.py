"""The task `classify`: a bundle's network, what it is asked about, and the files made of what it says."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import BundleError, InputError, UsageError, size_text
from medkit.inference import Bundle, BundleOptions, BundleRunner, bundle_task, contract_of
from medkit.task import Case, Output, Result, Table, Task, Text, Writable
from medkit_classify import report
from medkit_classify.calibration import Calibration, Finding, unlike
from medkit_classify.candidates import Candidate, Cut, of_labels, of_points
from medkit_classify.context import Context
from medkit_classify.fact_tables import Sources
from medkit_classify.facts import Given, facts_of
from medkit_classify.question import Question

if TYPE_CHECKING:
    import torch

    from medkit.inference import InferenceParts, Prepared
    from medkit_classify.explanation import Method

AT_ONCE = 64
"""Images in a batch at most."""


@dataclass(frozen=True)
class ClassifyChoices:
    """What is asked for beside the table of a case."""

    explain: Method | None = None
    report: bool = False
    features: bool = False
    points: Path | None = None
    """Candidates of all cases."""
    labels: Path | None = None
    """A label map whose pieces are the candidates of all cases."""
    frame: str = "RAS"
    """Of tables of points."""
    table: Path | None = None
    """Features of all cases, a row for each."""
    text: Path | None = None
    """Texts of all cases: one file, a folder or a table."""
    column: str | None = None
    """The column of `table` that holds the texts."""
    known: Mapping[Path, Given] = field(default_factory=dict)
    """What is known of images, by their paths, where it need not be looked up."""

    @property
    def needs_heat(self) -> bool:
        """Whether it is to be found out what speaks for a class."""
        return self.explain is not None or self.report


def classification(chosen: BundleOptions, wishes: ClassifyChoices, table: Path | None = None) -> Task:
    """The task for one set of options; with `table` all results are its rows and no case has files of its own.

    Raises UsageError for a table together with files for each case.
    """
    bundles = chosen.of_task("classify")
    task = bundle_task("classify", bundles, chosen.settings, runner=functools.partial(ClassifyRunner, wishes=wishes))
    if table is not None and (wishes.explain or wishes.report or wishes.features):
        raise UsageError("--table makes no file for a case: leave --explain, --report and --save-features out")
    classes = [name for bundle in bundles for name in contract_of(bundle).classes.values()]
    shared = {"points": wishes.points, "labels": wishes.labels, "features": wishes.table, "text": wishes.text}
    return replace(
        task,
        outputs=() if table else tuple(_outputs(wishes)),
        table=Table(table, report.columns(classes), report.rows_of) if table else None,
        arguments={**task.arguments, "explain": wishes.explain, "report": wishes.report,
                   "features": wishes.features, "coordinates": wishes.frame, "text": wishes.column},
        takes=_kinds(bundles),
        accepts=(*task.accepts, "points", "labels", "features", "text"),
        shared={role: path for role, path in shared.items() if path is not None},
        summary=_summary,
    )  # fmt: skip


def _kinds(bundles: Sequence[Bundle]) -> tuple[str, ...]:
    """What the bundles take. A bundle that was named takes any image for a mask: not all names say what a file is."""
    kinds = dict.fromkeys(kind for bundle in bundles for kind in bundle.kinds)
    return tuple(kinds) if len(bundles) > 1 else tuple(dict.fromkeys((*kinds, "image")))


def _outputs(wishes: ClassifyChoices) -> Iterable[Output]:
    yield Output("classes", "table", "class", ".tsv")
    if wishes.explain:
        yield Output("explanation", "image", wishes.explain, as_picture=True)
    if wishes.report:
        yield Output("report", "table", "report", ".txt")
    if wishes.features:
        yield Output("features", "table", "features", ".npz")


def _summary(record: Any) -> str:
    metrics = record.medkit.get("metrics", {})
    rows = metrics.get("findings") or []
    if len(rows) != 1 and "classes" not in metrics:
        return f"{len(rows)} candidates" if rows else ""
    return ", ".join(str(row["class"]) for row in rows) if rows[0]["class"] else f"abstained: {rows[0]['reason']}"


class ClassifyRunner(BundleRunner):
    """A loaded bundle that classifies: images whole, or patches around candidates."""

    def __init__(
        self,
        bundle: Bundle,
        parts: InferenceParts,
        device: torch.device,
        precision: str,
        limit: int | None,
        *,
        wishes: ClassifyChoices,
        judge: Calibration | None = None,
    ) -> None:
        super().__init__(bundle, parts, device, precision, limit)
        from medkit_classify.activations import ActivationRecorder
        from medkit_classify.explanation import Explainer

        if self.contract.kind != "table":
            raise BundleError(f"bundle {bundle.name}: gives {self.contract.kind}, no classes")
        self.wishes, self.judge, self.cut = wishes, judge or Calibration.of(bundle), Cut.of(bundle.block)
        self.facts = facts_of(bundle)
        if self.facts is None and (asked := wishes.table or wishes.text or wishes.column):
            raise UsageError(f"{asked}: bundle {bundle.name} reads images alone, neither features nor texts")
        try:
            self.watcher = ActivationRecorder(parts.network, self.judge.layers)
        except KeyError as error:
            raise BundleError(f"bundle {bundle.name}: its metadata name a layer that is not there: {error}") from None
        if wishes.features and not self.watcher.sees_features:
            raise UsageError(f"--save-features: the network of bundle {bundle.name} shows none")
        method = wishes.explain or ("gradcam" if wishes.report and self.watcher.sees_features else None)
        self.explainer = Explainer(parts.network, method) if method else None
        self.device = device

    # ---- reading

    def prepare(self, case: Case) -> list[Question]:  # type: ignore[override]
        """The images to classify. Raises InputError for an image that the bundle is not for."""
        from medkit.images import is_coloured
        from medkit.inference import feed_of, is_picture

        feed = feed_of(case, self.contract)
        given = self.given(case)
        if self.cut and feed.grid.shape[2] > 1:
            return [self._patch(case, candidate, self.cut, given) for candidate in self._candidates(case)]
        self._check_axes(case, feed.grid)
        with self.errors_named("preprocessing"):
            fed = replace(feed, item={**feed.item, **_as_item(given)})
            question = Question(self.preprocessing.prepare(fed, case), given=given)
        if is_picture(case.path) and is_coloured(case.path):
            question.refused = "a coloured picture, where grey values are expected"
        elif self.cut and not self.cut.fits(feed.grid):
            size, own = size_text(feed.grid.shape[:2]), size_text(self.cut.size)
            question.refused = f"a picture of {size} pixels, where patches of {own} are expected"
        return [question]

    def given(self, case: Case) -> Given | None:
        """The features and the text of a case; None of a bundle that reads images alone. Raises InputError."""
        if self.facts is None:
            return None
        if case.path in self.wishes.known:
            return self.wishes.known[case.path]
        sources = Sources(case.inputs.get("features"), case.inputs.get("text"), self.wishes.column)
        given = Given({**Context.of(case).features(), **sources.features(case.path)}, sources.text(case.path))
        self.facts.want(given, case.path)
        return given

    def _check_axes(self, case: Case, grid: Any) -> None:
        flat = grid.shape[2] == 1
        if self.contract.planar and not flat:
            raise InputError(
                f"{case.path}: expected a plane for bundle {self.bundle.name}, got {size_text(grid.shape)} voxels"
            )
        if not self.contract.planar and flat:
            raise InputError(f"{case.path}: expected a volume for bundle {self.bundle.name}, got a plane")

    def _candidates(self, case: Case) -> list[Candidate]:
        from medkit.transforms import read_points

        if "points" in case.inputs:
            points = read_points(case.inputs["points"], self.wishes.frame)
            return of_points(points.positions, points.names)
        if "labels" not in case.inputs:
            raise InputError(
                f"{case.path}: a volume: bundle {self.bundle.name} looks at candidates, which --points, --labels or a "
                f'record name: {{"path": ..., "inputs": {{"points": ...}}}}'
            )
        if not (found := of_labels(case.image("labels", labels=True))):
            raise InputError(f"{case.inputs['labels']}: expected labels of candidates, got none")
        return found

    def _patch(self, case: Case, candidate: Candidate, cut: Cut, given: Given | None) -> Question:
        from medkit.inference import Feed

        patch = cut.patch(case.image(), candidate.position)
        if patch is None:
            return Question(None, candidate.name, "the candidate lies outside the image", given=given)
        name = str(case.path)
        with self.errors_named("preprocessing"):
            feed = Feed({self.contract.keys[0]: name, **_as_item(given)}, {name: patch}, patch.grid)
            return Question(self.preprocessing.prepare(feed, case), candidate.name, given=given)

    # ---- computing

    def compute(self, case: Case, prepared: list[Question]) -> list[Question]:  # type: ignore[override]
        """Runs the network on all images of a case."""
        with self.errors_named("network"):
            self._answer(prepared)
            if self.explainer:
                self._explain(prepared)
        return prepared

    def together(self, cases: Sequence[Case], values: Sequence[list[Question]]) -> Sequence[list[Question]]:
        """Runs the network on the images of several cases at once."""
        self._answer([question for questions in values for question in questions])
        if self.explainer:
            for questions in values:
                self._explain(questions)
        return values

    def _answer(self, questions: Sequence[Question]) -> None:
        asked = [(question, question.prepared) for question in questions if question.prepared is not None]
        for first in range(0, len(asked), AT_ONCE):
            part = asked[first : first + AT_ONCE]
            batches = [part] if self.network.one_batch([prepared for _, prepared in part]) else [[one] for one in part]
            for batch in batches:
                self._answer_batch(batch)

    def _answer_batch(self, asked: Sequence[tuple[Question, Prepared]]) -> None:
        self.watcher.forget()
        prepared = [one for _, one in asked]
        answers = self.network.together(prepared) if len(prepared) > 1 else [self.network(prepared[0])]
        features, levels = self.watcher.features(), self.watcher.levels()
        for number, ((question, _), answer) in enumerate(zip(asked, answers, strict=True)):
            question.prepared = answer
            question.features = None if features is None else features[number].numpy()
            question.levels = None if levels is None else levels[number].numpy()

    def _explain(self, questions: Iterable[Question]) -> None:
        assert self.explainer is not None
        for question in questions:
            if question.prepared is not None:
                question.heat = self.explainer(
                    question.prepared.item["image"].to(self.device), self._chosen(question.prepared)
                )

    def _chosen(self, prepared: Prepared) -> int:
        """The channel of the class that is explained: the likeliest one, of several aspects that of the last."""
        logits = _logits(prepared)
        numbers = list(self.contract.aspects.values())[-1] if self.contract.aspects else range(len(logits))
        return max(numbers, key=lambda n: float(logits[n]))

    # ---- writing

    def finish(self, case: Case, computed: list[Question]) -> Result:  # type: ignore[override]
        """The findings, and the files asked for."""
        with self.errors_named("postprocessing"):
            answers = [(question, self._findings(question)) for question in computed]
        findings = [found for _, own in answers for found in own]
        context = Context.of(case)
        numbers = report.as_numbers(findings)
        if self.contract.aspects:
            numbers["classes"] = {row["candidate"]: row["class"] for row in numbers["findings"]}
        doubtful = sum(own[0].abstained for _, own in answers)
        warnings = [w for q in computed if q.prepared for w in q.prepared.warnings]
        if doubtful and len(answers) == 1:
            warnings.append(f"look at this one: {findings[0].reason}")
        elif doubtful:
            warnings.append(f"look at this one: no class for {doubtful} of {len(answers)} candidates")
        flagged = self.bundle.block.get("flagged", ())
        warnings += [f"look at this one: {f.name}" for f in findings if f.name in flagged and not f.abstained]
        note = {"note": self.judge.note} if self.judge.note else {}
        given = computed[0].given
        read = {"read": self.facts.told(given)} if self.facts and given else {}
        return Result(
            {} if not case.outputs else dict(self._files(case, answers, numbers, context)),
            metrics=numbers,
            warnings=tuple(dict.fromkeys(warnings)),
            details={"precision": self.precision, **note, **context.facts(), **read},
            description=f"{self.bundle.name} {self.bundle.version} on {case.path.name}",
        )

    def _findings(self, question: Question) -> list[Finding]:
        """What is said of an image: one thing, or one for each of the bundle's aspects."""
        if not self.contract.aspects or question.prepared is None:
            return [self._finding(question)]
        classes, logits = self.contract.classes, _logits(question.prepared)
        likely = np.squeeze(np.asarray(self.postprocessing(question.prepared)["pred"]))
        return [
            self._found(
                question,
                aspect,
                {classes[n]: round(float(likely[n]), 6) for n in numbers},
                self.judge.calibrated(logits[list(numbers)], aspect),
            )
            for aspect, numbers in self.contract.aspects.items()
        ]

    def _finding(self, question: Question) -> Finding:
        from medkit.inference import to_table

        classes = self.contract.classes
        if question.prepared is None:
            return Finding(
                question.candidate, "", dict.fromkeys(classes.values(), float("nan")), reason=question.refused
            )
        logits = _logits(question.prepared)
        if self.postprocessing.is_only_softmax:  # MONAI's way to it takes ten times as long
            _, table = to_table(logits, classes, activated=False)
        else:
            value = self.postprocessing(question.prepared)["pred"]
            _, table = to_table(value, classes, activated=self.postprocessing.activated)
        if len(table) == 1:  # one output: the probability of the second of two classes
            ((name, p),) = table.items()
            table = {f"not {name}": 1 - p, name: p}
        return self._found(question, question.candidate, table, self.judge.calibrated(logits))

    def _found(self, question: Question, what: str, table: dict[str, float], sure: np.ndarray | None) -> Finding:
        """What is said of `what`: `table` holds the network's probabilities, `sure` the calibrated ones."""
        names = list(table)
        chosen = int(np.argmax(list(table.values()) if sure is None else sure))
        distance = self.judge.distance(question.levels)
        reason = question.refused or unlike(distance)
        confidence = None if sure is None else float(sure[chosen])
        return Finding(what, names[chosen], table, confidence, distance, reason)

    def _files(
        self,
        case: Case,
        answers: Sequence[tuple[Question, Sequence[Finding]]],
        numbers: dict[str, Any],
        context: Context,
    ) -> Iterable[tuple[str, Writable]]:
        from medkit_classify.case_files import Features, explanation

        computed = [question for question, _ in answers]
        yield "classes", Text(report.as_tsv(numbers, self.bundle))
        if self.wishes.explain:
            yield "explanation", explanation(case, computed)
        if self.wishes.report:
            told = [
                report.Told(found, self._where(case, question) if found is own[-1] else "")
                for question, own in answers
                for found in own
            ]
            yield "report", Text(report.in_words(case.path.name, told, self.bundle, context, self._notes(computed)))
        if self.wishes.features:
            yield "features", Features([(q.features, own) for q, own in answers])

    def _notes(self, computed: Sequence[Question]) -> list[str]:
        given = computed[0].given
        read = [report.beside(self.facts.told(given))] if self.facts and given else []
        return read + ([self.judge.note] if self.judge.note else [])

    def _where(self, case: Case, question: Question) -> str:
        from medkit.inference import is_picture
        from medkit_classify.case_files import on_own_grid
        from medkit_classify.explanation import in_words

        heat = on_own_grid(question)
        return "" if heat is None else in_words(heat, is_picture(case.path))


def _logits(prepared: Prepared) -> np.ndarray:
    """(C,) what the network gave."""
    value = prepared.item["pred"]
    plain = value.as_tensor() if hasattr(value, "as_tensor") else value
    out: np.ndarray = np.atleast_1d(np.squeeze(plain.detach().cpu().numpy()))
    return out


def _as_item(given: Given | None) -> dict[str, Any]:
    """As a datalist's item says it."""
    return {} if given is None else {"features": dict(given.features), "text": given.text}
