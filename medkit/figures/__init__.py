"""Pictures for people: mosaics of images and labels, and charts.

The face of this package for plugins.
"""

from __future__ import annotations

from medkit.figures.charts import Chart, Series, line_chart
from medkit.figures.mosaic import comparison_mosaic, label_colours, overlay_mosaic, sample_sheet, write_png

__all__ = [
    "Chart",
    "Series",
    "comparison_mosaic",
    "label_colours",
    "line_chart",
    "overlay_mosaic",
    "sample_sheet",
    "write_png",
]
