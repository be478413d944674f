"""The enhance plugin keeps the contract that every plugin keeps."""

from __future__ import annotations

from pathlib import Path

from medkit.testing import Arguments, PluginContract


class TestContract(PluginContract):
    distribution = "medkit"
    plugin = "enhance"
    tasks = ("enhance",)
    dims = (3, 2)

    def arguments(self, task: str, folder: Path) -> Arguments:
        return ["--method", "nlm"]  # loading a network, in every process, takes seconds
