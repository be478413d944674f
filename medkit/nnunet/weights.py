"""The weights in nnU-Net's checkpoints: read as tensors and plain values only, and named as MONAI's network does."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.archive import printable
from medkit.bundles.config import one_line
from medkit.bundles.guards import arrays_allowed
from medkit.errors import BundleError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Checkpoint:
    """What medkit takes of a checkpoint of nnU-Net."""

    weights: Mapping[str, torch.Tensor]
    """Parameter name of nnU-Net -> tensor."""
    configuration: str
    trainer: str
    mirror_axes: Any
    """`inference_allowed_mirroring_axes`, unchecked."""


def read_checkpoint(path: Path, shown: str) -> Checkpoint:
    """Return a checkpoint, read without running any of it; `shown`: its name for messages.

    nnU-Net keeps numbers of NumPy and its arguments next to the weights. Raises BundleError for a file that holds
    anything else, or that is not one of nnU-Net's.
    """
    import torch

    try:
        with arrays_allowed(), torch.serialization.safe_globals(_scalars()):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({name[1]})" if name else ""
        raise BundleError(f"{shown}: holds more than weights and numbers{what}; medkit does not load it") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise BundleError(f"{shown}: cannot be read: {printable(one_line(error))}") from None
    weights = found.get("network_weights") if isinstance(found, dict) else None
    arguments = found.get("init_args") if isinstance(found, dict) else None
    if not isinstance(weights, Mapping) or not isinstance(arguments, Mapping):
        raise BundleError(f"{shown}: is no checkpoint of nnU-Net v2: expected network_weights and init_args")
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise BundleError(f"{shown}: network_weights holds more than tensors")
    return Checkpoint(
        {str(name).removeprefix("module."): value for name, value in weights.items()},
        str(arguments.get("configuration")),
        str(found.get("trainer_name")),
        found.get("inference_allowed_mirroring_axes"),
    )


def _scalars() -> list[Any]:
    """Return what a pickle needs to make NumPy's numbers: the name of the module depends on NumPy's version."""
    import numpy as np

    make: Any = np.float64(0).__reduce__()[0]
    return [(make, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


def fill(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], shown: str) -> None:
    """Fill a network with nnU-Net's weights, all of them. Raises BundleError if they do not fit it."""
    from medkit.nnunet.networks import PlainConvUNet

    own = dict(weights)
    if isinstance(network, PlainConvUNet):
        own = _of_monai(own, len(network.strides), shown)
        # DynUNet lists each of its layers twice
        twice = {name for name in network.state_dict() if name.startswith("skip_layers.")}
    else:
        twice = set()
    try:
        result = network.load_state_dict(own, strict=False)
    except RuntimeError as error:
        raise BundleError(f"{shown}: does not fit the network of its plans: {one_line(error)}") from None
    wrong = [*(set(result.missing_keys) - twice), *result.unexpected_keys]
    if wrong:
        raise BundleError(f"{shown}: does not fit the network of its plans: {printable(min(wrong))}")


_UNIT = re.compile(r"(\d+)(?:\.0)?\.convs\.(\d+)\.(conv|norm)\.(weight|bias)")
"""What names a convolution or norm: stage, number, kind."""


def _of_monai(weights: Mapping[str, torch.Tensor], stages: int, shown: str) -> dict[str, torch.Tensor]:
    """Return nnU-Net's weights of a plain U-Net under MONAI's names; those that it holds twice, once."""
    found = {}
    for name, value in weights.items():
        if ".all_modules." in name or name.startswith("decoder.encoder."):
            continue
        part, _, rest = name.partition(".")
        kind, _, rest = rest.partition(".")
        unit = _UNIT.fullmatch(rest)
        number, _, last = rest.partition(".")
        if kind == "stages" and unit:
            layer = f"conv{int(unit[2]) + 1}.conv" if unit[3] == "conv" else f"norm{int(unit[2]) + 1}"
            found[f"{_stage(part, int(unit[1]), stages)}.{layer}.{unit[4]}"] = value
        elif kind == "transpconvs":
            found[f"upsamples.{number}.transp_conv.conv.{last}"] = value
        elif kind == "seg_layers":
            if int(number) == stages - 2:  # the others are for training only
                found[f"output_block.conv.conv.{last}"] = value
        else:
            raise BundleError(f"{shown}: does not fit the network of its plans: {printable(name)}")
    return found


def _stage(part: str, number: int, stages: int) -> str:
    if part == "decoder":
        return f"upsamples.{number}.conv_block"
    return "input_block" if number == 0 else "bottleneck" if number == stages - 1 else f"downsamples.{number - 1}"
