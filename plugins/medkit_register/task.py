"""The task `register`: its outputs, checks of its options, and its memory. The work itself is in `registration`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.errors import UsageError
from medkit.evaluation import shared_and_own
from medkit.inference import bundle_identity
from medkit.task import Output, Runtime, Stages, Task, absolute
from medkit_register.choices import BENDING
from medkit_register.memory import memory_needed

if TYPE_CHECKING:
    from medkit_register.choices import RegisterChoices

STARTS = ("auto", "moments", "centre", "header")
"""Values of `--init` that are not a file."""
SCORED = ("labels", "landmarks")
"""What both scans may bring for scores, as the roles `fixed_labels`, `moving_labels` and so on."""


def register_task(given: Mapping[str, Path], choices: RegisterChoices) -> Task:
    """Return the task for one set of options.

    `given` has the role `fixed` and, where given, `fixed_mask`, `fixed_labels`, `fixed_landmarks`, the same with
    `moving_`, and `lesion_mask` and `fixed_lesion_mask`; `{id}` in a path of the moving image's files stands for the
    case. Raises UsageError for an `init` that is neither a known word nor a file, for moving labels or landmarks
    without fixed ones, for a midpoint of type joint, and for the spacing of fields where there are none.
    """
    _check_pairs(given)
    shared, own = shared_and_own(given)
    if choices.kind == "joint" and choices.midpoint:
        raise UsageError("--midpoint: takes --type rigid, affine or deformable, not joint")
    if choices.init not in STARTS:
        if not Path(choices.init).is_file():
            raise UsageError(f"--init {choices.init}: expected {', '.join(STARTS)} or a transform file")
        shared = {**shared, "init": absolute(choices.init)}
        choices = replace(choices, init="file")
    arguments: dict[str, Any] = {"type": choices.kind, "metric": choices.metric, "init": choices.init}
    if choices.bends:
        arguments["quality"] = choices.quality
    if choices.midpoint:
        arguments["midpoint"] = True
    if choices.coarse_fields:
        if not choices.bends:
            raise UsageError(f"--field-spacing: takes --type {' or '.join(BENDING)}, not {choices.kind}")
        arguments["field_spacing"] = choices.field_spacing
    if choices.outputs:
        arguments["outputs"] = list(choices.outputs)
    return Task(
        name="register",
        outputs=_outputs(shared["fixed"], choices),
        setup=functools.partial(_set_up, shared=shared, choices=choices),
        staged=True,
        arguments=arguments,
        role="moving",
        accepts=("moving_mask", "lesion_mask", *(f"moving_{what}" for what in SCORED)),
        shared=shared,
        own=own,
        devices=("cpu", "cuda"),
        memory=functools.partial(memory_needed, shared["fixed"], quality=choices.quality if choices.bends else None),
        bundle=bundle_identity(choices.bundle) if choices.bundle and choices.bends else None,
    )


def _set_up(runtime: Runtime, *, shared: Mapping[str, Path], choices: RegisterChoices) -> Stages:
    from medkit_register.registration import set_up  # torch and the engine are loaded when the work starts

    return set_up(runtime, shared=shared, choices=choices)


def _check_pairs(given: Mapping[str, Path]) -> None:
    """Raise UsageError for a moving file without the fixed one to compare it with."""
    for what in SCORED:
        if f"moving_{what}" in given and f"fixed_{what}" not in given:
            raise UsageError(f"--moving-{what} needs --fixed-{what} to be compared with")


def _outputs(fixed: Path, choices: RegisterChoices) -> tuple[Output, ...]:
    """Return the outputs of one case: the moving image and its transforms, and with a midpoint the fixed image's.

    Raises UsageError for one that this kind of registration does not make.
    """
    field = ".nii.gz" if choices.bends else ".tfm"

    def image(role: str, name: str, space: str) -> Output:
        return Output(role, "image", name, entities={"space": space, "desc": name}, reference=fixed)

    def transform(role: str, start: str, end: str, extension: str = field, **more: str) -> Output:
        entities = {"from": start, "to": end, "mode": "image", **more}
        return Output(role, "transform", role, extension, entities, reference=fixed)

    space = "midpoint" if choices.midpoint else "{space}"
    outputs = [
        image("image", "registered", space),
        transform("transform", "{suffix}", space),
        transform("inverse_transform", space, "{suffix}"),
    ]
    if choices.kind == "joint":
        outputs += [
            transform(f"{part}_transform", "{suffix}", space, ".tfm", desc=part) for part in ("rigid", "affine")
        ]
    if choices.midpoint:
        outputs += [
            image("fixed_image", "fixed", space),
            transform("fixed_transform", "{space}", space),
            transform("fixed_inverse_transform", space, "{space}"),
        ]
    if unknown := [role for role in choices.outputs if role not in choices.roles]:
        raise UsageError(f"--outputs {unknown[0]}: expected some of {', '.join(choices.roles)}")
    by_role = {output.role: output for output in outputs}
    return tuple(by_role[role] for role in choices.outputs or by_role)
