"""`medkit run sr --fuse`: scans that do not belong together need a look; nothing to make finer is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medkit_sr.fuse_task import disagreements

Run = Callable[..., "Outcome"]  # noqa: F821


@pytest.mark.parametrize(
    ("rms", "noise", "doubtful"),
    [(0.13, 0.009, True), (0.0955, 0.0259, True), (0.0205, 0.0242, False), (0.031, 0.032, False), (0.03, 0.001, False)],
)
def test_scans_that_do_not_fit_together(rms: float, noise: float, doubtful: bool) -> None:
    """The numbers are those of two brains, and of one brain scanned twice."""
    found = disagreements(["a.nii.gz", "b.nii.gz"], [{"rms": rms, "noise": noise}, {"rms": 0.02, "noise": 0.02}])
    assert bool(found) is doubtful
    if doubtful:
        assert "of one person" in found[0]
        assert f"a.nii.gz differs by {100 * rms:.1f} %" in found[0]
        assert "b.nii.gz" not in found[0]


@pytest.mark.parametrize("fuse", [[], ["--fuse"]])
def test_scans_that_are_finer_already_are_refused(toy: Run, tmp_path: Path, fuse: list[str]) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        data = rng.normal(500, 100, (24, 26, 22)).astype(np.float32)
        nibabel.Nifti1Image(data, np.eye(4)).to_filename(tmp_path / f"{name}.nii.gz")
    inputs = [tmp_path / f"{name}.nii.gz" for name in ("ab" if fuse else "a")]
    done = toy("run", "sr", *inputs, *fuse, "--spacing", "2", env={"TOY_PLUGINS": "medkit_sr"})
    assert done.code == 3
    assert "a.nii.gz: has voxels of 1 x 1 x 1 mm already, nothing coarser than 2 mm" in done.err


@pytest.mark.slow  # registers in a process of its own
@pytest.mark.real_data
def test_two_persons_need_a_look(toy: Run, shared_data: Path, tmp_path: Path) -> None:
    from scipy.ndimage import uniform_filter

    for name, person, axis in (("a", 1000, 0), ("b", 1000, 1), ("c", 1001, 1)):
        scan = nibabel.load(shared_data / f"brain_t1_manual/oasis_{person}_t1.nii.gz")
        size, step = [2, 2, 2], [2, 2, 2]
        size[axis] = step[axis] = 6
        voxels = uniform_filter(np.asarray(scan.dataobj, np.float32), size)[tuple(slice(s // 2, None, s) for s in step)]
        affine = scan.affine.copy()
        affine[:3, 3] += scan.affine[:3, :3] @ (np.array(step) / 2 - 0.5)
        affine[:3, :3] = scan.affine[:3, :3] * step
        noise = np.random.default_rng(0).normal(0, 0.01 * voxels.max(), voxels.shape)
        nibabel.Nifti1Image((voxels + noise).astype(np.float32), affine).to_filename(tmp_path / f"{name}.nii.gz")
    for other, look in (("b", False), ("c", True)):
        (record,) = toy(
            *("run", "sr", tmp_path / "a.nii.gz", tmp_path / f"{other}.nii.gz", "--fuse", "--spacing", "2"),
            *("--method", "backprojection", "--json", "-o", tmp_path / other / "made.nii.gz"),
            env={"TOY_PLUGINS": "medkit_sr"},
        ).records
        assert record["medkit"]["look"] is look, record["medkit"]["metrics"]["consistency"]
