"""The promises of the repository itself: configs that load, versions pinned in one place, scripts that stop."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from mistral.config import load_cluster, load_experiment

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"[\w\]]=" r"=\d")  # in two parts, so that this line is no pin itself
STRICT = "set -euo pipefail"


def repository_files() -> list[Path]:
    """Every file that is, or is about to be, under version control."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str:
    """The text of a file; empty for pictures and the like."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def is_shell_script(path: Path) -> bool:
    first = text_of(path).partition("\n")[0]
    return path.suffix in (".sh", ".sbatch") or re.match(r"#!.*\b(ba|da)?sh\b", first) is not None


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.y*ml")), ids=lambda path: path.stem)
def test_every_config_loads_under_its_own_name(path):
    load = {"experiments": load_experiment, "clusters": load_cluster}[path.parent.name]
    assert load(str(path)).name == path.stem


def test_versions_are_pinned_in_environments_only():
    pinned = [path for path in repository_files() if PIN.search(text_of(path))]
    assert [path for path in pinned if path.relative_to(ROOT).parts[0] != "environments"] == []
    assert pinned, "the constraints file pins versions"


def test_every_shell_script_stops_at_the_first_failure():
    scripts = [path for path in repository_files() if is_shell_script(path)]
    assert [path for path in scripts if STRICT not in text_of(path).splitlines()] == []
    assert ROOT / ".ci" / "run" in scripts


@pytest.mark.parametrize("command", ["start", "stop", "status", "env"])
def test_the_development_cluster_takes_no_folder_that_others_own_or_may_write_into(tmp_path, command):
    def refusal(folder: Path) -> str:
        line = [ROOT / "slurm" / "devcluster.sh", command]
        environment = {**os.environ, "DEVCLUSTER_DIR": str(folder), "DEVCLUSTER_NAME": "none"}
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stdout
        return done.stderr

    for number, mode in enumerate((0o777, 0o1777, 0o775)):
        folder = tmp_path / str(number)
        folder.mkdir()
        folder.chmod(mode)
        assert f"{folder}: found mode {mode:o}, expected a folder that only its owner may write into" in refusal(folder)
    file = tmp_path / "file"
    file.touch()
    assert "expected a folder" in refusal(file)
    if os.geteuid() == 0:  # only root can make what is another user's
        foreign, link = tmp_path / "foreign", tmp_path / "link"
        foreign.mkdir()
        link.symlink_to(tmp_path / "nowhere")
        for path in (foreign, link):
            os.chown(path, 65534, 65534, follow_symlinks=False)
            assert f"{path}: found a folder or link of user nobody, expected none or our own" in refusal(path)
        assert list(foreign.iterdir()) == []


def test_the_readme_names_every_module_and_nothing_that_is_not_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set()
    for row in re.findall(r"^\| (`.*?) \|", text.partition("## Where things are")[2], flags=re.M):
        names = re.findall(r"`([^`]+)`", row)
        folder = names[0].rpartition("/")[0]
        named |= {name if "/" in name else f"{folder}/{name}" for name in names}
    assert [name for name in named if not (ROOT / name).exists()] == []
    modules = {f"{folder}/{path.name}" for folder in ("mistral", "slurm") for path in (ROOT / folder).glob("[a-z]*.py")}
    assert modules - named == set()


PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
# Options that pages name which are not ours: those of Slurm, pip and containers, and of scripts of this repository.
FOREIGN = {"--array", "--dependency", "--gpus-per-node", "--gres", "--mem", "--no-deps", "--cpus-per-task", "--time"}
FOREIGN |= {"--gpus", "--ipc", "--nv"}


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_are_ones_that_exist(page):
    import shlex

    from pipeline.cli import cli

    text = (ROOT / page).read_text(encoding="utf-8")
    commands = re.findall(r"^    mistral-pipeline (.*?)(?:#.*)?$", text, flags=re.M)
    assert len(commands) >= {"README.md": 6, "docs/operators.md": 12}.get(page, 0)
    for line in commands:
        name, *arguments = shlex.split(line)
        cli.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES)
def test_the_options_that_a_page_names_are_ones_that_exist(page):
    from pipeline.cli import cli

    text = (ROOT / page).read_text(encoding="utf-8")
    known = {name: {o for p in command.params for o in p.opts} | {"--help"} for name, command in cli.commands.items()}
    every = set().union(*known.values(), FOREIGN)
    for span in re.findall(r"`([^`\n]+)`", text):
        words = span.split()
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if words[0] == "mistral-pipeline" and words[1:] and words[1].islower():
            assert set(words[1].split("|")) <= set(known), span
            assert options <= set().union(*(known[name] for name in words[1].split("|"))), span
        elif words[0] in known:
            assert options <= known[words[0]], span
        elif words[0].startswith("--"):
            assert options <= every, span


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page):
    for link in re.findall(r"\]\(([^):\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", text_of(target), flags=re.M) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings], (
            link
        )


def test_the_targets_of_the_readme_are_ones_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"^    make (\w+)", text, flags=re.M)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == ["quickstart", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_page_of_the_command_line_is_what_help_says():
    code = "import runpy; print(runpy.run_path('docs/cli_reference.py')['reference'](), end='')"
    command = [sys.executable, "-c", code]  # in a process of its own: click keeps what other tests made of a command
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == told, "found an old docs/cli.md, expected what --help says now; run: make docs"
    assert "docs/cli.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def unpacked_wheel(sources: Path, target: Path) -> Path:
    """Build a wheel from a copy of the repository; returns the folder with what is in it."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(target), str(sources)], check=True)
    [built] = target.glob("*.whl")
    zipfile.ZipFile(built).extractall(target / "unpacked")
    return target / "unpacked"


def copied(sources: Path, only: list[str]) -> Path:
    """A folder to which files of the repository were copied: those below some of its files and folders."""
    for path in repository_files():
        inner = path.relative_to(ROOT)
        if not only or {str(inner), inner.parts[0]} & set(only):
            (sources / inner).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, sources / inner)
    return sources


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel of this repository is unpacked."""
    return unpacked_wheel(copied(tmp_path_factory.mktemp("sources"), []), tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_module_and_config(wheel):
    for folder in ("mistral", "pipeline", "slurm"):
        for path in (ROOT / folder).rglob("*.py"):
            assert (wheel / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert (wheel / "mistral" / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_an_installed_package_knows_its_experiments_by_name_wherever_it_is_called(wheel, tmp_path):
    command = [sys.executable, "-m", "pipeline.cli", "preprocess", "quickstart", "--set", "data.source.glob=none"]
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "found no file that matches none" in done.stderr  # the experiment was read, and its corpus looked for
    code = "from mistral.config import find_config as f; print(f('quickstart', 'experiments'), f('local', 'clusters'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    conf = wheel / "mistral" / "conf"
    assert done.stdout.split() == [str(conf / "experiments/quickstart.yaml"), str(conf / "clusters/local.yaml")]


# --- environments -----------------------------------------------------------------------------------------------

RECIPES = ("environments/conda.yaml", "environments/Dockerfile", "environments/apptainer.def")


def copied_by_image(recipe: str) -> list[str]:
    """What the recipe of an image copies from the repository, each to the same place below one folder."""
    text = (ROOT / recipe).read_text(encoding="utf-8")
    if recipe.endswith("Dockerfile"):
        lines = [line.split()[1:] for line in text.splitlines() if line.startswith("COPY ")]
        assert all(target in ("./", *sources) for *sources, target in lines)
        return [source for *sources, _ in lines for source in sources]
    pairs = [line.split() for line in re.findall(r"^%files\n((?: .*\n)+)", text, flags=re.M)[0].splitlines()]
    assert all(target == f"/opt/mistral-pipeline/{source}" for source, target in pairs)
    return [source for source, _ in pairs]


def pip_installs(recipe: str) -> list[list[str]]:
    """The arguments of each `pip install` in the recipe of an image."""
    text = (ROOT / recipe).read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split() for line in re.findall(r"python -m pip install (.*)", text)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_pins_no_package_itself(recipe):
    assert not re.search(r"[\w\]] *[=~<>]=", (ROOT / recipe).read_text(encoding="utf-8"))


@pytest.mark.parametrize("recipe", RECIPES[1:])
def test_an_image_is_installed_under_the_constraints_from_what_it_copies(recipe, wheel, tmp_path):
    sources = copied_by_image(recipe)
    project, data = pip_installs(recipe)
    for arguments in (project, data):
        assert arguments[arguments.index("--constraint") + 1] == "environments/constraints.txt"
    assert project[-1] == "."
    assert data[-3:] == ["--no-deps", "--requirement", "environments/data-packages.txt"]
    (tmp_path / "sources").mkdir()
    image = copied(tmp_path / "sources", sources)
    assert sorted(path.name for path in image.iterdir()) == sorted(sources), "each of them is in the repository"
    built = unpacked_wheel(image, tmp_path / "wheel")
    assert {path.relative_to(built) for path in built.rglob("*")} == {p.relative_to(wheel) for p in wheel.rglob("*")}


def test_docker_is_sent_what_it_copies_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    everything, *kept, compiled = [line for line in lines if not line.startswith("#")]
    assert (everything, compiled) == ("*", "**/__pycache__")
    assert sorted(kept) == sorted(f"!{source}" for source in copied_by_image("environments/Dockerfile"))


def test_the_environment_of_conda_is_installed_under_the_constraints():
    recipe = ROOT / "environments" / "conda.yaml"
    told = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    *names, last = told["dependencies"]
    assert names == ["python=3.11", "pip"]
    options = dict(line.split() for line in last["pip"])  # paths start from the folder of the file
    assert (recipe.parent / options.pop("--constraint")).resolve() == ROOT / "environments" / "constraints.txt"
    assert (recipe.parent / options.pop("--editable")).resolve() == ROOT
    assert options == {}
    assert "install --no-deps --requirement environments/data-packages.txt" in recipe.read_text(encoding="utf-8")
