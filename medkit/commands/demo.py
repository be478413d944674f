"""`medkit demo`: a tour of medkit on brains with a known transform, in a real shell."""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medkit.errors import MedkitError, UsageError
from medkit.pipe.records import absolute, record_of

if TYPE_CHECKING:
    import numpy as np

    from medkit.images.image import Image
    from medkit.space import Grid


@dataclass(frozen=True)
class DemoHead:
    """A simulated scan of the template's brain: how the head lies, and how the scanner stores it."""

    name: str
    angles: tuple[float, float, float]
    """Rotation about x, y and z, degrees."""
    shift: tuple[float, float, float]
    """Translation, mm."""
    scale: tuple[float, float, float]
    """Size of the head relative to the template, along x, y and z."""
    axes: str
    """The order and direction in which voxels are stored, such as `PIR`."""
    spacing: tuple[float, float, float]
    """Voxel size along the stored axes, mm."""
    gamma: float
    """Contrast: intensities are raised to this power."""


_SUBJECTS = (
    DemoHead("anna", (4, -6, 12), (8, -5, 11), (1.04, 0.97, 1.02), "LAS", (1.0, 1.0, 1.0), 1.0),
    DemoHead("ben", (-9, 5, -15), (-12, 9, 4), (0.95, 1.03, 0.98), "PIR", (1.2, 1.2, 2.0), 0.7),
)


_REGISTER = "ls scans/*.nii.gz | medkit run register --type affine --fixed mni152_t1.nii.gz -o aligned --qc pictures"
_SEGMENT = "medkit run segment -o segmented --qc pictures"
_CLASSIFY = "medkit run classify scans/*.nii.gz --bundle brain_mri_quality_classification -o classes --qc pictures"
_REPORT = "medkit report aligned segmented classes --qc pictures -o report.html"


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("medkit-demo"), show_default=True,
              help="A new folder for all files of the demo.")  # fmt: skip
def demo(output: Path) -> None:
    """See medkit work: a tour of two minutes.

    Makes two scans from the MNI152 template, each rotated, shifted, scaled, noisy and with another order of axes. Then
    aligns them with the template, labels their structures, asks which contrast they have and whether they are usable,
    and makes a page of all results. Prints each command, what came out, and how far the alignment is from the truth.
    """
    folder = absolute(output)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder}: exists already; remove it, or choose another -o")
    fixed, truths = make_subjects(folder)
    click.echo(f"$ cd {shlex.quote(os.path.relpath(folder))}")
    _shell(f"{_REGISTER} | {_SEGMENT}", folder)
    for subject in _SUBJECTS:
        before, after = _errors(fixed, folder / f"aligned/{subject.name}_transform.tfm", truths[subject.name])
        click.echo(f"{subject.name}: {before:.1f} mm from the truth before, {after:.2f} mm after (mean over the brain)")
        click.echo(f"{subject.name}: {_volumes(folder / f'segmented/{subject.name}_registered_dseg.nii.gz')}")
    _shell(_CLASSIFY, folder)
    for subject in _SUBJECTS:
        click.echo(f"{subject.name}: {_answers(folder / f'classes/{subject.name}_class.tsv')}")
    click.echo(_shell(f"medkit show segmented/{_SUBJECTS[0].name}_registered_dseg.nii.gz", folder), nl=False)
    click.echo(_shell(f"{_REPORT} --viewer" if _has_niivue() else _REPORT, folder), nl=False)


def _shell(command: str, folder: Path) -> str:
    """Run a command in `folder` as a user would, and return what it printed. Raises MedkitError if it fails."""
    click.echo(f"$ {command}")
    here = Path(sys.executable).parent  # where medkit is installed, whether this environment is active or not
    environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise MedkitError(f"the command ended with {done.returncode}: {command}")
    return done.stdout


def _volumes(labels: Path) -> str:
    """Return how many structures were found, and the volume of two."""
    volumes = record_of(labels).medkit["metrics"]["volumes_mm3"]
    sizes = ", ".join(f"{name} {volumes[name] / 1000:.1f} ml" for name in ("left hippocampus", "right hippocampus"))
    return f"{sum(volume > 0 for volume in volumes.values())} structures, {sizes}"


def _answers(table: Path) -> str:
    """Return what the table of a scan says: its classes, or why there are none."""
    with open(table, encoding="utf-8", newline="\n") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if rows[0]["abstained"] == "yes":
        return f"no answer, as it is {rows[0]['reason']}"
    return ", ".join(f"{row['candidate']}: {row['class']} (confidence {float(row['confidence']):.2f})" for row in rows)


def _has_niivue() -> bool:
    from medkit.viewer.niivue import niivue

    try:
        niivue()
    except MedkitError:
        return False
    return True


def make_subjects(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Write the template and the scans below `folder`.

    Returns the template's path, and for each subject the true matrix (4, 4): template points -> scan points, RAS+ mm.
    """
    template = _template()
    (folder / "scans").mkdir(parents=True)
    template.write(folder / "mni152_t1.nii.gz")
    truths = {}
    for number, subject in enumerate(_SUBJECTS):
        image, truth = make_scan(template, subject, seed=number)
        image.write(folder / "scans" / f"{subject.name}.nii.gz")
        truths[subject.name] = truth
    return folder / "mni152_t1.nii.gz", truths


def _template() -> Image:
    """Return the MNI152 T1 template, skull-stripped, 1 mm, with values 0..1000."""
    import numpy as np

    from medkit.images.image import Image
    from medkit.space import Grid

    try:
        from nilearn.datasets import load_mni152_template
    except ImportError:
        raise MedkitError('the demo needs the template that nilearn carries: pip install "medkit[demo]"') from None
    loaded = load_mni152_template(resolution=1)
    data = np.asarray(loaded.dataobj, dtype=np.float32)
    data = np.rint(1000 * data / data.max()).astype(np.int16)
    return Image(data[None], Grid(data.shape, np.asarray(loaded.affine)), dtype=np.dtype(np.int16))


def make_scan(template: Image, subject: DemoHead, seed: int) -> tuple[Image, np.ndarray]:
    """Return a scan of the template's brain as `subject` describes it, and the true matrix (4, 4).

    The matrix maps template points -> scan points, RAS+ mm.
    """
    import numpy as np

    from medkit.transforms.resampling import resample
    from medkit.transforms.transform import AffineTransform

    truth = pose(subject, template.grid.centre)
    image = resample(template, _scanner_grid(template.grid, subject), AffineTransform(np.linalg.inv(truth)))
    bright = 1000 * (image.data / 1000.0) ** subject.gamma
    noisy = np.abs(bright + np.random.default_rng(seed).normal(0, 15, bright.shape))
    return image.with_data(np.rint(noisy).astype(np.int16)), truth


def pose(subject: DemoHead, centre: np.ndarray) -> np.ndarray:
    """Return the matrix (4, 4), template -> scan points, RAS+ mm: scale and rotate about `centre`, then shift."""
    import numpy as np

    matrix = np.diag([*subject.scale, 1.0])
    for axis, angle in enumerate(np.deg2rad(subject.angles)):
        rotation = np.eye(4)
        i, j = [k for k in range(3) if k != axis]
        rotation[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = rotation @ matrix
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + subject.shift
    return matrix


def _scanner_grid(template: Grid, subject: DemoHead) -> Grid:
    """Return a grid around the shifted head, with the subject's order of axes and spacing."""
    import numpy as np

    from medkit.space import Grid

    affine = np.eye(4)
    extent = np.asarray(template.shape) * template.spacing
    shape = []
    for column, (axis, spacing) in enumerate(zip(subject.axes, subject.spacing, strict=True)):
        world = "RLAPSI".index(axis) // 2
        affine[:3, column] = 0
        affine[world, column] = spacing if axis in "RAS" else -spacing
        shape.append(round(float(extent[world]) * 1.1 / spacing))
    middle = template.centre + subject.shift
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return Grid((shape[0], shape[1], shape[2]), affine)


def _errors(fixed: Path, transform: Path, truth: np.ndarray) -> tuple[float, float]:
    """Return the mean distance from the true points over the brain, mm: without a transform, and with the one found."""
    import numpy as np

    from medkit.images.image import read_image
    from medkit.space import apply_affine
    from medkit.transforms.files import read_transform

    image = read_image(fixed)
    points = apply_affine(image.grid.affine, np.argwhere(image.data[0] > 0)[::97].astype(float))
    true = apply_affine(truth, points)
    found = read_transform(transform).map_points(points)
    before, after = (np.linalg.norm(p - true, axis=1).mean() for p in (points, found))
    return float(before), float(after)
