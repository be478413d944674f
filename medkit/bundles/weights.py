"""Which weights a config loads, in MONAI's order: by CheckpointLoaders and by expressions of its own."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medkit.bundles.config import class_name, one_line, walk
from medkit.bundles.layers import followed, has_id, value_at
from medkit.bundles.places import RUN, evaluator_of, runs
from medkit.errors import BundleError

log = logging.getLogger("medkit")

_FILLS = re.compile(r"load_state_dict|copy_model_state|load_(checkpoint|pretrained|weights)")
"""In an expression that fills a network."""
_READS = re.compile(rf"{_FILLS.pattern}|torch\.(jit\.)?load\b")
"""In an expression that fills a network or reads a file of weights."""
_OTHER_LOADER = re.compile(r"(Checkpoint|Weights?|Model)\w*Loader|Load(Checkpoint|Weights?|Model)")
"""In the name of a class that fills a network otherwise than MONAI's CheckpointLoader."""
_WEIGHTS_FILE = re.compile(r"\.(pt|pth|ckpt|ts|safetensors)\b")
"""In an argument of a network that is the name of a file of weights."""
_LOADER = "CheckpointLoader"
NETWORKS = ("network", "network_def")
"""The ids that networks usually have."""


@dataclass(frozen=True)
class LoadStep:
    """One thing of a config that fills its networks."""

    name: str
    """Its config id."""
    kind: Literal["loader", "reads", "network", "evaluator"]
    """A CheckpointLoader; or an expression that reads weights, that only names a network, or that names the evaluator:
    what the latter two do cannot be told from their texts."""


@dataclass(frozen=True)
class WeightsPlan:
    """How a config fills its networks."""

    steps: tuple[LoadStep, ...]
    """In the order in which MONAI takes them."""
    disabled: tuple[str, ...]
    """Ids of CheckpointLoaders that the config switches off."""
    in_network: bool
    """Whether the network is itself read from a file."""

    @property
    def loads(self) -> bool:
        """Whether the config says where weights come from."""
        return self.in_network or any(step.kind in ("loader", "reads") for step in self.steps)


def weights_plan(parser: Any) -> WeightsPlan:
    """Return how an inference config, a monai.bundle.ConfigParser, fills its networks.

    Raises BundleError if a class of the bundle's own does it. Loaders that nothing refers to count if nothing else does
    it.
    """
    config = parser.config
    evaluator = evaluator_of(config)
    named = (followed(config, name) for name in (f"{evaluator}::network", *NETWORKS))
    networks = {name for name in named if name is not None}
    search = _Search(parser, evaluator, networks)
    running = [name for name, run in runs(config) if run == evaluator]
    for name in ("initialize", *running):
        search.visit(name, statement=True)
    for name in (*([evaluator] if evaluator else []), *NETWORKS):
        search.visit(name)
    steps = search.in_order()
    loaders = ["::".join(place) for place, node in walk(parser.config) if class_name(node) == _LOADER]
    enabled = [name for name in loaders if not is_disabled(parser, name)]
    if not any(step.kind in ("loader", "reads") for step in steps):
        steps = [*(LoadStep(name, "loader") for name in enabled), *steps]
    return WeightsPlan(
        tuple(steps),
        tuple(name for name in loaders if name not in enabled),
        any(_is_read(config, name) for name in networks),
    )


def _is_read(config: Mapping[str, Any], network: str) -> bool:
    """Return whether a network is made by an expression, or by arguments, that name a file of weights."""
    texts = [text for _, text in walk(value_at(config, network)) if isinstance(text, str)]
    names = [name for text in texts for name in re.findall(r"@([\w:#]+)", text) if has_id(config, name)]
    texts += [
        text for name in names if name not in ("bundle_root", network) for _, text in walk(value_at(config, name))
    ]
    found = (text for text in texts if isinstance(text, str))
    return any((text.startswith("$") and _READS.search(text)) or _WEIGHTS_FILE.search(text) for text in found)


def is_disabled(parser: Any, name: str) -> bool:
    """Return whether a config switches off the object of an id, by `_disabled_`: a value or an expression."""
    place = f"{name}::_disabled_"
    value = parser.get_parsed_content(place) if place in parser else False
    return value.strip().lower() == "true" if isinstance(value, str) else bool(value)


def loader_file(parser: Any, loader: str, root: Path) -> tuple[Path, Path]:
    """Return the file that a CheckpointLoader names, and the one to load instead; a relative one lies in the bundle.

    The path of another machine stands for the file of that name in the bundle's models.
    """
    stated = root / str(parser.get_parsed_content(f"{loader}::load_path"))
    own = root / "models" / stated.name
    return stated, stated if stated.is_file() or stated.is_relative_to(root) or not own.is_file() else own


def load(path: Path, modules: Mapping[str, Any], *, strict: bool) -> None:
    """Fill modules from a checkpoint as MONAI's CheckpointLoader does; only tensors are unpickled."""
    states = states_of(path, modules)
    for key, module in modules_of(modules).items():
        try:
            missing = module.load_state_dict(states[key], strict=strict).missing_keys
            if missing:
                log.warning("%s: has no %s (%d in all): chance decides on them", path, missing[0], len(missing))
        except RuntimeError as error:
            raise BundleError(f"{path}: does not fit the network: {one_line(error)}") from None


def modules_of(modules: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a loader's objects that are networks."""
    import torch

    return {key: module for key, module in modules.items() if isinstance(module, torch.nn.Module)}


def states_of(path: Path, modules: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of each of a loader's networks in a checkpoint. Raises BundleError if it lacks one."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BundleError(
            f"{path}: holds more than weights (weights_only=True refuses it); medkit does not load such files"
        ) from None
    wanted = modules_of(modules)
    if not isinstance(state, dict):
        raise BundleError(f"{path}: expected a state dict, got {type(state).__name__}")
    if len(wanted) == 1 and next(iter(wanted)) not in state:
        state = {next(iter(wanted)): state}
    if missing := [key for key in wanted if key not in state]:
        raise BundleError(f"{path}: has no {missing[0]}; it has {', '.join(map(str, list(state)[:5]))}")
    return state


class _Search:
    """Follows the references of a config in the order in which MONAI evaluates it."""

    def __init__(self, parser: Any, evaluator: str | None, networks: Collection[str]) -> None:
        self.parser, self.evaluator, self.networks = parser, evaluator, networks
        self.done: set[str] = set()
        self.called: list[LoadStep] = []
        """Expressions, and loaders that an expression calls."""
        self.handlers: list[str] = []
        """Loaders that work when the evaluator starts."""

    def in_order(self) -> list[LoadStep]:
        """Return all steps that were found."""
        called = {step.name for step in self.called}
        return [*self.called, *(LoadStep(name, "loader") for name in self.handlers if name not in called)]

    def visit(self, name: str, *, statement: bool = False) -> None:
        """Look at what an id holds and at all that it refers to; `statement`: it is evaluated for its effect."""
        if name in self.done or name not in self.parser:
            return
        self.done.add(name)
        value = self.parser[name]
        if isinstance(value, dict):
            self._component(name, value)
        elif isinstance(value, list):
            for number, text in enumerate(value):
                self.visit(f"{name}::{number}", statement=statement)
                if statement and isinstance(text, str) and RUN.search(text):
                    break  # what comes after the run does not change its result
        elif isinstance(value, str):
            self._text(name, value, statement=statement)

    def _component(self, name: str, value: Mapping[str, Any]) -> None:
        if "_target_" in value and is_disabled(self.parser, name):
            return
        if _OTHER_LOADER.search(kind := class_name(value)) and kind != _LOADER:
            raise BundleError(f"{name}: loads weights by {value['_target_']}; expected MONAI's {_LOADER}")
        for key in value:
            self.visit(f"{name}::{key}", statement=key == "_requires_")
        if kind == _LOADER:
            self.handlers.append(name)

    def _text(self, name: str, text: str, *, statement: bool) -> None:
        from monai.bundle.reference_resolver import ReferenceResolver

        for reference in ReferenceResolver.match_refs_pattern(text):
            self.visit(reference, statement=statement and text == f"@{reference}")
        if not text.startswith("$"):
            return
        called = [loader for loader in self.handlers if re.search(rf"@{loader}\s*\(", text)]
        self.called += [LoadStep(loader, "loader") for loader in called]
        if (_READS if statement else _FILLS).search(text):
            self.called.append(LoadStep(name, "reads"))
        elif statement and not called and not RUN.search(text):
            named = {
                followed(self.parser.config, reference) for reference in ReferenceResolver.match_refs_pattern(text)
            }
            if self.evaluator in named:
                self.called.append(LoadStep(name, "evaluator"))
            elif named & set(self.networks):
                self.called.append(LoadStep(name, "network"))
