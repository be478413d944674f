"""How good results are: labels, images and points against references, a pair at a time and over all pairs.

What `medkit evaluate` calls: `plan_pairs` finds the pairs among files and folders, `evaluate` compares them. The measures
themselves are here too. The face of this package for plugins.

    planned = plan([Path("predictions")], "labels")
    print(evaluate(planned.pairs, Settings(planned.kind)).summary["dice"].mean)
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
