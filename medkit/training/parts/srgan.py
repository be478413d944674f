"""Learning detail that looks real: an adversarial training for super-resolution (SRGAN: Ledig 2017).

MONAI's SupervisedTrainer trains the network with `RefiningInferer` and `SharpLoss`; after each of its steps
`medkit.training.parts.cyclegan.TrainDiscriminators` trains a judge (discriminator) that is to tell true fine images from made ones. What
SRGAN takes from a network that was trained on photographs, the features that both should share, comes from the judge's
own layers (feature matching: Wang 2018, pix2pixHD). Images are (B, 1, *space).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from medkit.training.parts.cyclegan import SOURCE, TARGET, least_squares, plain


def prepare_refining(
    batch: Mapping[str, torch.Tensor], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A batch of `image`, whose first channel is refined, and `label`, what that lacks, as MONAI's `prepare_batch`.

    Gives what goes in, and what came: `SOURCE`, the image before, and `TARGET`, the true fine one.
    """
    image, lacking = (plain(batch[key]).to(device, non_blocking=non_blocking) for key in ("image", "label"))
    return image, {SOURCE: image[:, :1], TARGET: image[:, :1] + lacking}


class RefiningInferer:
    """Gives under `fake_target` the image with what the network adds to it."""

    def __init__(self, inner: Callable[[torch.Tensor, nn.Module], torch.Tensor]) -> None:
        self.inner = inner
        """Calls the network, which gives what is to be added."""

    def __call__(self, image: torch.Tensor, network: nn.Module, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        """image: (B, C, *space), of which the first channel is refined."""
        return {f"fake_{TARGET}": image[:, :1] + self.inner(image, network)}


class SharpLoss(nn.Module):
    """What the network is to make small.

    `content` times the mean absolute error, plus `features` times that of the judge's layers, plus `adversarial` times
    the judge's verdict on what was made (least squares).
    """

    def __init__(
        self,
        judges: Mapping[str, nn.Module],
        content: float = 1.0,
        features: float = 0.1,
        adversarial: float = 0.005,
    ) -> None:
        super().__init__()
        # not as modules of this one: they are trained by their own optimizer
        self._judges = dict(judges.items())
        self.content, self.features, self.adversarial = content, features, adversarial
        self.verdict = least_squares()

    def forward(self, made: Mapping[str, torch.Tensor], real: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """made: as RefiningInferer gives it; real: as `prepare_refining` does."""
        fake, true = made[f"fake_{TARGET}"].float(), real[TARGET]
        loss = self.content * (fake - true).abs().mean()
        *layers, said = self._judges[TARGET](fake)
        with torch.no_grad():
            *wanted, _ = self._judges[TARGET](true)
        apart = [(a - b).abs().mean() for a, b in zip(layers, wanted, strict=True)]
        loss = loss + self.features * torch.stack(apart).mean()
        return loss + self.adversarial * self.verdict(said, True, for_discriminator=False)
