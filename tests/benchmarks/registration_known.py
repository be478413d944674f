"""Pairs of real scans with a known map, for `registration_people.py`; run as a program, the maps between `brain_multi`.

    python tests/benchmarks/registration_known.py

One person's scans of different contrasts, and of two visits, show the same brain. The moving scan of a pair is turned
by 10 degrees and shifted by 15 mm, exactly, in its header, and bent by up to 9 mm, smoothly, by interpolating it
(cubic splines). So the moving place of each point of the brain is known as well as the maps between the scans as they
were acquired: for `ms_longitudinal` those of its authors, for `brain_multi` rigid ones that this program finds with
SimpleITK (mutual information, all twelve ordered pairs, averaged). It prints the numbers that stand here as TURNS and
SHIFTS, and how far the single registrations are from them: 0.2 to 0.6 mm. (Within the brain alone they were 0.8 to 3 mm
apart.) Errors between different contrasts that are not above this say nothing.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from registration_ct_mr import Truth, placed
from registration_sets import SHARED, Landmarks, Likeness, Pair
from scipy import ndimage

MULTI = SHARED / "brain_multi"
CONTRASTS = ("t1", "t1c", "t2", "flair")
MIDDLE = np.array([0.0, 20.0, 20.0])
"""(3,) RAS+ mm, in the brain of `t1`."""
TURNS = {"t1": (0, 0, 0), "t1c": (4.595, -2.966, 7.62), "t2": (4.752, 1.567, 14.467), "flair": (0.795, 4.021, -2.94)}
"""Contrast -> the rotation from `t1` about MIDDLE, as a vector in degrees."""
SHIFTS = {"t1": (0, 0, 0), "t1c": (-2.48, -0.28, -1.58), "t2": (-0.04, 1.54, -18.05), "flair": (5.4, 1.75, -16.31)}
"""Contrast -> the shift of MIDDLE from `t1`, mm."""
VISITS = SHARED / "ms_longitudinal"
SEQUENCES = ("T1W", "T2W", "FLAIR")
LATTICE = 8
"""mm between points of the brain."""


def brain_multi(side: str, work: Path) -> Iterator[Pair]:
    """Yield all ordered pairs of contrasts, equal ones too; the moving scan is moved."""
    mask = brain_mask(scan_of("t1"), work)
    points = brain_points(mask)
    places = {name: placed(from_t1(name), points) for name in CONTRASTS}
    scans = {name: scan_of(name) for name in CONTRASTS}
    for seed, (fixed, moving) in enumerate(itertools.product(CONTRASTS, CONTRASTS)):
        group = "the same scan" if fixed == moving else "different contrasts"
        yield known_pair(f"{fixed}:{moving}", scans, places, group, seed, work)


def ms_longitudinal(side: str, work: Path) -> Iterator[Pair]:
    """Yield pairs of visits: as they were acquired, scored by likeness in the brain, and with the second one moved."""
    points = brain_points(VISITS / "coregistered/patient01/brainmask.nii.gz")
    names = [f"{visit}_{sequence}" for visit in (1, 2) for sequence in SEQUENCES]
    scans = {name: VISITS / f"patient01/study{name}.nii.gz" for name in names}
    places = {name: placed(from_common(name), points) for name in names}
    for sequence in SEQUENCES:
        fixed, moving = f"1_{sequence}", f"2_{sequence}"
        score = Likeness(scans[fixed], scans[moving], common_mask(fixed, scans[fixed], work))
        yield Pair(f"{fixed}:{moving} as acquired", scans[fixed], scans[moving], score, "visits as they were acquired")
    for seed, (first, second) in enumerate(itertools.product(SEQUENCES, SEQUENCES)):
        group = f"second visit moved, {'the same contrast' if first == second else 'different contrasts'}"
        yield known_pair(f"1_{first}:2_{second}", scans, places, group, 100 + seed, work)


def known_pair(
    name: str, scans: Mapping[str, Path], places: Mapping[str, np.ndarray], group: str, seed: int, work: Path
) -> Pair:
    """Return a pair `fixed:moving` of scans, the moving one moved; `places` are the brain's points (N, 3) in each."""
    fixed, moving = name.split(":")
    truth = Truth.draw(places[moving].mean(axis=0), seed)
    moved = work / f"{fixed}_{moving}.nii.gz"
    prepare = partial(move, scans[moving], truth, moved)
    seen = covers(scans[fixed], places[fixed]) & covers(scans[moving], places[moving])
    points = Landmarks({"tre": (places[fixed][seen], preimage(truth, places[moving][seen]))})
    return Pair(name, scans[fixed], moved, points, group, fixed.split("_")[-1] != moving.split("_")[-1], prepare)


def move(scan: Path, truth: Truth, moved: Path) -> None:
    """Write a scan as `truth` moves it: rigidly in its header, bent by interpolation."""
    import nibabel

    image = nibabel.load(scan)
    affine = np.linalg.inv(rigid_of(truth)) @ image.affine
    back = np.linalg.inv(image.affine)
    values = np.empty(image.shape, np.float32)
    spline = ndimage.spline_filter(np.asarray(image.dataobj, np.float32), output=np.float32)
    for k in range(image.shape[2]):
        grid = np.stack(np.meshgrid(*map(np.arange, image.shape[:2]), [k], indexing="ij"), -1).reshape(-1, 3)
        index = placed(back, truth(placed(affine, grid)))
        values[:, :, k] = ndimage.map_coordinates(spline, index.T, order=3, prefilter=False).reshape(image.shape[:2])
    nibabel.save(nibabel.Nifti1Image(np.clip(values, 0, None), affine), moved)


def rigid_of(truth: Truth) -> np.ndarray:
    """Return the rigid part (4, 4) of a map, moved to original points, RAS+ mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = truth.turn
    matrix[:3, 3] = truth.middle + truth.shift - truth.turn @ truth.middle
    return matrix


def preimage(truth: Truth, points: np.ndarray) -> np.ndarray:
    """Return the points (N, 3) that `truth` maps to `points` (N, 3), RAS+ mm."""
    back = np.linalg.inv(rigid_of(truth))
    found = placed(back, points)
    for _ in range(100):
        found = placed(back, points - truth.bend(found))
    if (worst := np.linalg.norm(truth(found) - points, axis=1).max()) > 0.01:
        raise SystemExit(f"the inverse of a drawn map was not found: {worst:.3f} mm")
    return found


def covers(scan: Path, points: np.ndarray) -> np.ndarray:
    """Return which points (N, 3) RAS+ mm lie within a scan."""
    import nibabel

    image = nibabel.load(scan)
    index = placed(np.linalg.inv(image.affine), points)
    return (index >= 0).all(axis=1) & (index <= np.array(image.shape) - 1).all(axis=1)


def brain_points(mask: Path) -> np.ndarray:
    """Return the points (N, 3) RAS+ mm of a lattice within a mask."""
    import nibabel

    image = nibabel.load(mask)
    inside = np.asanyarray(image.dataobj) > 0
    corners = placed(image.affine, np.array(list(itertools.product(*((0, n - 1) for n in inside.shape)))))
    ranges = [np.arange(np.ceil(low), high, LATTICE) for low, high in zip(corners.min(0), corners.max(0), strict=True)]
    points = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3)
    index = placed(np.linalg.inv(image.affine), points)
    return points[ndimage.map_coordinates(inside.astype(np.uint8), np.rint(index).T, order=0) > 0]


def scan_of(contrast: str) -> Path:
    """Return a scan of `brain_multi`."""
    return MULTI / f"tcga_fg_6692_{contrast}.nii.gz"


def brain_mask(scan: Path, work: Path) -> Path:
    """Return the mask of the brain that `brain_mri_mask` finds."""
    command = [sys.executable, "-m", "medkit", "run", "segment", "--bundle", "brain_mri_mask", str(scan), "-q"]
    subprocess.run([*command, "--outputs", "labels", "-o", str(work / "masks")], check=True, stdout=subprocess.DEVNULL)
    return work / "masks" / scan.name.replace(".nii.gz", "_dseg.nii.gz")


def from_t1(contrast: str) -> np.ndarray:
    """Return the map (4, 4) from points of `t1` to those of a contrast, RAS+ mm."""
    from scipy.spatial.transform import Rotation

    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.array(TURNS[contrast], float), degrees=True).as_matrix()
    matrix[:3, 3] = MIDDLE + SHIFTS[contrast] - matrix[:3, :3] @ MIDDLE
    return matrix


def from_common(name: str) -> np.ndarray:
    """Return the authors' map (4, 4) from their common space to a scan `VISIT_SEQUENCE`, RAS+ mm."""
    from medkit.transforms import AffineTransform, read_transform

    visit, sequence = name.split("_")
    steps = [f"study{visit}_FLAIR_to_common_space.txt"]
    if sequence != "FLAIR":
        steps.append(f"study{visit}_{sequence}_intrastudy_to_FLAIR.txt")
    matrix = np.eye(4)
    for step in steps:
        found = read_transform(VISITS / "patient01" / step)
        assert isinstance(found, AffineTransform)
        matrix = found.matrix @ matrix
    return matrix


def common_mask(name: str, scan: Path, work: Path) -> Path:
    """Return the authors' mask of the brain on the grid of a scan."""
    from medkit.images import read_image
    from medkit.transforms import AffineTransform, resample

    mask = read_image(VISITS / "coregistered/patient01/brainmask.nii.gz", labels=True)
    back = AffineTransform(np.linalg.inv(from_common(name)))
    path = work / f"mask_{name}.nii.gz"
    resample(mask, read_image(scan).grid, back, interpolation="nearest").write(path)
    return path


def rigid_map(fixed: Path, moving: Path) -> np.ndarray:
    """Return the rigid map (4, 4) from fixed to moving points, RAS+ mm, that SimpleITK finds."""
    import SimpleITK as sitk  # noqa: N813 - as all its users call it

    images = [sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (fixed, moving)]
    moments = sitk.CenteredTransformInitializerFilter.MOMENTS
    found = sitk.CenteredTransformInitializer(*images, sitk.Euler3DTransform(), moments)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(48)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-4, 300, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4, 2, 0])
    method.SetInitialTransform(found, inPlace=True)
    method.Execute(*images)
    turn, centre = np.array(found.GetMatrix()).reshape(3, 3), np.array(found.GetCenter())
    matrix, flip = np.eye(4), np.diag([-1.0, -1, 1, 1])
    matrix[:3, :3], matrix[:3, 3] = turn, found.GetTranslation() + centre - turn @ centre
    return flip @ matrix @ flip


def mean_map(maps: list[np.ndarray], middle: np.ndarray) -> np.ndarray:
    """Return the mean (4, 4) of rigid maps (4, 4), whose shifts are compared at `middle` (3,)."""
    from scipy.spatial.transform import Rotation

    mean = np.eye(4)
    mean[:3, :3] = Rotation.from_matrix([one[:3, :3] for one in maps]).mean().as_matrix()
    mean[:3, 3] = np.mean([placed(one, middle) for one in maps], axis=0) - mean[:3, :3] @ middle
    return mean


def agreed(single: Mapping[tuple[str, str], np.ndarray]) -> dict[str, np.ndarray]:
    """Return the maps (4, 4) from `t1` on which registrations of all ordered pairs agree best."""
    maps = {name: single.get(("t1", name), np.eye(4)) for name in CONTRASTS}
    for _ in range(50):
        means = {}
        for name in CONTRASTS:
            others = [other for other in CONTRASTS if other != name]
            ways = [single[other, name] @ maps[other] for other in others]
            ways += [np.linalg.inv(single[name, other]) @ maps[other] for other in others]
            means[name] = mean_map(ways, MIDDLE)
        maps = {name: means[name] @ np.linalg.inv(means["t1"]) for name in CONTRASTS}
    return maps


def main() -> None:
    """Print the maps between the scans of `brain_multi`, and how far the single registrations are from them."""
    from scipy.spatial.transform import Rotation

    single = {(a, b): rigid_map(scan_of(a), scan_of(b)) for a, b in itertools.permutations(CONTRASTS, 2)}
    with tempfile.TemporaryDirectory() as folder:
        points = brain_points(brain_mask(scan_of("t1"), Path(folder)))
    maps = agreed(single)
    for name, matrix in maps.items():
        turn = Rotation.from_matrix(matrix[:3, :3]).as_rotvec(degrees=True)
        print(
            f"{name}: turn {np.round(turn, 3).tolist()}, shift {np.round(placed(matrix, MIDDLE) - MIDDLE, 2).tolist()}"
        )
    for (a, b), matrix in single.items():
        apart = placed(matrix @ maps[a], points) - placed(maps[b], points)
        print(f"{a}:{b} {np.linalg.norm(apart, axis=1).mean():.2f} mm from the mean")


if __name__ == "__main__":
    main()
