"""stages of a command -> what can be refused before any work of the first of them, which may take hours."""

from collections.abc import Sequence

from pipeline import export, preprocess, train
from pipeline.context import Context


def refuse(context: Context, stages: Sequence[str], seeds: Sequence[str] = (), allow_drift: bool = False) -> None:
    """Refuse a command for what any of its stages would refuse; nothing has been written by then.

    Args:
        context: what, and where.
        stages: all that the command is about to do.
        seeds: names of seeds; all unless given.
        allow_drift: a seed may differ from the first run of the experiment.

    Raises:
        as `refuse` of each stage.
    """
    if "train" in stages:
        train.refuse(context, seeds, allow_drift)
    if "export" in stages:
        export.refuse(context.experiment, context.manifest, seeds)
    if "preprocess" in stages:
        preprocess.refuse(context.experiment, context.workspace)
