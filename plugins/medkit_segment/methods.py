"""The values of the options that choose a method; without heavy imports."""

from __future__ import annotations

METHODS = ("network", "threshold")
"""Values of `--method`, the default first."""
