"""Networks in ONNX: made from one in torch and compared with it, or read from a bundle."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.errors import BundleError, size_text

if TYPE_CHECKING:
    import numpy as np
    import torch

log = logging.getLogger("medkit")

ONNX = ("onnx", "onnxscript")
"""Packages that torch needs to write ONNX."""
SMALL = 64
"""Voxels along an axis of the image that a network is followed with, if it takes such a small one."""
STEP = 32
"""By how many voxels the image differs that shows whether a copy takes other sizes."""
TOLERANCE = 1e-3
"""Largest difference between a copy and the network, as a share of the network's largest value: sums in another order,
as in Winograd's convolutions, differ by a tenth of it."""


@dataclass(frozen=True)
class OnnxCopy:
    """A network in ONNX that returns what the network returns."""

    content: bytes
    shape: tuple[int, ...] | None
    """(C, ...) that it takes; None: any that the network takes."""
    difference: float
    """Largest difference from the network, as a share of its largest value."""
    channels: int
    """Of its answer."""
    batches: bool
    """Whether it takes several images at once."""


class OnnxNetwork:
    """A network that a bundle has in ONNX only, which torch cannot compute."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Raise BundleError."""
        raise BundleError(f"{self.path.name}: is ONNX, which torch cannot compute; --backend onnxruntime can")


def converted(
    network: torch.nn.Module, shape: tuple[int, ...], load: Callable[[bytes], Callable[[np.ndarray], np.ndarray]]
) -> OnnxCopy:
    """Return a copy of a network that takes an image of `shape`, (C, ...), and as many other sizes as it can.

    `load` returns what computes a copy, for the comparison with the network. Raises BundleError if no copy returns what
    the network returns.
    """
    reason = ""
    for sizes in sizes_for(network, shape):
        for write, batches in ((_traced, True), (_traced, False), (_exported, True), (_exported, False)):
            content: bytes | None = None
            try:
                with _quiet():
                    content = write(network, sizes, batches)
                difference, channels = _difference(network, load(content), sizes, (1, 2) if batches else (1,))
            except Exception as error:  # whatever the exporter, or the copy, finds wrong with a network
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                log.debug("ONNX for %s: %s", sizes, reason)
                continue
            if difference <= TOLERANCE:
                return OnnxCopy(content, None if len(sizes) > 1 else shape, difference, channels, batches)
            reason = f"the copy differs from it by {difference:.1%} of its largest value"
    raise BundleError(f"its network cannot be converted to ONNX for {size_text(shape[1:])} voxels: {reason}")


def sizes_for(network: torch.nn.Module, shape: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """Yield the images, (C, ...), that copies are made and compared with: two sizes if it takes them, then `shape`."""
    small = tuple(min(SMALL, n) for n in shape[1:])
    pair = [(shape[0], *small), (shape[0], *(size + STEP for size in small))]
    if all(_takes(network, image) for image in pair):
        yield pair
    yield [shape]


def _takes(network: torch.nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        answer_of(network, example(shape, 1))
    except Exception as error:  # networks for one size fail in ways of their own
        log.debug("the network does not take %s voxels: %s", shape, error)
        return False
    return True


def example(shape: tuple[int, ...], count: int) -> torch.Tensor:
    """Return random numbers, (N, C, ...), the same ones in each run."""
    import torch

    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(0))


def answer_of(network: Any, image: torch.Tensor) -> torch.Tensor:
    """Return a network's answer to an image, in float32. Raises BundleError if it is not one tensor."""
    import torch

    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        answer = network(image)
    if not isinstance(answer, torch.Tensor):
        raise BundleError(f"its network returns {type(answer).__name__}, not one tensor")
    return answer.float()


def _difference(
    network: torch.nn.Module,
    copy: Callable[[np.ndarray], np.ndarray],
    sizes: list[tuple[int, ...]],
    counts: tuple[int, ...],
) -> tuple[float, int]:
    """Return the largest difference of two answers, as a share of the network's largest value, and its channels."""
    import torch

    found, channels = 0.0, 1
    for shape, count in itertools.product(sizes, counts):
        image = example(shape, count)
        expected = answer_of(network, image)
        got = torch.from_numpy(copy(image.numpy()))
        if got.shape != expected.shape:
            raise BundleError(f"the copy returns {tuple(got.shape)}, the network {tuple(expected.shape)}")
        found = max(found, float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12)))
        channels = int(expected.shape[1]) if expected.dim() > 1 else 1
    return found, channels


def _traced(network: torch.nn.Module, sizes: list[tuple[int, ...]], batches: bool) -> bytes:
    """Follow the network through one image: seconds, and most networks can be followed so."""
    import torch

    free = {2 + n: f"size_{n}" for n in range(len(sizes[0]) - 1)} if len(sizes) > 1 else {}
    free |= {0: "n"} if batches else {}
    out: Any = io.BytesIO()
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        torch.onnx.export(
            network, (example(sizes[0], 1),), out, input_names=["image"], output_names=["pred"],
            dynamic_axes={"image": free, "pred": free}, dynamo=False,
        )  # fmt: skip
    content: bytes = out.getvalue()
    return content


def _exported(network: torch.nn.Module, sizes: list[tuple[int, ...]], batches: bool) -> bytes:
    """Follow the network by torch.export: slower, and more networks."""
    import torch

    auto = torch.export.Dim.AUTO
    free = {2 + n: auto for n in range(len(sizes[0]) - 1)} if len(sizes) > 1 else {}
    free |= {0: auto} if batches else {}
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        program: Any = torch.onnx.export(
            network, (example(sizes[0], 2 if batches else 1),), input_names=["image"], output_names=["pred"],
            dynamic_shapes=(free,), dynamo=True, verbose=False,
        )  # fmt: skip
    content: bytes = program.model_proto.SerializeToString()
    return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep advice of torch's exporters, about how they will change, from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
