"""Networks that are programs: TorchScript and torch.export as torch loads them, ONNX for other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.exported import FORMATS
from medkit.errors import BundleError
from medkit.inference.onnx_network import OnnxNetwork

if TYPE_CHECKING:
    import torch


def load_program(path: Path, device: torch.device) -> Any:
    """Return the network in a file, on its device; its bundle has to be trusted. Raises BundleError."""
    if path.suffix == FORMATS["onnx"]:
        return OnnxNetwork(path)
    import torch

    load: Any = torch.jit.load
    try:
        if path.suffix == FORMATS["torchscript"]:
            return load(str(path), map_location=device)
        return as_module(torch.export.load(path), device)
    except Exception as error:  # torch raises what its readers of zips, pickles and programs raise
        text = " ".join(str(error).split())[:300]
        raise BundleError(f"{path}: cannot be read as a network: {text}") from error


def as_module(program: Any, device: torch.device) -> Any:
    """Return a torch.export.ExportedProgram as a module on a device, which stays in evaluation mode."""
    from torch.export.passes import move_to_device_pass

    module: Any = move_to_device_pass(program, device).module(check_guards=False)
    module.eval = module.train = lambda *_: module  # it has no modes, and raises an error if asked for one
    return module
