"""Adversarial training for super-resolution, so that detail looks real (SRGAN: Ledig 2017).

MONAI's SupervisedTrainer trains the network with `RefiningInferer` and `SharpLoss`; after each of its steps
`medkit.training.TrainDiscriminators` trains a discriminator that tells true fine images from generated ones. SRGAN
compares features of a network that was trained on photographs; here features of the discriminator take their place
(feature matching: Wang 2018, pix2pixHD). Images are (B, 1, *space).

Configs call the discriminators `judges`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from medkit.synthesis.base_transform import plain_tensor
from medkit.training.parts.cyclegan import SOURCE, TARGET, least_squares


def prepare_refining(
    batch: Mapping[str, torch.Tensor], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the network's input, and the images before, `SOURCE`, and after, `TARGET`: MONAI's `prepare_batch`.

    A batch has `image`, whose first channel is refined, and `label`, what that channel lacks of the true fine image.
    """
    image, lacking = (plain_tensor(batch[key]).to(device, non_blocking=non_blocking) for key in ("image", "label"))
    return image, {SOURCE: image[:, :1], TARGET: image[:, :1] + lacking}


class RefiningInferer:
    """Returns under `fake_target` the image plus what the network adds to it."""

    def __init__(self, inner: Callable[[torch.Tensor, nn.Module], torch.Tensor]) -> None:
        self.inner = inner
        """Calls the network, which returns what has to be added."""

    def __call__(self, image: torch.Tensor, network: nn.Module, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        """Refine the first channel of an image (B, C, *space)."""
        return {f"fake_{TARGET}": image[:, :1] + self.inner(image, network)}


class SharpLoss(nn.Module):
    """Loss of the network, the generator.

    `content` times the mean absolute error, plus `features` times that of the discriminator's layers, plus
    `adversarial` times the discriminator's least-squares loss on the generated image.
    """

    def __init__(
        self,
        judges: Mapping[str, nn.Module],
        content: float = 1.0,
        features: float = 0.1,
        adversarial: float = 0.005,
    ) -> None:
        super().__init__()
        # in a dict, so that they stay no modules of this loss: their own optimizer trains them
        self._discriminators = dict(judges.items())
        self.content, self.features, self.adversarial = content, features, adversarial
        self.least_squares = least_squares()

    def forward(self, made: Mapping[str, torch.Tensor], real: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss; made: as RefiningInferer returns it; real: as `prepare_refining` does."""
        fake, true = made[f"fake_{TARGET}"].float(), real[TARGET]
        loss = self.content * (fake - true).abs().mean()
        *layers, answer = self._discriminators[TARGET](fake)
        with torch.no_grad():
            *wanted, _ = self._discriminators[TARGET](true)
        errors = [(a - b).abs().mean() for a, b in zip(layers, wanted, strict=True)]
        loss = loss + self.features * torch.stack(errors).mean()
        return loss + self.adversarial * self.least_squares(answer, True, for_discriminator=False)
