"""Convert transforms between the file formats of different programs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medkit.errors import InputError, OutputError, UsageError
from medkit.images import nifti
from medkit.pipe.names import suffix_of
from medkit.pipe.records import absolute
from medkit.run.outputs import Output
from medkit.run.task import Case, Result, Task
from medkit.transform_tasks.checks import check_ends
from medkit.transform_tasks.compose import TAKES
from medkit.transforms.files import TransformFile, read_transform
from medkit.transforms.freesurfer import (
    RAS,
    VOXELS,
    FreeSurferVolume,
    read_lta,
    read_register_dat,
    write_lta,
    write_register_dat,
)
from medkit.transforms.fsl import is_marked_warp, read_flirt, read_warp, write_flirt, write_warp
from medkit.transforms.transform import AffineTransform, Transform, with_grids
from medkit.transforms.unmarked import (
    WARPS,
    is_text_matrix,
    is_three_frames,
    read_ras_displacements,
    read_ras_matrix,
    read_ras_positions,
    read_voxel_displacements,
)


@dataclass(frozen=True)
class Form:
    """A file format for transforms."""

    help: str
    """Description for `--help`."""
    extensions: tuple[str, ...]
    """Endings of its files, the usual one first."""
    write: Callable[[Path, AffineTransform, FreeSurferVolume, FreeSurferVolume], None] | None = None
    """Function that writes an affine transform from a fixed to a moving volume; None for forms that need no volumes."""


def _flirt(path: Path, transform: AffineTransform, fixed: FreeSurferVolume, moving: FreeSurferVolume) -> None:
    write_flirt(path, transform, fixed.grid, moving.grid)


def _register_dat(path: Path, transform: AffineTransform, fixed: FreeSurferVolume, moving: FreeSurferVolume) -> None:
    write_register_dat(path, transform, fixed.grid, moving.grid)


FORMS = {
    "itk": Form("ITK's and ANTs' text", (".tfm", ".txt")),
    "itk-mat": Form("ITK's and ANTs' .mat", (".mat",)),
    "itk-h5": Form("ITK's and ANTs' composite", (".h5", ".hdf5")),
    "field": Form("displacement field of ITK and ANTs", (".nii.gz", ".nii")),
    "flirt": Form("matrix of FSL FLIRT", (".mat", ".txt"), _flirt),
    "fsl-warp": Form("displacements for FSL applywarp", (".nii.gz", ".nii")),
    "lta": Form("FreeSurfer, RAS to RAS", (".lta",), functools.partial(write_lta, kind=RAS)),
    "lta-voxels": Form("FreeSurfer, voxel to voxel", (".lta",), functools.partial(write_lta, kind=VOXELS)),
    "register-dat": Form("FreeSurfer tkregister", (".dat",), _register_dat),
}
"""Formats by their names for `--to`. Without `--to`, the first format with the ending of the output is used."""


@dataclass(frozen=True)
class Kind:
    """A meaning of a file that does not state its own."""

    help: str
    """Description for the sidecar."""
    read: Callable[..., Transform]
    """Function that reads such a file: of its path and, with `images`, of the fixed and the moving grid."""
    images: bool = True
    """Whether the file has a meaning only together with its two images."""


KINDS = {
    "flirt": Kind("a matrix of FSL FLIRT", read_flirt),
    "ras-matrix": Kind("a matrix of greedy or c3d, RAS mm", read_ras_matrix, images=False),
    "fsl-warp": Kind("a warp of FSL", read_warp),
    "ras-displacements": Kind("displacements in RAS mm, as of SynthMorph", read_ras_displacements, images=False),
    "ras-positions": Kind("positions in RAS mm, as of MRtrix", read_ras_positions, images=False),
    "voxel-displacements": Kind("displacements in voxels, as of VoxelMorph", read_voxel_displacements),
}
"""Meanings by their names for `--from`."""


def conversion(
    form: str | None, output: Path | None, fixed: Path | None, moving: Path | None, kind: str | None = None
) -> Task:
    """Return the task that writes each of its inputs in another format.

    kind: what the inputs hold, one of `KINDS`; None: what their names and headers state. Raises UsageError if the
    format is unclear or an image is missing.
    """
    form = form or _form_of(output)
    images = {role: absolute(path) for role, path in (("fixed", fixed), ("moving", moving)) if path is not None}
    if (FORMS[form].write or form == "fsl-warp") and len(images) < 2:
        raise UsageError(f"--to {form}: needs both images, --fixed and --moving")
    if kind and KINDS[kind].images and len(images) < 2:
        raise UsageError(f"--from {kind}: needs both images, --fixed and --moving")
    first, *others = FORMS[form].extensions
    return Task(
        name="transform convert",
        outputs=(Output("transform", "transform", form.replace("-", "_"), first, extensions=tuple(others)),),
        process=functools.partial(_convert, form=form, kind=kind),
        arguments={"to": form} | ({"from": kind} if kind else {}),
        takes=TAKES,
        role="transform",
        shared=images,
        uses_torch=False,
    )


def _form_of(output: Path | None) -> str:
    suffix = suffix_of(output).lower() if output else ""
    found = next((name for name, form in FORMS.items() if suffix in form.extensions), None)
    if found is None:
        raise UsageError(f"name the form with --to ({', '.join(FORMS)}), or by the ending of --output")
    return found


def _convert(case: Case, *, form: str, kind: str | None) -> Result:
    fixed, moving = _volume(case.inputs.get("fixed")), _volume(case.inputs.get("moving"))
    transform = read_any(case.path, fixed, moving, kind)
    ends = [None if volume is None else volume.grid for volume in (fixed, moving)]
    if form in ("field", "fsl-warp"):
        case.runtime.limit_torch()
    warnings = check_ends(transform, ends[0], ends[1], "exchange --fixed and --moving, or invert it")
    if kind is None and _is_text_matrix(case.path):
        note = "read as a matrix of FSL (--from flirt), not of greedy or c3d (--from ras-matrix), which look the same"
        warnings = [*warnings, note]
    transform = with_grids(transform, *(None if grid is None else grid.digest() for grid in ends))
    return Result(
        {"transform": _InForm(transform, form, fixed, moving)},
        warnings=warnings,
        spatial_reference=case.inputs.get("fixed"),
        details={"grids": {"from": transform.from_grid, "to": transform.to_grid}},
        description=f"{case.path.name} as {FORMS[form].help}",
    )


def _volume(path: Path | None) -> FreeSurferVolume | None:
    from medkit.images.image import read_grid

    return None if path is None else FreeSurferVolume(path, read_grid(path))


def read_any(
    path: Path, fixed: FreeSurferVolume | None = None, moving: FreeSurferVolume | None = None, kind: str | None = None
) -> Transform:
    """Read a transform of any program, from fixed to moving points in RAS+ mm.

    `kind`, one of `KINDS`, states what the file holds. Raises InputError, also if the file does not state it and may
    hold several things, or if it needs `fixed` and `moving` and they are missing.
    """
    if kind is not None and not KINDS[kind].images:
        return KINDS[kind].read(path)
    if kind is None and path.suffix.lower() == ".lta":
        return read_lta(path, *(None if volume is None else volume.grid for volume in (fixed, moving)))
    reader = KINDS[kind].read if kind else _reader_with_images(path)
    if reader is None:
        return read_transform(path)
    if fixed is None or moving is None:
        also = ", or state that it is one of greedy or c3d: --from ras-matrix" if reader is read_flirt else ""
        raise InputError(
            f"{path}: only has a meaning together with its two images: name them with --fixed and --moving{also}"
        )
    return reader(path, fixed.grid, moving.grid)


def _reader_with_images(path: Path) -> Callable[..., Transform] | None:
    """Return the reader of a format that needs the two images; None for other formats.

    Raises InputError for a warp of three frames whose header does not state that it is FSL's.
    """
    if path.suffix.lower() == ".dat":
        return read_register_dat
    if _is_text_matrix(path):
        return read_flirt
    if not path.name.lower().endswith((".nii", ".nii.gz")) or not path.is_file():
        return None
    header = nifti.read_header(path)
    if not is_three_frames(nifti.promised_shape(path, header)):
        return None
    if not is_marked_warp(header):
        kinds = "; ".join(f"--from {name}: {KINDS[name].help}" for name in WARPS)
        raise InputError(
            f"{path}: has three frames, which mean different things to different programs; name it, {kinds}"
        )
    return read_warp


def _is_text_matrix(path: Path) -> bool:
    return path.suffix.lower() in (".mat", ".txt") and path.is_file() and is_text_matrix(path.read_bytes())


@dataclass(frozen=True, eq=False)
class _InForm:
    """A transform as an output in one of the `FORMS`."""

    transform: Transform
    """The transform to write."""
    form: str
    """Name of the format."""
    fixed: FreeSurferVolume | None
    """The fixed image, if it was named."""
    moving: FreeSurferVolume | None
    """The moving image, if it was named."""

    def write(self, path: Path) -> None:
        """Write the file. Raises OutputError if the format cannot hold the transform."""
        if self.fixed is None or self.moving is None or not (FORMS[self.form].write or self.form == "fsl-warp"):
            TransformFile(self.transform, None if self.fixed is None else self.fixed.grid).write(path)
            return
        if getattr(self.transform, "dims", 3) != 3 or self.fixed.grid.dims != 3:
            raise OutputError(f"{path.name}: {self.form} cannot hold a transform of the plane")
        if write := FORMS[self.form].write:
            if not isinstance(self.transform, AffineTransform):
                raise OutputError(
                    f"{path.name}: expected an affine transform for {self.form}, got a displacement field"
                )
            write(path, self.transform, self.fixed, self.moving)
        else:
            write_warp(path, self.transform, self.fixed.grid, self.moving.grid)
