"""Registration by another program, as a process of its own, for `registration_people.py`.

    python tests/benchmarks/registration_peers.py METHOD FIXED MOVING FOLDER [--unlike]

It writes the whole map as one displacement field on the fixed grid, `FOLDER/whole.nii.gz`, and `FOLDER/measured.json`
with the wall and CPU seconds of the registration calls: not those of the start, nor of writing that field. Packages
come from PYTHONPATH first. `--unlike`: the contrasts differ, so greedy takes mutual information for its affine map.
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
    """Run greedy: affine by NCC (NMI between unlike contrasts), then its warp by NCC, which it squares."""
    from picsl_greedy import Greedy3D  # type: ignore[import-not-found]

    tool, matrix, warp = Greedy3D(), job.folder / "greedy.mat", job.folder / "warp.nii.gz"
    given = f"-threads {THREADS} -V 0 -i {job.fixed} {job.moving} -n 100x50x10"
    metric = "NMI" if job.unlike else "NCC 4x4x4"
    clock = Clock()
    tool.execute(f"{given} -a -dof 12 -ia-image-centers -m {metric} -o {matrix}")
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

    `settings` change the map of the B-spline.
    """
    import itk

    fixed, moving = (itk.imread(str(path), itk.F) for path in (job.fixed, job.moving))
    maps = itk.ParameterObject.New()
    for kind in ("affine", "bspline"):
        one = maps.GetDefaultParameterMap(kind)
        if kind == "affine":
            one["AutomaticTransformInitialization"] = ["true"]
            one["AutomaticTransformInitializationMethod"] = ["CenterOfGravity"]
        else:
            for name, value in settings.items():
                one[name] = [value]
        maps.AddParameterMap(one)
    clock = Clock()
    found = itk.elastix_registration_method(
        fixed, moving, parameter_object=maps, number_of_threads=int(THREADS), log_to_console=False
    )[1]
    measured = clock.read()
    itk.imwrite(itk.transformix_deformation_field(moving, found), str(job.whole))
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
    "elastix": ("itk-elastix", elastix),
    "elastix, finer": ("itk-elastix", partial(elastix, **FINER)),
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
