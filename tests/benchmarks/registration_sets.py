"""Pairs of scans for `registration_people.py`, and what their registration is scored by."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from registration import DATA as ADULTS
from registration import mean_dice

if TYPE_CHECKING:
    from medkit.transforms import Transform

SHARED = ADULTS.parent
SAME_PERSON = {"1023": "1003"}
"""Adult -> the same person under another number."""
LIVER = {"dataset18": ("cyc_1_10", "cyc_3_10"), "dataset19": ("cyc_1_6", "cyc_1_9")}
"""Person -> phases that are compared with the end of exhalation."""
EXHALED = "exhMaster"
WRONG_SPACING = {("dataset18", "cyc_1_10"): 4.0}
"""Slice spacing in mm of scans whose header says another one than their landmarks."""
PROSTATE_SPACING = 1.0
"""mm. The headers say 0.4, with which a gland would have 0.5 to 2.8 ml; with 1 mm it has 7 to 43 ml."""
SIDES = ("tuning", "reporting")


class Score(Protocol):
    """A way to score a registration."""

    def __call__(self, found: Transform | None) -> dict[str, float]:
        """Return scores of a transform from fixed to moving points; None: as the scans lie."""


@dataclass(frozen=True)
class Overlap:
    """Mean Dice of the labels that both have, moved by nearest neighbour."""

    fixed: Path
    moving: Path

    def __call__(self, found: Transform | None) -> dict[str, float]:
        """Return `dice`."""
        from medkit.images import read_image
        from medkit.transforms import resample

        fixed, moving = (read_image(path, labels=True) for path in (self.fixed, self.moving))
        return {"dice": mean_dice(fixed.data[0], resample(moving, fixed.grid, found, interpolation="nearest").data[0])}


@dataclass(frozen=True)
class Landmarks:
    """Mean TRE in mm, by place."""

    places: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Name of the score -> fixed and moving landmarks (N, 3), RAS+ mm."""

    def __call__(self, found: Transform | None) -> dict[str, float]:
        """Return the mean distance in mm between mapped fixed landmarks and moving ones, by place."""
        moved = {k: (a if found is None else found.map_points(a)) - b for k, (a, b) in self.places.items()}
        return {where: float(np.linalg.norm(apart, axis=1).mean()) for where, apart in moved.items()}


@dataclass(frozen=True)
class Likeness:
    """Correlation and mutual information of the fixed and the moved image within a mask."""

    fixed: Path
    moving: Path
    mask: Path
    """On the fixed grid."""

    def __call__(self, found: Transform | None) -> dict[str, float]:
        """Return `ncc` and `mi`."""
        import torch

        from medkit.evaluation.measures.metrics import mutual_information, ncc
        from medkit.images import read_image
        from medkit.transforms import resample

        fixed, moving, mask = read_image(self.fixed), read_image(self.moving), read_image(self.mask, labels=True)
        moved = resample(moving, fixed.grid, found)
        images = [torch.from_numpy(np.ascontiguousarray(image.data[0], np.float32)) for image in (fixed, moved)]
        inside = torch.from_numpy(np.ascontiguousarray(mask.data[0] > 0))
        return {"ncc": ncc(*images, inside), "mi": mutual_information(*images, inside)}


@dataclass(frozen=True)
class Pair:
    """Two scans, and what their registration is scored by."""

    name: str
    fixed: Path
    moving: Path
    score: Score
    group: str = ""
    """Pairs of one group share a table."""
    unlike: bool = False
    """Their contrasts differ, so that peers which have to be told take mutual information where they can."""
    prepare: Callable[[], object] = lambda: None
    """Called before the scans are used; it writes those that have to be made."""


def side_of(person: str) -> str:
    """Return the side of a person: every other one by the last digits of the name."""
    return SIDES[int(re.sub(r"\D", "", SAME_PERSON.get(person, person))) % 2]


def pairs_of(people: Mapping[str, tuple[Path, Path]], side: str) -> Iterator[Pair]:
    """Yield ordered pairs of different people on one side; `people` are name -> scan and labels."""
    for fixed, moving in itertools.permutations(people, 2):
        same = SAME_PERSON.get(fixed, fixed) == SAME_PERSON.get(moving, moving)
        if not same and (side == "all" or side_of(fixed) == side_of(moving) == side):
            score = Overlap(people[fixed][1], people[moving][1])
            yield Pair(f"{fixed}:{moving}", people[fixed][0], people[moving][0], score)


def adults(side: str, work: Path) -> Iterator[Pair]:
    """Yield pairs of adults."""
    scans = sorted(ADULTS.glob("oasis_*_t1.nii.gz"))
    yield from pairs_of({p.name.split("_")[1]: (p, p.with_name(p.name.replace("_t1", "_labels"))) for p in scans}, side)


def infants(side: str, work: Path) -> Iterator[Pair]:
    """Yield pairs of infants."""
    folders = sorted((SHARED / "infants").glob("Template*"))
    yield from pairs_of({f.name: (f / "T1w_brain.nii.gz", f / "Segmentation.nii.gz") for f in folders}, side)


def liver(side: str, work: Path) -> Iterator[Pair]:
    """Yield pairs of phases, in both directions; their scans are written into `work` with the right slice spacing."""
    for person, phases in LIVER.items():
        if side in ("all", side_of(person)):
            for phase in phases:
                for fixed, moving in ((EXHALED, phase), (phase, EXHALED)):
                    scans = [phase_scan(person, name, work) for name in (fixed, moving)]
                    points = {
                        where: (landmarks(person, fixed, where), landmarks(person, moving, where))
                        for where in ("liver", "outside")
                    }
                    yield Pair(f"{person}:{fixed}:{moving}", scans[0], scans[1], Landmarks(points))


def phase_scan(person: str, phase: str, work: Path) -> Path:
    """Return a phase as NIfTI in `work`."""
    import SimpleITK as sitk  # noqa: N813 - as all its users call it

    path = work / f"{person}_{phase}.nii.gz"
    if not path.exists():
        (source,) = (SHARED / "liver_mr_landmarks/ETHLiver" / person).glob(f"{phase}*.force_direction.mha")
        image = sitk.ReadImage(str(source))
        if spacing := WRONG_SPACING.get((person, phase)):
            image.SetSpacing((*image.GetSpacing()[:2], spacing))
        sitk.WriteImage(image, str(path))
    return path


def landmarks(person: str, phase: str, where: str) -> np.ndarray:
    """Return the landmarks (N, 3) of a phase, RAS+ mm; the files are in LPS mm."""
    text = (SHARED / f"liver_mr_landmarks/ETHLiver/{person}/{phase}LM{where}.vtk").read_text()
    found = re.search(r"POINTS (\d+) float\n", text)
    assert found is not None
    values = np.array(text[found.end() :].split()[: 3 * int(found[1])], float)
    return values.reshape(-1, 3) * [-1, -1, 1]


def prostate(side: str, work: Path) -> Iterator[Pair]:
    """Yield an MR for each ultrasound (fixed), in groups: with small structures besides the gland, and without.

    The files are written into `work` with PROSTATE_SPACING. `dice` is that of the gland, `structures` the mean
    distance in mm between the centres of the small structures.
    """
    for scan in sorted((SHARED / "prostate_mr_us").glob("*/us_images/*.nii.gz")):
        if side in ("all", side_of(scan.name)):
            name = scan.name.removesuffix(".nii.gz")
            sides = [prostate_scan(scan.parent.parent, name, kind, work) for kind in ("us", "mr")]
            (fixed, fixed_gland, a), (moving, moving_gland, b) = sides
            overlap = Overlap(fixed_gland, moving_gland)
            if len(a):
                both = Both((overlap, Landmarks({"structures": (a, b)})))
                yield Pair(name, fixed, moving, both, "gland and structures", unlike=True)
            else:
                yield Pair(name, fixed, moving, overlap, "gland", unlike=True)


@dataclass(frozen=True)
class Both:
    """Several scores."""

    parts: tuple[Score, ...]

    def __call__(self, found: Transform | None) -> dict[str, float]:
        """Return the scores of all parts."""
        return {name: value for part in self.parts for name, value in part(found).items()}


def prostate_scan(folder: Path, name: str, kind: str, work: Path) -> tuple[Path, Path, np.ndarray]:
    """Write scan and gland of a side into `work`; return their paths, and centres (N, 3) of structures, RAS+ mm."""
    import nibabel

    affine = np.diag([PROSTATE_SPACING] * 3 + [1.0])
    scan, gland = work / f"{name}_{kind}.nii.gz", work / f"{name}_{kind}_gland.nii.gz"
    image = np.asanyarray(nibabel.load(folder / f"{kind}_images/{name}.nii.gz").dataobj)
    labels = np.asanyarray(nibabel.load(folder / f"{kind}_labels/{name}.nii.gz").dataobj)
    labels = labels.reshape(*labels.shape[:3], -1) > 0.5
    nibabel.save(nibabel.Nifti1Image(image, affine), scan)
    nibabel.save(nibabel.Nifti1Image(labels[..., 0].astype(np.uint8), affine), gland)
    centres = [np.argwhere(labels[..., k]).mean(axis=0) * PROSTATE_SPACING for k in range(1, labels.shape[3])]
    return scan, gland, np.array(centres).reshape(-1, 3)
