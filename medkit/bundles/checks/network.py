"""Checks of a bundle's network: what it takes and returns, its weights, its export as TorchScript."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medkit.bundles.checks.subject import NETWORK, CheckedBundle, Skipped
from medkit.bundles.contract import kind_of_output
from medkit.bundles.layers import read_configs

TOLERANCE = 1e-4
"""Largest difference between a scripted network and the eager one, relative and absolute."""


def check_in_out(subject: CheckedBundle) -> Iterator[str]:
    """The network takes and returns what the metadata state (MONAI's verify_net_in_out, which raises)."""
    from monai.bundle import verify_net_in_out

    shape = subject.tensor("inputs", "image")["spatial_shape"]
    subject.tensor("outputs", "pred")
    if kind_of_output(subject.bundle) == "boxes":
        raise Skipped("it returns boxes, whose number the metadata cannot state")
    subject.random_input()
    size = subject.size()
    content = read_configs(subject.bundle)
    changes = subject.changes(content)
    content |= {name: changes.pop(name) for name in content.keys() & changes.keys()}  # ids may be called like arguments
    if shape != list(size):
        changes["_meta_::network_data_format::inputs::image::spatial_shape"] = list(size)
    name = NETWORK if NETWORK in content else "network"
    verify_net_in_out(
        name, meta_file=str(subject.bundle.metadata_path), config_file=content, device="cpu", **changes
    )  # fmt: skip
    yield from ()


def check_weights(subject: CheckedBundle) -> Iterator[str]:
    """The weights contain only numbers, and fit the network exactly."""
    for file, network, weights, strict in subject.states():
        own = network.state_dict()
        yield from (f"{file}: has no {name}" for name in own if strict and name not in weights)
        yield from (f"{file}: {name} is not in the network" for name in weights if strict and name not in own)
        for name in set(own) & set(weights):
            if own[name].shape != weights[name].shape:
                yield f"{file}: {name} is {tuple(weights[name].shape)}, the network's {tuple(own[name].shape)}"
            elif weights[name].is_floating_point() and not weights[name].isfinite().all():
                yield f"{file}: {name} holds values that are not finite"


def _filled(subject: CheckedBundle) -> bool:
    """Fill the networks as the config does; return whether there are weights."""
    try:
        for _, network, weights, strict in subject.states():
            network.load_state_dict(weights, strict=strict)
    except Skipped:
        return False
    return True


def check_export(subject: CheckedBundle) -> Iterator[str]:
    """The network can be scripted; the script, and one that the bundle brings, return what the network returns."""
    import torch
    from monai.networks.utils import convert_to_torchscript

    image = subject.random_input()
    network = subject.network()
    with_weights = _filled(subject)
    with torch.no_grad():
        expected = network(image)
    scripts: dict[str, Any] = {"its TorchScript": convert_to_torchscript(network)}
    load: Any = torch.jit.load
    brought = subject.root / "models" / "model.ts"
    if brought.is_file() and with_weights:
        scripts["models/model.ts"] = load(brought, map_location="cpu").eval()
    for name, script in scripts.items():
        try:
            with torch.no_grad():
                torch.testing.assert_close(script(image), expected, atol=TOLERANCE, rtol=TOLERANCE)
        except AssertionError as error:
            yield f"{name} returns something else than the network: {' '.join(str(error).split())[:200]}"
