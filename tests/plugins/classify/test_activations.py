"""What is recorded of a network while it runs."""

from __future__ import annotations

import copy

import pytest
import torch
from medkit_classify.activations import ActivationRecorder
from medkit_classify.explanation import Explainer
from torch import nn


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def test_runs_of_a_copy_are_not_recorded(network: nn.Module) -> None:
    """The picture of one case is drawn, by a copy of the network, while the network runs on the next case."""
    recorder = ActivationRecorder(network, ["0"])
    image, other = torch.rand(1, 1, 32, 32), 5 + torch.rand(1, 1, 32, 32)
    network(image)
    alone = recorder.statistics(), recorder.features()

    recorder.clear()
    explainer = Explainer(network, "gradcam")
    explainer(other[0], 0)
    assert recorder.statistics() is None
    assert recorder.features() is None
    network(image)
    explainer(other[0], 1)
    assert torch.equal(recorder.statistics(), alone[0])
    assert torch.equal(recorder.features(), alone[1])


def test_a_copy_is_recorded_by_a_recorder_of_its_own(network: nn.Module) -> None:
    first = ActivationRecorder(network, ["0"])
    twin = copy.deepcopy(network)
    second = ActivationRecorder(twin, ["0"])
    twin(torch.rand(2, 1, 32, 32))
    assert first.statistics() is None
    assert second.statistics() is not None
    assert len(second.statistics()) == 2


def test_statistics_are_of_the_first_run_and_features_the_mean(network: nn.Module) -> None:
    recorder = ActivationRecorder(network, ["0"])
    image, other = torch.rand(1, 1, 32, 32), torch.rand(1, 1, 32, 32)
    network(image)
    first, features = recorder.statistics(), recorder.features()
    network(other)
    assert torch.equal(recorder.statistics(), first)
    assert not torch.allclose(recorder.features(), features)
