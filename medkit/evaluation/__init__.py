"""How good results are: labels, images and points against references, a pair at a time and over all pairs.

`evaluate(pairs, settings)` is what `medkit evaluate` calls. What it needs to know about a pair is in `Pair`, and
`medkit.evaluation.pairs` finds the pairs among files and folders by their names.
"""

from __future__ import annotations

from medkit.evaluation.label_maps import LabelMap
from medkit.evaluation.run import evaluate
from medkit.evaluation.scores import Evaluation, Failure, Pair, Row, Scores, Settings, Summary

__all__ = ["Evaluation", "Failure", "LabelMap", "Pair", "Row", "Scores", "Settings", "Summary", "evaluate"]
