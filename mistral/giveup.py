"""weights that came out with other bits when they were made again -> these and all later ones set aside, and recorded.

Training that is not deterministic, or that went on with other software or hardware, need not give the same bits when it
makes a step again after a kill. Then the recorded weights from that step on, and what was exported from them, belong to
a line that was given up: the run goes on from its state.
"""

from collections.abc import Iterator

from mistral.files import digest_of
from mistral.lease import Lease
from mistral.manifest import Manifest, Record, make_record
from mistral.setaside import set_aside
from mistral.workspace import step_name, step_number

REASON = "training went on from an earlier state and made these steps again with other bits"


def give_up_from(manifest: Manifest, run: str, step: int, lease: Lease) -> Record:
    """Set aside the weights of a run from a step on and their exports, and record that.

    The record comes first, then the newest step: a process that dies in between leaves the weights of `step`, which are
    made again with other bits and lead here once more.

    Args:
        manifest: the records.
        run: the run's name.
        step: the first step that came out with other bits.
        lease: checked before each change.
    """
    weights = list(_from_step(manifest, run, step))
    names = manifest.names("train", (run, "weights"))
    kept = [name for name in names if step_number(name) < step]
    key = (run, "set-aside", f"{step_name(step)}-{digest_of([record.content for record in weights])[:8]}")
    before = {"weights": manifest.get("train", (run, "weights", kept[-1]), "run verify").content} if kept else {}
    given_up = {record.key[-1]: record.content for record in weights}
    record = manifest.publish(
        make_record(
            "train/set-aside", key, config=weights[0].config, inputs=before, files=[],
            facts={"step": step, "reason": REASON, "weights": given_up},
        )
    )  # fmt: skip
    workspace = manifest.workspace
    for one in reversed(weights):
        number = step_number(one.key[-1])
        lease.check()
        exported = manifest.find("export", (run, f"checkpoint-{number}"))
        if exported is not None:
            set_aside(manifest, workspace.export(run, number), workspace.exports_set_aside(run), REASON, exported)
        set_aside(manifest, workspace.weights(run, number), workspace.set_aside(run), REASON, one)
    return record


def _from_step(manifest: Manifest, run: str, step: int) -> Iterator[Record]:
    """The recorded weights of a run from a step on, in order."""
    for name in manifest.names("train", (run, "weights")):
        if step_number(name) >= step:
            yield manifest.get("train", (run, "weights", name), "run the same command again")
