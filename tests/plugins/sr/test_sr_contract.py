"""The sr plugin keeps the contract that every plugin keeps."""

from __future__ import annotations

from pathlib import Path

from medkit.testing import Arguments, PluginContract


class TestContract(PluginContract):
    distribution = "medkit"
    plugin = "sr"
    tasks = ("sr",)
    dims = (3, 2)
    grid = "free"

    def arguments(self, task: str, folder: Path) -> Arguments:
        return ["--scale", "2"]
