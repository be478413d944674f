# The names that plugins may use; `__init__.py` imports each when it is first asked for.
from .measures.images import rounded_scores as rounded_scores
from .measures.label_maps import LabelMap as LabelMap
from .measures.label_maps import names_next_to as names_next_to
from .measures.metrics import dice as dice
from .measures.metrics import similarity as similarity
from .measures.metrics import target_registration_error as target_registration_error
from .measures.points import matched as matched
from .planning import PairPlan as PairPlan
from .planning import plan_pairs as plan_pairs
from .results import Evaluation as Evaluation
from .results import EvaluationSettings as EvaluationSettings
from .results import Failure as Failure
from .results import Pair as Pair
from .results import ScoreRow as ScoreRow
from .results import Scores as Scores
from .results import Summary as Summary
from .run import evaluate as evaluate
