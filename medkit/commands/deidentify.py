"""`medkit deidentify`: copies of files without what says whose they are, or a list of what does."""

from __future__ import annotations

import json
import logging
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from medkit import __version__
from medkit.errors import InputError, OutputError, Stopped, UsageError, listed, no_room
from medkit.options import absolute_path
from medkit.pipe.atomic import write_atomically
from medkit.pipe.records import absolute
from medkit.pipe.signals import StopRequest
from medkit.privacy.inputs import DICOM, Sources, find_sources
from medkit.privacy.mapping import write_mapping
from medkit.privacy.profile import Options
from medkit.privacy.pseudonyms import Pseudonyms, default_secret, read_or_make_secret
from medkit.privacy.report import Changes, report_of
from medkit.privacy.run import FAILURES, Deidentification, Treated, explain
from medkit.terminal.progress import bar_of, working_on

log = logging.getLogger("medkit")
_FILE = click.Path(dir_okay=False)


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    callback=absolute_path,
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="The folder of the results.",
)
@click.option(
    "--check", is_flag=True, help="Say what would identify somebody, change nothing; exit code 1 if anything does."
)
@click.option(
    "--secret",
    callback=absolute_path,
    type=_FILE,
    metavar="FILE",
    help="The secret from which pseudonyms follow.  [default: one of the user's own, made when missing]",
)
@click.option(
    "--mapping",
    callback=absolute_path,
    type=_FILE,
    metavar="FILE",
    help="Add to a table of who is who, which only the user may read.",
)
@click.option(
    "--report",
    callback=absolute_path,
    type=_FILE,
    metavar="FILE",
    help="Write what was changed, in counts that name nobody (JSON).",
)
@click.option("--blank", is_flag=True, help="Blank text in pixels; otherwise such images are refused.")
@click.option("--keep-patient-characteristics", "characteristics", is_flag=True, help="Keep age, sex, size and weight.")
@click.option(
    "--keep-safe-private",
    "safe_private",
    is_flag=True,
    help="Keep private attributes that are known to be numbers of the acquisition, such as b values.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing results.")
def deidentify(
    inputs: tuple[str, ...], output: Path | None, check: bool, secret: Path | None, mapping: Path | None,
    report: Path | None, overwrite: bool, **choices: bool,
) -> int:  # fmt: skip
    """Copy files and folders without what says whose they are.

    \b
    medkit deidentify study -o shared
    medkit deidentify --check shared

    DICOM objects (PS3.15 basic profile), also in zips, NIfTI, MGH, NRRD, MetaImage, PNG, JPEG and JSON sidecars. Names,
    UIDs and dates follow from a secret, so that a person has the same ones in every run. Prints the folders of series
    and the files that were written.
    """
    if check == (output is not None):
        raise UsageError("expected either -o DIR or --check")
    _refuse_places(output, secret, mapping, report)
    sources = find_sources([absolute(path) for path in inputs], output)
    run = Deidentification(_pseudonyms(secret, check=check), Options(**choices), output, overwrite)
    return _check(run, sources) if check else _deidentify(run, sources, mapping, report)


def _refuse_places(output: Path | None, *private: Path | None) -> None:
    """Raise UsageError for files that must not be given away and would lie among the results."""
    for path in private[:2]:
        if output is not None and path is not None and path.resolve().is_relative_to(output.resolve()):
            raise UsageError(f"{path}: lies in the folder of the results, which others are to get")
    for path in private[1:]:
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}")


def _pseudonyms(path: Path | None, *, check: bool) -> Pseudonyms:
    if check:  # nothing is made, so any secret does
        return Pseudonyms(secrets.token_bytes(32))
    path = path or default_secret()
    content, made = read_or_make_secret(path)
    if made:
        log.warning("%s: a new secret. Keep it: only with it do later runs make the same pseudonyms", path)
    return Pseudonyms(content)


def _check(run: Deidentification, sources: Sources) -> int:
    """Print what would identify somebody, folder by folder; return the exit code."""
    found: dict[Path, Counter[str]] = {}
    notes: Counter[str] = Counter()
    failed = 0
    for treated in _each(run, sources):
        if isinstance(treated, str):
            failed += 1
            continue
        place = treated.source.path.parent if treated.source.kind == DICOM else treated.source.path
        found.setdefault(place, Counter()).update(treated.changes.identifying)
        notes.update(f"{place}: {note}" for note in treated.notes)
    for place, names in found.items():
        if names:
            click.echo(f"{place}: {', '.join(f'{name} ({count})' for name, count in sorted(names.items()))}")
    _say(notes)
    telling = sum(bool(names) for names in found.values())
    _close(f"{len(found)} files and folders: {telling} would identify somebody", sources, failed)
    return 1 if telling or failed else 0


def _deidentify(run: Deidentification, sources: Sources, mapping: Path | None, report: Path | None) -> int:
    """Write the results, print their paths, and return the exit code."""
    assert run.output is not None
    changes, notes = Changes(), Counter[str]()
    done: list[Treated] = []
    failed: list[str] = []
    try:
        for treated in _each(run, sources):
            if isinstance(treated, str):
                failed.append(treated)
                continue
            done.append(treated)
            changes.update(treated.changes)
            notes.update(f"{run.output / treated.case}: {note}" for note in treated.notes)
    finally:
        if mapping is not None and done:
            write_mapping(mapping, done, run.output)
    for case in _complete(done, run):
        click.echo(run.output / case)
    if report is not None:
        facts = {"medkit": __version__, "files": len(sources.files), "written": len(done), "refused": len(failed)}
        write_atomically(report, json.dumps(report_of(changes, **facts), indent=1) + "\n")
    _say(notes)
    _close(f"{len(done)} of {len(sources.files)} files written: {changes.summary()}", sources, len(failed))
    if failed and not done:
        return InputError.exit_code
    return 1 if failed else 0


def _complete(done: Sequence[Treated], run: Deidentification) -> Iterator[Path]:
    """Yield the images that were written, without series of which a file was or may have been refused."""
    of_series = [one for one in done if one.source.kind == DICOM]
    torn = run.torn | {one.case for one in of_series if one.source.path.parent in run.torn_sources}
    for case in dict.fromkeys(one.case for one in done if one.source.kind not in ("sidecar", "gradients")):
        if case in torn:
            log.warning("%s: may lack files, since some were refused; it is not printed", case)
        else:
            yield case


def _each(run: Deidentification, sources: Sources) -> Iterator[Treated | str]:
    """Yield each file that was treated, or what is wrong with it, which is said. Raises Stopped after a signal."""
    if not sources.files:
        raise InputError("no file that can be treated among the inputs")
    with StopRequest() as stop, bar_of("deidentify", len(sources.files)) as bar:
        for source in sources.files:
            try:
                with stop.working(), working_on(source.path.name):
                    treated: Treated | str = run.treat(source)
            except FAILURES as error:
                treated = explain(source.path, error)
                if no_room(error):
                    raise OutputError(f"{treated}; the run ends") from error
                log.error("%s", treated)
            bar.count(failed=isinstance(treated, str))
            yield treated
            if stop.received and stop.number is not None:
                raise Stopped(stop.number.name)


def _say(notes: Counter[str]) -> None:
    for note, count in notes.items():
        log.warning("%s%s", note, f" ({count} files)" if count > 1 else "")


def _close(text: str, sources: Sources, failed: int) -> None:
    """Print the last line: what was done, what was left out, and how many files failed."""
    left_out = [f"{count} {what.format(s='' if count == 1 else 's')}" for what, count in sources.left_out.items()]
    parts = [
        text,
        *_if(left_out, f"left out: {listed(left_out) if left_out else ''}"),
        *_if(failed, f"{failed} refused"),
    ]
    click.echo(f"medkit deidentify: {'; '.join(parts)}", err=True)


def _if(condition: object, text: str) -> Iterable[str]:
    return (text,) if condition else ()
