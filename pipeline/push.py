"""exported checkpoints -> their revisions on the Hub, and models.json: the published runs of the experiment."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mistral.config import Experiment
from mistral.errors import EnvironmentProblem, Findings, ManifestError
from mistral.manifest import Manifest, Record
from mistral.numbers import counted
from mistral.pace import Pace
from mistral.progress import Progress
from mistral.registry import write_registry
from mistral.workspace import Workspace
from pipeline.context import Context
from pipeline.export import export, refuse

if TYPE_CHECKING:  # a mistake in the config is told before the libraries are loaded
    from mistral.publishing import Outcome, Publisher, Site
    from mistral.remote import Hub


@dataclass(frozen=True)
class PushSummary:
    """What was published; revisions are named `ORG/<run>@checkpoint-N`."""

    pushed: tuple[str, ...]
    already: int
    registry: str

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def as_text(self) -> str:
        """For people."""
        return f"published {counted(len(self.pushed), 'revisions')}, {self.already} already there; see {self.registry}"


def export_and_push(context: Context, seeds: Sequence[str], steps: Sequence[int], public: bool) -> PushSummary:
    """Export what is not exported yet, then publish.

    Raises:
        as `export` and `push`; a checkpoint that is refused holds no other one back.
    """
    require_destination(context.experiment)
    refuse(context.experiment, context.manifest, seeds)
    for seed in context.experiment.choose_seeds(seeds):
        withdraw_others(context, seed)
    refused = ""
    try:
        summary = export(context.experiment, context.workspace, context.progress, seeds=seeds, steps=steps)
        context.progress.say(summary.as_text())
    except Findings as error:
        refused = f"{error}\n"
    try:
        done = push(context.experiment, context.workspace, context.progress, seeds=seeds, steps=steps, public=public)
    except Findings as error:
        raise Findings(f"{refused}{error}") from None
    if refused:
        raise Findings(f"{refused}{done.as_text()}")
    return done


def withdraw_others(context: Context, seed: str) -> None:
    """Take back what was exported for another organization or in another dtype, so that it is exported again."""
    from mistral.hub import card_config, withdraw_export
    from mistral.publishing import revisions

    run = context.experiment.run_name(seed)
    recorded = revisions(context.manifest, run)
    others = [record for record in recorded if record.config != card_config(context.experiment)]
    if others:
        chosen = context.experiment.export
        context.progress.say(
            f"{run}: exporting {counted(len(others), 'checkpoints')} again, whose cards do not name "
            f"{chosen.organization}, or whose tensors are not {chosen.dtype}"
        )
    for record in others:
        withdraw_export(context.manifest, record)


def push(
    experiment: Experiment,
    workspace: Workspace,
    progress: Progress,
    *,
    seeds: Sequence[str] = (),
    steps: Sequence[int] = (),
    public: bool = False,
) -> PushSummary:
    """Publish every exported checkpoint that is chosen and not on the Hub yet, run by run.

    Args:
        experiment: what was trained.
        workspace: where it lies.
        progress: receives revisions.
        seeds: names of seeds; all unless given.
        steps: only these steps; all exported ones unless given.
        public: whether everyone may read the repositories.

    Raises:
        ConfigError: no organization is named, or there is no such seed.
        EnvironmentProblem: there is no token, or the Hub refuses a call or cannot be reached.
        ManifestError: a run has no exported checkpoint, or some were exported for another organization or dtype.
        Findings: some revisions were refused; lists them.
    """
    token = require_destination(experiment)
    manifest = Manifest(workspace)
    chosen = experiment.choose_seeds(seeds)
    recorded = {seed: exported(experiment, manifest, seed, steps) for seed in chosen}
    recorded = {seed: found for seed, found in recorded.items() if found}  # runs without exports are skipped
    if not recorded or (seeds and len(recorded) < len(chosen)):
        names = ", ".join(experiment.run_name(seed) for seed in chosen if seed not in recorded)
        raise ManifestError(
            f"{experiment.name}: found no exported folder of {names}, expected some\n"
            f"  run: {experiment.command('export', workspace.root)}"
        )
    from mistral.publishing import Publisher, repositories
    from mistral.remote import Hub

    hub = Hub(token, progress)
    pace = Pace(workspace.turns(), experiment.export.commits_per_hour, progress)
    publisher = Publisher(hub, manifest, pace, progress, experiment.export.tag)
    places = repositories(experiment, recorded)
    sites = [publisher.look(places[seed], recorded[seed], steps) for seed in recorded]
    progress.say(estimate(publisher, sites, pace))
    outcomes = [publisher.publish(site, public) for site in sites]
    refused = [line for outcome in outcomes for line in outcome.refused]
    pushed = tuple(f"{outcome.repository}@{branch}" for outcome in outcomes for branch in outcome.pushed)
    if refused:
        raise Findings(f"found revisions that cannot be published, {len(pushed)} were:\n" + "\n".join(refused))
    path = workspace.registry(experiment.name)
    write_registry(path, registry(experiment, manifest, hub, outcomes, public))
    return PushSummary(pushed, sum(outcome.already for outcome in outcomes), workspace.relative(path))


def estimate(publisher: "Publisher", sites: Sequence["Site"], pace: Pace) -> str:
    """How much there is to publish and how long that takes at least."""
    total, places = sum(len(site.chosen) for site in sites), f"{len(sites)} repositories"
    unproven = [(site, record) for site in sites for record in publisher.unproven(site)]
    if not unproven:
        return f"all {total:,} revisions of {places} are on the Hub, as far as receipts tell"
    new = [record for site, record in unproven if record.key[-1] not in site.refs.branches]
    size = sum(entry.bytes for record in new for entry in record.files)
    commits = len(new) + len({record.key[0] for record in new})  # and main of each run
    hours = pace.seconds_until(commits) / 3600
    compared = f", and {len(unproven) - len(new):,} to compare" if len(unproven) > len(new) else ""
    return (
        f"to publish: {len(new):,} of {total:,} revisions in {places}: {size / 1e9:,.2f} GB{compared}\n"
        f"  this takes at least {hours:,.1f} h at {pace.commits_per_hour:,} commits an hour (export.commits_per_hour)"
    )


def exported(experiment: Experiment, manifest: Manifest, seed: str, steps: Sequence[int]) -> list[Record]:
    """The exported checkpoints of a seed, by number.

    Raises:
        ManifestError: there is none of a step that was asked for, or some are for another organization or dtype.
    """
    from mistral.hub import card_config
    from mistral.publishing import revisions

    run = experiment.run_name(seed)
    found = revisions(manifest, run)
    missing = sorted(set(steps) - {record.facts["step"] for record in found})
    if missing and found:
        names = ", ".join(f"{run}/checkpoint-{step}" for step in missing)
        raise ManifestError(
            f"{experiment.name}: found no exported folder of {names}, expected it to be recorded\n"
            f"  run: {experiment.command('export', manifest.workspace.root, '--seed', seed)}"
        )
    others = [record.key[-1] for record in found if record.config != card_config(experiment)]
    if others:
        raise ManifestError(
            f"{run}: found {len(others)} checkpoints that were exported for another export.organization or in another "
            f"export.dtype ({others[0]}), expected {experiment.export.organization} and {experiment.export.dtype}, as "
            "their model cards tell these\n"
            f"  run: {experiment.command('export', manifest.workspace.root, '--push')}"
        )
    return found


def registry(
    experiment: Experiment, manifest: Manifest, hub: "Hub", outcomes: Sequence["Outcome"], public: bool
) -> dict[str, Any]:
    """What models.json tells of the cohort, whose collection then has all its published runs."""
    from mistral.publishing import collect

    models, organization = published_models(experiment, manifest, hub, outcomes), experiment.export.organization
    collection = collect(hub, experiment, [f"{organization}/{model['run']}" for model in models], public)
    return {
        "experiment": experiment.name,
        "organization": organization,
        "collection": collection.url if collection else None,
        "collection_public": (public or not collection.private) if collection else None,
        "models": models,
    }


def published_models(
    experiment: Experiment, manifest: Manifest, hub: "Hub", outcomes: Sequence["Outcome"]
) -> list[dict[str, Any]]:
    """Each published run of the experiment as models.json tells it, with the commit of each of its revisions."""
    from mistral.publishing import repositories, revisions

    models, tag = [], experiment.export.tag
    known = {outcome.repository: (outcome.refs, outcome.private) for outcome in outcomes}
    for seed, repository in repositories(experiment, experiment.seeds).items():
        if repository not in known and (about := hub.about(repository)) and (found := hub.refs(repository)):
            known[repository] = (found, about.private)
        if repository not in known:
            continue
        refs, private = known[repository]
        heads = refs.branches
        names = [record.key[-1] for record in revisions(manifest, experiment.run_name(seed)) if record.key[-1] in heads]
        if names:
            models.append(
                {
                    "run": experiment.run_name(seed),
                    "seed": {"name": seed, **experiment.seeds[seed].model_dump()},
                    "url": hub.url(repository),
                    "public": not private,
                    "main": names[-1],
                    "tag": tag if tag in refs.tags else None,
                    "revisions": {name: heads[name] for name in names},
                }
            )
    return models


def require_destination(experiment: Experiment) -> str:
    """The token, if there is a place to publish to and one may write there.

    Raises:
        ConfigError: no organization is named, or the Hub could not have a repository of that name.
        EnvironmentProblem: there is no token, or none that can be sent.
    """
    from mistral.connection import token_from_environment
    from mistral.publishing import repositories

    repositories(experiment, experiment.seeds)
    token = token_from_environment()
    if not token:
        raise EnvironmentProblem(
            "HF_TOKEN: found none, expected a token of the Hugging Face Hub that may write to "
            f"{experiment.export.organization}\n  make one at https://huggingface.co/settings/tokens and export it"
        )
    return token
