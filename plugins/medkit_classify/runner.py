"""A loaded bundle that classifies: reads the images of a case, runs the network, and makes findings and files."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import BundleError, InputError, UsageError, size_text
from medkit.inference import BundleRunner
from medkit.task import LOOK_AT_THIS, Case, Result, Text, Writable
from medkit_classify import report
from medkit_classify.activations import ActivationRecorder
from medkit_classify.calibration import Calibration, is_out_of_distribution
from medkit_classify.candidates import Candidate, Cut, of_labels, of_points
from medkit_classify.choices import ClassifyChoices
from medkit_classify.context import Context
from medkit_classify.fact_tables import Sources
from medkit_classify.facts import Given, facts_of
from medkit_classify.finding import Finding
from medkit_classify.intended_use import IntendedUse
from medkit_classify.question import Question

if TYPE_CHECKING:
    from medkit.images import Image
    from medkit.inference import LoadedBundle, Prepared
    from medkit.space import Grid
    from medkit_classify.explanation import Explainer

BATCH_SIZE = 64
"""Largest number of images in a batch."""
DRAWN_MAPS = 6
"""Most maps in the picture of `--qc`: of the first candidates."""


class ClassifyRunner(BundleRunner):
    """A loaded bundle that classifies."""

    def __init__(
        self, loaded: LoadedBundle, *, choices: ClassifyChoices, calibration: Calibration | None = None
    ) -> None:
        super().__init__(loaded)
        bundle, parts = loaded.bundle, loaded.parts
        from medkit_classify.explanation import Explainer

        if self.contract.kind != "table":
            raise BundleError(f"bundle {bundle.name}: expected classes as its output, got {self.contract.kind}")
        self.choices, self.cut = choices, Cut.of(bundle.block)
        self.calibration = calibration or Calibration.of(bundle)
        self.use = IntendedUse.of(bundle)
        self.facts = facts_of(bundle)
        if self.facts is None and (unused := choices.table or choices.text or choices.column):
            raise UsageError(f"{unused}: bundle {bundle.name} reads only images, neither features nor texts")
        if self.calibration.layers and not hasattr(parts.network, "parameters"):
            raise BundleError(
                f"bundle {bundle.name}: its calibration looks into the network, which a file in ONNX does not show: "
                "use one in TorchScript or torch.export; medkit run bundle gives plain probabilities"
            )
        try:
            self.recorder = ActivationRecorder(parts.network, self.calibration.layers)
        except KeyError as error:
            raise BundleError(f"bundle {bundle.name}: its metadata name a layer that is not there: {error}") from None
        if choices.features and not self.recorder.has_features:
            raise UsageError(f"--save-features: the network of bundle {bundle.name} has no layer with features")
        if self.recorder.has_features or self.calibration.layers or choices.explain:
            self.only_torch = "what it knows of an image is read inside its network"
        if choices.explain and not hasattr(parts.network, "parameters"):
            raise UsageError(f"--explain: looks into the network, which bundle {bundle.name} has in ONNX only")
        method = choices.explain or ("gradcam" if choices.report and self.recorder.has_features else None)
        self.explainer = Explainer(parts.network, method) if method else None
        self._network = parts.network

    # ---- reading

    def prepare(self, case: Case) -> list[Question]:  # type: ignore[override]
        """Read the images to classify. Raises InputError for an image that the bundle does not take."""
        from medkit.images import is_coloured
        from medkit.inference import feed_of, is_picture

        feed = feed_of(case, self.contract)
        given = self.given(case)
        if self.cut and feed.grid.shape[2] > 1:
            return [self._patch(case, candidate, self.cut, given) for candidate in self._candidates(case)]
        self._check_axes(case, feed.grid)
        with self.errors_named("preprocessing"):
            feed = replace(feed, item={**feed.item, **_as_item(given)})
            question = Question(self.preprocessing.prepare(feed, case), side=_side(feed.grid), given=given)
        if misfit := self.use.misfit(case.path):
            question.refused = f"not what the bundle is for: {misfit}"
        elif is_picture(case.path) and is_coloured(case.path):
            question.refused = "a coloured picture, where grey values are expected"
        elif self.cut and not self.cut.fits(feed.grid):
            size, expected = size_text(feed.grid.shape[:2]), size_text(self.cut.size)
            question.refused = f"a picture of {size} pixels, where patches of {expected} are expected"
        return [question]

    def given(self, case: Case) -> Given | None:
        """Return the features and the text of a case; None if the bundle reads only images. Raises InputError."""
        if self.facts is None:
            return None
        if case.path in self.choices.known:
            return self.choices.known[case.path]
        sources = Sources(case.inputs.get("features"), case.inputs.get("text"), self.choices.column)
        given = Given({**Context.of(case).features(), **sources.features(case.path)}, sources.text(case.path))
        self.facts.require(given, case.path)
        return given

    def _check_axes(self, case: Case, grid: Grid) -> None:
        planar = grid.shape[2] == 1
        if self.contract.planar and not planar:
            raise InputError(
                f"{case.path}: expected a plane for bundle {self.bundle.name}, got {size_text(grid.shape)} voxels"
            )
        if not self.contract.planar and planar:
            raise InputError(f"{case.path}: expected a volume for bundle {self.bundle.name}, got a plane")

    def _candidates(self, case: Case) -> list[Candidate]:
        from medkit.transforms import read_points

        if "points" in case.inputs:
            points = read_points(case.inputs["points"], self.choices.frame, none=True)
            return of_points(points.positions, points.names)
        if "labels" not in case.inputs:
            raise InputError(
                f"{case.path}: a volume: bundle {self.bundle.name} looks at candidates, which --points, --labels or a "
                f'record name: {{"path": ..., "inputs": {{"points": ...}}}}'
            )
        return of_labels(case.image("labels", labels=True))

    def _patch(self, case: Case, candidate: Candidate, cut: Cut, given: Given | None) -> Question:
        from medkit.inference import Feed

        patch = cut.patch(case.image(), candidate.position)
        if patch is None:
            return Question(None, candidate.name, "the candidate lies outside the image", given=given)
        name = str(case.path)
        with self.errors_named("preprocessing"):
            feed = Feed({self.contract.keys[0]: name, **_as_item(given)}, {name: patch}, patch.grid)
            return Question(self.preprocessing.prepare(feed, case), candidate.name, side=_side(patch.grid), given=given)

    # ---- computing

    def compute(self, case: Case, prepared: list[Question]) -> list[Question]:  # type: ignore[override]
        """Run the network on all images of a case."""
        with self.errors_named("network"):
            self._answer(prepared)
            if self.explainer:
                self._explain(prepared)
        return prepared

    def together(self, cases: Sequence[Case], values: Sequence[list[Question]]) -> Sequence[list[Question]]:
        """Run the network on the images of several cases at once."""
        self._answer([question for questions in values for question in questions])
        if self.explainer:
            for questions in values:
                self._explain(questions)
        return values

    def _answer(self, questions: Sequence[Question]) -> None:
        pairs = [(question, question.prepared) for question in questions if question.prepared is not None]
        for first in range(0, len(pairs), BATCH_SIZE):
            part = pairs[first : first + BATCH_SIZE]
            one_batch = self.network.one_batch([prepared for _, prepared in part])
            for batch in [part] if one_batch else [[pair] for pair in part]:
                self._answer_batch(batch)

    def _answer_batch(self, pairs: Sequence[tuple[Question, Prepared]]) -> None:
        self.recorder.clear()
        prepared = [image for _, image in pairs]
        answers = self.network.together(prepared) if len(prepared) > 1 else [self.network(prepared[0])]
        features, statistics = self.recorder.features(), self.recorder.statistics()
        for number, ((question, _), answer) in enumerate(zip(pairs, answers, strict=True)):
            question.prepared = answer
            question.features = None if features is None else features[number].numpy()
            question.statistics = None if statistics is None else statistics[number].numpy()

    def statistics_of(self, images: np.ndarray) -> np.ndarray:
        """Return the statistics (N, S) of (N, I, J) images as the network takes them, such as changed ones."""
        import torch

        found = []
        with torch.inference_mode():
            for first in range(0, len(images), BATCH_SIZE):
                self.recorder.clear()
                batch = np.ascontiguousarray(images[first : first + BATCH_SIZE, None], np.float32)
                self._network(torch.from_numpy(batch).to(self.device))
                statistics = self.recorder.statistics()
                assert statistics is not None, "layers are recorded"
                found.append(statistics.numpy())
        return np.concatenate(found).astype(np.float64)

    def _explain(self, questions: Iterable[Question]) -> None:
        assert self.explainer is not None
        for question in questions:
            if question.prepared is not None:
                image = question.prepared.item["image"].to(self.device)
                question.heat = self.explainer(image, self._explained_class(question.prepared))

    def _explained_class(self, prepared: Prepared) -> int:
        """Return the channel of the most probable class, which is explained; of several aspects the last one counts."""
        logits = _logits(prepared)
        channels = list(self.contract.aspects.values())[-1] if self.contract.aspects else range(len(logits))
        return max(channels, key=lambda n: float(logits[n]))

    # ---- writing

    def finish(self, case: Case, computed: list[Question]) -> Result:  # type: ignore[override]
        """Make the findings of a case and the requested files."""
        with self.errors_named("postprocessing"):
            answers = [(question, self._findings(question)) for question in computed]
        context = Context.of(case)
        metrics = report.as_numbers([finding for _, findings in answers for finding in findings])
        if self.contract.aspects:
            metrics["classes"] = {row["candidate"]: row["class"] for row in metrics["findings"]}
        note = {"note": self.calibration.note} if self.calibration.note else {}
        use = {"intended_use": words} if (words := self.use.in_words()) else {}
        given = computed[0].given if computed else None
        read = {"read": self.facts.summary(given)} if self.facts and given else {}
        return Result(
            dict(self._files(case, answers, metrics, context)) if case.outputs else {},
            metrics=metrics,
            warnings=self._warnings(answers),
            details={**self.details, **note, **use, **context.details(), **read},
            description=f"{self.bundle.name} {self.bundle.version} on {case.path.name}",
            figure=functools.partial(self._draw, case, answers),
        )

    def _draw(self, case: Case, answers: Sequence[tuple[Question, Sequence[Finding]]]) -> np.ndarray:
        """Draw the picture of `--qc`, (H, W, 3) uint8."""
        from medkit_classify.picture import Saliency, draw

        in_volume = self.cut is not None and bool({"points", "labels"} & set(case.inputs))
        candidates = self._candidates(case) if in_volume and case.image().grid.shape[2] > 1 else []
        maps = []
        for number, (question, own) in enumerate(answers[:DRAWN_MAPS]):
            heat = self._saliency(question)
            patch = self.cut.patch(case.image(), candidates[number].position) if self.cut and candidates else None
            if heat is not None and question.prepared is not None:
                explained = self.contract.classes[self._explained_class(question.prepared)]
                maps.append(Saliency(own[0].candidate, explained, heat, patch))
        findings = [finding for _, own in answers for finding in own]
        return draw(case, findings, candidates, maps, f"classify  {case.path.name}  {self.bundle.name}")

    def _saliency(self, question: Question) -> Image | None:
        """Return the map that explains a class on the grid of its image; None if the network cannot be explained."""
        from medkit_classify.case_files import on_image_grid

        explainer = self._picture_explainer
        if question.heat is None and question.prepared is not None and explainer is not None:
            image = question.prepared.item["image"].to(self.device)
            question.heat = explainer(image, self._explained_class(question.prepared))
        return on_image_grid(question)

    @functools.cached_property
    def _picture_explainer(self) -> Explainer | None:
        """What explains classes in pictures: as `--explain` says, else Grad-CAM where the network has spatial axes."""
        from medkit_classify.explanation import Explainer

        if self.explainer is not None:
            return self.explainer
        try:
            return Explainer(self._network, "gradcam")
        except UsageError:
            return None

    def _warnings(self, answers: Sequence[tuple[Question, Sequence[Finding]]]) -> tuple[str, ...]:
        """Return each warning about a case once: from the network, without a class, and classes to look at."""
        warnings = [text for question, _ in answers if question.prepared for text in question.prepared.warnings]
        abstained = [findings[0] for _, findings in answers if findings[0].abstained]
        if abstained and len(answers) == 1:
            warnings.append(f"{LOOK_AT_THIS}{abstained[0].reason}")
        elif abstained:
            warnings.append(f"{LOOK_AT_THIS}no class for {len(abstained)} of {len(answers)} candidates")
        flagged = self.bundle.block.get("flagged", ())
        found = [finding for _, findings in answers for finding in findings if not finding.abstained]
        warnings += [f"{LOOK_AT_THIS}{finding.name}" for finding in found if finding.name in flagged]
        return tuple(dict.fromkeys(warnings))

    def _findings(self, question: Question) -> list[Finding]:
        """Return one finding for an image, or one for each of the bundle's aspects."""
        if not self.contract.aspects or question.prepared is None:
            return [self._finding(question)]
        classes, logits = self.contract.classes, _logits(question.prepared)
        probabilities = np.squeeze(np.asarray(self.postprocessing(question.prepared)["pred"]))
        return [
            self._calibrated(
                question,
                aspect,
                {classes[n]: round(float(probabilities[n]), 6) for n in channels},
                self.calibration.calibrated(logits[list(channels)], aspect),
            )
            for aspect, channels in self.contract.aspects.items()
        ]

    def _finding(self, question: Question) -> Finding:
        from medkit.inference import to_table

        classes = self.contract.classes
        if question.prepared is None:
            return Finding(
                question.candidate, "", dict.fromkeys(classes.values(), float("nan")), reason=question.refused
            )
        logits = _logits(question.prepared)
        if self.postprocessing.is_only_softmax:  # MONAI's transforms take ten times as long for a softmax
            _, table = to_table(logits, classes, activated=False)
        else:
            value = self.postprocessing(question.prepared)["pred"]
            _, table = to_table(value, classes, activated=self.postprocessing.activated)
        if len(table) == 1:  # one output: the probability of the second of two classes
            ((name, p),) = table.items()
            table = {f"not {name}": 1 - p, name: p}
        return self._calibrated(question, question.candidate, table, self.calibration.calibrated(logits))

    def _calibrated(
        self, question: Question, subject: str, table: dict[str, float], calibrated: np.ndarray | None
    ) -> Finding:
        """Return the finding about a candidate or an aspect.

        table: class -> probability according to the network.
        calibrated: (C,) calibrated probabilities in the same order; None if the bundle is not calibrated.
        """
        names = list(table)
        chosen = int(np.argmax(list(table.values()) if calibrated is None else calibrated))
        distance = self.calibration.distance(question.statistics, question.side)
        reason = question.refused
        if not reason and distance is not None and is_out_of_distribution(distance):
            differs = self.calibration.difference_in_words(question.statistics, question.side)
            words = f"{differs} than those, " if differs else ""
            reason = f"unlike the training images: {words}{report.times_text(distance)} the largest distance allowed"
        confidence = None if calibrated is None else float(calibrated[chosen])
        return Finding(subject, names[chosen], table, confidence, distance, reason)

    def _files(
        self,
        case: Case,
        answers: Sequence[tuple[Question, Sequence[Finding]]],
        metrics: dict[str, Any],
        context: Context,
    ) -> Iterable[tuple[str, Writable]]:
        from medkit_classify.case_files import Features, explanation_map

        questions = [question for question, _ in answers]
        yield "classes", Text(report.as_tsv(metrics, self.bundle, list(self.contract.classes.values())))
        if self.choices.explain:
            found = answers[0][1][-1] if answers else None
            yield "explanation", explanation_map(case, questions, self.choices.explain, found)
        if self.choices.report:
            located = [
                report.LocatedFinding(finding, self._where(case, question) if finding is findings[-1] else "")
                for question, findings in answers
                for finding in findings
            ]
            text = report.in_words(case.path.name, located, self.bundle, context, self._notes(questions))
            yield "report", Text(text)
        if self.choices.features:
            yield "features", Features([(question.features, findings) for question, findings in answers])

    def _notes(self, questions: Sequence[Question]) -> list[str]:
        given = questions[0].given if questions else None
        read = [report.facts_in_words(self.facts.summary(given))] if self.facts and given else []
        use = [f"the bundle is {words}"] if (words := self.use.in_words()) else []
        return read + use + ([self.calibration.note] if self.calibration.note else [])

    def _where(self, case: Case, question: Question) -> str:
        """Return in words which part of the image speaks for the class; empty without an explanation."""
        from medkit.inference import is_picture
        from medkit_classify.case_files import on_image_grid
        from medkit_classify.explanation import in_words

        heat = on_image_grid(question)
        return "" if heat is None else in_words(heat, is_picture(case.path))


def _side(grid: Grid) -> int:
    """Return the shorter side of a plane, or the shortest one of a volume, in voxels."""
    return min(grid.shape[:2] if grid.shape[2] == 1 else grid.shape)


def _logits(prepared: Prepared) -> np.ndarray:
    """Return the network's output of one image, (C,)."""
    value = prepared.item["pred"]
    plain = value.as_tensor() if hasattr(value, "as_tensor") else value
    out: np.ndarray = np.atleast_1d(np.squeeze(plain.detach().cpu().numpy()))
    return out


def _as_item(given: Given | None) -> dict[str, Any]:
    """Return the facts of a case under the keys of a datalist's item."""
    return {} if given is None else {"features": dict(given.features), "text": given.text}
