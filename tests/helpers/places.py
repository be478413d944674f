"""Folders that tests read from."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
TESTS = HELPERS.parent
REPOSITORY = TESTS.parent
BUNDLES = REPOSITORY / "bundles"
PLUGINS = REPOSITORY / "plugins"
SHARED = REPOSITORY.parent / "shared"
"""Real scans and checks next to the checkout; may be absent."""
