"""a submission, the cluster file -> the text that sbatch gets: its options, setup, one srun, and what follows its end.

submitit writes the text from `parameters`. The lines of `setup` run under traps: the first one that fails ends the
attempt, and the shell itself writes the stop file of slurm/attempt.py, as Python may be what is missing.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from submitit.slurm import slurm as submitit_slurm

from mistral.config import ArrayStage, Cluster, TrainStage
from mistral.errors import ConfigError
from mistral.workspace import Workspace
from pipeline.context import Context
from slurm import queue
from slurm.chain import Link
from slurm.submissions import Submission

# What sbatch and srun expand in --output (sbatch(1), "filename pattern"), and what switches that off.
PATTERN = re.compile(r"%\d*[%AJNabjnstux]|[\\\n]")
# The DEBUG trap notes which line of the script runs; bash gives line 1 to the commands of a trap. Commands inside
# functions and sourced files may fail, as `module` and `conda activate` do when they probe: their end counts.
SETUP_FAILED = r"""setup_failed() {  # exit code, line of this script: write the stop file of this attempt, end the job
    trap - DEBUG ERR EXIT TERM
    [ "$1" != 143 ] || exit 143
    local job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
    local restart=${SLURM_RESTART_COUNT:-0} chain=(${MISTRAL_CHAIN:-}) line quoted
    [ ${#chain[@]} = 0 ] || { job=${chain[0]}; restart=${chain[1]}; }
    line=$(command -p sed -n "$2{s/^[[:space:]]*//; p}" "$0")
    echo "EnvironmentProblem: setup failed: exit code $1 of: $line" >&2
    quoted=$(printf %s "$line" | command -p sed 's/[[:cntrl:]]/ /g; s/[\\"]/\\&/g')
    (umask 077 && command -p mkdir -p "$mistral_attempts/$job") && cd "$mistral_attempts/$job" || exit 1
    [ "$restart" != 0 ] || command -p rm -f [0-9]*.begin [0-9]*.end  # of an older job of the same number
    local end advice='mend setup or python of the cluster file, then run the same command again'
    end=$(printf %04d "$restart").end
    printf '{"code":1,"reason":"EnvironmentProblem: setup failed: exit code %d of: %s\\n  %s","signals":[]}' \
        "$1" "$quoted" "$advice" > ".$end.$$.tmp" && command -p mv -f ".$end.$$.tmp" "$end"
    [ ${#chain[@]} = 0 ] || scancel --state=PENDING --name="$SLURM_JOB_NAME"  # the others would fail as well
    exit 1
}"""
BEGIN_SETUP = r"""trap '[ "$LINENO" = 1 ] || mistral_line=$LINENO' DEBUG
trap 'mistral_code=$?; [ ${#BASH_SOURCE[@]} -gt 1 ] || setup_failed $mistral_code $mistral_line' ERR
trap 'setup_failed $? $mistral_line' EXIT
trap 'trap - DEBUG ERR EXIT; exit 143' TERM  # cancelled"""
END_SETUP = "trap - DEBUG ERR EXIT TERM; set +e"


def text_of(context: Context, submission: Submission, waits: Sequence[str], link: int = 0) -> str:
    """The batch script of a submission, or of one job of its chain.

    Args:
        context: the cluster and the workspace.
        submission: what is submitted.
        waits: the dependencies of the job; empty ones do not count.
        link: which job of a chain it is.
    """
    tasks = len(submission.tasks)
    text: str = submitit_slurm._make_sbatch_string(
        command=f"{python_of(context)} -u -m submitit.core._submit {shlex.quote(str(submission.folder))}",
        folder=submission.folder, map_count=tasks if tasks > 1 else None,
        **parameters(context, submission, waits, link),
    )  # fmt: skip
    return text


def parameters(context: Context, submission: Submission, waits: Sequence[str], link: int = 0) -> dict[str, Any]:
    """What submitit makes the script from; the arguments are those of `text_of`."""
    cluster, stages = context.cluster, context.cluster.stages
    resources: ArrayStage | TrainStage = getattr(stages, submission.stage)
    requeue = "requeue" if cluster.requeue else "no-requeue"
    more: dict[str, Any] = {requeue: True, "kill-on-invalid-dep": "yes", **cluster.extra}
    name, chain = f"mistral-{submission.stage}-{submission.experiment}", list[str]()
    if submission.links > 1:
        name, chain = f"{name}-{submission.comment}", [Link(submission.comment, link, submission.links).shell_line()]
    again = f"{python_of(context)} -m pipeline.cli again --workspace {shlex.quote(str(context.workspace.root))}"
    found = {
        "job_name": name,
        "comment": submission.comment,
        "time": resources.minutes,
        "mem": f"{resources.memory_gigabytes}GB",
        "signal_delay_s": resources.signal_lead_seconds,
        "array_parallelism": resources.array_width,
        "dependency": ",".join(filter(None, waits)) or None,
        **{name: getattr(cluster, name) for name in ("account", "partition", "qos", "constraint", "exclude")},
        **size(resources, cluster),
        "setup": [*chain, *_setup(context)],
        "teardown": [f'{again} --code "$?"'],
        "additional_parameters": more,
    }
    return {name: value for name, value in found.items() if value is not None} | {"wckey": None}


def _setup(context: Context) -> list[str]:
    """The cluster file's lines and a start of Python, each of which ends the job if it fails."""
    attempts = shlex.quote(str(context.workspace.root / "jobs" / "attempts"))
    starts = f'{python_of(context)} -c "import pipeline.cli"'
    begin = [f"mistral_attempts={attempts}", SETUP_FAILED, BEGIN_SETUP]
    return [*begin, *context.cluster.setup, starts, END_SETUP]


def python_of(context: Context) -> str:
    """The shell words that start Python on a node."""
    return context.cluster.python or shlex.quote(sys.executable)


def size(resources: ArrayStage | TrainStage, cluster: Cluster) -> dict[str, Any]:
    """Nodes, ranks, processors and GPUs of one task."""
    cpus = resources.cpus_per_rank if isinstance(resources, TrainStage) else resources.cpus_per_task
    # A rank that fails takes the others with it; srun does not take cpus-per-task from sbatch.
    arguments = ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"]
    found: dict[str, Any] = {"nodes": 1, "ntasks_per_node": 1, "cpus_per_task": cpus, "srun_args": arguments}
    if isinstance(resources, TrainStage):
        found |= {"nodes": resources.nodes, "ntasks_per_node": resources.ranks_per_node}
        if cluster.gres:
            found["gres"] = cluster.gres
        elif resources.gpus_per_node:
            found["gpus_per_node"] = resources.gpus_per_node
    return found


# --- what makes no script ---------------------------------------------------------------------------------------


def refuse_unfit(workspace: Workspace, cluster: Cluster) -> None:
    """Refuse, before anything is written, a path that Slurm would change and lines that bash cannot read.

    Raises:
        ConfigError: says which.
    """
    root = str(workspace.root)
    if match := PATTERN.search(root):
        raise ConfigError(
            f"--workspace: found {match[0]!r} in {root}, expected a path that Slurm takes as it stands: it expands "
            "patterns such as %j in the names of logs, unless these hold a backslash\n  choose a folder without it"
        )
    answer = queue.ask("bash", "-n", "-c", "\n".join(cluster.setup))
    if answer is not None and answer.returncode:
        raise ConfigError(
            f"setup of {cluster.name}: found lines that bash cannot read, expected shell commands; mend the cluster "
            f"file\n  {answer.stderr.strip()}"
        )
