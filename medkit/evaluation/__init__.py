"""How good results are: labels, images and points compared with references, pair by pair and over all pairs.

What `medkit evaluate` calls: `plan_pairs` finds the pairs among files and folders, `evaluate` compares them. These are
the names that plugins may use, the measures among them.

    planned = plan_pairs([Path("predictions")], "labels")
    print(evaluate(planned.pairs, EvaluationSettings(planned.kind)).summary["dice"].mean)
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
