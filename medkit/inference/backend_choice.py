"""`--backend auto`: the fastest way to compute a bundle's network here, measured on a part of the first case.

What was found is remembered for the machine and the content of the bundle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from medkit import __version__
from medkit.errors import BundleError, UsageError
from medkit.inference.backends import (
    AUTO,
    ONNXRUNTIME,
    OPENVINO,
    PRECISIONS,
    TORCH,
    CompiledNetwork,
    missing_package,
    precision_of,
    require,
)
from medkit.inference.onnx_network import OnnxNetwork
from medkit.machine.precision import as_float, computing
from medkit.machine.processor import processor_name
from medkit.pipe.remembered import BACKENDS, remember, remembered

if TYPE_CHECKING:
    import torch

log = logging.getLogger("medkit")

LOSS = 0.001
"""How much farther than torch's own answer another one may be from torch's in float32: in Dice of labels, or as a share
of the values' root mean square."""
GAIN = 0.95
"""Share of torch's seconds that another backend takes at most, to be worth the change."""
PART = 96
"""Largest size, in voxels along an axis, of the part of an image that backends are compared on."""
_ROUNDS = 3
_MOST = 200
"""Choices that are remembered."""


@dataclass(frozen=True)
class Way:
    """A backend, and the numbers that it computes with."""

    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


@dataclass(frozen=True)
class Measured:
    """What a backend took for a part of an image, and what it returned."""

    way: Way
    seconds: float
    """The shortest of several runs."""
    apart: float
    """Distance from torch's answer in float32: 1 - Dice of the labels, or relative root mean square of the values."""


@dataclass(frozen=True)
class Choice:
    """How a network is computed."""

    way: Way
    measured: tuple[Measured, ...] = ()
    """What the choice is based on; empty if the user made it."""

    @property
    def facts(self) -> dict[str, Any]:
        """The entries for a sidecar."""
        found: dict[str, Any] = {"precision": self.way.precision, "backend": self.way.backend}
        if self.measured:
            found["backends_measured"] = {
                str(m.way): {"seconds": round(m.seconds, 4), "apart": round(m.apart, 6)} for m in self.measured
            }
        return found


@dataclass(frozen=True)
class Asked:
    """What the user asked for, and what the network is for."""

    backend: str
    """`torch`, `onnxruntime`, `openvino` or `auto`."""
    precision: str
    """The value of `--precision`."""
    torchs: str
    """What torch computes with for it on this device."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """The bundle's name, version and digests, and the values of its config that were changed."""
    labels: bool = False
    """Whether its answer becomes labels by the largest channel."""

    def ways(self) -> list[Way]:
        """Return the ways among which `auto` chooses: torch's own first; only those that are installed."""
        found = [Way(TORCH, self.torchs)]
        for backend in (OPENVINO, ONNXRUNTIME):
            if missing_package(backend) is None:
                found += [Way(backend, p) for p in PRECISIONS[backend] if self.precision in ("auto", p)]
        return found


def asked_for(backend: str | None, network: Any, device: torch.device, precision: str, torchs: str) -> Asked:
    """Return what `--backend` and `--precision` ask for; `torchs`: as in `Asked`.

    Without `--backend` it is torch, and for a network in ONNX what is installed. Raises UsageError if the backend
    cannot compute the network here.
    """
    if isinstance(network, OnnxNetwork):
        there = next((name for name in (ONNXRUNTIME, OPENVINO) if missing_package(name) is None), ONNXRUNTIME)
        backend = backend or there
        if backend == TORCH:
            raise UsageError(f"--backend torch: cannot compute ONNX, {network.path.name}; {there} can")
    backend = backend or TORCH
    if backend not in (TORCH, AUTO):
        require(backend, device)
        precision_of(backend, precision)
    if backend == AUTO and device.type != "cpu":
        backend = TORCH
    return Asked(backend, precision, torchs)


def choose(asked: Asked, network: Any, example: torch.Tensor) -> Choice:
    """Return the fastest way that keeps the network's answer, as remembered, else as measured now.

    example: (1, C, ...), a part of an image that the network takes.
    """
    ways = asked.ways()
    if isinstance(network, OnnxNetwork):
        ways = ways[1:]
        if not ways:
            raise BundleError(f"{network.path.name}: needs onnxruntime or openvino: pip install 'medkit[onnx]'")
    if len(ways) == 1:
        return Choice(ways[0])
    key = _key(asked, ways, tuple(example.shape))
    if (known := _remembered(key)) is not None:
        return known
    found = measured(network, ways, example, labels=asked.labels)
    chosen = _best(found, ways[0])
    log.info("--backend auto: %s: %s", chosen, "; ".join(f"{m.way} {m.seconds:.2f} s" for m in found))
    choice = Choice(chosen, tuple(found))
    entry = {"bundle": asked.identity.get("name"), "version": asked.identity.get("version"), **_as_data(choice)}
    remember(BACKENDS, key, entry, most=_MOST)
    return choice


def measured(network: Any, ways: Sequence[Way], example: torch.Tensor, *, labels: bool) -> list[Measured]:
    """Run a network in several ways on an image, (1, C, ...), in turns, and compare what it returns.

    Ways that fail are left out. Raises what the first way raises.
    """
    device = example.device
    truth = _run(network, Way(TORCH, "float32"), example) if not isinstance(network, OnnxNetwork) else None
    answers: dict[Way, Any] = {}
    runs: dict[Way, Any] = {}
    for way in ways:
        runs[way] = network if way.backend == TORCH else CompiledNetwork(network, way.backend, way.precision)
        try:
            answers[way] = _run(runs[way], way, example)
        except Exception as error:  # of the exporter, or of the other library
            if way == ways[0]:
                raise
            log.debug("--backend auto: %s cannot: %s", way, error)
    truth = answers[ways[0]] if truth is None else truth
    best = dict.fromkeys(answers, float("inf"))
    for _ in range(_ROUNDS):
        for way in answers:
            began = time.perf_counter()
            _run(runs[way], way, example)
            best[way] = min(best[way], time.perf_counter() - began)
    log.debug("--backend auto: measured on %s, %s", tuple(example.shape), device)
    return [Measured(way, best[way], _apart(answer, truth, labels=labels)) for way, answer in answers.items()]


def _run(network: Any, way: Way, example: torch.Tensor) -> torch.Tensor:
    """Return the answer in float32. Raises BundleError if it is not one tensor."""
    import torch

    with computing(way.precision if way.backend == TORCH else "float32", example.device):
        answer = as_float(network(example))
    if not isinstance(answer, torch.Tensor):
        raise BundleError(f"its network returns {type(answer).__name__}, not one tensor")
    return answer


def _apart(answer: torch.Tensor, truth: torch.Tensor, *, labels: bool) -> float:
    import torch

    if labels and truth.shape[1] > 1:
        ours, theirs = answer.argmax(1), truth.argmax(1)
        dice = [
            2 * int(((ours == n) & (theirs == n)).sum()) / int((ours == n).sum() + (theirs == n).sum())
            for n in torch.unique(theirs).tolist()
        ]
        return 1 - sum(dice) / len(dice)
    return float((answer - truth).square().mean().sqrt() / truth.square().mean().sqrt().clamp(min=1e-12))


def _best(found: Sequence[Measured], own: Way) -> Way:
    """Return the fastest way whose answer is hardly farther from float32's than that of `own`."""
    first = next(m for m in found if m.way == own)
    others = [m for m in found if m.apart <= first.apart + LOSS and m.seconds <= GAIN * first.seconds]
    return min([first, *others], key=lambda m: m.seconds).way


def settle(asked: Asked, network: Any, example: Callable[[], torch.Tensor]) -> tuple[Choice, Any]:
    """Return how a network is computed, and what inferers call for it; `example` makes what `choose` takes."""
    if asked.backend == AUTO:
        choice = choose(asked, network, example())
    elif asked.backend == TORCH:
        choice = Choice(Way(TORCH, asked.torchs))
    else:
        choice = Choice(Way(asked.backend, precision_of(asked.backend, asked.precision)))
    way = choice.way
    return choice, network if way.backend == TORCH else CompiledNetwork(network, way.backend, way.precision)


def ratios(found: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Return for the metadata what ways were measured; the first is torch in float32, to which ratios are."""
    first = found[0].seconds
    return {str(m.way): {"ratio": round(m.seconds / first, 3), "apart": round(m.apart, 6)} for m in found}


# ---- the part of an image that is measured


def example_of(image: torch.Tensor, window: Sequence[int], across: int | None = None) -> Iterator[torch.Tensor]:
    """Yield the middle of an image, (C, I, J, K), as (1, C, ...): a small part, then one of the size of a window.

    `across`: the axis of the slices of a network that takes slices.
    """
    import torch

    plain = image.as_tensor() if hasattr(image, "as_tensor") else image
    if across is not None and len(window) == plain.dim() - 2:
        plain = plain.select(1 + across, plain.shape[1 + across] // 2)
    small = [min(PART, w, n) for w, n in zip(window, plain.shape[1:], strict=True)]
    small = [n // 32 * 32 or n for n in small]
    for sizes in (small, list(window)):
        part = plain
        for axis, size in enumerate(sizes, start=1):
            there = part.shape[axis]
            part = part.narrow(axis, max(0, (there - size) // 2), min(size, there))
        missing = [n - have for n, have in zip(sizes, part.shape[1:], strict=True)]
        pads = [side for n in reversed(missing) for side in (0, n)]  # the last axis comes first
        yield torch.nn.functional.pad(part, pads)[None].contiguous()


def fitting_example(network: Any, image: torch.Tensor, window: Sequence[int], across: int | None) -> torch.Tensor:
    """Return the first part of an image that the network takes. Raises what the network raises for a whole window."""
    small, whole = example_of(image, window, across)
    if isinstance(network, OnnxNetwork):
        return whole
    with contextlib.suppress(Exception):  # networks for one size fail in ways of their own
        _run(network, Way(TORCH, "float32"), small)
        return small
    return whole


# ---- remembering


def _key(asked: Asked, ways: Sequence[Way], shape: tuple[int, ...]) -> str:
    """Return a digest of all that a choice depends on."""
    import torch

    facts = {
        "bundle": dict(asked.identity),
        "labels": asked.labels,
        "ways": [str(way) for way in ways],
        "shape": shape,
        "machine": [processor_name(), torch.get_num_threads()],
        "versions": {name: version(name) for name in ("torch", *{w.backend for w in ways} - {TORCH})},
        "medkit": __version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _as_data(choice: Choice) -> dict[str, Any]:
    return {
        "backend": choice.way.backend,
        "precision": choice.way.precision,
        "measured": [[m.way.backend, m.way.precision, m.seconds, m.apart] for m in choice.measured],
    }


def _remembered(key: str) -> Choice | None:
    try:
        entry = remembered(BACKENDS)[key]
        found = [Measured(Way(b, p), float(s), float(a)) for b, p, s, a in entry["measured"]]
        return Choice(Way(str(entry["backend"]), str(entry["precision"])), tuple(found))
    except (KeyError, TypeError, ValueError):
        return None
