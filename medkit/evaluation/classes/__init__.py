"""How good predicted classes are: over all cases, and over those in which the bundle did not abstain.

What `medkit evaluate --kind classes` calls:

    predictions, unreadable = predictions_in([Path("results")])
    judged = judge(predictions, "truth.csv")
    print(judged.measures["all"]["auc"].value)
"""

from __future__ import annotations

from medkit.evaluation.classes.metrics import Predictions
from medkit.evaluation.classes.predictions import Prediction, read_predictions
from medkit.evaluation.classes.run import Judged, gathered, judge, predictions_in

__all__ = ["Judged", "Prediction", "Predictions", "gathered", "judge", "predictions_in", "read_predictions"]
