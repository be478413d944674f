"""The network whose parameters are the moving average over the steps: what is validated and shipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medkit.training.weights import copied

if TYPE_CHECKING:
    import torch


class Average:
    """An exponential moving average of a network's parameters; `keep` of it stays at every step, 0 is no average.

    Early steps keep less, so that short trainings are not dominated by the parameters they began with.
    """

    def __init__(self, network: torch.nn.Module, keep: float) -> None:
        from ignite.handlers import EMAHandler

        self.original = network
        self.keep = keep
        self._handler = EMAHandler(network, momentum=1 - keep) if keep > 0 else None
        self.network: torch.nn.Module = self._handler.ema_model if self._handler else network

    def attach(self, trainer: Any) -> None:
        """Averages after every step."""
        from ignite.engine import Events

        if self._handler:
            trainer.add_event_handler(Events.ITERATION_COMPLETED, self._set_momentum)
            self._handler.attach(trainer, "ema_momentum", warn_if_exists=False)

    def _set_momentum(self, engine: Any) -> None:
        n = engine.state.iteration
        engine.state.ema_momentum = 1 - min(self.keep, (1 + n) / (10 + n))

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the averaged state dict, on the CPU."""
        found = self.network.state_dict()
        # an average of equal numbers is not always that number: frozen parameters are to stay to the bit
        own = dict(self.original.named_parameters(remove_duplicate=False))
        found |= {k: p for k, p in own.items() if not p.requires_grad and k in found}
        return copied(found)
