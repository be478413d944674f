"""Learning to turn images of one kind into another from scans that show different people: CycleGAN (Zhu 2017).

Two generators, there and back, are trained against two judges (discriminators), each of which is to tell real images of
a kind from made ones. MONAI's SupervisedTrainer trains the generators, with `CycleInferer` and `CycleLoss`; after each
of its steps the handler `TrainDiscriminators` trains the judges. MONAI's GanTrainer and AdversarialTrainer make images in one
direction alone. Images are (B, 1, I, J, K) or (B, 1, I, J).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.losses import PatchAdversarialLoss
from torch import nn

SOURCE, TARGET = "source", "target"
"""Keys of a batch and of the judges: images of the kind that is turned into the other one, and of that one."""


def prepare_unpaired(
    batch: Mapping[str, torch.Tensor], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor], tuple[torch.Tensor], dict[str, Any]]:
    """A batch as MONAI's `prepare_batch` gives it: what goes in, what came, and the inferer's further argument."""
    found = {key: plain(batch[key]).to(device, non_blocking=non_blocking) for key in (SOURCE, TARGET)}
    return found[SOURCE], found, (found[TARGET],), {}


def plain(image: torch.Tensor) -> torch.Tensor:
    """Without MONAI's metadata, which cost time in every operation."""
    return image.as_tensor() if hasattr(image, "as_tensor") else image


class CycleInferer:
    """Takes images of both kinds there and back, and once where they are already.

    Gives under `fake_<key>` what was made to be of that kind, under `cycle_<key>` what came back to it, and under
    `same_<key>` what was of that kind and should have stayed; keys are `SOURCE` and `TARGET`.
    """

    def __init__(self, back: nn.Module) -> None:
        self.back = back
        """The generator from TARGET to SOURCE; the other one is the trainer's network."""

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
    """What the generators are to make small.

    The judges' verdict on what they made (least squares), plus `cycle` times the mean absolute error of what came back,
    plus `identity` times that of what should have stayed.
    """

    def __init__(self, judges: Mapping[str, nn.Module], cycle: float = 10.0, identity: float = 5.0) -> None:
        super().__init__()
        # not as modules of this one: they are trained by their own optimizer
        self._judges = dict(judges.items())
        self.cycle, self.identity = cycle, identity
        self.adversarial = least_squares()

    def forward(self, made: Mapping[str, torch.Tensor], real: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """made: as CycleInferer gives it; real: images by key."""
        loss = made["fake_target"].new_zeros(())
        for key, judge in self._judges.items():
            loss = loss + self.adversarial(judge(made[f"fake_{key}"])[-1], True, for_discriminator=False)
            for what, weight in (("cycle", self.cycle), ("same", self.identity)):
                loss = loss + weight * (made[f"{what}_{key}"] - real[key]).abs().mean()
        return loss


def least_squares() -> PatchAdversarialLoss:
    """The adversarial loss of LSGAN (Mao 2017): judges are to say 1 of real images and 0 of made ones."""
    return PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)


class ImagePool:
    """Images that were made before, of which judges are shown some instead of the newest (Shrivastava 2017).

    Judges that see the newest alone forget what they were told before. Kept in half precision. Chance comes from
    torch's global generator, which `medkit train` sets before every step.
    """

    def __init__(self, size: int = 24) -> None:
        self.size = size
        self.images: list[torch.Tensor] = []
        """Each (1, *space) float16, on the CPU."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, *space) some of the images given, which are kept, and some of those kept before."""
        return torch.stack([self._one(image.detach()) for image in images])

    def _one(self, image: torch.Tensor) -> torch.Tensor:
        if len(self.images) < self.size:
            self.images.append(image.to("cpu", torch.float16))
            return image
        if float(torch.rand(())) < 0.5:
            return image
        place = int(torch.randint(self.size, ()))
        old, self.images[place] = self.images[place], image.to("cpu", torch.float16)
        return old.to(image.device, image.dtype)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"images": list(self.images)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.images = list(state["images"])


class TrainDiscriminators:
    """A handler of the generators' trainer: after each of its steps the judges have one of their own."""

    def __init__(self, judges: nn.ModuleDict, optimizer: torch.optim.Optimizer, pools: Mapping[str, ImagePool]) -> None:
        self.judges = judges
        self.optimizer = optimizer
        self.pools = pools
        self.adversarial = least_squares()
        judges.requires_grad_(False)  # the generators' steps need none of their gradients

    def attach(self, engine: Any) -> None:
        """Follows the generators' steps of a monai SupervisedTrainer."""
        from monai.engines.utils import IterationEvents

        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        output = engine.state.output
        if not bool(output["loss"].isfinite()):  # what was made then is no image to learn from
            return
        self.judges.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(output["pred"], output["label"])
        loss.backward()
        if bool(loss.isfinite()):
            self.optimizer.step()
        self.judges.requires_grad_(False)

    def loss(self, made: Mapping[str, torch.Tensor], real: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """How far the judges' verdicts are off, on real images and on some that were made now or before."""
        total = torch.zeros((), device=real[SOURCE].device)
        for key, judge in self.judges.items():
            fakes = self.pools[key](made[f"fake_{key}"].float())
            verdicts = ((judge(real[key])[-1], True), (judge(fakes)[-1], False))
            total = total + sum(self.adversarial(said, truth, for_discriminator=True) for said, truth in verdicts) / 2
        return total
