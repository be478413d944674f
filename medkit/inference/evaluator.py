"""A bundle's own evaluator, run on one case at a time, for configs whose network medkit cannot call itself.

Such are subclasses of MONAI's SupervisedEvaluator, its EnsembleEvaluator, and evaluators with a `prepare_batch` or with
handlers of the bundle's own. The evaluator gets the prepared case as its only batch. It neither saves nor measures, and
medkit runs the transforms after the network, on what the evaluator leaves in `state.output`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medkit.errors import BundleError
from medkit.inference.network import Network
from medkit.inference.transforms import Prepared
from medkit.machine.precision import as_float, computing


class OneCase:
    """A data loader whose only batch is set before each run."""

    def __init__(self) -> None:
        self.batch: Any = None

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield self.batch


@dataclass(frozen=True)
class OwnEvaluator:
    """A config's evaluator, with its networks on their device and filled."""

    engine: Any
    """monai.engines.Evaluator, without transforms after the network, metrics, and handlers of MONAI."""
    case: OneCase
    """What it takes for its data loader."""
    collate: Callable[[Sequence[Any]], Any] | None
    """Makes a batch of items, if the config has a function of its own for that."""


class EvaluatorNetwork(Network):
    """A network that a bundle's own evaluator calls: always on the whole image, whatever memory is left."""

    def __init__(self, evaluator: OwnEvaluator, *settings: Any) -> None:
        super().__init__(*settings)
        self.evaluator = evaluator

    def one_batch(self, cases: Sequence[Prepared]) -> bool:
        """Return False: how several cases become a batch is the evaluator's."""
        return False

    def __call__(self, prepared: Prepared) -> Prepared:
        """Return the case with all that the evaluator leaves: its batch and its output, without the batch axis."""
        from monai.data import decollate_batch, list_data_collate

        engine, case = self.evaluator.engine, self.evaluator.case
        case.batch = (self.evaluator.collate or list_data_collate)([dict(prepared.item)])
        if self.precision == "float32":
            engine.amp = False
        engine.logger.setLevel(logging.CRITICAL + 1)  # it reports each error before raising it
        try:
            with computing(self.precision, self.device):
                engine.run()
            batch, output = (
                value if isinstance(value, list) else decollate_batch(value)
                for value in (engine.state.batch, engine.state.output)
            )
        finally:
            case.batch = engine.state.batch = engine.state.output = None
        if len(output) != 1 or not isinstance(output[0], dict):
            raise BundleError("its evaluator leaves no dictionary of results in state.output")
        found = {**batch[0], **output[0]}
        return replace(prepared, item={key: as_float(value) for key, value in found.items() if value is not None})
