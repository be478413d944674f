"""The network that plans describe, as a part of a config: built by MONAI, or else by nnU-Net's package of networks.

Errors are ValueErrors, with the reason in words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from medkit.errors import listed
from medkit.nnunet.texts import plain_text, short

_LAYERS = (
    "Conv2d", "Conv3d", "InstanceNorm2d", "InstanceNorm3d", "BatchNorm2d", "BatchNorm3d", "LeakyReLU", "ReLU", "GELU",
    "ELU", "SiLU", "Dropout", "Dropout2d", "Dropout3d",
)  # fmt: skip
"""Classes of torch.nn that plans may name."""
_ARCHITECTURES = "dynamic_network_architectures.architectures.unet"
"""The module of nnU-Net's own package of networks."""
_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
_STAGES = ("features_per_stage", "kernel_sizes", "strides")
"""Arguments with an entry for each stage."""


class Sizes(NamedTuple):
    """What a network is made for."""

    dims: int
    """Number of a window's axes."""
    channels: int
    heads: int


def network_of(found: Mapping[str, Any], sizes: Sizes) -> tuple[Mapping[str, Any], str | None]:
    """Return the network of a configuration as a part of a config, and the package that it needs next to MONAI.

    Raises ValueError, with the reason, for a network that medkit does not know.
    """
    stated = found.get("architecture")
    architecture = stated if isinstance(stated, Mapping) else _before_2_4(found, sizes.dims)
    module, _, kind = str(architecture.get("network_class_name")).rpartition(".")
    arguments = architecture.get("arch_kwargs")
    if module != _ARCHITECTURES or kind not in _NETWORKS or not isinstance(arguments, Mapping):
        name = short(architecture.get("network_class_name"))
        raise ValueError(f"its network is {name}, which medkit does not know: {listed(_NETWORKS, 'or')}")
    given = {key: _argument(key, value) for key, value in arguments.items()}
    plain = _plain(given, sizes.dims) if kind == "PlainConvUNet" else None
    if plain is not None:
        own = {"spatial_dims": sizes.dims, "in_channels": sizes.channels, "out_channels": sizes.heads}
        return {"_target_": "medkit.nnunet.PlainConvUNet", **own, **plain}, None
    own = {"input_channels": sizes.channels, "num_classes": sizes.heads, "deep_supervision": False}
    return {"_target_": f"{module}.{kind}", **given, **own}, "dynamic-network-architectures"


def _argument(key: str, value: Any) -> Any:
    """Return an argument of a network for a config: numbers, or a class of torch.nn that plans may name."""
    if not re.fullmatch(r"[a-z][a-z_]*", key):
        raise ValueError(f"its network has an argument {short(key)}")
    if isinstance(value, str):
        module, _, name = value.rpartition(".")
        if not (module == "torch.nn" or module.startswith("torch.nn.modules.")) or name not in _LAYERS:
            raise ValueError(f"its network's {key} is {short(value)}, which medkit does not know")
        return f"$torch.nn.{name}"
    if isinstance(value, Mapping):
        return {plain_text(k): _argument(str(k), v) for k, v in value.items()}
    if isinstance(value, list):
        return [_argument(key, part) for part in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(f"its network's {key} is {short(value)}")


def _plain(given: Mapping[str, Any], dims: int) -> dict[str, Any] | None:
    """Return the arguments of `medkit.nnunet.PlainConvUNet`; None if the network has what that has not."""
    stages = given.get("n_stages")
    lists = [given.get(key) for key in _STAGES]
    convs = [given.get(key) for key in ("n_conv_per_stage", "n_conv_per_stage_decoder")]
    norm, slope = dict(given.get("norm_op_kwargs") or {}), dict(given.get("nonlin_kwargs") or {})
    slope.pop("inplace", None)
    fits = (
        type(stages) is int
        and stages > 2
        and all(isinstance(values, list) and len(values) == stages for values in lists)
        and all(isinstance(side, list) and len(side) == dims for side in (*(lists[1] or ()), *(lists[2] or ())))
        and all(count == 2 or (isinstance(count, list) and count == [2] * len(count)) for count in convs)
        and given.get("norm_op") == f"$torch.nn.InstanceNorm{dims}d"
        and given.get("nonlin") == "$torch.nn.LeakyReLU"
        and norm.keys() <= {"eps", "affine"}
        and slope.keys() <= {"negative_slope"}
        and not given.get("nonlin_first")
    )
    if not fits:
        return None
    norm = {"affine": False, **norm}
    return {
        **dict(zip(("features", "kernel_sizes", "strides"), lists, strict=True)),
        "bias": bool(given.get("conv_bias")), **norm, **slope,
    }  # fmt: skip


def _before_2_4(found: Mapping[str, Any], dims: int) -> dict[str, Any]:
    """Return the architecture of plans that nnU-Net wrote before version 2.4, as it reads them itself."""
    kind = found.get("UNet_class_name")
    counts = found.get("n_conv_per_stage_encoder")
    if kind not in _NETWORKS[:2] or not isinstance(counts, list):
        raise ValueError(f"its network is {short(kind)}, which medkit does not know")
    first, most = found.get("UNet_base_num_features"), found.get("unet_max_num_features")
    if type(first) is not int or type(most) is not int:
        raise ValueError("expected UNet_base_num_features and unet_max_num_features")
    return {
        "network_class_name": f"{_ARCHITECTURES}.{kind}",
        "arch_kwargs": {
            "n_stages": len(counts),
            "features_per_stage": [min(first * 2**n, most) for n in range(len(counts))],
            "conv_op": f"torch.nn.Conv{dims}d",
            "kernel_sizes": found.get("conv_kernel_sizes"),
            "strides": found.get("pool_op_kernel_sizes"),
            "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage": counts,
            "n_conv_per_stage_decoder": found.get("n_conv_per_stage_decoder"),
            "conv_bias": True,
            "norm_op": f"torch.nn.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
    }
