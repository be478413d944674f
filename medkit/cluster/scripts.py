"""The two scripts of a submission: one that works on a shard anywhere, and one that a scheduler runs."""

from __future__ import annotations

import shlex
import subprocess

from medkit.cluster.folder import JobFolder, Submission
from medkit.errors import UsageError

RESTARTS = 20
"""How often a job that was stopped goes back into the queue."""


def shard_script(submission: Submission, folder: JobFolder) -> str:
    """Return the script that works on shard K: `bash shard.sh K`, with or without a scheduler.

    The user's commands stand in it as they were given. The list is their stdin, so that also a loop, or `cd x && ...`,
    reads it. Variables reach all stages; options on the command line outrank them.
    """
    n, codes = submission.shards, folder.exit_codes
    return f"""#!/bin/bash
# bash shard.sh K: works on shard K of {n}. The exit code is 75 if a stage was stopped, else the largest of all stages.
trap : USR1 TERM # the stages stop by themselves; this shell waits for them
k=${{1:?which shard: 1 to {n}}}
cd {shlex.quote(submission.workdir)} || exit 2
export MEDKIT_OUTPUT={folder.root} MEDKIT_RECORDS={folder.records} MEDKIT_PART=$k/{n} MEDKIT_SKIP_EXISTING=1
export MEDKIT_WORKERS=1 # a case that kills its process then has a name, and the others go on
echo "{submission.sha256}  {folder.inputs}" | sha256sum --check --quiet || exit 2
rm -f {codes}/$k
set -o pipefail
exec < <(awk -v k="$k" 'NR % {n} == k % {n}' {folder.inputs})
{submission.pipeline}
stages=($? "${{PIPESTATUS[@]}}") code=0
[ "${{stages[0]}}" = 0 ] || for c in "${{stages[@]}}"; do # after a loop, only the first one is its own
  case $c in 75 | 138 | 143) code=75 && break ;; esac # stopped by SIGUSR1 or SIGTERM
  [ "$c" -gt "$code" ] && code=$c
done
[ $code = 75 ] || echo $code > {codes}/$k
exit $code
"""


def job_script(submission: Submission, folder: JobFolder) -> str:
    """Return the script for the scheduler, an array of one job for each shard."""
    return _SCRIPTS[submission.scheduler](submission, folder)


def _slurm(submission: Submission, folder: JobFolder) -> str:
    request = submission.request
    asked = [f"--array=1-{submission.shards}{_at_most(submission)}", "--ntasks=1", f"--cpus-per-task={request.cpus}"]
    asked += [f"--mem={request.memory_mb}M"] if request.memory_mb else []
    asked += [f"--time={request.minutes}"] if request.minutes else []
    asked += [f"--gres=gpu:{request.gpus}"] if request.gpus else []
    directives = [
        f"--job-name={job_name(submission)}",
        *asked,
        *(f"--signal=USR1@{request.warning_seconds}", "--requeue", "--open-mode=append"),
        f"--output={folder.logs}/%A_%a.log",
        *request.arguments,
    ]
    return f"""#!/bin/bash
{_lines("#SBATCH", directives)}
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --kill-on-bad-exit=1 bash {folder.shard_script} "$SLURM_ARRAY_TASK_ID" # srun passes signals on to all stages
code=$?
if [ $code = 75 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {RESTARTS} ]; then
  exec scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit $code
"""


def _pbs(submission: Submission, folder: JobFolder) -> str:
    request = submission.request
    chunk = f"select=1:ncpus={request.cpus}"
    chunk += f":mem={request.memory_mb}mb" if request.memory_mb else ""
    chunk += f":ngpus={request.gpus}" if request.gpus else ""
    directives = [f"-N {job_name(submission)}", f"-l {chunk}"]
    directives += [f"-l walltime={clock(request.minutes)}"] if request.minutes else []
    directives += ["-V", "-r y", "-j oe", f"-o {folder.logs}/", *request.arguments]
    return f"""#!/bin/bash
{_lines("#PBS", directives)}
{_timed(submission)}bash {folder.shard_script} "${{PBS_ARRAY_INDEX:-$K}}"
"""


def _sge(submission: Submission, folder: JobFolder) -> str:
    request = submission.request
    directives = [f"-N {job_name(submission)}", f"-t 1-{submission.shards}"]
    directives += [f"-tc {submission.max_running}"] if submission.max_running else []
    directives += [f"-pe smp {request.cpus}"] if request.cpus > 1 else []
    directives += [f"-l h_vmem={request.memory_mb // request.cpus}M"] if request.memory_mb else []
    directives += [f"-l h_rt={clock(request.minutes)}"] if request.minutes else []
    directives += [f"-l gpu={request.gpus}"] if request.gpus else []
    directives += ["-S /bin/bash", "-V", "-r y", "-j y", f"-o {folder.logs}", *request.arguments]
    return f"""#!/bin/bash
{_lines("#$", directives)}
{_timed(submission)}bash {folder.shard_script} "$SGE_TASK_ID"
code=$?
[ $code = 75 ] && exit 99 # Grid Engine queues a job again that ends with 99
exit $code
"""


def _lsf(submission: Submission, folder: JobFolder) -> str:
    request = submission.request
    directives = [f'-J "{job_name(submission)}[1-{submission.shards}]{_at_most(submission)}"', f"-n {request.cpus}"]
    directives += ['-R "span[hosts=1]"']
    if request.memory_mb:
        directives += [f"-M {request.memory_mb}MB", f'-R "rusage[mem={request.memory_mb}MB]"']
    directives += [f"-W {request.minutes}"] if request.minutes else []
    directives += [f"-gpu num={request.gpus}"] if request.gpus else []
    directives += ["-r", "-Q 75", f"-o {folder.logs}/%J_%I.log", *request.arguments]
    return f"""#!/bin/bash
{_lines("#BSUB", directives)}
{_timed(submission)}bash {folder.shard_script} "$LSB_JOBINDEX"
"""


_SCRIPTS = {"slurm": _slurm, "pbs": _pbs, "sge": _sge, "lsf": _lsf}


def job_name(submission: Submission) -> str:
    """Return a short name that differs for different lists."""
    return f"medkit-{submission.sha256[:6]}"


def clock(minutes: int) -> str:
    """Return minutes as schedulers write them.

    >>> clock(150)
    '02:30:00'
    """
    return f"{minutes // 60:02}:{minutes % 60:02}:00"


def _at_most(submission: Submission) -> str:
    return f"%{submission.max_running}" if submission.max_running else ""


def _lines(prefix: str, directives: list[str]) -> str:
    return "\n".join(f"{prefix} {directive}" for directive in directives)


def _timed(submission: Submission) -> str:
    """Return the words that tell a shard to stop some time before the limit, where the scheduler cannot be told to."""
    request = submission.request
    if request.minutes is None:
        return ""
    return f"timeout --preserve-status --signal=USR1 {60 * request.minutes - request.warning_seconds} "


def check_syntax(pipeline: str) -> None:
    """Raise UsageError if bash cannot read the commands."""
    done = subprocess.run(["bash", "-n"], input=pipeline, capture_output=True, text=True)
    if done.returncode or not pipeline.strip():
        raise UsageError(f"expected shell commands after --, got {pipeline!r}  {done.stderr.strip()}".strip())
