"""Parts of configs that are the same in every inference that medkit writes."""

from __future__ import annotations

from typing import Any

from medkit.bundles.bundle import WEIGHTS


def evaluation(weights: str = WEIGHTS) -> dict[str, Any]:
    """Return the ids from the weights to the run: `handlers`, `evaluator` and `run`.

    They need `network`, `inferer`, `postprocessing`, `dataloader`, `device` and `bundle_root`. `weights`: path in the
    bundle.
    """
    return {
        "handlers": [{
            "_target_": "CheckpointLoader", "load_path": f"$@bundle_root + '/{weights}'",
            "load_dict": {"model": "@network"}, "map_location": "@device",
        }],
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
            "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }  # fmt: skip
