# The names that plugins may use; `__init__.py` imports each when it is first asked for.
from .bars import BarGroup as BarGroup
from .bars import bars_under as bars_under
from .charts import Chart as Chart
from .charts import Series as Series
from .charts import line_chart as line_chart
from .deformation import Deformation as Deformation
from .layout import stacked as stacked
from .mosaic import Member as Member
from .mosaic import comparison_mosaic as comparison_mosaic
from .mosaic import heat_mosaic as heat_mosaic
from .mosaic import heat_tiles as heat_tiles
from .mosaic import members_mosaic as members_mosaic
from .mosaic import overlay_mosaic as overlay_mosaic
from .mosaic import sample_sheet as sample_sheet
from .mosaic import value_mosaic as value_mosaic
from .mosaic import write_png as write_png
from .overlays import label_colours as label_colours
