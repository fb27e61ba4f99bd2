"""workspace -> what is wrong with it: records read, files hashed, lineages followed, the ends of chains recomputed."""

import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import Any

from mistral.config import Experiment
from mistral.errors import ConfigError, PathError, StorageError
from mistral.lineage import contradictions, promises
from mistral.manifest import FileEntry, Manifest, Record
from mistral.metrics import metrics_digest, metrics_problems, numbered_lines
from mistral.numbers import counted
from mistral.progress import Progress
from mistral.records import Records, read_records
from mistral.setaside import names_of
from mistral.workspace import Workspace

HASHERS = 4


@dataclass(frozen=True)
class VerifyReport:
    """What was checked, one line for each problem, what each run can claim, and what was set aside of the runs."""

    problems: list[str]
    promises: dict[str, str]
    set_aside: list[str]
    published: list[str]  # those of the problems that concern the Hub
    records: int
    files: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def as_text(self) -> str:
        """For people."""
        what = f"{counted(self.records, 'records')} and {counted(self.files, 'files')}"
        checked = f"checked {what}, {self.bytes / 1e6:,.1f} MB"
        claims = [f"{run}: can claim {claim}" for run, claim in self.promises.items()]
        aside = [f"set aside, and used by nothing: {path} (see clean --dry-run)" for path in self.set_aside]
        found = counted(len(self.problems), "problems") if self.problems else "no problems"
        return "\n".join([*self.problems, *aside, *claims, f"{checked}: {found}"])

    def advice(self) -> str:
        """What to do about the problems."""
        here = "restore what differs from a copy; docs/operators.md says what can be made again"
        there = "on the Hub remove what differs, which is never overwritten, then run export --push for what is missing"
        if not self.published:
            return here
        if len(self.published) == len(self.problems):
            return f"the files here are as recorded; {there}"
        return f"{here}; {there}"


def verify(
    workspace: Workspace,
    progress: Progress,
    experiment: Experiment | None = None,
    quick: bool = False,
    remote: bool = False,
) -> VerifyReport:
    """Check every file of a workspace, or of one experiment, against its record, and the records against each other.

    Args:
        workspace: what to check.
        progress: receives megabytes, then checkpoints.
        experiment: only its dataset and runs, and against its schedule too; everything unless given.
        quick: compare sizes; hash and recompute nothing.
        remote: compare what the experiment has published as well.

    Raises:
        ConfigError, EnvironmentProblem: what is published cannot be compared.
    """
    manifest = Manifest(workspace)
    published = verify_remote(experiment, workspace, progress) if remote else []
    records, problems = read_records(manifest, experiment)
    if not records.found and not problems:
        name = experiment.name if experiment else "any experiment"
        problems.append(f"{workspace.root}: found no record of {name}, expected some; check --workspace")
    damaged = check_files(manifest, records, progress, quick)
    problems += [*damaged, *strays(records), *contradictions(records, experiment), *check_metrics(records)]
    if not quick:
        from mistral.evidence import recompute  # torch is loaded only where it is needed

        problems += recompute(manifest, records, damaged, progress)
    problems = still_true(manifest, records, problems)
    claims = {run: _claim(run, promise, problems) for run, promise in promises(records).items()}
    files = {entry.path: entry.bytes for record in records.readable() for entry in record.files}
    aside = [name for begun in records.of_kind("train/begin") for name in names_of(workspace, begun.key[0])]
    return VerifyReport(
        [*problems, *published], claims, aside, published, len(records.readable()), len(files), sum(files.values())
    )


def verify_remote(experiment: Experiment | None, workspace: Workspace, progress: Progress) -> list[str]:
    """Compare the repositories of an experiment on the Hub with what was exported; one line for each problem.

    Raises:
        ConfigError: no experiment or no organization is named.
        EnvironmentProblem: the Hub refuses a call, or cannot be reached, or HF_TOKEN holds no token.
    """
    if experiment is None:
        raise ConfigError("found --remote without EXPERIMENT, expected the one that is published; name it")
    from mistral.audit import Audit, uncollected
    from mistral.connection import token_from_environment
    from mistral.publishing import repositories, revisions
    from mistral.registry import published_visibility
    from mistral.remote import Hub

    manifest, token = Manifest(workspace), token_from_environment()
    places = repositories(experiment, experiment.seeds)
    recorded = {seed: revisions(manifest, experiment.run_name(seed)) for seed in places}
    cohort = [record for found in recorded.values() for record in found]
    if not cohort:
        return [f"{experiment.name}: found no exported checkpoint, expected some to compare; run export"]
    hub, chosen = Hub(token, progress), experiment.export
    audit = Audit(hub, manifest, cohort, progress, chosen.tag)
    published = {place: recorded[seed] for seed, place in places.items() if recorded[seed]}
    public = published_visibility(workspace.registry(experiment.name))
    problems: list[str] = []
    for place, found in published.items():
        problems += audit.problems(place, found, public.get(found[0].key[0]))
    if chosen.organization and chosen.collection:
        problems += uncollected(hub, chosen.organization, chosen.collection, published, public.get(""))
    return problems


def still_true(manifest: Manifest, records: Records, problems: list[str]) -> list[str]:
    """Without what concerns states that were withdrawn meanwhile: training keeps the newest ones only."""
    withdrawn = [state for state in records.of_kind("train/state") if not manifest.path("train", state.key).exists()]
    names = ["/".join(state.key) for state in withdrawn]
    return [problem for problem in problems if not any(name in problem for name in names)]


def _claim(run: str, promise: str, problems: list[str]) -> str:
    """What a run can claim; nothing while something is wrong with it."""
    named = re.compile(rf"(?<![\w.-]){re.escape(run)}(?![\w.-])")
    return "nothing until its problems are mended" if any(map(named.search, problems)) else promise


def check_files(manifest: Manifest, records: Records, progress: Progress, quick: bool) -> list[str]:
    """Hash the files of all records, several at a time; one with two names (an export's weights) is read once."""
    groups: dict[tuple[object, ...], list[FileEntry]] = defaultdict(list)
    for entry in (entry for record in records.readable() for entry in record.files):
        groups[(*_identity(manifest, entry), entry.bytes, entry.sha256)].append(entry)
    total = sum(group[0].bytes for group in groups.values())
    progress.start("verify", total / 1e6, "MB")
    problems: set[str] = set()
    pool = ThreadPoolExecutor(HASHERS)
    try:
        jobs = {pool.submit(_damage, manifest, group, quick): group[0].bytes for group in groups.values()}
        for job in as_completed(jobs):
            problems.update(job.result())
            progress.advance(jobs[job] / 1e6)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # do not wait for running reads after Ctrl-C
        progress.finish()
    return sorted(problems)


def _identity(manifest: Manifest, entry: FileEntry) -> tuple[object, ...]:
    try:
        status = manifest.workspace.inside(entry.path).stat()
    except (OSError, PathError, StorageError):
        return (entry.path,)
    return (status.st_dev, status.st_ino)


def _damage(manifest: Manifest, group: list[FileEntry], quick: bool) -> list[str]:
    """What is wrong with one file, for each of its names; that it cannot be read is told as such."""
    empty = Record("", (), "", {}, (), {}, {}, "", "", "")
    try:
        first = manifest.damage(replace(empty, files=(group[0],)), quick)
        return first and manifest.damage(replace(empty, files=tuple(group)), quick)
    except (StorageError, PathError) as error:
        return [f"{group[0].path}: {error}"]


def strays(records: Records) -> Iterator[str]:
    """Files in a checkpoint's or exported folder that no record names: whoever loads the folder may load them."""
    for record in records.readable():
        if record.kind not in ("train/weights", "train/state", "export/checkpoint") or not record.files:
            continue
        named = {entry.path for entry in record.files}
        folder = records.workspace.root / record.files[0].path.rpartition("/")[0]
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            relative = path.relative_to(records.workspace.root).as_posix()
            if path.is_file() and relative not in named and not path.name.startswith("."):
                yield f"{relative}: found a file that no record names, expected only those of its record; remove it"


def check_metrics(records: Records) -> Iterator[str]:
    """Lines of metrics that are damaged, repeated or missing, or are not those that a complete run ended with."""
    for begun in records.of_kind("train/begin"):
        run = begun.key[0]
        path, complete = records.workspace.metrics(run), records.get("train", run, "complete")
        weights = records.of_kind("train/weights", run)
        intervals = {record.facts.get("logging_steps") for record in weights}
        every = intervals.pop() if len(intervals) == 1 else None
        states = records.steps(run, "state")
        durable = [step for step in records.steps(run) if complete or (states and step <= states[-1])]
        problems = metrics_problems(path, every, durable[-1] if durable else 0)
        yield from problems
        recorded = complete.facts.get("metrics") if complete else None
        if recorded and not problems and recorded != metrics_digest(line for _, line in numbered_lines(path) if line):
            yield f"{path}: found other numbers than when {run} was recorded as complete; restore the file"
