"""The ranks of a training: processes that compute the gradients of a step together, and do all else alike.

Every rank has the same networks, and each computes the gradients of its own samples. Their mean changes all networks
alike, so that N ranks with batches of B samples train as one with batches of N x B does. What a rank decides by its
clock, a signal or an error, all ranks exchange first: none waits for another one that does something else. Rank 0
writes the files and the messages.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medkit.errors import Stopped, TrainingError
from medkit.training.channel import Channel, Message
from medkit.training.world import World

if TYPE_CHECKING:
    import torch


class RankEndedError(TrainingError):
    """Another rank has ended before the training did."""

    def __init__(self, message: str, exit_code: int = 1, *, told: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.told = told
        """Whether rank 0 tells it, so that this rank need not."""


class StepAbandoned(BaseException):
    """A signal has stopped what makes a rank's samples, so that no rank does the step."""


@dataclass
class Ranks:
    """This rank among all ranks; with one only, nothing is exchanged."""

    world: World
    channel: Channel | None = None
    hosts: Sequence[Mapping[str, Any]] = ()
    """Machine, process and device of each rank."""
    threads: int = 1
    """Threads of this rank, unless the user asks for others."""

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.world.size

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.world.first

    @property
    def seed(self) -> tuple[int, ...]:
        """What the seeds of this rank's steps have besides those of rank 0's, which are those of a training alone."""
        return () if self.first else (self.world.rank,)

    def exchange(self, point: str, **values: Any) -> list[Message]:
        """Return what each rank gives at a point of the training which all of them reach.

        Raises StepAbandoned, Stopped if a rank was stopped, RankEndedError if one has failed or was killed, and
        TrainingError if one is at another point.
        """
        if self.channel is None:
            return [values]
        messages = self.channel.exchange({"point": point, **values})
        for rank, message in enumerate(messages):
            if ended := message.get("ended"):
                self._raise_end(rank, ended, message)
        if len(points := {message["point"] for message in messages}) > 1:
            raise TrainingError(f"the ranks do different things: {sorted(points)}; does the config depend on the rank?")
        return messages

    def _raise_end(self, rank: int, ended: str, message: Message) -> None:
        if ended == "abandons":
            raise StepAbandoned
        if ended == "stopped":
            raise Stopped(f"a signal at rank {rank}")
        if ended == "failed":
            raise RankEndedError(message["reason"], message["exit_code"], told=not self.first)
        raise self._lost(rank)

    def _lost(self, rank: int) -> RankEndedError:
        where = self.hosts[rank] if self.hosts else {}
        place = f" (process {where['process']} on {where['host']})" if where else ""
        return RankEndedError(f"rank {rank}{place} was killed, or no longer answers", told=rank != 0 and not self.first)

    def abandon_step(self) -> None:
        """Tell the other ranks, which are in the next step, that this one cannot do it."""
        with contextlib.suppress(StepAbandoned):
            self.exchange("step", ended="abandons")

    def same(self, what: str, value: str) -> None:
        """Raise TrainingError unless all ranks have the same value."""
        for rank, message in enumerate(self.exchange(what, value=value)):
            if message["value"] != value:
                raise TrainingError(f"{what} differ between rank {self.world.rank} and rank {rank}")

    # ---- tensors

    def average(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace the gradients of an optimizer's parameters by their mean over ranks.

        A parameter without a gradient here counts as 0, and keeps none if it has none at any rank.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        if self.channel is None or not parameters:
            return
        import torch

        has = parameters[0].new_tensor([p.grad is not None for p in parameters], dtype=torch.float32)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        total = _flat([has, *gradients])
        self._all_reduce(total)
        has, *sums = _split(total, [has, *gradients])
        for parameter, count, gradient, of_all in zip(parameters, has.tolist(), gradients, sums, strict=True):
            if count:
                parameter.grad = gradient.copy_(of_all / self.size)

    def copy_buffers(self, buffers: Sequence[torch.Tensor]) -> None:
        """Give floating-point buffers, such as running means, the values of rank 0's."""
        if self.channel is None or not buffers:
            return
        flat = _flat(buffers)
        self._broadcast(flat)
        for buffer, value in zip(buffers, _split(flat, buffers), strict=True):
            buffer.copy_(value)

    def copy_networks(self, networks: Iterable[torch.nn.Module]) -> None:
        """Give the parameters and buffers of networks the values of rank 0's."""
        if self.channel is None:
            return
        import torch

        self.exchange("networks")
        with torch.no_grad():
            for network in networks:
                for tensor in network.state_dict().values():
                    sent = tensor.detach().clone(memory_format=torch.contiguous_format)
                    self._broadcast(sent)
                    tensor.copy_(sent)

    def _all_reduce(self, tensor: torch.Tensor) -> None:
        from torch import distributed

        with self._connected():
            distributed.all_reduce(tensor)

    def _broadcast(self, tensor: torch.Tensor) -> None:
        from torch import distributed

        with self._connected():
            distributed.broadcast(tensor, src=0)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Turn torch's error about a rank that has ended into RankEndedError."""
        assert self.channel is not None
        try:
            yield
        except RuntimeError as error:
            if gone := self.channel.gone():
                raise self._lost(gone[0]) from None
            reason = " ".join(str(error).split())[:120]
            raise RankEndedError(f"the connection to another rank is lost: {reason}", told=not self.first) from None

    # ---- states of checkpoints

    def from_first(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return rank 0's state of a checkpoint; None if it has none."""
        if self.channel is None:
            return state
        has = self.exchange("checkpoint", has=state is not None)[0]["has"]
        if not has:
            return None
        if self.first:
            content = _packed(state)
            for rank in self.channel.connections:
                self.channel.send_bytes(rank, content)
            return state
        return _unpacked(self.channel.receive_bytes(0))

    def at_first(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the states of all ranks at rank 0, and an empty list at the others."""
        if self.channel is None:
            return [state]
        self.exchange("states")
        if self.first:
            return [state, *(_unpacked(self.channel.receive_bytes(rank)) for rank in self.channel.connections)]
        self.channel.send_bytes(0, _packed(state))
        return []


ALONE = Ranks(World())
"""A training in one process."""
_joined = ALONE


def joined_ranks() -> Ranks:
    """Return the ranks that this process belongs to; `ALONE` by default."""
    return _joined


def set_joined(ranks: Ranks) -> None:
    """Say which ranks this process belongs to from now on."""
    global _joined
    _joined = ranks


def average_gradients(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    """Average the gradients of an optimizer's parameters over all ranks; return the mean of the loss.

    For handlers of train configs that train a further network: to be called by all ranks between the backward pass and
    the optimizer's step, which all or none of them must do. With one rank, gradients stay as they are.
    """
    ranks = joined_ranks()
    losses = [message["loss"] for message in ranks.exchange("further step", loss=float(loss.detach()))]
    ranks.average(optimizer)
    return sum(losses) / len(losses)


# ---- tensors and bytes


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _split(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def _packed(state: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _unpacked(content: bytes) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return found
