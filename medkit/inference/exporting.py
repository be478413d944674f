"""`medkit bundle export`: a bundle in one file, its network as TorchScript, torch.export or ONNX."""

from __future__ import annotations

import functools
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.archive import write_errors_named
from medkit.bundles.bundle import WEIGHTS, Bundle, medkit_block, tensors
from medkit.bundles.exported import texts_of
from medkit.errors import BundleError, OutputError
from medkit.inference.backend_choice import Asked, Way, measured, ratios
from medkit.inference.backends import ONNXRUNTIME, TORCH, require, session_of
from medkit.inference.loading import RunSettings, bundle_identity, open_bundle
from medkit.inference.memory import footprint
from medkit.inference.onnx_network import TOLERANCE, answer_of, converted, example, sizes_for
from medkit.inference.opened import InferenceConfig
from medkit.inference.programs import as_module
from medkit.inference.task import bundle_task
from medkit.options import RunOptions
from medkit.pipe.atomic import whole
from medkit.pipe.records import record_of, sha256_of
from medkit.run.outputs import Targets
from medkit.run.task import Case, CasePlan, Runtime

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Exported:
    """A file that was written."""

    format: str
    difference: float
    """Largest difference of its network from the bundle's, as a share of the largest value."""
    sizes: tuple[int, ...] | None
    """The size in voxels that its network takes; None: any that the bundle's takes."""


def export(bundle: Bundle, target: Path, form: str, *, overwrite: bool = False, scan: Path | None = None) -> Exported:
    """Write a bundle, whose code is trusted, into one file, completely or not at all.

    `scan`: an image on which precisions and backends are measured, for the metadata.

    Raises OutputError if the file exists, UsageError without the packages for ONNX, and BundleError for a bundle whose
    network cannot be written, or returns something else then.
    """
    import torch

    if target.exists() and not overwrite:
        raise OutputError(f"{target}: already exists; --overwrite replaces it")
    device = torch.device("cpu")
    if form == "onnx":
        require(ONNXRUNTIME, device)
    config = InferenceConfig(bundle, device)
    if reason := config.own_evaluator():
        raise BundleError(
            f"{config.path}: {reason}, which decides how the network is called; a file has no place for it"
        )
    network = config.open().network
    if not isinstance(network, torch.nn.Module) or isinstance(network, torch.jit.ScriptModule):
        raise BundleError(f"bundle {bundle.name}: its network is a program already")
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    shape = _input_shape(bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to those who write networks
        made = _WRITERS[form](network, shape)
    found = footprint(network, (1, *shape), 0)
    voxels = int(torch.Size(shape[1:]).numel())
    block = {
        "format": form,
        "from": bundle_identity(bundle),
        "torch": str(torch.__version__),
        "weights_sha256": sha256_of(bundle.root / WEIGHTS) if (bundle.root / WEIGHTS).is_file() else None,
        "difference": float(f"{made.difference:.2g}"),
        "size": list(made.shape[1:]) if made.shape else None,
        "memory": {"bytes_per_voxel": round(found.peak / voxels, 1), "channels": made.channels},
    }
    if scan is not None:
        block["measured"] = _measured(bundle, scan)
    texts = texts_of(bundle.root)
    metadata = json.loads(texts["metadata.json"])
    metadata["medkit"] = {**medkit_block(metadata), "export": block}
    texts["metadata.json"] = json.dumps(metadata, indent=1)
    with write_errors_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as out:
            out.write(made.with_texts(texts))
    return Exported(form, made.difference, made.shape[1:] if made.shape else None)


def _measured(bundle: Bundle, scan: Path) -> dict[str, dict[str, float]]:
    """Return for the metadata what precisions and backends take and change on a scan. Raises InputError."""
    import torch

    settings = RunSettings({}, "float32")
    runtime = Runtime("cpu", torch.get_num_threads(), 0)
    task = bundle_task("bundle", [bundle], settings)
    runner = open_bundle(runtime, bundle, settings)
    case = Case(CasePlan(record_of(scan), {task.role: scan}, Targets({})), task, RunOptions(), runtime)
    example = runner.network.example(runner.prepare(case).item["image"])
    others = Asked("auto", "auto", "bf16").ways()
    labels = runner.contract.kind == "labels" and runner.postprocessing.picks_largest
    return ratios(measured(runner.network.network, [Way(TORCH, "float32"), *others], example, labels=labels))


@dataclass(frozen=True)
class _Made:
    """A network as a program."""

    with_texts: Callable[[Mapping[str, str]], bytes]
    """Return the content of a file that carries these texts too."""
    difference: float
    shape: tuple[int, ...] | None
    """(C, ...) that it takes; None: any that the network takes."""
    channels: int
    """Of its answer."""


def _input_shape(bundle: Bundle) -> tuple[int, ...]:
    """Return (C, ...) of an input of the network by its metadata. Raises BundleError if they do not state it."""
    from monai.bundle.scripts import _get_fake_spatial_shape

    stated = dict(tensors(bundle.metadata, "inputs"))
    tensor = stated.get("image") or next(iter(stated.values()), {})
    try:
        sizes = (tuple(_get_fake_spatial_shape(tensor["spatial_shape"], n=n, any=64)) for n in (1, 2, 4, 8, 16, 32))
        found = next(size for size in sizes if min(size) >= 32)
        return (int(tensor["num_channels"]), *map(int, found))
    except StopIteration:
        return (int(tensor["num_channels"]), *_get_fake_spatial_shape(tensor["spatial_shape"], n=32, any=64))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"bundle {bundle.name}: its metadata do not state size and channels of the network's image ({error})"
        ) from None


def _torchscript(network: torch.nn.Module, shape: tuple[int, ...]) -> _Made:
    """Script a network, or trace it if it cannot be scripted."""
    import torch

    jit: Any = torch.jit
    reasons = []
    for sizes in sizes_for(network, shape):
        traced = functools.partial(jit.trace, example_inputs=example(sizes[0], 1), check_trace=False)
        for way in (jit.script, traced):
            try:
                with torch.no_grad():
                    program = way(network)
                return _compared(network, program, sizes, shape, functools.partial(_script_file, program))
            except Exception as error:  # whatever torch finds wrong with a network
                reasons.append(_one_line(error))
    raise BundleError(f"its network cannot be written as TorchScript: {'; '.join(dict.fromkeys(reasons))}")


def _script_file(program: Any, texts: Mapping[str, str]) -> bytes:
    from monai.data import save_net_with_metadata

    out = io.BytesIO()
    more = {name: text.encode() for name, text in texts.items() if name != "metadata.json"}
    save_net_with_metadata(program, out, meta_values=json.loads(texts["metadata.json"]), include_config_vals=False,
                           more_extra_files=more)  # fmt: skip
    return out.getvalue()


def _torch_export(network: torch.nn.Module, shape: tuple[int, ...]) -> _Made:
    import torch

    reasons = []
    auto = torch.export.Dim.AUTO
    for sizes in sizes_for(network, shape):
        free = {0: auto} | ({2 + n: auto for n in range(len(shape) - 1)} if len(sizes) > 1 else {})
        try:
            with torch.no_grad():
                program = torch.export.export(network, (example(sizes[0], 2),), dynamic_shapes=(free,), strict=False)
            module = as_module(program, torch.device("cpu"))
            return _compared(network, module, sizes, shape, functools.partial(_export_file, program))
        except Exception as error:  # whatever torch finds wrong with a network
            reasons.append(_one_line(error))
    raise BundleError(f"its network cannot be written by torch.export: {'; '.join(dict.fromkeys(reasons))}")


def _export_file(program: Any, texts: Mapping[str, str]) -> bytes:
    import torch

    with tempfile.TemporaryDirectory(prefix="medkit-export-") as folder:
        path = Path(folder) / "model.pt2"
        torch.export.save(program, path, extra_files=dict(texts))
        return path.read_bytes()


def _onnx(network: torch.nn.Module, shape: tuple[int, ...]) -> _Made:
    copy = converted(network, shape, lambda content: session_of(ONNXRUNTIME, content, "float32"))
    return _Made(functools.partial(_onnx_file, copy.content), copy.difference, copy.shape, copy.channels)


def _onnx_file(content: bytes, texts: Mapping[str, str]) -> bytes:
    import onnx

    model = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, dict(texts))
    out: bytes = model.SerializeToString()
    return out


def _compared(
    network: torch.nn.Module, program: Any, sizes: list[tuple[int, ...]], shape: tuple[int, ...],
    write: Callable[[Mapping[str, str]], bytes],
) -> _Made:  # fmt: skip
    """Return a program that returns what the network returns, for one image and for two. Raises BundleError."""
    difference, channels = 0.0, 1
    for size in sizes:
        for count in (1, 2):
            image = example(size, count)
            expected, got = answer_of(network, image), answer_of(program, image)
            if got.shape != expected.shape:
                raise BundleError(f"the copy returns {tuple(got.shape)}, the network {tuple(expected.shape)}")
            difference = max(difference, float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12)))
            channels = int(expected.shape[1]) if expected.dim() > 1 else 1
    if difference > TOLERANCE:
        raise BundleError(f"the copy differs from the network by {difference:.1%} of its largest value")
    return _Made(write, difference, None if len(sizes) > 1 else shape, channels)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


_WRITERS: Mapping[str, Callable[[Any, tuple[int, ...]], _Made]] = {
    "torchscript": _torchscript,
    "torch-export": _torch_export,
    "onnx": _onnx,
}
