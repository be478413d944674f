# The names that configs may use; `__init__.py` imports each at its first use.
from .networks import FoldEnsemble as FoldEnsemble
from .networks import PlainConvUNet as PlainConvUNet
from .transforms import NnunetLabelsd as NnunetLabelsd
from .transforms import NnunetPreprocessd as NnunetPreprocessd
from .windows import NnunetInferer as NnunetInferer
