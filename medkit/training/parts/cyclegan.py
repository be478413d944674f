"""Training that turns images of one kind into another without pairs of the same person: CycleGAN (Zhu 2017).

Two generators, there and back, are trained against two discriminators, each of which tells real images of a kind from
generated ones. MONAI's SupervisedTrainer trains the generators, with `CycleInferer` and `CycleLoss`; after each of its
steps the handler `TrainDiscriminators` trains the discriminators. MONAI's GanTrainer and AdversarialTrainer generate
images in one direction only. Images are (B, 1, I, J, K) or (B, 1, I, J).

Configs call the discriminators `judges`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from monai.losses import PatchAdversarialLoss
from torch import nn

from medkit.synthesis.base_transform import plain_tensor
from medkit.training.ranks import average_gradients

SOURCE, TARGET = "source", "target"
"""Keys of batches and discriminators: the kind of image that is turned into another, and that other kind."""


def prepare_unpaired(
    batch: Mapping[str, torch.Tensor], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor], tuple[torch.Tensor], dict[str, Any]]:
    """Return the source images, all images by key, and the inferer's further argument: MONAI's `prepare_batch`."""
    images = {key: plain_tensor(batch[key]).to(device, non_blocking=non_blocking) for key in (SOURCE, TARGET)}
    return images[SOURCE], images, (images[TARGET],), {}


class CycleInferer:
    """Turns images of both kinds into the other kind and back, and into their own kind.

    Returns under `fake_<key>` images turned into that kind, under `cycle_<key>` images turned into the other kind and
    back to that one, and under `same_<key>` images of that kind turned into it, which should not change. Keys are
    `SOURCE` and `TARGET`.
    """

    def __init__(self, back: nn.Module) -> None:
        self.back = back
        """Generator from TARGET to SOURCE; the trainer's network is the one from SOURCE to TARGET."""

    def __call__(self, source: torch.Tensor, network: nn.Module, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """See the class."""
        fake_target, same_target = network(torch.cat([source, target])).chunk(2)
        fake_source, same_source = self.back(torch.cat([target, source])).chunk(2)
        return {
            "fake_target": fake_target,
            "fake_source": fake_source,
            "same_target": same_target,
            "same_source": same_source,
            "cycle_target": network(fake_source),
            "cycle_source": self.back(fake_target),
        }


class CycleLoss(nn.Module):
    """Loss of the generators.

    The discriminators' least-squares loss on the generated images, plus `cycle` times the mean absolute error of images
    turned there and back, plus `identity` times that of images that should not change.
    """

    def __init__(self, judges: Mapping[str, nn.Module], cycle: float = 10.0, identity: float = 5.0) -> None:
        super().__init__()
        # in a dict, so that they stay no modules of this loss: their own optimizer trains them
        self._discriminators = dict(judges.items())
        self.cycle, self.identity = cycle, identity
        self.adversarial = least_squares()

    def forward(self, made: Mapping[str, torch.Tensor], real: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss; made: as CycleInferer returns it; real: images by key."""
        loss = made["fake_target"].new_zeros(())
        for key, discriminator in self._discriminators.items():
            loss = loss + self.adversarial(discriminator(made[f"fake_{key}"])[-1], True, for_discriminator=False)
            for path, weight in (("cycle", self.cycle), ("same", self.identity)):
                loss = loss + weight * (made[f"{path}_{key}"] - real[key]).abs().mean()
        return loss


def least_squares() -> PatchAdversarialLoss:
    """Return the adversarial loss of LSGAN (Mao 2017): 1 is right for real images, 0 for generated ones."""
    return PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)


class ImagePool:
    """Earlier generated images, some of which discriminators see instead of the newest (Shrivastava 2017).

    Discriminators that see only the newest images forget earlier ones. Images are kept in half precision. Random
    numbers come from torch's global generator, which `medkit train` seeds before every step.
    """

    def __init__(self, size: int = 24) -> None:
        self.size = size
        self.images: list[torch.Tensor] = []
        """Each (1, *space) float16, on the CPU."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, 1, *space): some of the given images, and some of those kept before in place of the others."""
        return torch.stack([self._one(image.detach()) for image in images])

    def _one(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image, or an earlier one whose place it takes in the pool."""
        if len(self.images) < self.size:
            self.images.append(image.to("cpu", torch.float16))
            return image
        if float(torch.rand(())) < 0.5:
            return image
        place = int(torch.randint(self.size, ()))
        old, self.images[place] = self.images[place], image.to("cpu", torch.float16)
        return old.to(image.device, image.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"images": list(self.images)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.images = list(state["images"])


class TrainDiscriminators:
    """Handler of the generators' trainer that trains the discriminators after each of its steps."""

    def __init__(self, judges: nn.ModuleDict, optimizer: torch.optim.Optimizer, pools: Mapping[str, ImagePool]) -> None:
        self.discriminators = judges
        self.optimizer = optimizer
        self.pools = pools
        self.adversarial = least_squares()
        self.discriminators.requires_grad_(False)  # the generators' steps do not need their gradients

    def attach(self, engine: Any) -> None:
        """Train after the generators' steps of a monai SupervisedTrainer."""
        from monai.engines.utils import IterationEvents

        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        output = engine.state.output
        if not bool(output["loss"].isfinite()):  # such images teach nothing
            return
        self.discriminators.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(output["pred"], output["label"])
        loss.backward()
        if math.isfinite(average_gradients(self.optimizer, loss)):
            self.optimizer.step()
        self.discriminators.requires_grad_(False)

    def loss(self, made: Mapping[str, torch.Tensor], real: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the discriminators' loss on real images and on images generated now or before."""
        total = torch.zeros((), device=real[SOURCE].device)
        for key, discriminator in self.discriminators.items():
            fakes = self.pools[key](made[f"fake_{key}"].float())
            answers = ((discriminator(real[key])[-1], True), (discriminator(fakes)[-1], False))
            total = total + sum(self.adversarial(found, truth, for_discriminator=True) for found, truth in answers) / 2
        return total
