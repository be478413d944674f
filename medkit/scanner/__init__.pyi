# The names that plugins may use; `__init__.py` imports each when it is first asked for.
from .acquisition import Acquisition as Acquisition
from .acquisition import acquisition_of as acquisition_of
from .acquisition import refined as refined
from .intensity import intensity_scale as intensity_scale
from .intensity import otsu_threshold as otsu_threshold
from .noise import Noise as Noise
from .noise import estimate as estimate
from .noise import span as span
from .noise import with_floor as with_floor
from .noise import without_floor as without_floor
from .separable import apply_along_axes as apply_along_axes
from .separable import border_gaussian_weights as border_gaussian_weights
from .separable import gaussian_weights as gaussian_weights
