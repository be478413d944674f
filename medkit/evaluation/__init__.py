"""How good results are: labels, images and points against references, a pair at a time and over all pairs.

What `medkit evaluate` calls: `plan` finds the pairs among files and folders, `evaluate` compares them.

    planned = plan([Path("predictions")], "labels")
    print(evaluate(planned.pairs, Settings(planned.kind)).summary["dice"].mean)
"""

from __future__ import annotations

from medkit.evaluation.label_maps import LabelMap
from medkit.evaluation.planning import Plan, plan
from medkit.evaluation.run import evaluate
from medkit.evaluation.scores import Evaluation, Failure, Pair, Row, Scores, Settings, Summary

__all__ = [
    "Evaluation",
    "Failure",
    "LabelMap",
    "Pair",
    "Plan",
    "Row",
    "Scores",
    "Settings",
    "Summary",
    "evaluate",
    "plan",
]
