"""The check of a whole case: a synthetic scan goes through a bundle's inference from file to file.

MONAI's own run makes the result, and `medkit run bundle` has to return the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medkit.bundles.bundle import WEIGHTS
from medkit.bundles.checks.comparison import FINER, GRID, difference
from medkit.bundles.checks.subject import CheckedBundle, Skipped
from medkit.bundles.config import one_line, walk
from medkit.bundles.parsed import BundleConfig

MATCHES = 1e-3
"""Largest difference between two affines (mm) that count as equal."""


def check_case(subject: CheckedBundle) -> Iterator[str]:
    """The inference makes a result of a scan, on the scan's grid, or on a finer one if the metadata state that."""
    if not (subject.root / WEIGHTS).is_file():
        raise Skipped(f"no {WEIGHTS}")
    kind = subject.tensor("inputs", "image")
    dims, channels = len(kind["spatial_shape"]), int(kind["num_channels"])
    if dims not in (2, 3):
        raise Skipped(f"its input has {dims} spatial axes; scans are made with two or three")
    if kind.get("format") == "RGB" or (dims == 2 and channels == 3):
        raise Skipped("takes coloured pictures; the scans that are made here are NIfTI")
    problems: list[str] = []
    # the network's channels may be channels of the file or made by preprocessing, and its planes may be slices of a
    # volume: the metadata do not state which file is meant, so each is tried
    for file_channels, axes in dict.fromkeys((c, d) for c in (1, channels) for d in range(dims, 4)):
        try:
            found = list(_case_problems(subject, kind, axes, file_channels))
        except Exception as error:
            found = [one_line(error)]
        if not found:
            return
        scan = f"a {axes}D scan of {file_channels} channel{'s' * (file_channels > 1)}"
        problems += [f"{scan}: {problem}" for problem in found]
    yield from problems


def _case_problems(subject: CheckedBundle, kind: Mapping[str, Any], dims: int, channels: int) -> Iterator[str]:
    """Run the inference on one scan with `dims` spatial axes and `channels`, and yield what is wrong with its files."""
    from medkit.bundles.contract import contract_of

    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).absolute()
        scan = _make_scan(folder / "in" / "scan.nii.gz", kind, dims, channels)
        _infer(subject, scan, folder / "out")
        if contract_of(subject.bundle).kind == "table":
            if not [path for path in (folder / "out").rglob("*") if path.is_file()]:
                yield "the inference wrote no table of classes into output_dir"
            return
        results = sorted((folder / "out").rglob("*.nii*"))
        if not results:
            yield "the inference wrote no NIfTI into output_dir"
        for result in results:
            if problem := _grid_problem(scan, result, dims, finer=subject.bundle.block.get(GRID) == FINER):
                yield problem
                return
        if len(results) == 1 and (problem := difference(subject.bundle, scan, results[0], folder / "medkit")):
            yield problem


def _grid_problem(scan: Path, result: Path, dims: int, *, finer: bool) -> str | None:
    """Return why a result is not on the scan's grid, or with `finer` not on a finer grid of the same place."""
    import nibabel
    import numpy as np

    source, made = nibabel.load(scan), nibabel.load(result)
    shapes = f"{result.name} has the shape {made.shape[:dims]}, the scan {source.shape[:dims]}"
    if not finer:
        if made.shape[:dims] != source.shape[:dims]:
            return shapes
        if not np.allclose(made.affine, source.affine, atol=MATCHES):
            return f"{result.name} lies elsewhere than the scan: its affine differs"
        return None
    # the axes of a finer grid may have another order
    fine, coarse = (nibabel.as_closest_canonical(image) if dims == 3 else image for image in (made, source))
    if not all(m >= n for m, n in zip(fine.shape[:dims], coarse.shape[:dims], strict=True)):
        return f"{shapes}: expected a finer grid"
    if not np.allclose(_corners(fine, dims), _corners(coarse, dims), atol=min(source.header.get_zooms())):
        return f"{result.name} covers another part of the body than the scan"
    return None


def _corners(image: Any, dims: int) -> Any:
    """Return (2, 3) RAS+ mm: the outer corner of the first voxel and that of the last one."""
    import numpy as np
    from nibabel.affines import apply_affine

    ends = np.full((2, 3), 0.0)
    ends[:, :dims] = [[-0.5] * dims, [size - 0.5 for size in image.shape[:dims]]]
    return apply_affine(image.affine, ends)


def _make_scan(path: Path, kind: Mapping[str, Any], dims: int, channels: int) -> Path:
    """Write an oblique scan of a body's size, in Hounsfield units for CT."""
    import nibabel
    import numpy as np

    from medkit.images.phantom import make_image

    make_image(path, (64, 72, 40)[:dims], (3.0, 2.8, 4.5)[:dims], "LIP" if dims == 3 else "LPS", 10.0)
    image = nibabel.load(path)
    data = np.asarray(image.dataobj)
    if "CT" in (kind.get("modality"), kind.get("format")) or kind.get("format") == "hounsfield":
        data = (data * 1.5 - 1000).astype(np.int16)
    if channels > 1:
        data = np.stack([data] * channels, axis=-1)
    nibabel.save(nibabel.Nifti1Image(data, image.affine), path)
    return path


def _infer(subject: CheckedBundle, scan: Path, out: Path) -> None:
    """Run the bundle's inference config on one file, as plain MONAI would."""
    import torch

    raw = subject.parser(subject.inference)
    run_id = next((name for name in ("run", "evaluating") if name in raw), None)
    config = BundleConfig(subject.bundle, ["inference"], "infer", run_id or "run")
    # a tuple is opaque to MONAI's parser, which would look for references in a list
    item = ({key: str(scan) for key in _image_keys(config.parser)},)
    config.put({
        "bundle_root": str(subject.root), "dataset_dir": str(scan.parent), "output_dir": str(out),
        "device": torch.device("cpu"), "dataset::data": item, "dataloader::num_workers": 0,
    })  # fmt: skip
    config.workflow.initialize()
    if run_id:
        config.workflow.run()
    else:
        config.parser.get_parsed_content("evaluator").run()


def _image_keys(parser: Any) -> list[str]:
    """Return the keys under which the first LoadImaged of a config reads files; preprocessing is searched first."""
    for name in sorted(parser.get(), key=lambda name: (not name.startswith("preprocessing"), name)):
        for _, node in walk(parser.get(name)):
            if isinstance(node, dict) and "LoadImage" in str(node.get("_target_")):
                keys = node.get("keys", "image")
                while isinstance(keys, str) and keys.startswith("@"):
                    keys = parser[keys[1:]]
                return [keys] if isinstance(keys, str) else list(keys)
    return ["image"]
