"""The enhance plugin keeps the contract that every plugin keeps."""

from __future__ import annotations

from medkit.testing import PluginContract


class TestContract(PluginContract):
    distribution = "medkit"
    plugin = "enhance"
    tasks = ("enhance",)
    dims = (3, 2)
