"""steps that were asked for and are not recorded -> what to tell: the nearest ones there are, or how to make them."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from mistral.config import Experiment

NEAR = 3  # on each side of a step


def nearest(steps: Iterable[int], wanted: int) -> list[int]:
    """The steps closest to one, a few below and a few above, ascending."""
    known = sorted(steps)
    below, above = [step for step in known if step < wanted], [step for step in known if step > wanted]
    return [*below[-NEAR:], *above[:NEAR]]


def advice(
    experiment: Experiment, recorded: Mapping[str, Collection[int]], absent: Sequence[tuple[str, int]], train: str
) -> str:
    """What to do about steps without weights.

    Args:
        experiment: whose schedule says which steps are kept.
        recorded: of each seed, the steps that are.
        absent: seed and step of what is not.
        train: the command that trains.
    """
    scheduled, lines = set(experiment.scheduled_steps()), []
    for step in dict.fromkeys(step for _, step in absent if step not in scheduled):
        found = nearest(set().union(*(recorded[seed] for seed, other in absent if other == step)), step)
        near = nearest(scheduled, step)
        told = f"recorded near it: {_listed(found)}" if found else f"scheduled near it: {_listed(near)}"
        lines.append(f"  step {step} is not in checkpoints.schedule; {told}")
    if any(step in scheduled for _, step in absent):
        lines.append(f"  run: {train}")
    return "\n".join(lines)


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))
