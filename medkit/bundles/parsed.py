"""A bundle's configs, opened with MONAI.

Objects are built and expressions run when they are asked for, so the bundle has to be trusted first (see
`medkit.bundles.safety.trust`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from medkit.bundles.bundle import Bundle
from medkit.bundles.config import own_error, put_code_first, silence_monai
from medkit.bundles.layers import read_configs
from medkit.bundles.requirements import explained
from medkit.errors import BundleError, MedkitError, UsageError


class BundleConfig:
    """A bundle's configs, opened with MONAI, with the values of medkit and of the user put in.

    Nothing is built before it is asked for. Errors of MONAI and of the bundle's code become a BundleError that names
    the config.
    """

    def __init__(
        self, bundle: Bundle, names: Sequence[str], workflow: Literal["infer", "train"], run_id: str = "run"
    ) -> None:
        """Read the configs called `names`, each one laid over those before it.

        Puts the bundle's own code first on `sys.path`. Raises BundleError.
        """
        from monai.bundle import ConfigWorkflow

        self.bundle = bundle
        paths = [bundle.config(name) for name in names]
        content = read_configs(replace(bundle, configs=tuple(names)))
        self.path = paths[0]
        silence_monai()
        with self.errors_named():
            self.workflow = ConfigWorkflow(
                config_file=[str(path) for path in paths],
                meta_file=str(bundle.metadata_path),
                workflow_type=workflow,
                logging_file=False,
                run_id=run_id,
            )
        self.parser: Any = self.workflow.parser
        self.parser.read_config(content)
        _search_snapshot(self.parser.locator)
        put_code_first(bundle.root)

    def put(self, values: Mapping[str, Any]) -> None:
        """Set values under those ids that the config has."""
        for name, value in values.items():
            if name in self.parser:
                self.parser[name] = value

    def override(self, overrides: Mapping[str, Any]) -> None:
        """Set what the user gave with `--set`. Raises UsageError for an id that the config does not have."""
        if unknown := [name for name in overrides if name not in self.parser]:
            raise UsageError(f"--set {unknown[0]}: {self.path} has no such id")
        self.put(overrides)

    def get(self, name: str, default: Any = None) -> Any:
        """Build and return what the config holds under an id, or `default` if it does not have the id."""
        if name not in self.parser:
            return default
        with self.errors_named():
            return self.parser.get_parsed_content(name)

    @contextlib.contextmanager
    def errors_named(self) -> Iterator[None]:
        """Turn errors of MONAI and of the bundle's code into a BundleError that names the config."""
        try:
            yield
        except (MedkitError, MemoryError):
            raise
        except Exception as error:
            if own := own_error(error):
                raise own from None
            raise BundleError(f"{self.path}: {explained(error, self.bundle)}") from error


def raw_parser(bundle: Bundle, paths: Sequence[Path]) -> Any:
    """Return a monai.bundle.ConfigParser of configs, each laid over those before it, as plain MONAI would read them.

    Raises what MONAI raises.
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([str(path) for path in paths])
    parser.read_meta(str(bundle.metadata_path))
    if "bundle_root" in parser:
        parser["bundle_root"] = str(bundle.root)
    return parser


def _search_snapshot(locator: Any) -> None:
    """Make MONAI's locator search a copy of `sys.modules`, which grows while another thread imports."""

    def names() -> list[str]:
        return [
            name
            for name in tuple(sys.modules)
            if name.startswith(locator.MOD_START) and not any(part in name for part in locator.excludes)
        ]

    locator._find_module_names = names
