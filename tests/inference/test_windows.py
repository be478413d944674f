"""The windows of a network as steps of a case."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer

from medkit.inference.network import ComputePlan, Network
from medkit.terminal import progress


def network(inferer: Any, calls: list[int]) -> Network:
    """A network that counts how often it is called."""

    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(len(x))
            return x

    post: Any = SimpleNamespace(voxelwise=None)
    return Network(Counting(), inferer, post, torch.device("cpu"), "float32", None)


INFERERS = [
    SlidingWindowInferer((16, 12, 8), 1, 0.25),
    SlidingWindowInferer((16, 12, 8), 3, 0.5),
    SlidingWindowInferer((64, 12, -1), 2, (0.5, 0.25, 0.0)),
    SlidingWindowInferer(16, 4, 0.625),
    SliceInferer(spatial_dim=2, roi_size=(16, 12), sw_batch_size=4, overlap=0.25),
    SliceInferer(spatial_dim=0, roi_size=(-1, -1), sw_batch_size=1),
]


@pytest.mark.parametrize("inferer", INFERERS, ids=range(len(INFERERS)))
@pytest.mark.parametrize("shape", [(40, 31, 9), (16, 12, 8), (5, 50, 33)])
def test_steps_are_the_calls_of_the_network(inferer: Any, shape: tuple[int, ...], monkeypatch: Any) -> None:
    bar = progress.Bar("label", lambda: 1, follows=False)
    monkeypatch.setattr(progress, "_bar", bar)
    calls: list[int] = []
    seen = []
    one = network(inferer, calls)
    told = one.network.register_forward_hook(lambda *_: seen.append(bar.state().step))
    one._infer(ComputePlan(), torch.zeros(1, 1, *shape))
    told.remove()
    assert seen == [(n, len(calls), "windows") for n in range(len(calls))]
    one._infer(ComputePlan(), torch.zeros(1, 1, *shape))
    assert one._calls(ComputePlan(), (1, *shape)) == len(calls) / 2


def test_other_inferers_get_the_network_itself(monkeypatch: Any) -> None:
    class Own(SlidingWindowInferer):
        def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
            return network.training, super().__call__(inputs, network, *args, **kwargs)

    monkeypatch.setattr(progress, "_bar", progress.Bar("label", lambda: 1, follows=False))
    for inferer in (SimpleInferer(), Own((4, 4, 4))):
        assert network(inferer, [])._infer(ComputePlan(), torch.zeros(1, 1, 8, 8, 8)) is not None
