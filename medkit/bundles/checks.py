"""The checks of `medkit bundle verify` that run a bundle, one process for all of them.

Called as `python -m medkit.bundles.checks DESCRIPTOR ROOT CHECK...`; a line of JSON per check goes to the descriptor.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.archive import is_junk
from medkit.bundles.bundle import CONFIG_SUFFIXES, WEIGHTS, Bundle
from medkit.bundles.config import one_line

if TYPE_CHECKING:
    import torch

NETWORK = "network_def"
"""The id of the network in every bundle of MONAI's zoo."""
TOLERANCE = 1e-4
"""How far a scripted network may be from the eager one, relative and absolute."""
GRID, FINER = "grid", "finer"
"""What the metadata's block says of a bundle whose results are on a finer grid than the scan's own."""


class Skipped(Exception):  # noqa: N818 - no error
    """A check that cannot apply; says why."""


@dataclass(frozen=True)
class CheckedBundle:
    """The bundle that is checked."""

    root: Path

    @functools.cached_property
    def bundle(self) -> Bundle:
        """Its files."""
        return Bundle(self.root, self.root.name)

    @property
    def inference(self) -> Path:
        """The config of the inference. Raises BundleError."""
        return self.bundle.config("inference")

    @property
    def meta(self) -> Path:
        """The metadata."""
        return self.root / "configs" / "metadata.json"

    def tensor(self, side: str, name: str) -> Mapping[str, Any]:
        """What the metadata say about the network's input or output. Raises Skipped."""
        formats = self.bundle.metadata.get("network_data_format")
        tensor = (formats.get(side) or {}).get(name) if isinstance(formats, dict) else None
        if not isinstance(tensor, dict):
            raise Skipped(f"network_data_format describes no {side[:-1]} named {name}")
        return tensor

    def network(self) -> torch.nn.Module:
        """The network that the inference builds, in evaluation mode. Raises what MONAI raises."""
        parser = self.parser(self.inference)
        if NETWORK not in parser:
            raise KeyError(f"{self.inference.name} has no id {NETWORK}")
        network: torch.nn.Module = parser.get_parsed_content(NETWORK)
        return network.eval()

    def parser(self, *paths: Path) -> Any:
        """A monai.bundle.ConfigParser of configs laid one over another."""
        from monai.bundle import ConfigParser

        parser = ConfigParser()
        parser.read_config([str(p) for p in paths])
        parser.read_meta(str(self.meta))
        if "bundle_root" in parser:
            parser["bundle_root"] = str(self.root)
        return parser

    def state_dict(self) -> dict[str, Any]:
        """The weights, loaded as numbers alone. Raises Skipped where there are none."""
        import torch

        path = self.root / WEIGHTS
        if not path.is_file():
            raise Skipped(f"no {WEIGHTS}")
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict):
            raise ValueError(f"{WEIGHTS}: expected a state dict, got {type(found).__name__}")
        nested = [found[k] for k in ("model", "state_dict", "network") if isinstance(found.get(k), dict)]
        return nested[0] if nested else found

    def size(self) -> tuple[int, ...]:
        """A spatial size that the metadata allow for the input, at least 32 where it can be chosen."""
        from monai.bundle.scripts import _get_fake_spatial_shape as size_of

        shape = self.tensor("inputs", "image")["spatial_shape"]
        sizes = (size_of(shape, n=n, any=64) for n in (1, 2, 4, 8, 16, 32))
        return tuple(next((size for size in sizes if min(size, default=32) >= 32), size_of(shape, n=32, any=64)))

    def random_input(self) -> torch.Tensor:
        """(1, C, ...) numbers of the input's type and size. Raises Skipped where only a GPU could take them."""
        import torch

        kind = self.tensor("inputs", "image")
        if kind["dtype"] == "float16" and not torch.cuda.is_available():
            raise Skipped("its input is float16, which needs a GPU")
        generator = torch.Generator().manual_seed(0)
        return torch.rand((1, int(kind["num_channels"]), *self.size()), generator=generator)


# ---- configs


def check_references(subject: CheckedBundle) -> Iterator[str]:
    """Every config is read by MONAI; what its `@` and `%` refer to and the classes that its `_target_` names exist."""
    configs = [p for p in sorted((subject.root / "configs").glob("*")) if p.suffix in CONFIG_SUFFIXES]
    configs = [p for p in configs if p.stem != "metadata" and not is_junk(p.name)]
    alone = {path: _reading(subject, path) for path in configs}
    for path in configs:
        best = alone[path] if path.stem in STAND_ALONE else _best_reading(subject, path, alone)
        yield from (f"{path.name}: {problem}" for problem in best.problems)


STAND_ALONE = ("inference", "train")
"""Configs that run by themselves; others may be meant to be laid over them."""


@dataclass(frozen=True)
class Reading:
    """What is wrong with configs that are read one over another."""

    problems: list[str]
    whole: bool
    """Whether MONAI could read them at all."""


def _best_reading(subject: CheckedBundle, path: Path, alone: Mapping[Path, Reading]) -> Reading:
    """A config alone or laid over one or two others, whichever leaves the fewest problems.

    What is wrong with those others is said once, about them.
    """
    best = alone[path]
    others = [p for p in alone if p != path and alone[p].whole]
    train = [p for p in others if p.stem.startswith("train")]
    pairs = [[a, b] for a in train for b in others if a != b and b.stem.startswith(("train", "eval"))]
    for below in (*([p] for p in others), *pairs):
        if not best.problems:
            break
        known = {problem for p in below for problem in alone[p].problems} - set(alone[path].problems)
        found = _reading(subject, *below, path)
        if found.whole:
            found = Reading([problem for problem in found.problems if problem not in known], True)
            best = min(best, found, key=lambda reading: (not reading.whole, len(reading.problems)))
    return best


def _reading(subject: CheckedBundle, *paths: Path) -> Reading:
    try:
        return Reading(list(_unresolved(subject.parser(*paths))), True)
    except Exception as error:
        return Reading([one_line(error)], False)


def _unresolved(parser: Any) -> Iterator[str]:
    from monai.bundle.config_item import ConfigComponent
    from monai.bundle.reference_resolver import ReferenceResolver

    parser.parse()
    items = parser.ref_resolver.items
    for name, item in items.items():
        value = item.get_config()
        if isinstance(value, str) and not name.startswith("_meta_"):
            for reference in ReferenceResolver.match_refs_pattern(value):
                if reference not in items:
                    yield f"{name}: refers to {reference}, which is not there"
        if isinstance(item, ConfigComponent):
            target = item.resolve_module_name()
            if isinstance(target, str) and not target.startswith("$") and (reason := _absence(target)):
                yield f"{name}: {reason}"


@functools.cache
def _absence(target: str) -> str | None:
    """Why what a `_target_` names cannot be had; None where it can."""
    import pydoc

    try:
        return None if pydoc.locate(target) is not None else f"there is no {target}"
    except Exception as error:
        return f"{target}: {one_line(error)}"


def check_properties(subject: CheckedBundle) -> Iterator[str]:
    """The inference has the ids that MONAI's applications ask for."""
    from monai.bundle.properties import InferProperties, MetaProperties

    parser = subject.parser(subject.inference)
    for name, about in {**MetaProperties, **InferProperties}.items():
        if about["required"] and about["id"] not in parser:
            yield f"{subject.inference.name}: no id {about['id']}, where MONAI looks for the {name}"


def _workflow(subject: CheckedBundle, run_id: str = "run") -> Any:
    from monai.bundle import ConfigWorkflow

    return ConfigWorkflow(
        config_file=str(subject.inference),
        meta_file=str(subject.meta),
        workflow_type="infer",
        logging_file=False,
        run_id=run_id,
    )


# ---- the network


def check_in_out(subject: CheckedBundle) -> Iterator[str]:
    """The network takes and gives what the metadata say (MONAI's verify_net_in_out)."""
    from monai.bundle import verify_net_in_out

    shape = subject.tensor("inputs", "image")["spatial_shape"]
    subject.tensor("outputs", "pred")
    subject.random_input()
    size = subject.size()
    verify_net_in_out(
        NETWORK,
        meta_file=str(subject.meta),
        config_file=str(subject.inference),
        device="cpu",
        bundle_root=str(subject.root),
        **{"_meta_::network_data_format::inputs::image::spatial_shape": list(size)} if shape != list(size) else {},
    )
    yield from ()


def check_weights(subject: CheckedBundle) -> Iterator[str]:
    """The weights load as numbers alone, and fit the network without a rest."""
    weights = subject.state_dict()
    network = subject.network()
    own = network.state_dict()
    yield from (f"{WEIGHTS}: has no {name}" for name in own if name not in weights)
    yield from (f"{WEIGHTS}: {name} is not in the network" for name in weights if name not in own)
    for name in set(own) & set(weights):
        if own[name].shape != weights[name].shape:
            yield f"{WEIGHTS}: {name} is {tuple(weights[name].shape)}, the network's {tuple(own[name].shape)}"
        elif weights[name].is_floating_point() and not weights[name].isfinite().all():
            yield f"{WEIGHTS}: {name} holds numbers that are none"


def check_export(subject: CheckedBundle) -> Iterator[str]:
    """The network can be scripted, and the script, as any that the bundle brings, gives what the network gives."""
    import torch
    from monai.networks.utils import convert_to_torchscript

    image = subject.random_input()
    network = subject.network()
    with_weights = (subject.root / WEIGHTS).is_file()
    if with_weights:
        network.load_state_dict(subject.state_dict(), strict=True)
    with torch.no_grad():
        expected = network(image)
    scripts = {"its TorchScript": convert_to_torchscript(network)}
    brought = subject.root / "models" / "model.ts"
    if brought.is_file() and with_weights:
        scripts["models/model.ts"] = torch.jit.load(brought, map_location="cpu").eval()
    for name, script in scripts.items():
        try:
            with torch.no_grad():
                torch.testing.assert_close(script(image), expected, atol=TOLERANCE, rtol=TOLERANCE)
        except AssertionError as error:
            yield f"{name} gives something else than the network: {' '.join(str(error).split())[:200]}"


# ---- a case from file to file


def check_case(subject: CheckedBundle) -> Iterator[str]:
    """The inference makes a result of a scan, on the scan's own grid, or on a finer one where the metadata say so."""
    if not (subject.root / WEIGHTS).is_file():
        raise Skipped(f"no {WEIGHTS}")
    kind = subject.tensor("inputs", "image")
    dims, channels = len(kind["spatial_shape"]), int(kind["num_channels"])
    if dims not in (2, 3):
        raise Skipped(f"its input has {dims} spatial axes; scans are made with two or three")
    if kind.get("format") == "RGB" or (dims == 2 and channels == 3):
        raise Skipped("takes coloured pictures; the scans that are made here are NIfTI")
    problems: list[str] = []
    # the network's channels may come from as many in the file, or from preprocessing, and its planes may be slices of
    # a volume: what file is meant cannot be told before
    for in_file, axes in dict.fromkeys((c, d) for c in (1, channels) for d in range(dims, 4)):
        try:
            found = list(_case_problems(subject, kind, axes, in_file))
        except Exception as error:
            found = [one_line(error)]
        if not found:
            return
        problems += [f"a {axes}D scan of {in_file} channel{'s' * (in_file > 1)}: {problem}" for problem in found]
    yield from problems


def _case_problems(subject: CheckedBundle, kind: Mapping[str, Any], dims: int, channels: int) -> Iterator[str]:
    import nibabel
    import numpy as np

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
        source = nibabel.load(scan)
        finer = subject.bundle.block.get(GRID) == FINER
        for result in results:
            made = nibabel.load(result)
            shapes = f"{result.name} has the shape {made.shape[:dims]}, the scan {source.shape[:dims]}"
            if finer:
                # the axes of a finer grid may have another order
                there, here = (nibabel.as_closest_canonical(image) if dims == 3 else image for image in (made, source))
                if not all(m >= n for m, n in zip(there.shape[:dims], here.shape[:dims], strict=True)):
                    yield f"{shapes}: its grid was to be finer"
                elif not np.allclose(_corners(there, dims), _corners(here, dims), atol=min(source.header.get_zooms())):
                    yield f"{result.name} covers another part of the body than the scan"
            elif made.shape[:dims] != source.shape[:dims]:
                yield shapes
            elif not np.allclose(made.affine, source.affine, atol=1e-3):
                yield f"{result.name} lies elsewhere than the scan: its affine differs"


def _corners(image: Any, dims: int) -> Any:
    """(2, 3) RAS+ mm: where the first voxel begins and the last one ends."""
    import numpy as np
    from nibabel.affines import apply_affine

    ends = np.full((2, 3), 0.0)
    ends[:, :dims] = [[-0.5] * dims, [size - 0.5 for size in image.shape[:dims]]]
    return apply_affine(image.affine, ends)


def _make_scan(path: Path, kind: Mapping[str, Any], dims: int, channels: int) -> Path:
    """Writes an oblique scan of a body's size; Hounsfield's range for CT."""
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
    """Runs the bundle's inference config on one file, as plain MONAI would."""
    import torch

    raw = subject.parser(subject.inference)
    run_id = next((name for name in ("run", "evaluating") if name in raw), None)
    workflow = _workflow(subject, run_id or "run")
    parser = workflow.parser
    # a tuple is opaque to MONAI's parser, which would look for references in a list
    item = ({key: str(scan) for key in _image_keys(parser)},)
    wishes = {
        "bundle_root": str(subject.root), "dataset_dir": str(scan.parent), "output_dir": str(out),
        "device": torch.device("cpu"), "dataset::data": item, "dataloader::num_workers": 0,
    }  # fmt: skip
    for name, value in wishes.items():
        if name in parser:
            parser[name] = value
    workflow.initialize()
    if run_id:
        workflow.run()
    else:
        parser.get_parsed_content("evaluator").run()


def _image_keys(parser: Any) -> list[str]:
    """The keys under which the first LoadImaged reads files; they may stand elsewhere in the config."""
    for name in sorted(parser.get(), key=lambda name: (not name.startswith("preprocessing"), name)):
        for transform in _dicts(parser.get(name)):
            if "LoadImage" in str(transform.get("_target_")):
                keys = transform.get("keys", "image")
                while isinstance(keys, str) and keys.startswith("@"):
                    keys = parser[keys[1:]]
                return [keys] if isinstance(keys, str) else list(keys)
    return ["image"]


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    """All dictionaries in nested data, the outer ones first."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _dicts(part)


# ---- the process

DONE = {
    "references": "MONAI reads all configs; every reference and every class is there",
    "properties": "the inference has the ids that MONAI's applications ask for",
    "in_out": "the network takes and gives what the metadata say",
    "weights": "load as numbers alone, and fit the network without a rest",
    "export": "the scripted network equals the network",
    "case": "a synthetic scan went from file to file, and the result lies where it should",
}


def main(descriptor: int, root: Path, names: list[str]) -> None:
    """Makes the checks one after another and reports each."""
    logging.disable(logging.ERROR)
    sys.path.insert(1, str(root))  # as MONAI does: a bundle's own code lies there
    with open(descriptor, "w", encoding="utf-8") as out:
        for name in names:
            print(json.dumps({"begin": name}), file=out, flush=True)
            status, messages = outcome(name, CheckedBundle(root))
            print(json.dumps({"name": name, "status": status, "messages": messages}), file=out, flush=True)


def outcome(name: str, subject: CheckedBundle) -> tuple[str, list[str]]:
    """Status and messages of one check, whatever the bundle's code does."""
    try:
        with warnings.catch_warnings(action="ignore"):
            found = list(globals()[f"check_{name}"](subject))
    except Skipped as reason:
        return "skipped", [str(reason)]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit: a bundle's code may exit
        return "failed", [one_line(error)]
    return ("failed", found) if found else ("ok", [DONE[name]])


if __name__ == "__main__":
    os.set_inheritable(int(sys.argv[1]), False)
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
