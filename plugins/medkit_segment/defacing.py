"""The task `deface`: removes face and ears from scans of heads."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import InputError
from medkit.inference import BundleOptions, bundle_task, check_hounsfield, feed_of, modality_of
from medkit.task import LOOK_AT_THIS, Case, Output, Record, Result, Task
from medkit_segment import cleaning
from medkit_segment.results import SegmentChoices
from medkit_segment.task import MASK_GAP, SegmentRunner

if TYPE_CHECKING:
    from medkit.images import Image
    from medkit.inference import LoadedBundle, Prepared
    from medkit_segment.head_pose import HeadPose

OUTPUTS = (Output("image", "image", "defaced", entities={"desc": "defaced"}), Output("mask", "mask", "face"))
AIR = -1000.0
"""HU of what replaces the face in a CT."""
CRANIUM = "cranium"
"""Key, in the item of a case, of what the skull of a CT encloses, (I, J, K) bool."""
STRAY = 9.0
"""mm; root mean square distance of structures from their places above which a head may be placed wrongly."""
LITTLE_ML = 40.0
"""ml of tissue; a face has more."""
BRAIN_WINDOW = (-10.0, 90.0)
"""HU that a CT's brain is shown to the network with."""
BRIDGE = 10.0
"""mm; what hangs on the brain by a narrower bridge, such as an eye that the network took for brain, is none."""
KNOWN_BRAIN_ML = 600.0
"""ml; a smaller brain is cut off, an infant's, or something else."""


def defacing(chosen: BundleOptions, *, mask: bool) -> Task:
    """Return the task; with `mask` it also writes what was removed. Raises what `bundle_task` raises."""
    bundles = chosen.of_task("segment")
    task = bundle_task("deface", bundles, chosen.settings, runner=functools.partial(DefaceRunner, mask=mask))
    return replace(task, outputs=OUTPUTS if mask else OUTPUTS[:1], modalities=("MR", "CT"), summary=_summary)


class DefaceRunner(SegmentRunner):
    """A loaded bundle of the brain whose labels tell where the face is."""

    def __init__(self, loaded: LoadedBundle, *, mask: bool) -> None:
        super().__init__(loaded, choices=SegmentChoices(roles=("labels",), refine=False))
        self.mask = mask

    def prepare(self, case: Case) -> Prepared:
        """Read a case; of a CT the network sees what the skull encloses. Raises InputError."""
        from medkit_segment import cranium

        modality, why = modality_of(case)
        if modality not in ("MR", "CT"):
            raise InputError(f"{case.path}: expected MR or CT of a head, got {modality}: {why}")
        self.check_axes(case)
        if modality == "CT":
            check_hounsfield(case)
        feed = feed_of(case, self.contract)
        image = case.image()
        first, brain = image.data[0], None
        if modality == "CT":
            brain = cranium.inside(first, image.grid.spacing)
            if brain is None:
                raise InputError(f"{case.path}: expected a CT of a head, found no skull with a brain in it")
            low, high = BRAIN_WINDOW
            first = np.where(brain, np.clip(first, low, high) - low, 0).astype(np.float32)
        one = image.with_data(first[None])
        with self.errors_named("preprocessing", None, case):
            prepared = self.preprocessing.prepare(replace(feed, images=dict.fromkeys(feed.images, one)), case)
        return prepared if brain is None else replace(prepared, item={**prepared.item, CRANIUM: brain})

    def finish(self, case: Case, computed: Prepared) -> Result:
        """Remove the face. Raises InputError if no head is found."""
        from medkit_segment import face, head_pose

        image = case.image()
        labels = self.labelled(computed, image).labels
        pose = head_pose.pose_of(labels, image.grid.affine)
        held = computed.item.get(CRANIUM)
        is_ct = held is not None
        brain = _brain(labels, image, pose) if held is None else held
        volume = np.count_nonzero(brain) * image.grid.voxel_volume / 1000
        if volume < KNOWN_BRAIN_ML:
            raise InputError(f"{case.path}: expected a head with its brain, found {volume:.0f} ml of brain")
        if pose is None:
            raise InputError(
                f"{case.path}: expected a head, found {volume:.0f} ml of brain whose structures do not lie as in a "
                f"head; is its orientation right? (medkit view)"
            )
        removed = face.region(image.grid, pose.matrix, brain)
        tissue = np.count_nonzero(removed & _tissue(image, is_ct)) * image.grid.voxel_volume / 1000
        gone = image.with_data(removed[None].astype(np.uint8))
        return Result(
            {"image": _without(image, removed, is_ct)} | ({"mask": gone} if self.mask else {}),
            metrics={
                "removed_ml": round(tissue, 1),
                "brain_ml": round(volume, 1),
                "pose_error_mm": round(pose.error, 2),
                "pose_structures": pose.structures,
            },
            warnings=[*computed.warnings, *_doubts(pose, tissue)],
            details=self.details,
            description=f"Face and ears removed from {case.path.name}",
            kind="image",
            figure=functools.partial(_figure, image, gone, f"deface  {case.path.name}"),
        )


def _brain(labels: np.ndarray, image: Image, pose: HeadPose | None) -> np.ndarray:
    """Return the mask (I, J, K) of the brain of an MR image."""
    from medkit_segment import face

    brain = labels > 0
    if pose is not None:
        brain &= ~face.within(image.grid, pose.matrix)
    return cleaning.without_outgrowths(cleaning.filled(brain, image.grid.spacing, MASK_GAP), image.grid.spacing, BRIDGE)


def _tissue(image: Image, is_ct: bool) -> np.ndarray:
    """Return the voxels (I, J, K) that hold tissue, roughly."""
    values = image.data[0]
    return values > -300 if is_ct else values > 0.25 * float(values[values > values.mean()].mean())


def _without(image: Image, removed: np.ndarray, is_ct: bool) -> Image:
    """Return all channels of an image with air in place of what is removed."""
    kind = image.data.dtype
    lowest = np.iinfo(kind).min if np.issubdtype(kind, np.integer) else -np.inf
    air = max(AIR, float(image.data.min()), lowest) if is_ct else min(0.0, float(image.data.min()))
    out = image.data.copy(order="K")
    out[:, removed] = kind.type(air)
    return image.with_data(out)


def _figure(image: Image, removed: Image, title: str) -> np.ndarray:
    """Return the picture of a scan with what was removed drawn over it, (H, W, 3) uint8."""
    from medkit.figures import overlay_mosaic

    return overlay_mosaic(image, removed, kind="labels", title=title, names={1: "removed, with air"})


def _doubts(pose: HeadPose, tissue: float) -> list[str]:
    """Return what a person should look at."""
    found = []
    if pose.error > STRAY:
        found.append(f"the head may be placed wrongly: structures are {pose.error:.1f} mm from their places")
    if tissue < LITTLE_ML:
        found.append(f"only {tissue:.0f} ml of tissue were removed; the face may lie outside of the field of view")
    return [LOOK_AT_THIS + text for text in found]


def _summary(record: Record) -> str:
    """Return how much was removed, for the progress line."""
    removed = record.medkit.get("metrics", {}).get("removed_ml")
    return "" if removed is None else f"{removed:.0f} ml removed"
