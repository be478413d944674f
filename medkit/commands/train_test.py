"""The end of `medkit train`: the finished bundle on held-out items."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from medkit import plugins
from medkit.bundles.bundle import WEIGHTS, Bundle
from medkit.bundles.safety.trust import admit
from medkit.errors import MedkitError
from medkit.pipe.signals import StopRequest

if TYPE_CHECKING:
    from medkit.training.plan import TrainingPlan, TrainingResult
    from medkit.training.report.test_figures import TestFigures

log = logging.getLogger("medkit.training")


def test(plan: TrainingPlan, result: TrainingResult, stop: StopRequest) -> None:
    """Evaluate the bundle of a training that has ended on the items held out, and add the figures to it.

    A test that fails is a warning: the bundle is trained all the same.
    """
    from medkit.training.report.test_figures import is_tested, write_test

    if result.data is None or not result.data.test or not (result.bundle / WEIGHTS).is_file():
        return
    if is_tested(result.bundle):
        return
    try:
        figures = _figures(plan, result, stop)
    except MedkitError as error:
        log.warning("%s: the test has failed: %s", result.bundle.name, error)
        return
    if figures is None:
        return
    write_test(result.bundle, figures)
    admit(result.bundle, trust=True)  # as before: its metadata are part of what is trusted
    shown = ", ".join(f"{name} {values[0]:.4f}" for name, values in figures.summary.items())
    log.info("test on %d items held out: %s", figures.items, shown)
    for text in figures.failed:
        log.warning("test: %s", text)


def _figures(plan: TrainingPlan, result: TrainingResult, stop: StopRequest) -> TestFigures | None:
    """Return the figures, by `medkit run` or else by the config's evaluator; None with the reason in the log."""
    from medkit.evaluation.bundle_test import run_test, testable
    from medkit.training.held_out import evaluate_held_out
    from medkit.training.report.test_figures import TestFigures
    from medkit.training.splits import count_subjects

    assert result.data is not None
    items: list[dict[str, Any]] = list(result.data.test)
    subjects = count_subjects(items, ["image", *items[0]], result.data)
    bundle = Bundle(result.bundle, result.bundle.name, plan.task)
    if _runs(bundle) and testable(bundle, items):
        task = plan.task if plan.task in plugins.registry().tasks else "bundle"
        log.info("test: %d items held out, by medkit run %s", len(items), task)
        options = ["--device", plan.device, *(["--threads", str(plan.threads)] if plan.threads else [])]
        found = run_test(bundle, task, items, options, plan.seed, lambda: stop.received)
        if found is None:
            log.warning("test: stopped; the same command does it")
            return None
        by = f"`medkit run {task}` and `medkit evaluate`"
        return TestFigures(found.cases, subjects, found.failed, by, found.summary, found.by_label)
    metric = evaluate_held_out(plan, result.data)
    if metric is None:
        log.warning("test: no figures, since the items held out have no image and no reference as files")
        return None
    name, value = metric
    summary = {name.lower(): (value, math.nan, math.nan)}
    return TestFigures(len(items), subjects, (), "the evaluator of the train config", summary, {})


def _runs(bundle: Bundle) -> bool:
    """Return whether medkit can run a bundle by itself."""
    from medkit.bundles.contract import contract_of

    try:
        contract_of(bundle)
    except MedkitError:
        return False
    return True
