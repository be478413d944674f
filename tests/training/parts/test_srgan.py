"""Adversarial training for super-resolution: the losses of the network and of the discriminator."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import PatchDiscriminator

from medkit.training.parts.cyclegan import SOURCE, TARGET, ImagePool, TrainDiscriminators
from medkit.training.parts.srgan import RefiningInferer, SharpLoss, prepare_refining

CPU = torch.device("cpu")


def discriminators() -> torch.nn.ModuleDict:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(spatial_dims=2, in_channels=1, channels=4, num_layers_d=2, norm="INSTANCE")
    return torch.nn.ModuleDict({TARGET: discriminator})


def batch() -> dict[str, torch.Tensor]:
    return {"image": torch.rand(2, 3, 32, 32), "label": torch.rand(2, 1, 32, 32)}


def test_a_batch_becomes_what_goes_in_and_the_true_image() -> None:
    given = batch()
    image, came = prepare_refining(given, CPU)
    assert torch.equal(image, given["image"])
    assert torch.equal(came[SOURCE], given["image"][:, :1])
    assert torch.equal(came[TARGET], given["image"][:, :1] + given["label"])


def test_what_is_made_is_the_image_and_what_the_network_adds() -> None:
    image = torch.rand(2, 3, 32, 32)
    made = RefiningInferer(lambda x, network: network(x[:, 1:2]))(image, torch.nn.Identity())
    torch.testing.assert_close(made["fake_target"], image[:, :1] + image[:, 1:2])


def test_the_loss_has_three_parts_and_leaves_the_discriminator_unchanged() -> None:
    given = discriminators()
    _, real = prepare_refining(batch(), CPU)
    fake = real[TARGET] + 0.1
    parts = {}
    for name in ("content", "features", "adversarial"):
        weights = {other: float(other == name) for other in ("content", "features", "adversarial")}
        parts[name] = float(SharpLoss(given, **weights)({"fake_target": fake}, real).detach())
    assert parts["content"] == pytest.approx(0.1, abs=1e-5)
    assert all(value > 0 for value in parts.values())
    assert float(SharpLoss(given, adversarial=0.0)({"fake_target": real[TARGET]}, real).detach()) == 0
    whole = SharpLoss(given)
    assert not list(whole.parameters()), "the discriminator is trained by its own optimizer"
    fake.requires_grad_(True)
    whole({"fake_target": fake}, real).backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0


def test_the_discriminator_learns_to_tell_them_apart() -> None:
    given = discriminators()
    step = TrainDiscriminators(given, torch.optim.Adam(given.parameters(), 1e-2), {TARGET: ImagePool(4)})
    smooth, sharp = torch.full((2, 1, 32, 32), 0.5), (torch.rand(2, 1, 32, 32) > 0.5).float()
    losses = []
    for _ in range(15):
        given.requires_grad_(True)
        step.optimizer.zero_grad()
        loss = step.loss({"fake_target": smooth}, {SOURCE: smooth, TARGET: sharp})
        loss.backward()
        step.optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
