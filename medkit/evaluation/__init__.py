"""How good results are: labels, images and points against references, a pair at a time and over all pairs.

What `medkit evaluate` calls: `plan_pairs` finds the pairs among files and folders, `evaluate` compares them. The measures
themselves are here too. The face of this package for plugins.

    planned = plan([Path("predictions")], "labels")
    print(evaluate(planned.pairs, Settings(planned.kind)).summary["dice"].mean)
"""

from __future__ import annotations

from medkit.evaluation.measures.images import rounded_scores
from medkit.evaluation.measures.label_maps import LabelMap
from medkit.evaluation.measures.metrics import dice, similarity, target_registration_error
from medkit.evaluation.measures.points import matched
from medkit.evaluation.planning import PairPlan, plan_pairs
from medkit.evaluation.results import Evaluation, EvaluationSettings, Failure, Pair, ScoreRow, Scores, Summary
from medkit.evaluation.run import evaluate

__all__ = [
    "Evaluation",
    "EvaluationSettings",
    "Failure",
    "LabelMap",
    "Pair",
    "PairPlan",
    "ScoreRow",
    "Scores",
    "Summary",
    "dice",
    "evaluate",
    "matched",
    "plan_pairs",
    "rounded_scores",
    "similarity",
    "target_registration_error",
]
