"""A plugin as a stranger would write it: a task, a command and a bundle, through nothing but the hooks."""

from pathlib import Path

from medkit import hookimpl
from medkit.specs import BundleSpec, CommandSpec, TaskSpec

HOOK_API = 1


@hookimpl
def medkit_tasks():
    return [TaskSpec("stretch", "Stretch the intensities to 0..1.", "medkit_stranger.command:stretch")]


@hookimpl
def medkit_commands():
    return [CommandSpec("greet", "Say hello.", "medkit_stranger.command:greet")]


@hookimpl
def medkit_bundles():
    return [BundleSpec("stretch", "any_stretch", Path(__file__).parent / "bundles" / "any_stretch", modality="MR")]
