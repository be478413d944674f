"""`medkit bundle new`: a bundle to train, of a network's architecture or of another bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medkit import plugins
from medkit.bundles.bundle import Bundle, find_bundle, require_trust
from medkit.errors import UsageError, did_you_mean, listed
from medkit.pipe.records import absolute


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Return names from a list with commas. Raises UsageError for an empty one or one that occurs twice."""
    found = tuple(name.strip() for name in value.split(",")) if value else ()
    if not all(found) or len(set(found)) < len(found):
        raise UsageError(f"{param.opts[0]} {value}: expected different names with commas between them")
    return found


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Return three positive numbers from one or three. Raises UsageError for anything else."""
    if value is None:
        return None
    try:
        found = tuple(float(text) for text in value.split(","))
    except ValueError:
        found = ()
    if len(found) not in (1, 3) or not all(0 < number < 1e4 for number in found):
        raise UsageError(f"{param.opts[0]} {value}: expected one or three positive numbers, such as 1 or 1,1,3")
    return found * 3 if len(found) == 1 else found


@click.command(name="new", short_help="Make a bundle to train.")
@click.argument("name", metavar="NAME")
@click.option(
    "--from",
    "source",
    required=True,
    metavar="BUNDLE|ARCHITECTURE",
    allow_from_autoenv=False,
    help="A bundle with a train config, or a network: unet, dynunet, segresnet, attentionunet, basicunet.",
)
@click.option(
    "--classes",
    callback=_names,
    metavar="NAME,...",
    help="What to learn: the names of labels 1, 2 and so on, or of all classes of a classifier.  "
    "[default: those of BUNDLE]",
)
@click.option(
    "--channels",
    callback=_names,
    metavar="NAME,...",
    help="Names of an image's channels, such as t1,flair.  [default: image]",
)
@click.option(
    "--spacing", callback=_numbers, metavar="MM[,MM,MM]", help="Voxels that images are resampled to.  [default: 1]"
)
@click.option(
    "--patch", callback=_numbers, metavar="N[,N,N]", help="Voxels that the network sees at once.  [default: 96]"
)
@click.option("--modality", type=click.Choice(["MR", "CT"]), help="How intensities are scaled.  [default: MR]")
@click.option("-o", "--output", metavar="FOLDER", allow_from_autoenv=False, help="Its folder.  [default: NAME]")
@click.option("--overwrite", is_flag=True, help="Replace another bundle in the folder.")
@click.option("--trust", is_flag=True, allow_from_autoenv=False,
              help="Let the code of BUNDLE run, now and until it changes; see medkit bundle audit.")  # fmt: skip
def new(name: str, source: str, output: str | None, overwrite: bool, trust: bool, **given: Any) -> None:
    """Make a bundle to train, without weights: of a network's architecture, or of another bundle.

    A copy of BUNDLE has its configs and code, but none of its weights, figures and claims.

    \b
    medkit bundle new spleen --from dynunet --classes spleen --modality CT --spacing 1.5
    medkit bundle new my_brain --from brain_mri_segmentation
    """
    from medkit.bundles.safety.trust import admit
    from medkit.training.creation.architectures import named, names

    if "/" in name or name.startswith("."):
        raise UsageError(f"{name}: expected a name; -o says where the folder is")
    root = absolute(output) if output else absolute(name)
    network = named(source)
    if network is None and not _may_be_bundle(source):
        hint = did_you_mean(source, names()) or f"; there is {listed(list(names()))}"
        raise UsageError(f"--from {source}: neither an installed bundle nor an architecture{hint}")
    if network is not None:
        _of_architecture(root, network, overwrite, given)
        notes: list[str] = []
    else:
        notes = _of_bundle(root, find_bundle(source, plugins.registry()), overwrite, trust, given)
    admit(root, trust=True)  # its configs are medkit's, or of a bundle that is trusted
    for note in notes:
        click.echo(f"medkit: {note}", err=True)
    click.echo(root)


def _may_be_bundle(source: str) -> bool:
    from medkit.bundles.bundle import installed

    known = {bundle.name for bundle in installed(plugins.registry())}
    return source.rpartition(":")[2] in known or Path(source).exists() or "/" in source


def _of_architecture(root: Path, network: Any, overwrite: bool, given: dict[str, Any]) -> None:
    from medkit.training.creation.making import make_from_architecture
    from medkit.training.creation.segmentation import Wishes

    if not given["classes"]:
        raise UsageError("--classes is needed: the names of what to learn, such as --classes spleen,liver")
    patch = given["patch"]
    if patch is not None and any(n != int(n) for n in patch):
        raise UsageError("--patch: expected whole numbers of voxels")
    chosen: dict[str, Any] = {
        "channels": given["channels"] or None, "spacing": given["spacing"], "modality": given["modality"],
        "patch": tuple(map(int, patch)) if patch else None,
    }  # fmt: skip
    wishes = Wishes(given["classes"], **{key: value for key, value in chosen.items() if value is not None})
    make_from_architecture(root, network, wishes, _task_of_labels(), overwrite=overwrite)


def _task_of_labels() -> str:
    """Return the task whose bundles return labels. Raises UsageError if no plugin has one."""
    from medkit.bundles.bundle import installed, tensors

    for bundle in installed(plugins.registry()):
        kinds = {tensor.get("format") for _, tensor in tensors(bundle.metadata, "outputs")}
        if bundle.task and bundle.distribution and "segmentation" in kinds:
            return bundle.task
    raise UsageError("--from ARCHITECTURE: no installed plugin has a task that makes labels")


def _of_bundle(root: Path, bundle: Bundle, overwrite: bool, trust: bool, given: dict[str, Any]) -> list[str]:
    from medkit.training.creation.making import make_from_bundle

    for option in ("channels", "spacing", "patch", "modality"):
        if given[option]:
            raise UsageError(f"--{option}: is for a new architecture; {bundle.name} has its own")
    require_trust(bundle, trust=trust)
    notes = make_from_bundle(root, bundle, given["classes"], overwrite=overwrite)
    start = f"medkit train {bundle.task or 'TASK'} --bundle {root} --init-from {bundle.name} starts from its weights"
    return [*notes, start]
