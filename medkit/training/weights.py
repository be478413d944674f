"""A network's parameters: starting from another network's, freezing some, and averaging them over the steps."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.errors import InputError, TrainingError, UsageError, listed

if TYPE_CHECKING:
    import torch

log = logging.getLogger("medkit.training")

_WRAPPERS = ("state_dict", "model", "network", "net", "ema")
"""Keys under which training programs store the state dict in their checkpoints."""


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict of a `.pt` file (plain, or in a training's checkpoint) or of a `.ts` TorchScript archive.

    Raises InputError for any other file; files that would execute code are refused.
    """
    import torch

    try:
        if path.suffix == ".ts":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns that TorchScript is deprecated
                return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: cannot be read as weights: {' '.join(str(error).split())[:200]}") from None
    for key in ("", *_WRAPPERS):
        found = content.get(key) if key and isinstance(content, Mapping) else content
        if isinstance(found, Mapping) and found and all(isinstance(v, torch.Tensor) for v in found.values()):
            return {name.removeprefix("module."): value for name, value in found.items()}
    raise InputError(f"{path}: expected a state dict, a mapping of names to tensors")


def initialise_from(network: torch.nn.Module, path: Path) -> None:
    """Copy a file's parameters of the same name and shape to the network, or else to the part of it that they fit.

    Raises TrainingError if no parameter fits.
    """
    own = network.state_dict()
    found = _for_a_part(read_weights(path), own)
    fitting = {k: v for k, v in found.items() if k in own and v.shape == own[k].shape}
    if not fitting:
        raise TrainingError(
            f"--init-from {path}: none of its {len(found)} parameters has the name and shape of one of the network's "
            f"{len(own)}; it has {listed(list(found)[:3])}, the network has {listed(list(own)[:3])}"
        )
    network.load_state_dict(fitting, strict=False)
    log.info("%d of the network's %d parameters start as in %s", len(fitting), len(own), path)
    if other := [f"{k} {tuple(v.shape)} there, {tuple(own[k].shape)} here" for k, v in found.items()
                 if k in own and v.shape != own[k].shape]:  # fmt: skip
        log.info("not used because of another shape: %s", "; ".join(other))
    if missing := [k for k in own if k not in found]:
        log.info("not in that file: %s", listed(missing[:8]) + (" ..." if len(missing) > 8 else ""))


def _for_a_part(found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return parameters under the names of the network's part that they fit, unless one has a name of the whole."""
    if not found or set(found) & set(own):
        return found
    parts = {name.partition(".")[0] for name in own}
    named = [{f"{part}.{name}": value for name, value in found.items()} for part in sorted(parts)]
    return max((found, *named), key=lambda names: len(set(names) & set(own)))


def freeze(network: torch.nn.Module, prefixes: Sequence[str]) -> None:
    """Keep parameters whose names start with one of the prefixes, and running statistics there, from training.

    Raises UsageError for a prefix that fits no name, or if nothing is left to train.
    """
    import torch

    parameters = dict(network.named_parameters(remove_duplicate=False))
    names = list(parameters)
    for prefix in prefixes:
        if not any(_starts_with(name, prefix) for name in names):
            raise UsageError(
                f"--freeze {prefix}: no parameter's name starts with it; there is {listed(_near(prefix, names))}"
            )
    for name, parameter in parameters.items():
        if any(_starts_with(name, prefix) for prefix in prefixes):
            parameter.requires_grad_(False)
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and any(_starts_with(name, p) for p in prefixes):
            module.momentum = 0.0
    if not any(p.requires_grad for p in network.parameters()):
        raise UsageError(f"--freeze {listed(list(prefixes))}: leaves nothing to train")


def _starts_with(name: str, prefix: str) -> bool:
    """Return whether a name starts with the words of a prefix: `model.1` fits `model.1.weight`, not `model.10`."""
    return f"{name}.".startswith(f"{prefix.rstrip('.')}.")


def _near(prefix: str, names: Sequence[str]) -> list[str]:
    """Return names that could follow the part of a prefix that fits, one level deep."""
    words = prefix.split(".")
    while words and not any(_starts_with(name, ".".join(words)) for name in names):
        words.pop()
    inside = [name for name in names if not words or _starts_with(name, ".".join(words))]
    return sorted({".".join(name.split(".")[: len(words) + 1]) for name in inside})


def copied(weights: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return a copy on the CPU, its floating-point numbers as `dtype`; None keeps their type.

    A tensor with two names stays one tensor, also on disk: networks such as MONAI's DynUNet register layers twice.
    """
    made: dict[Any, torch.Tensor] = {}
    out = {}
    for name, value in weights.items():
        key = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride()) if value.numel() else name
        if key not in made:
            wanted = dtype if dtype is not None and value.is_floating_point() else value.dtype
            made[key] = value.detach().to("cpu", wanted, copy=True)
        out[name] = made[key]
    return out


def count_parameters(network: Any) -> tuple[int, int]:
    """Return the number of a network's parameters, and how many of them are trained."""
    parameters = list(network.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


class AveragedNetwork:
    """Exponential moving average of a network's parameters, of which each step keeps a share `keep`; 0: no average.

    Early steps keep less, so that the initial parameters do not dominate short trainings.
    """

    def __init__(self, network: torch.nn.Module, keep: float) -> None:
        from ignite.handlers import EMAHandler

        self.original = network
        self.keep = keep
        self._handler = EMAHandler(network, momentum=1 - keep) if keep > 0 else None
        self.network: torch.nn.Module = self._handler.ema_model if self._handler else network

    def attach(self, trainer: Any) -> None:
        """Average after every step."""
        from ignite.engine import Events

        if self._handler:
            trainer.add_event_handler(Events.ITERATION_COMPLETED, self._set_momentum)
            self._handler.attach(trainer, "ema_momentum", warn_if_exists=False)

    def _set_momentum(self, engine: Any) -> None:
        n = engine.state.iteration
        engine.state.ema_momentum = 1 - min(self.keep, (1 + n) / (10 + n))

    def weights(self) -> dict[str, torch.Tensor]:
        """Return a copy of the averaged state dict, on the CPU."""
        found = self.network.state_dict()
        # an average of equal numbers may differ from them by rounding, but frozen parameters stay bit for bit
        own = dict(self.original.named_parameters(remove_duplicate=False))
        found |= {k: p for k, p in own.items() if not p.requires_grad and k in found}
        return copied(found)
