"""The check of a whole case: a synthetic scan goes through a bundle's inference from file to file.

MONAI's own run makes the result, and `medkit run bundle` has to return the same.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medkit.bundles.checks.comparison import FINER, GRID, SyntheticCase, difference, is_blended, medkit_results
from medkit.bundles.checks.subject import CheckedBundle, Note, Skipped
from medkit.bundles.config import one_line, walk
from medkit.bundles.contract import NO_IMAGES, PLACES, Contract, contract_of
from medkit.bundles.keys import kind_of, plain, saved
from medkit.bundles.layers import followed, read_configs, value_at
from medkit.bundles.places import data_of, evaluator_of, postprocessings_of, runs
from medkit.errors import BundleError
from medkit.pipe.names import stem

MATCHES = 1e-3
"""Largest difference between two affines (mm) that count as equal."""


def check_case(subject: CheckedBundle) -> Iterator[str]:
    """The inference makes a result of a scan, on the scan's grid, or on a finer one if the metadata state that."""
    subject.require_weights()
    try:
        contract = contract_of(subject.bundle)
    except BundleError as error:
        raise Skipped(f"medkit run bundle refuses it: {error}") from None
    kind = subject.tensor("inputs", "image")
    if len(kind["spatial_shape"]) not in (2, 3):
        raise Skipped(f"its input has {len(kind['spatial_shape'])} spatial axes; scans are made with two or three")
    problems: list[str] = []
    with tempfile.TemporaryDirectory(dir=".") as name:
        # the network's channels may be channels of the file or made by preprocessing, and its planes may be slices of a
        # volume: the metadata do not state which file is meant, so each is tried
        for number, case in enumerate(_cases(Path(name).absolute(), kind, contract)):
            try:
                found = list(_case_problems(subject, case, contract, Path(name).absolute() / str(number)))
            except Skipped:
                raise
            except Exception as error:
                found = [one_line(error)]
            if all(isinstance(problem, Note) for problem in found):
                yield from found
                return
            problems += [f"{case.words}: {problem}" for problem in found if not isinstance(problem, Note)]
    yield from problems


def _cases(folder: Path, kind: Mapping[str, Any], contract: Contract) -> Iterator[SyntheticCase]:
    """Yield the cases that may be what a bundle takes, the likeliest first."""
    colours = contract.planar and int(kind["num_channels"]) == 3 and not contract.channels
    if kind.get("format") == "RGB" or colours:
        yield _case(folder, contract, "a coloured picture", functools.partial(_make_picture, folder, colours=True))
        return
    for dims in range(len(kind["spatial_shape"]), 4):

        def make(name: str, seed: int, channels: int = 1, dims: int = dims) -> Path:
            return _make_scan(folder / f"{name}_{dims}d_{channels}.nii.gz", kind, dims, channels, seed)

        channels = int(kind["num_channels"])
        if len(contract.channels) > 1:
            yield _case(folder, contract, f"{dims}D scans of {len(contract.channels)} channels", make, files=True)
        yield _case(folder, contract, f"a {dims}D scan of 1 channel", make)
        if channels > 1:
            yield _case(
                folder, contract, f"a {dims}D scan of {channels} channels", functools.partial(make, channels=channels)
            )
    if contract.planar:
        yield _case(folder, contract, "a picture", functools.partial(_make_picture, folder, colours=False))


def _case(
    folder: Path, contract: Contract, words: str, make: Callable[[str, int], Path], *, files: bool = False
) -> SyntheticCase:
    """Make the images of a case; `files`: each channel is one of its own."""
    main, *others = contract.keys
    first, *more = [str(make(name, seed)) for seed, name in enumerate(contract.channels if files else (main,))]
    further = {key: str(make(key, seed)) for seed, key in enumerate(others, start=1)}
    needed = {key: path for key, path in further.items() if key not in contract.optional}  # MONAI asks for all
    inputs = needed | dict(zip(contract.channels[1:], more, strict=False))
    return SyntheticCase({main: [first, *more] if more else first, **further}, {"path": first, "inputs": inputs}, words)


def _case_problems(subject: CheckedBundle, case: SyntheticCase, contract: Contract, folder: Path) -> Iterator[str]:
    """Run MONAI and medkit on a case, and yield what is wrong with the files, and how they differ."""
    _infer(subject, case, folder / "out")
    made = sorted(path for path in (folder / "out").rglob("*") if path.is_file())
    without_images = contract.kind in ("table", *PLACES)
    if not without_images:
        made = [path for path in made if path.name.endswith((".nii", ".nii.gz", ".png"))]
    if not made and not without_images:
        yield "the inference wrote no image into output_dir"
        return
    nifti = [path for path in made if path.name.endswith((".nii", ".nii.gz"))]
    if contract.kind == "labels" and len(contract.results) == 1 and any(map(is_blended, nifti)):
        # medkit takes the nearest label where a bundle interpolates between several
        _infer(subject, case, folder / "nearest", nearest=True)
        made = [folder / "nearest" / path.relative_to(folder / "out") for path in made]
    finer = subject.bundle.block.get(GRID) == FINER
    for path in made:
        if path.name.endswith((".nii", ".nii.gz")):
            scan = Path(case.record["path"])
            if not scan.name.endswith(".png") and (problem := _grid_problem(scan, path, finer=finer)):
                yield problem
                return
    if finer:
        yield Note("medkit run bundle does not run it: its results lie on a finer grid")
        return
    yield from _compared(subject, case, contract, folder / "medkit", made)


def _compared(
    subject: CheckedBundle, case: SyntheticCase, contract: Contract, folder: Path, theirs: Sequence[Path]
) -> Iterator[str]:
    """Run medkit on a case, and yield how its files differ from those of MONAI."""
    found = medkit_results(subject.bundle, case, folder)
    if isinstance(found, str):
        # the tasks of such bundles prepare their images
        own_task = "task" in subject.bundle.block or contract.kind == "points"  # nothing to be found in this scan
        yield Note(f"medkit run bundle: {found}") if own_task else f"medkit run bundle: {found}"
        return
    endings = saved(read_configs(subject.bundle), contract.keys)
    compared = 0
    for key, path in zip(contract.results, found.values(), strict=False):
        ending = f"{stem(Path(case.record['path']))}_{endings.get(key) or 'trans'}."
        same = theirs if len(contract.results) == len(theirs) == 1 else [p for p in theirs if p.name.startswith(ending)]
        if len(same) == 1 and path.suffix != ".tsv":
            compared += 1
            if problem := difference(path, same[0]):
                yield problem
    yield Note("medkit run bundle " + ("returns the same as MONAI's own run" if compared else "runs it as well"))


def _grid_problem(scan: Path, result: Path, *, finer: bool) -> str | None:
    """Return why a result is not on the scan's grid, or with `finer` not on a finer grid of the same place."""
    import nibabel
    import numpy as np

    source, made = nibabel.load(scan), nibabel.load(result)
    dims = min(len(source.shape), 3)
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


def _make_scan(path: Path, kind: Mapping[str, Any], dims: int, channels: int, seed: int) -> Path:
    """Write an oblique scan, in Hounsfield units for CT: so small that few windows of any network cover it.

    Its sizes are multiples of 32, as networks that halve them five times take.
    """
    import nibabel
    import numpy as np

    from medkit.images.phantom import make_image

    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(path, (64, 32, 96)[:dims], (1.5, 3.0, 1.1)[:dims], "LIP" if dims == 3 else "LPS", 10.0, seed)
    image = nibabel.load(path)
    data = np.asarray(image.dataobj)
    if "CT" in (kind.get("modality"), kind.get("format")) or kind.get("format") == "hounsfield":
        data = (data * 1.5 - 1000).astype(np.int16)
    if channels > 1:
        data = np.stack([data] * channels, axis=-1)
    nibabel.save(nibabel.Nifti1Image(data, image.affine), path)
    return path


def _make_picture(folder: Path, name: str, seed: int, *, colours: bool) -> Path:
    """Write a picture in three colours, or in grey."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (64, 96, 3), np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels if colours else pixels[..., 0]).save(folder / f"{name}.png")
    return folder / f"{name}.png"


def _keys_after(content: Mapping[str, Any]) -> set[str]:
    """Return the keys of the transforms after the network."""
    places = [followed(content, name) for name in postprocessings_of(content)]
    nodes = [node for place in places if place is not None for _, node in walk(value_at(content, place))]
    return {key for node in nodes if isinstance(node, dict) for key in plain(content, node.get("keys"))}


def _infer(subject: CheckedBundle, case: SyntheticCase, out: Path, *, nearest: bool = False) -> None:
    """Run the bundle's inference config on one case, as plain MONAI would, without measures, which need a truth.

    `nearest`: results go back to the scan by nearest neighbour, whatever the config says.
    """
    out.mkdir(parents=True, exist_ok=True)  # not every saver makes it
    content = read_configs(subject.bundle)
    run_id = next((name for name, _ in runs(content)), None)
    config = subject.open(run_id or "run")
    data, evaluator = data_of(content), evaluator_of(content)
    if data is None or evaluator is None:
        raise Skipped("an expression makes its data set: there is no id under which it could be given a scan")
    if truth := (_keys_after(content) & NO_IMAGES) - set(case.item):
        raise Skipped(f"MONAI's own run needs a {min(truth)} for each case")
    # a tuple is opaque to MONAI's parser, which would look for references in a list
    config.put({
        "dataset_dir": str(Path(case.record["path"]).parent), "output_dir": str(out), data: (dict(case.item),),
        f"{evaluator}::key_val_metric": None, f"{evaluator}::additional_metrics": None,
        **{f"{'::'.join(place)}": 0 for place, _ in walk(content) if place and place[-1] == "num_workers"},
        **{f"{loader}::load_path": str(path) for loader, path in subject.weights_of_loaders().items()},
    })  # fmt: skip
    if nearest:
        inverted = ["::".join(place) for place, node in walk(content) if kind_of(node) == "Invert"]
        for name in inverted:
            config.parser[f"{name}::nearest_interp"] = True
    config.workflow.initialize()
    if run_id:
        config.workflow.run()
    else:
        config.parser.get_parsed_content(evaluator).run()
