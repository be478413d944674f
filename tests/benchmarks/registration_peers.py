"""Registration by another program, as a process of its own, for `registration_people.py`.

    python tests/benchmarks/registration_peers.py METHOD FIXED MOVING FOLDER [--unlike]

It writes the whole map as one displacement field on the fixed grid, `FOLDER/whole.nii.gz`, and `FOLDER/measured.json`
with the wall and CPU seconds of the registration calls: not those of the start, nor of writing that field. Packages
come from PYTHONPATH first. `--unlike`: the contrasts differ, so greedy starts with a rigid map by mutual information.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from registration import THREADS, Clock


@dataclass(frozen=True)
class Job:
    """A registration."""

    fixed: Path
    moving: Path
    folder: Path
    """Where to write."""
    unlike: bool

    @property
    def whole(self) -> Path:
        """Where the whole map goes."""
        return self.folder / "whole.nii.gz"


Measured = tuple[float, float]
"""Wall and CPU seconds."""


def greedy(job: Job, smoothing: str) -> Measured:
    """Run greedy: affine by NCC, then its warp by NCC, which it squares.

    Between unlike contrasts a rigid map by NMI takes the place of the affine one: of `t1:t2` of `brain_multi` it leaves
    4.1 mm, an affine map by NCC 10.5 mm, and an affine one by NMI diverges.
    """
    from picsl_greedy import Greedy3D  # type: ignore[import-not-found]

    tool, matrix, warp = Greedy3D(), job.folder / "greedy.mat", job.folder / "warp.nii.gz"
    given = f"-threads {THREADS} -V 0 -i {job.fixed} {job.moving} -n 100x50x10"
    first = "-dof 6 -m NMI" if job.unlike else "-dof 12 -m NCC 4x4x4"
    clock = Clock()
    tool.execute(f"{given} -a {first} -ia-image-centers -o {matrix}")
    tool.execute(f"{given} -it {matrix} -m NCC 2x2x2 -s {smoothing} -o {warp}")
    measured = clock.read()
    tool.execute(f"-threads {THREADS} -V 0 -rf {job.fixed} -rc {job.whole} -r {warp} {matrix}")
    return measured


def ants(job: Job, kind: str) -> Measured:
    """Run a registration of ANTs through antspyx; the warp and the affine map become one field."""
    import ants  # type: ignore[import-not-found]

    fixed, moving = (ants.image_read(str(path)) for path in (job.fixed, job.moving))
    clock = Clock()
    found = ants.registration(fixed, moving, kind, random_seed=1, outprefix=str(job.folder / "ants_"))
    measured = clock.read()
    whole = ants.apply_transforms(fixed, moving, found["fwdtransforms"], compose=str(job.folder / "composed_"))
    Path(whole).rename(job.whole)
    return measured


def elastix(job: Job, **settings: str) -> Measured:
    """Run elastix with the parameter maps that it comes with, affine and B-spline, from the centres of gravity.

    `settings` change the map of the B-spline. The package is SimpleElastix, because itk-elastix 0.25.4 crashes here.
    """
    import SimpleITK as sitk  # noqa: N813 - as all its users call it

    fixed, moving = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (job.fixed, job.moving))
    affine, spline = (sitk.GetDefaultParameterMap(kind) for kind in ("affine", "bspline"))
    affine["AutomaticTransformInitialization"] = ["true"]
    affine["AutomaticTransformInitializationMethod"] = ["CenterOfGravity"]
    for name, value in settings.items():
        spline[name] = [value]
    method, mapping = sitk.ElastixImageFilter(), sitk.TransformixImageFilter()
    for one in (method, mapping):
        one.SetOutputDirectory(str(job.folder))
        one.SetMovingImage(moving)
        one.LogToConsoleOff()
    method.SetFixedImage(fixed)
    method.SetNumberOfThreads(int(THREADS))
    method.SetParameterMap(affine)
    method.AddParameterMap(spline)
    clock = Clock()
    method.Execute()
    measured = clock.read()
    mapping.SetTransformParameterMap(method.GetTransformParameterMap())
    mapping.ComputeDeformationFieldOn()
    mapping.Execute()
    sitk.WriteImage(mapping.GetDeformationField(), str(job.whole))
    return measured


def fireants(job: Job) -> Measured:
    """Run FireANTs as its tutorial does: affine, then its greedy warp, both by local correlation; first the moments."""
    import torch
    from fireants.io import BatchedImages, Image  # type: ignore[import-not-found]
    from fireants.registration.affine import AffineRegistration  # type: ignore[import-not-found]
    from fireants.registration.greedy import GreedyRegistration  # type: ignore[import-not-found]
    from fireants.registration.moments import MomentsRegistration  # type: ignore[import-not-found]

    torch.set_num_threads(int(THREADS))
    fixed, moving = (BatchedImages([Image.load_file(str(path), device="cpu")]) for path in (job.fixed, job.moving))
    clock = Clock()
    centred = MomentsRegistration(4.0, fixed, moving, moments=1)
    centred.optimize()
    affine = AffineRegistration(
        [4, 2, 1], [200, 100, 50], fixed, moving, optimizer="Adam", optimizer_lr=3e-3, cc_kernel_size=5,
        init_rigid=centred.get_affine_init(),
    )  # fmt: skip
    affine.optimize()
    warp = GreedyRegistration(
        scales=[4, 2, 1], iterations=[200, 100, 25], fixed_images=fixed, moving_images=moving, cc_kernel_size=5,
        deformation_type="compositive", smooth_grad_sigma=1, optimizer="adam", optimizer_lr=0.5,
        init_affine=affine.get_affine_matrix().detach(),
    )  # fmt: skip
    warp.optimize()
    measured = clock.read()
    warp.save_as_ants_transforms(str(job.whole))
    return measured


FINER = {"FinalGridSpacingInPhysicalUnits": "5", "MaximumNumberOfIterations": "1000", "NumberOfSpatialSamples": "4096"}
PEERS: dict[str, tuple[str, Callable[[Job], Measured]]] = {
    "greedy": ("picsl-greedy", partial(greedy, smoothing="1.732vox 0.707vox")),
    "greedy, less smooth": ("picsl-greedy", partial(greedy, smoothing="2vox 0.5vox")),
    "elastix": ("SimpleITK-SimpleElastix", elastix),
    "elastix, finer": ("SimpleITK-SimpleElastix", partial(elastix, **FINER)),
    "ANTs SyNQuick": ("antspyx", partial(ants, kind="antsRegistrationSyNQuick[s]")),
    "ANTs SyN": ("antspyx", partial(ants, kind="antsRegistrationSyN[s]")),
    "FireANTs": ("fireants", fireants),
}
"""Name -> the package that it needs, and the method. greedy and elastix once as their authors say, once finer."""


def main() -> None:
    """Run a peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=PEERS)
    parser.add_argument("fixed", type=Path)
    parser.add_argument("moving", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unlike", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", THREADS)
    seconds, cpu = PEERS[given.method][1](Job(given.fixed, given.moving, given.folder, given.unlike))
    (given.folder / "measured.json").write_text(json.dumps({"seconds": seconds, "cpu": cpu}))


if __name__ == "__main__":
    main()
