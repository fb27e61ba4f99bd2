"""jobs that have ended, the records -> what is still missing of the stages that they worked on, and why."""

from collections.abc import Mapping, Sequence

from mistral.errors import Findings
from pipeline.context import Context
from pipeline.export import name_of, recorded_steps
from slurm import plans
from slurm.history import look, newest_jobs, past_of
from slurm.plans import Choice
from slurm.submit import Plan

SHOWN = 10  # tasks of a stage whose reasons are told
NAMED = 3  # checkpoints of a task


def refuse_missing(context: Context, stages: Sequence[str], choice: Choice) -> None:
    """Check that nothing is missing of some stages, now that no job works on them.

    Raises:
        Findings: something is; gives the reason of each task.
    """
    lines, failed = [], _failures(context)
    for plan in dict.fromkeys(plans.make_plans(context, stages, choice)):
        lines += _lines(context, plan, choice, failed, ahead="train" in stages)
        if len(plan.units) > SHOWN:
            lines.append(f"{plan.stage}: {len(plan.units) - SHOWN} more")
    if lines:
        listed = "".join(f"  {line}\n" for line in lines)
        raise Findings(
            f"found that jobs ended and left work undone:\n{listed}  mend these, then run the same command again"
        )


def _failures(context: Context) -> dict[tuple[str, str], str]:
    """By stage and name of a task, why it failed: what `status` says, which asks Slurm's accounting too."""
    experiment = context.experiment
    jobs = look(context.workspace, experiment.name, [experiment.run_name(seed) for seed in experiment.seeds])
    runs = {("train", run): past.reason for run, past in jobs.past.items() if past.state == "failed"}
    return runs | {(task.stage, task.name): task.reason for task in jobs.tasks if task.state == "failed"}


def _lines(
    context: Context, plan: Plan, choice: Choice, failed: Mapping[tuple[str, str], str], *, ahead: bool
) -> list[str]:
    """`train alias-tiny-x21: <reason>` of each task that is missing."""
    names = [name for _, name in plan.units]
    jobs = newest_jobs(context.workspace, context.experiment.name, plan.stage, names)
    left = plans.missing_exports(context, choice, ahead=ahead) if plan.stage == "export" and names else {}
    lines = []
    for number, name in plan.units[:SHOWN]:
        past = past_of(context.workspace, *jobs[name]) if name in jobs else None
        if told := failed.get((plan.stage, name)) or (past.reason if past else ""):
            reason = told
        elif number in left:
            reason = _not_exported(context, left[number])
        elif past is None:
            reason = "no job of it was found"
        elif past.attempts:
            reason = f"job {past.job} ended without a reason of its own, as one that is killed; {_log(context, plan)}"
        else:
            reason = f"job {past.job} never began its work: it was cancelled, or could not start; {_log(context, plan)}"
        lines.append(f"{plan.stage} {name}: {reason}")
    return lines


def _not_exported(context: Context, units: Sequence[tuple[str, int]]) -> str:
    """What a task of export has left, which its job could not have exported if it was trained later."""
    experiment, manifest = context.experiment, context.manifest
    recorded = {seed: recorded_steps(experiment, manifest, seed) for seed in {seed for seed, _ in units}}
    trained = [name_of(experiment, *unit) for unit in units if unit[1] in recorded[unit[0]]]
    untrained = [name_of(experiment, *unit) for unit in units if unit[1] not in recorded[unit[0]]]
    parts = [f"{_few(trained)} trained but not exported: run the stage again"] if trained else []
    parts += [f"{_few(untrained)} not trained yet"] if untrained else []
    return "; ".join(parts)


def _few(names: Sequence[str]) -> str:
    more = "" if len(names) <= NAMED else f" and {len(names) - NAMED} more"
    return f"{', '.join(names[:NAMED])}{more} {'is' if len(names) == 1 else 'are'}"


def _log(context: Context, plan: Plan) -> str:
    return f"see: {context.experiment.command('logs', context.workspace.root, '--stage', plan.stage)}"
