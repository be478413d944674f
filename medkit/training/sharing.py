"""How the ranks of a training share out its samples: each takes every N-th one."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from medkit.errors import BundleError
from medkit.training.parts.samples import Samples, UnpairedSamples, seed_of

if TYPE_CHECKING:
    from medkit.training.ranks import Ranks


class EveryNth:
    """Sampler that takes every `step`-th number of another one, from its `first` on.

    `even` leaves out the last numbers that are too few for all ranks.
    """

    def __init__(self, sampler: Any, first: int, step: int, *, even: bool) -> None:
        self.sampler, self.first, self.step, self.even = sampler, first, step, even

    def __iter__(self) -> Iterator[int]:
        found = itertools.islice(self.sampler, self.first, None, self.step)
        return itertools.islice(found, len(self)) if self.even and hasattr(self.sampler, "__len__") else found

    def __len__(self) -> int:
        count = len(self.sampler)
        return count // self.step if self.even else len(range(self.first, count, self.step))


def share_training(loader: Any, ranks: Ranks, seed: int) -> None:
    """Make a trainer's data loader give this rank's share of every batch's samples.

    With batches of B samples, N ranks take the samples of batches of N x B. Raises BundleError for a loader whose
    samples have no numbers.
    """
    if ranks.size == 1:
        return
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    if sampler is None or _is_iterable(loader):
        raise BundleError(
            f"train::dataloader: several ranks can share out the samples of a DataLoader over a dataset with numbered "
            f"samples and a batch_size; got {type(loader).__name__}"
        )
    import torch

    if isinstance(sampler, torch.utils.data.RandomSampler):  # all ranks have to draw the same order
        sampler.generator = torch.Generator().manual_seed(seed_of(seed, "order"))
    _share(loader, ranks, even=True)
    if not isinstance(loader.dataset, Samples | UnpairedSamples):  # whose samples have seeds of their own
        transform: Any = getattr(loader.dataset, "transform", None)
        if hasattr(transform, "set_random_state"):
            transform.set_random_state(seed=seed_of(seed, "rank", ranks.world.rank))


def share_validation(evaluator: Any, ranks: Ranks) -> int:
    """Give this rank its share of the samples that validate; return the number of batches that every rank has.

    MONAI's and ignite's metrics gather the values of all ranks. With fewer samples than ranks, or a loader that cannot
    be shared, each rank validates all.
    """
    loader = evaluator.data_loader
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    if ranks.size == 1 or sampler is None or _is_iterable(loader) or len(sampler) < ranks.size:
        return sys.maxsize
    if evaluator.state.epoch_length != len(loader):  # the config wants another number of batches
        return sys.maxsize
    _share(loader, ranks, even=False)
    evaluator.state.epoch_length = len(loader)
    return min(message["batches"] for message in ranks.exchange("validation samples", batches=len(loader)))


class SharedSteps:
    """Makes a trainer's steps those of all ranks: loss and gradients become their means over ranks once computed.

    The config's handlers, such as one that clips gradients, come after that.
    """

    def __init__(self, trainer: Any, ranks: Ranks) -> None:
        self.trainer, self.ranks = trainer, ranks
        self.last = 0
        """Number of the last step that was shared."""
        if ranks.size > 1:
            self._fire = trainer.fire_event
            trainer.fire_event = self._fire_event

    def check(self) -> None:
        """Raise BundleError unless the trainer's last step was shared."""
        if self.ranks.size > 1 and self.last != self.trainer.state.iteration:
            raise BundleError(
                "train::trainer: several ranks need a trainer that calls MONAI's event BACKWARD_COMPLETED between "
                "gradients and optimizer, as SupervisedTrainer does"
            )

    def _fire_event(self, event: Any) -> None:
        from monai.engines.utils import IterationEvents

        if event == IterationEvents.BACKWARD_COMPLETED:
            self._share()
        self._fire(event)

    def _share(self) -> None:
        output, self.last = self.trainer.state.output, self.trainer.state.iteration
        loss = output["loss"].detach()
        losses = [m["loss"] for m in self.ranks.exchange(f"gradients of step {self.last}", loss=float(loss))]
        self.ranks.average(self.trainer.optimizer)
        output["loss"] = loss.new_tensor(sum(losses) / len(losses))


def _share(loader: Any, ranks: Ranks, *, even: bool) -> None:
    batches = loader.batch_sampler
    batches.sampler = EveryNth(batches.sampler, ranks.world.rank, ranks.size, even=even)


def _is_iterable(loader: Any) -> bool:
    import torch

    return isinstance(loader.dataset, torch.utils.data.IterableDataset)
