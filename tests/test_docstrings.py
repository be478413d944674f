"""The examples in docstrings."""

from __future__ import annotations

import doctest
from pathlib import Path
from types import ModuleType

import pytest

from medkit import errors
from medkit.bundles.safety import trust
from medkit.commands import plugins_new
from medkit.pipe import names
from medkit.privacy import names as private_names
from medkit.privacy import pseudonyms, vocabulary
from medkit.run import task


@pytest.mark.parametrize(
    "module", [errors, names, plugins_new, task, trust, private_names, pseudonyms, vocabulary], ids=lambda m: m.__name__
)
def test_examples_in_docstrings(module: ModuleType) -> None:
    done = doctest.testmod(module, extraglobs={"Path": Path})
    assert done.attempted
    assert not done.failed
