"""what sbatch answered -> the number of the job, or why Slurm refuses it, with the advice that fits that."""

import re
import subprocess

from mistral.errors import EnvironmentProblem

# Words of sbatch's message (slurm_errno.c, and the reasons of limits that it prints before it) -> what to do about it;
# {stage} is the stage. The first one that is found counts, so limits of number come before limits of size.
ADVICE = (
    (
        r"MaxSubmit|MaxJobCount",
        "expected fewer jobs in the queue than the account or the QOS allows; each task of an array counts as one\n"
        "  when some have ended, run the same command again: it submits what is missing. If one array is too long for "
        "the limit, lower `tasks` of stages.{stage}; the limits: sacctmgr show qos format=name,maxsubmitjobsperuser, "
        "and sacctmgr show assoc user=$USER format=account,maxsubmitjobs",
    ),
    (
        r"Invalid job array|MaxArraySize",
        "expected an array within the cluster's MaxArraySize (scontrol show config | grep MaxArraySize)\n"
        "  lower `tasks` of stages.{stage}, then run the same command again",
    ),
    (
        r"Invalid account|account/partition combination",
        "set `account` of the cluster file to one of yours, in a partition that it may use\n"
        "  they are listed by: sacctmgr show assoc user=$USER format=account,partition,qos",
    ),
    (r"[Ii]nvalid partition", "set `partition` of the cluster file to one that exists; they are listed by: sinfo -s"),
    (
        r"[Ii]nvalid qos",
        "set `qos` of the cluster file to one of yours, which are listed by: sacctmgr show assoc user=$USER format=qos",
    ),
    (
        r"Requested time limit|MaxWall|PartitionTimeLimit",
        "lower `minutes` of stages.{stage} to the limit of the partition (sinfo -o '%P %l') and of the QOS "
        "(sacctmgr show qos format=name,maxwall), or choose another partition or qos",
    ),
    (
        r"QOS|Assoc",
        "lower what one task of stages.{stage} asks for to the limits of the QOS (sacctmgr show qos) and of the "
        "account (sacctmgr show assoc user=$USER)",
    ),
    (
        r"feature",
        "set `constraint` of the cluster file to features that nodes have; they are listed by: sinfo -o '%N %f'",
    ),
    (
        r"generic resource|\bgres\b|\(gres\)",
        "set `gres`, or gpus_per_node of stages.{stage}, to what nodes have; it is listed by: sinfo -o '%N %G'",
    ),
    (r"node name", "set `exclude` of the cluster file to names of nodes, which are listed by: sinfo -N"),
    (r"reservation", "set `reservation` in `extra` of the cluster file to one that exists: scontrol show reservation"),
    (
        r"node configuration|node count|processors|[Mm]emory|CPU count",
        "lower what stages.{stage} asks of a node (nodes, ranks, cpus, gpus, memory_gigabytes) to what nodes of the "
        "partition have; it is listed by: sinfo -o '%P %c %m %G'",
    ),
    (
        r"[Uu]nable to contact|[Tt]imed out|temporarily|standby|Connection refused|did not answer",
        "Slurm may have taken the job all the same\n"
        "  when `scontrol ping` says that slurmctld is up, run the same command again: it finds that job",
    ),
)
OTHERWISE = "check the values of the cluster file and its `extra`; sbatch says what it does not take"


def job_number(answer: subprocess.CompletedProcess[str] | None, stage: str, cluster: str) -> str:
    """The number of the job that sbatch submitted.

    Args:
        answer: what sbatch said; None if it did not answer in time.
        stage: whose job it is.
        cluster: the name of the cluster file.

    Raises:
        EnvironmentProblem: the job is refused, or nobody knows whether it was taken.
    """
    if answer is None:
        refusal = "sbatch did not answer"
    elif answer.returncode == 0 and (found := re.search(r"job (\d+)", answer.stdout)):
        return found[1]
    else:
        refusal = (answer.stderr.strip() or answer.stdout.strip()).replace("sbatch: error: ", "").replace("\n", "; ")
    raise EnvironmentProblem(
        f"{stage}: found that Slurm refuses the job (cluster file {cluster}): {refusal}\n"
        f"  {advice(refusal).replace('{stage}', stage)}"
    )


def advice(refusal: str) -> str:
    """What to do about a refusal."""
    return next((text for words, text in ADVICE if re.search(words, refusal)), OTHERWISE)
