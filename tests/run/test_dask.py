"""`--executor dask`: the results of `--workers`, lost workers, refusals; a scheduler and workers on this machine."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from waiting import leftovers, processes_in, wait_for

from medkit.run import dask_run

Run = Callable[..., "Outcome"]  # noqa: F821
Start = Callable[..., "subprocess.Popen[str]"]
Make = Callable[..., Path]


@pytest.fixture
def dask() -> None:
    """Skip the test where the packages of medkit[hpc] are not installed."""
    for package in ("distributed", "dask_jobqueue"):
        pytest.importorskip(package, reason=f"{package} is not installed (medkit[hpc])")


@pytest.fixture
def site(dask: None, shell_environment: dict[str, str], tmp_path: Path) -> Iterator[Run]:
    """Start a part of a Dask cluster: site("scheduler"), which writes `scheduler.json`, then site("worker")."""
    running: list[subprocess.Popen[bytes]] = []
    environment = {k: v for k, v in shell_environment.items() if k != "PYTHONWARNINGS"}

    def begin(part: str, *more: str) -> subprocess.Popen[bytes]:
        own = ["--port", "0"] if part == "scheduler" else ["--nthreads", "1", "--no-nanny"]
        common = ["--scheduler-file", "scheduler.json", "--host", "127.0.0.1", "--no-dashboard"]
        command = [sys.executable, "-m", f"distributed.cli.dask_{part}", *common, *own, *more]
        with open(tmp_path / f"{part}{len(running)}.log", "wb") as log:
            running.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log))
        if part == "scheduler":
            wait_for((tmp_path / "scheduler.json").exists)
        return running[-1]

    yield begin
    for process in reversed(running):
        process.kill()
        process.wait()


def started(folder: Path) -> list[str]:
    """The names of the cases of `wait` that were begun."""
    return sorted(mark.name.split(".")[0] for mark in folder.glob("*.started") if mark.stat().st_size)


def status_of_pages(port: int) -> int:
    """The answer of a web server of Dask's to a request for its workers."""
    with pytest.raises(HTTPError) as raised:
        urlopen(f"http://127.0.0.1:{port}/info/main/workers.html")
    with raised.value as error:
        return error.code


def test_results_are_those_of_workers(dask: None, shell: Run, blob: Make, tmp_path: Path) -> None:
    names = ("a", "b", "c", "fail", "die", "odd", "full0")
    for name in names[:-1]:
        blob(f"{name}.nii.gz")
    found = {}
    for executor in ("local", "dask"):
        out = f"medkit run fragile *.nii.gz missing.nii.gz --workers 2 --executor {executor} --json -o {executor}"
        done = shell(f"{out} --failed {executor}.failed --records r-{executor}")
        assert done.code == 1, done.err
        # the order, processes and times differ
        found[executor] = {
            Path(r["path"]).name: (r["medkit"]["status"], r["medkit"]["error"], r["medkit"].get("threads"))
            for r in done.records
        }
        assert sorted(p.name for p in (tmp_path / executor).glob("*_copy.nii.gz")) == [
            f"{n}_copy.nii.gz" for n in "abc"
        ]
        assert len((tmp_path / f"{executor}.failed").read_text().splitlines()) == 4
    assert found["dask"] == found["local"]
    assert "SIGKILL" in found["dask"]["die.nii.gz"][1]
    again = shell("medkit run fragile [abc].nii.gz --workers 2 --executor dask --json -o dask --skip-existing")
    assert (again.code, [r["medkit"]["skipped"] for r in again.records]) == (0, [True] * 3)
    refused = shell("medkit run fragile a.nii.gz --executor dask -o dask")
    assert refused.code == 1
    assert "exists already" in refused.err
    assert (
        shell("medkit run fragile a.nii.gz --executor dask -o dask --overwrite --json").records[0]["medkit"]["skipped"]
        is False
    )


def test_limits_and_missing_weights(dask: None, shell: Run, blob: Make, tmp_path: Path) -> None:
    blob("hang.nii.gz"), blob("b.nii.gz")
    done = shell("medkit run fragile hang.nii.gz b.nii.gz --executor dask --timeout-per-case 0.3")
    assert (done.code, done.paths) == (1, [tmp_path / "b_copy.nii.gz"])
    assert "took longer than 0.3 s" in done.err
    done = shell("medkit run unready hang.nii.gz b.nii.gz --executor dask --workers 2")
    assert done.code == 4
    assert done.err.count("toy weights") == 1


def test_only_this_machine_reaches_the_ports(dask: None, start: Start, blob: Make, tmp_path: Path) -> None:
    """Dask itself starts web servers that the whole network reaches, with pages about the cases."""
    import psutil

    process = start("run", "wait", "--marks", tmp_path, blob("a.nii.gz"), "--executor", "dask")
    wait_for(lambda: started(tmp_path))
    connections = psutil.Process(process.pid).net_connections("tcp")
    opened = {one.laddr for one in connections if one.status == psutil.CONN_LISTEN}
    assert {address for address, _ in opened} == {"127.0.0.1"}
    assert {status_of_pages(port) for _, port in opened} == {404}
    (tmp_path / "go").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


@pytest.mark.parametrize("signals", [1, 2])
def test_signals(dask: None, start: Start, blob: Make, tmp_path: Path, signals: int) -> None:
    """The first lets the cases in work finish and begins no other, also of those handed over; a second drops them."""
    inputs = [blob(f"{n}.nii.gz") for n in "abcdefghij"]
    process = start("run", "wait", "--marks", tmp_path, *inputs, "--workers", 2, "--executor", "dask")
    wait_for(lambda: len(started(tmp_path)) == 2)
    begun = started(tmp_path)
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    if signals == 1:
        (tmp_path / "go").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert sorted(Path(line).name[0] for line in out.splitlines()) == (begun if signals == 1 else [])
    assert started(tmp_path) == begun
    assert leftovers(tmp_path) == []


def test_a_lost_workers_case_is_done_by_another(site: Run, start: Start, blob: Make, tmp_path: Path) -> None:
    site("scheduler")
    workers = {}
    for _ in "ab":
        worker = site("worker")
        workers[worker.pid] = worker
    inputs = [blob(f"{n}.nii.gz") for n in "abc"]
    process = start(
        "run", "wait", "--marks", tmp_path, *inputs, "--executor", "dask", "--scheduler-file", "scheduler.json"
    )
    wait_for(lambda: len(started(tmp_path)) == 2)
    first = started(tmp_path)[0]
    child = int((tmp_path / f"{first}.started").read_text())
    parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    (tmp_path / f"{first}.started").unlink()
    workers[parent].kill()
    wait_for(lambda: not Path(f"/proc/{child}").exists())
    (tmp_path / "go").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert sorted(Path(line).name[0] for line in out.splitlines()) == ["a", "b", "c"]
    assert started(tmp_path) == ["a", "b", "c"]
    assert leftovers(tmp_path) == []


def test_the_rest_is_named_when_no_worker_is_left(
    site: Run, toy: Run, blob: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_run, "PATIENCE", 3.0)
    site("scheduler")
    file = tmp_path / "scheduler.json"
    done = toy("run", "fragile", blob("a.nii.gz"), blob("b.nii.gz"), "--executor", "dask", "--scheduler-file", file)
    assert (done.code, done.lines) == (1, [])
    assert "a.nii.gz: not done: no Dask worker for 3 s" in done.err
    assert "2 of 2 failed" in done.err


def test_a_scheduler_that_goes(site: Run, start: Start, blob: Make, tmp_path: Path) -> None:
    scheduler = site("scheduler")
    inputs = [blob(f"{n}.nii.gz") for n in "abc"]
    process = start(
        "run", "wait", "--marks", tmp_path, *inputs, "--executor", "dask", "--scheduler-file", "scheduler.json"
    )
    site("worker")
    wait_for(lambda: started(tmp_path))
    scheduler.kill()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.count("the Dask scheduler is gone") >= 3
    wait_for(lambda: leftovers(tmp_path) == [], 10)  # the worker ends, and its child with it


def test_a_worker_that_cannot_work(site: Run, shell: Run, blob: Make) -> None:
    site("scheduler")
    site("worker", "--nanny")
    blob("a.nii.gz")
    done = shell("medkit run pair a.nii.gz --executor dask --scheduler-file scheduler.json")
    assert done.code == 1
    assert "--no-nanny" in done.err


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        (None, 2, "no such file"),
        ("{}", 2, "expected the file that `dask scheduler` writes"),
        ('{"address": "tcp://192.0.2.1:8786"}', 2, "with TLS"),
        ('{"address": "tls://127.0.0.1:1"}', 1, "no Dask scheduler answers at tls://127.0.0.1:1"),
    ],
)
def test_scheduler_files_that_are_refused(
    dask: None, toy: Run, blob: Make, tmp_path: Path, content: str | None, code: int, reason: str
) -> None:
    file = tmp_path / "f.json"
    if content is not None:
        file.write_text(content)
    done = toy("run", "pair", blob("a.nii.gz"), "--executor", "dask", "--scheduler-file", file)
    assert (done.code, done.out) == (code, "")
    assert str(file) in done.err
    assert reason in done.err


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("slurm", "`memory` of a job is not set"),
        ("slrm", "neither one of slurm, pbs"),
        ("jobqueue: {moab: {memory: 1GB}}", "expected `jobqueue:` with one of slurm"),
        ("jobqueue: {slurm: {memory: 1GB}}", "without TLS"),
        ("jobqueue: {pbs: {memory: 1GB, interface: nowhere9}}", "interface nowhere9"),
    ],
)
def test_clusters_that_are_refused(
    dask: None, toy: Run, blob: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str, reason: str
) -> None:
    import copy

    import dask as package
    import dask_jobqueue  # noqa: F401 - so that its defaults are there before they are copied

    monkeypatch.setattr(package.config, "config", copy.deepcopy(package.config.config))
    monkeypatch.setattr(package.config.get, "__defaults__", (package.config.no_default, package.config.config, None))
    if ":" in settings:
        (tmp_path / "f.yaml").write_text(settings)
        settings = str(tmp_path / "f.yaml")
    done = toy("run", "pair", blob("a.nii.gz"), "--executor", "dask", "--cluster", settings)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--cluster", "slurm"], "--cluster needs --executor dask"),
        (["--scheduler-file", "f"], "--scheduler-file needs --executor dask"),
        (["--executor", "dask", "--cluster", "slurm", "--scheduler-file", "f"], "contradict"),
        (["--executor", "dask", "--jobs", "2"], "--jobs needs --cluster"),
        (["--executor", "dask", "--cluster", "slurm", "--workers", "2"], "--jobs N"),
    ],
)
def test_options_that_contradict(toy: Run, blob: Make, more: list[str], reason: str) -> None:
    done = toy("run", "pair", blob("a.nii.gz"), *more)
    assert done.code == 2
    assert reason in done.err


def test_a_missing_package_is_named(toy: Run, blob: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask", None)
    done = toy("run", "pair", blob("a.nii.gz"), "--executor", "dask")
    assert done.code == 2
    assert "pip install 'medkit[hpc]'" in done.err


def test_dask_is_imported_only_if_asked_for(shell: Run, blob: Make) -> None:
    blob("a.nii.gz")
    done = shell(
        f"{sys.executable} -c 'import sys, toy\n"
        'try: toy.main(["run", "pair", "a.nii.gz"])\n'
        "except SystemExit as end: assert not end.code\n"
        'assert not {"dask", "distributed"} & set(sys.modules)\''
    )
    assert done.code == 0, done.err


def test_encrypted(site: Run, shell: Run, blob: Make, tmp_path: Path) -> None:
    """With the certificate of docs/clusters.md in Dask's settings, here variables."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate = ["-days", "2", "-subj", "/CN=medkit", "-keyout", "dask.key", "-out", "dask.crt"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *certificate], cwd=tmp_path, check=True)
    files = ["--tls-ca-file", "dask.crt", "--tls-cert", "dask.crt", "--tls-key", "dask.key"]
    site("scheduler", "--protocol", "tls", *files)
    site("worker", *files)
    assert json.loads((tmp_path / "scheduler.json").read_text())["address"].startswith("tls://")
    blob("a.nii.gz")
    line = "medkit run pair a.nii.gz --executor dask --scheduler-file scheduler.json"
    variables = {"CA_FILE": "dask.crt", "CLIENT__CERT": "dask.crt", "CLIENT__KEY": "dask.key"}
    env = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": value for name, value in variables.items()}
    done = shell(line, env=env)
    assert done.code == 0, done.err
    assert shell(f"{line} --overwrite").code == 1  # without the certificate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "submits", "asks"), [("pbs", "qsub", "qstat"), ("sge", "qsub", "qstat"), ("lsf", "bsub", "bjobs")]
)
def test_jobs_of_other_schedulers(
    dask: None,
    shell: Run,
    shell_environment: dict[str, str],
    blob: Make,
    tmp_path: Path,
    name: str,
    submits: str,
    asks: str,
) -> None:
    """With commands that run a job at once, here. A case has the cores of its job, which nobody tells it."""
    (tmp_path / "bin").mkdir()
    script = '"${@: -1}"' if submits == "qsub" else "/dev/stdin"
    for program, text in (
        (submits, f"cat {script} > job.sh; (bash job.sh > job.log 2>&1 &); echo 'Job <17> is submitted'"),
        (asks, "echo 17 RUN"),
        ("qdel", "touch ended"),
        ("bkill", "touch ended"),
    ):
        (tmp_path / "bin" / program).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / program).chmod(0o755)
    jobs = {"memory": "1GB", "interface": "lo", "cores": 3, "job-script-prologue": ["unset PYTHONWARNINGS"]}
    (tmp_path / "jobs.yaml").write_text(json.dumps({"jobqueue": {name: jobs}}))
    for case in "ab":
        blob(f"{case}.nii.gz")
    variables = {"PATH": f"{tmp_path}/bin:{shell_environment['PATH']}", "OMP_NUM_THREADS": "1"}
    done = shell("medkit run pair *.nii.gz --executor dask --cluster jobs.yaml --json", env=variables)
    assert done.code == 0, done.err
    assert [record["medkit"]["threads"] for record in done.records] == [3, 3]
    assert (tmp_path / "ended").exists()
    wait_for(lambda: not processes_in(tmp_path), 15)
