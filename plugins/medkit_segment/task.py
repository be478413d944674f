"""The task `segment`: runs a bundle's network and makes files from its output."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.dicom_objects import Meaning, meanings_of
from medkit.errors import BundleError, InputError, UsageError, listed
from medkit.inference import (
    Bundle,
    BundleOptions,
    BundleRunner,
    bundle_task,
    check_hounsfield,
    contract_of,
    is_picture,
    modality_of,
)
from medkit.task import LOOK_AT_THIS, Case, Result, Task, Text, Writable
from medkit_segment.results import SegmentChoices

if TYPE_CHECKING:
    import torch

    from medkit.images import Image
    from medkit.inference import LoadedBundle, Prepared
    from medkit_segment.borders import Borders
    from medkit_segment.cleaning import Pieces
    from medkit_segment.refinement import Outcome

MASK_GAP = 4.0
"""mm; narrower gaps in the mask of a body, such as the sulci of a brain, are closed."""


def segmentation(chosen: BundleOptions, choices: SegmentChoices, *, tta: bool) -> Task:
    """Return the task for one set of options.

    Raises UsageError if `tta` is set and a bundle has no test-time augmentation, if a bundle does not know a structure,
    and what `bundle_task` raises.
    """
    bundles = chosen.of_task("segment")
    settings = chosen.settings
    if choices.labels:
        choices.check(name for bundle in bundles for name in names_of(bundle).values())
    if tta:
        bundles = _with_tta(bundles)
        settings = replace(settings, overrides={**_mirror(bundles), **settings.overrides})
    task = bundle_task("segment", bundles, settings, runner=functools.partial(SegmentRunner, choices=choices))
    task = replace(task, arguments={**task.arguments, "refine": choices.refine})
    return choices.fitted(task, _split_names(bundles, choices) if choices.split else ())


def names_of(bundle: Bundle) -> dict[int, str]:
    """Return label -> name of what a bundle segments."""
    stated = {int(n): str(name) for n, name in (bundle.block.get("labels") or {}).items()}
    return stated or {n: name for n, name in contract_of(bundle).classes.items() if n}


def meanings_of_bundles(chosen: BundleOptions) -> Mapping[str, Meaning]:
    """Return name -> meaning of the structures of all bundles that may run, as far as these state it."""
    out: dict[str, Meaning] = {}
    for bundle in chosen.of_task("segment"):
        out |= meanings_of(names_of(bundle), bundle.block.get("codes"), f"bundle {bundle.name}")
    return out


def _split_names(bundles: Sequence[Bundle], choices: SegmentChoices) -> Sequence[str]:
    """Return the names of the structures that get a file each. Raises UsageError if they depend on the scan."""
    sets = [list(choices.names(names_of(bundle), f"bundle {bundle.name}").values()) for bundle in bundles]
    if any(names != sets[0] for names in sets):
        raise UsageError(f"--split: choose one with --bundle: {listed([bundle.name for bundle in bundles])}")
    return sets[0]


def _with_tta(bundles: Sequence[Bundle]) -> tuple[Bundle, ...]:
    """Return the bundles that have test-time augmentation. Raises UsageError if none has."""
    found = tuple(bundle for bundle in bundles if isinstance(bundle.block.get("tta"), dict))
    if not found:
        raise UsageError(f"--tta: bundle {bundles[0].name} has none")
    return found


def _mirror(bundles: Iterable[Bundle]) -> dict[str, Any]:
    """Return the config values that turn on the bundles' test-time augmentation."""
    out: dict[str, Any] = {}
    for bundle in bundles:
        out |= bundle.block["tta"]
    return out


@dataclass(frozen=True)
class Labelled:
    """A label map on the scan's grid, and how reliable it is."""

    labels: np.ndarray
    """(I, J, K) uint8 or uint16."""
    confidence: Mapping[int, float] | None
    """Label -> mean probability that the network gives its label of a voxel; None if the bundle returns labels only."""
    refined: Outcome | None = None
    """What the intensities of the scan add; None if nothing is refined."""


class SegmentRunner(BundleRunner):
    """A loaded bundle that segments.

    If the bundle's channels are structures that exclude each other, medkit uses the probabilities of the channels.
    Otherwise it uses the labels that the bundle's postprocessing makes.
    """

    prepares_for_task = True

    def __init__(self, loaded: LoadedBundle, *, choices: SegmentChoices) -> None:
        super().__init__(loaded)
        bundle = self.bundle
        from medkit_segment import cleaning
        from medkit_segment.borders import Borders
        from medkit_segment.refinement import Refinement
        from medkit_segment.report import Expected

        if self.contract.kind != "labels":
            raise BundleError(f"bundle {bundle.name}: expected labels as its output, got {self.contract.kind}")
        names = names_of(bundle)
        channels = [n for n in sorted(self.contract.classes) if n]
        self.stated = Expected.of(names, bundle.block)
        """Of all structures, wanted or not."""
        self.expected = self.stated.of_some(choices.names(names, f"bundle {bundle.name}"))
        self.choices = choices
        self.values = np.array([0, *sorted(names)])
        """Channel -> label."""
        self.pieces = cleaning.Pieces.of(bundle.block)
        self.uses_channels = self.postprocessing.picks_largest and len(channels) == len(names)
        self.network.keeps_half = self.uses_channels
        wanted = choices.refine and self.uses_channels
        self.refinement = Refinement.of(bundle.block, self.values.tolist()) if wanted else None
        self.borders = Borders.of(bundle.block) if wanted else None
        if "probabilities" in choices.roles and not self.uses_channels:
            raise UsageError(f"--outputs probabilities: bundle {bundle.name} has none")

    def prepare(self, case: Case) -> Prepared:
        """Read a case. Raises InputError for another modality, other units or other axes than the bundle takes."""
        wanted = self.bundle.modality
        if wanted in ("MR", "CT"):
            found, why = modality_of(case)
            if found != wanted:
                chest = "; --method threshold labels CT of the chest" if found == "CT" else ""
                raise InputError(
                    f"{case.path}: expected {wanted} for bundle {self.bundle.name}, got {found}: {why}{chest}"
                )
        if wanted == "CT":
            check_hounsfield(case)
        self.check_axes(case)
        return super().prepare(case)

    def check_axes(self, case: Case) -> None:
        """Raise InputError if a plane comes to a network of volumes."""
        if not self.contract.planar and (is_picture(case.path) or case.image().grid.dims == 2):
            raise InputError(f"{case.path}: expected a volume for bundle {self.bundle.name}, got an image of two axes")

    def finish(self, case: Case, computed: Prepared) -> Result:
        """Bring the labels to the case's grid and make the requested files."""
        from medkit_segment import head_pose, report, results

        image = case.image()
        made = self.labelled(computed, image)
        everything = report.structures(made.labels, image.grid.voxel_volume, made.confidence, self.stated)
        rows = [row for row in everything if row.index in self.expected.names]
        if self.choices.labels:
            made = replace(made, labels=results.kept(made.labels, self.expected.names))
        measured = results.measured(image, made.labels, self.expected.names, case.path)
        turned = head_pose.turned(made.labels > 0, image.grid.affine) if self.stated.whole_brain else None
        found = [
            *([f"{LOOK_AT_THIS}{turned}: is the head's orientation right? (medkit view)"] if turned else []),
            *report.strange(everything, self.stated),
            *report.warnings(made.labels, rows, self.expected),
            *(LOOK_AT_THIS + doubt for doubt in measured.doubts),
        ]
        table = report.as_tsv(rows, image.grid, measured.cells)
        return Result(
            {} if self.choices.table else dict(self._outputs(image, made, table, computed)),
            metrics={
                **report.volumes(rows, image.grid),
                "confidence": {row.name: row.confidence for row in rows if row.confidence is not None},
                "expected_dice": {row.name: row.expected_dice for row in rows if row.expected_dice is not None},
                "look": bool(found),
                "look_at": {row.name: list(row.look) for row in rows if row.look},
                **measured.metrics,
            },
            warnings=[*computed.warnings, *found],
            details={
                **self.details,
                "labels": {str(r.index): r.name for r in rows},
                **_told(made.refined),
            },
            description=f"{self.bundle.name} {self.bundle.version} on {case.path.name}",
        )

    def labelled(self, computed: Prepared, image: Image) -> Labelled:
        """Return the labels of a computed case on the grid of its image. Raises BundleError."""
        with self.errors_named("postprocessing"):
            return self._from_channels(computed, image) if self.uses_channels else self._from_labels(computed)

    def _from_channels(self, computed: Prepared, image: Image) -> Labelled:
        from medkit_segment import labelling

        logits, affine = self._logits(computed)
        channels = self._cleaned(labelling.most_likely(logits), self.pieces.in_channels(self.values.tolist()))
        sure = labelling.certainty(logits, channels)
        count = np.bincount(channels.ravel(), minlength=len(self.values))
        total = np.bincount(channels.ravel(), sure.ravel(), minlength=len(self.values))
        confidence = {int(self.values[n]): float(total[n] / count[n]) for n in range(1, len(count)) if count[n]}
        mean = float(total[1:].sum() / max(1, count[1:].sum()))
        refined = self._refined(computed, logits, channels, mean)
        if refined is not None and refined.evidence is not None:
            channels = self._cleaned(
                refined.evidence.relabelled(logits, channels), self.pieces.in_channels(self.values.tolist())
            )
        kind = np.uint8 if self.values.max() < 256 else np.uint16
        coarse = self.values[channels].astype(kind)
        if self.borders is not None:
            return Labelled(self._with_borders(coarse, computed, image, self.borders), confidence)
        return Labelled(labelling.on_grid(coarse, affine, computed.grid), confidence, refined)

    def _with_borders(self, coarse: np.ndarray, computed: Prepared, image: Image, how: Borders) -> np.ndarray:
        """Return labels on the scan's grid with the borders that it shows; `coarse`: labels on the network's grid."""
        from medkit_segment import airway, borders, labelling
        from medkit_segment.upright import Upright

        value = computed.item["image"]
        affine = np.asarray(value.affine, np.float64)
        values = np.asarray(value[0], np.float32) * how.unit
        if values.shape != coarse.shape:
            return labelling.on_grid(coarse, affine, computed.grid)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if how.airway is not None:
            flesh = (coarse > 0) & (values > how.borders[0].edge)
            coarse = airway.relabelled(coarse, Upright(values, spacing), flesh, how.airway)
        for border in how.borders:
            coarse = borders.with_own_pieces(coarse, values, border)
        labels = labelling.on_grid(coarse, affine, computed.grid)
        for border in how.borders:
            found = borders.movable(coarse, values, spacing, border)
            gain, loss = (labelling.on_grid(array, affine, computed.grid) for array in (found.gain, found.loss))
            borders.redraw(labels, borders.Movable(gain, loss), image.data[0], border)
        return labels

    def _cleaned(self, labels: np.ndarray, pieces: Pieces) -> np.ndarray:
        from medkit_segment import cleaning

        return cleaning.cleaned(labels, pieces) if self.choices.clean else labels

    def _refined(
        self, computed: Prepared, logits: torch.Tensor, channels: np.ndarray, confidence: float
    ) -> Outcome | None:
        """Return what the scan's intensities add; None if that is not wanted, or the bundle does not state how.

        `confidence`: mean probability of the labels of all voxels.
        """
        import torch

        from medkit_segment import refinement

        if self.refinement is None:
            return None
        image = torch.from_numpy(np.asarray(computed.item["image"][0], np.float32))
        return refinement.refine(logits, channels, image, confidence, self.refinement)

    def _logits(self, computed: Prepared) -> tuple[torch.Tensor, np.ndarray]:
        """Return the logits (C, I, J, K), and the affine that takes their voxel indices to RAS+ mm."""
        value = computed.item["pred"]
        affine = np.asarray(computed.item["image"].affine, np.float64)
        return value.as_tensor() if hasattr(value, "as_tensor") else value, affine

    def _from_labels(self, computed: Prepared) -> Labelled:
        from medkit.inference import to_labels

        labels = to_labels(self.postprocessing(computed)["pred"], computed.grid, f"bundle {self.bundle.name}").data[0]
        return Labelled(self._cleaned(labels, self.pieces) if labels.max() < 256 else labels, None)

    def _outputs(self, image: Image, made: Labelled, table: str, computed: Prepared) -> Iterable[tuple[str, Writable]]:
        from medkit_segment import cleaning, results

        if "labels" in self.choices.roles:
            yield "labels", image.with_data(made.labels[None])
            yield "table", Text(table)
        if {"mask", "brain"} & set(self.choices.roles):
            mask = cleaning.filled(made.labels > 0, image.grid.spacing, MASK_GAP)
            if "mask" in self.choices.roles:
                yield "mask", image.with_data(mask[None].astype(np.uint8))
            if "brain" in self.choices.roles:
                yield "brain", image.with_data(np.where(mask, image.data, image.data.dtype.type(0)))
        if "probabilities" in self.choices.roles:
            yield "probabilities", self._channel_probabilities(image, computed, made.refined)
        yield from results.more_files(image, made.labels, self.expected.names, self.choices)

    def _channel_probabilities(self, image: Image, computed: Prepared, refined: Outcome | None) -> Image:
        """Return the probabilities (C, I, J, K) float32 on the scan's grid, the background first."""
        from medkit.images import Image as Made
        from medkit.space import Grid
        from medkit.transforms import resample
        from medkit_segment import labelling

        logits, affine = self._logits(computed)
        if refined is not None and refined.evidence is not None:
            logits = refined.evidence.added(logits)
        out = np.empty((len(logits), *image.grid.shape), np.float32)
        for target, values in zip(out, labelling.probabilities(logits), strict=True):
            own = Made(values[None], Grid(values.shape, affine, image.grid.dims))
            target[:] = resample(own, image.grid).data[0]
        return image.with_data(out)


def _told(refined: Outcome | None) -> dict[str, Any]:
    """Return the entry of the sidecar that says whether labels were refined, and why not."""
    return {} if refined is None else {"refinement": dict(refined.facts)}
