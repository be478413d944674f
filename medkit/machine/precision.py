"""The device and the numbers that networks compute with: bfloat16 or float16 where these are faster, else float32."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from medkit.errors import UsageError

if TYPE_CHECKING:
    import torch


def choose_device(asked: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`. Raises UsageError for one that is not available."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return torch.device("cuda:0" if count else "cpu")
    device = torch.device(asked)
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {asked}: networks compute on cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UsageError(f"--device {asked}: there are {count} CUDA devices here")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def choose_precision(asked: str, device: torch.device) -> str:
    """Return `bf16`, `fp16` or `float32`; `auto` is what is fast on the device. Raises UsageError for fp16 on a CPU."""
    import torch

    if asked == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16: needs a CUDA device; bf16 works on CPUs")
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return "bf16" if any(getattr(torch.cpu, name, bool)() for name in checks) else "float32"


def prepare(network: torch.nn.Module, precision: str) -> None:
    """Make a network compute in `precision`, in place; its parameters and outputs stay float32.

    The weights of convolutions are laid out channels last, for speed. fp16 is left to the trainer (MONAI's `amp`),
    which scales the loss for it.

    On a CPU, a convolution whose image is shorter than its kernel computes in float32 all the same: in bfloat16 a
    part of the gradients of its weights is memory that nobody has written (oneDNN 3.12, in torch 2.13). Such images
    are small, and so is the time they take.
    """
    lay_channels_last(network)
    if precision == "bf16":
        device = next(network.parameters()).device.type
        if device == "cpu":
            _keep_short_convolutions_whole(network)
        network.forward = functools.partial(_in_bf16, network.forward, device)


def _keep_short_convolutions_whole(network: torch.nn.Module) -> None:
    """Make the convolutions of a network compute in float32 where an image is shorter than the kernel."""
    from torch import nn

    transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
    layer: Any
    for layer in network.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | transposed):
            sides = _sides_of_output if isinstance(layer, transposed) else _sides_of_input
            least = [
                max(dilation * (kernel - 1) + 1, stride)
                for dilation, kernel, stride in zip(layer.dilation, layer.kernel_size, layer.stride, strict=True)
            ]
            layer.__dict__["forward"] = functools.partial(
                _float_if_short, layer.forward, functools.partial(sides, layer), least
            )


def _float_if_short(forward: Any, sides: Any, least: list[int], value: torch.Tensor, *args: Any) -> Any:
    """Call a convolution, without autocast if a side of its image is shorter than its kernel or its step, `least`."""
    import torch

    if all(side >= fewest for side, fewest in zip(sides(value), least, strict=True)):
        return forward(value, *args)
    with torch.autocast(value.device.type, enabled=False):
        return forward(value.float(), *args)


def _sides_of_input(layer: Any, value: torch.Tensor) -> tuple[int, ...]:
    """Return the sides of a convolution's input, in voxels."""
    return tuple(value.shape[-len(layer.kernel_size) :])


def _sides_of_output(layer: Any, value: torch.Tensor) -> tuple[int, ...]:
    """Return the sides of a transposed convolution's output, in voxels: what its gradient convolves."""
    options = zip(
        _sides_of_input(layer, value),
        layer.stride, layer.padding, layer.dilation, layer.kernel_size, layer.output_padding, strict=True,
    )  # fmt: skip
    return tuple((side - 1) * s - 2 * p + d * (k - 1) + o + 1 for side, s, p, d, k, o in options)


def lay_channels_last(network: torch.nn.Module) -> None:
    """Lay out the weights of convolutions channels last, in place: oneDNN and cuDNN are faster with that."""
    import torch

    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if parameter.dim() in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.dim()])


@contextlib.contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Make networks compute in `precision` within the block, and keep nothing for gradients."""
    import torch

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.no_grad(), torch.autocast(device.type, dtype=half, enabled=half is not None):
        yield


def _in_bf16(forward: Any, device: str, *args: Any, **kwargs: Any) -> Any:
    import torch

    with torch.autocast(device, dtype=torch.bfloat16):
        return as_float(forward(*args, **kwargs))


def as_float(value: Any) -> Any:
    """Return tensors of half precision as float32, also inside lists, tuples and dicts."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, list | tuple):
        return type(value)(as_float(v) for v in value)
    if isinstance(value, dict):
        return {k: as_float(v) for k, v in value.items()}
    return value
