"""The house rules that a machine can check: imports go one way, one idea a file, only the command line prints.

IMPORTS mirrors the layout of the design: what each module may import inside the project. A module that is missing from
it, or an import that is not in its row, fails. Change a row together with the design, and say why in the commit.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mistral", "pipeline", "slurm")
ALL_OF_MISTRAL = "mistral.*"

IMPORTS = {
    "mistral": "",
    "mistral.asking": "connection errors progress refusals waiting",
    "mistral.audit": "comparison manifest numbers progress publishing remote tensorfiles",
    "mistral.batches": "config errors order shards",
    "mistral.checkpoints": "config engine errors files giveup lease manifest setaside workspace",
    "mistral.clusters": "section",
    "mistral.cohort": "config drift errors extension files manifest provenance",
    "mistral.comparison": "manifest remote",
    "mistral.config": "clusters configerrors datasections errors evaluationsets files section sections sizes yamltext",
    "mistral.configerrors": "section",
    "mistral.connection": "errors",
    "mistral.corpus": "config errors files hubsource progress",
    "mistral.datasections": "files section",
    "mistral.datalineage": "deduplication manifest records",
    "mistral.dataset": "config errors files manifest numbers shards tokens workspace",
    "mistral.deduplication": "config corpus files manifest ordered progress shards splitting",
    "mistral.detokenize": "",
    "mistral.documents": "",
    "mistral.drift": "errors files manifest",
    "mistral.engine": "config model ranks",
    "mistral.errors": "",
    "mistral.evaluation": "config ranks shards windows",
    "mistral.evaluationsets": "datasections section",
    "mistral.evidence": (
        "checkpoints config errors manifest model parity progress provenance records tensorfiles workspace"
    ),
    "mistral.extension": "config manifest schedule workspace",
    "mistral.files": "errors",
    "mistral.giveup": "files lease manifest setaside workspace",
    "mistral.hub": (
        "cohort config drift errors files manifest metrics modelcard parity provenance setaside tensorfiles workspace"
    ),
    "mistral.hubsource": "config connection errors files progress refusals waiting",
    "mistral.lease": "errors files",
    "mistral.kinds": "workspace",
    "mistral.lineage": (
        "config datalineage dataset drift extension files kinds manifest records tensorfiles twins workspace"
    ),
    "mistral.lines": "corpus datasections documents errors passthrough",
    "mistral.loop": "batches checkpoints config engine model randomness run schedule shards windows",
    "mistral.manifest": "errors files kinds provenance workspace",
    "mistral.metrics": "errors files numbers",
    "mistral.model": "config randomness",
    "mistral.modelcard": "config drift manifest yamltext",
    "mistral.numbers": "",
    "mistral.order": "randomness",
    "mistral.ordered": "",
    "mistral.packing": "config corpus documents files ordered shards splitting tokens",
    "mistral.pace": "files progress waiting",
    "mistral.parity": "errors manifest",
    "mistral.passthrough": "datasections documents errors files",
    "mistral.peek": "config corpus packing splitting tokens vocabulary workspace",
    "mistral.progress": "",
    "mistral.provenance": "mistral",
    "mistral.publishing": "comparison config errors manifest pace progress receipts remote tensorfiles workspace",
    "mistral.randomness": "",
    "mistral.ranks": "errors",
    "mistral.readers": "corpus datasections documents errors hubsource lines passthrough",
    "mistral.receipts": "files manifest",
    "mistral.records": "config errors files kinds manifest workspace",
    "mistral.refusals": "connection",
    "mistral.registry": "files",
    "mistral.remote": "asking connection errors pace progress refusals",
    "mistral.restore": "config drift manifest model parity records tensorfiles workspace",
    "mistral.resume": "checkpoints errors files lease manifest progress restore run setaside workspace",
    "mistral.run": "batches config dataset drift errors files manifest metrics provenance ranks shards workspace",
    "mistral.schedule": "config",
    "mistral.section": "",
    "mistral.sections": "errors section",
    "mistral.setaside": "files manifest workspace",
    "mistral.shards": "errors files",
    "mistral.sizes": "sections",
    "mistral.splitting": "config corpus detokenize documents errors readers",
    "mistral.tensorfiles": "errors manifest",
    "mistral.tokens": "errors files passthrough shards sizes",
    "mistral.training": ALL_OF_MISTRAL,
    "mistral.twins": "manifest records tensorfiles workspace",
    "mistral.units": (
        "config corpus dataset deduplication files manifest ordered packing progress readers shards splitting tokens"
    ),
    "mistral.vocabulary": "config connection errors files passthrough",
    "mistral.waiting": "progress",
    "mistral.windows": "config dataset errors manifest shards tokens workspace",
    "mistral.workspace": "errors files",
    "mistral.yamltext": "errors",
    "pipeline": "",
    "pipeline.clean": f"{ALL_OF_MISTRAL} pipeline.status",
    "pipeline.cli": f"{ALL_OF_MISTRAL} pipeline.* slurm.*",
    "pipeline.cli_inspect": f"{ALL_OF_MISTRAL} pipeline.clean pipeline.options pipeline.reporter "
    "pipeline.restore pipeline.status pipeline.verify slurm.history",
    "pipeline.cli_slurm": f"{ALL_OF_MISTRAL} pipeline.context pipeline.local pipeline.options pipeline.preprocess "
    "pipeline.refusals pipeline.results pipeline.train slurm.*",
    "pipeline.context": ALL_OF_MISTRAL,
    "pipeline.evaluate": f"{ALL_OF_MISTRAL} pipeline.context pipeline.preprocess pipeline.results pipeline.steps",
    "pipeline.export": f"{ALL_OF_MISTRAL} pipeline.context pipeline.local pipeline.steps",
    "pipeline.generate": f"{ALL_OF_MISTRAL} pipeline.context pipeline.steps",
    "pipeline.jobs": f"{ALL_OF_MISTRAL} pipeline.local",
    "pipeline.local": ALL_OF_MISTRAL,
    "pipeline.options": f"{ALL_OF_MISTRAL} pipeline.context pipeline.reporter",
    "pipeline.plan": f"{ALL_OF_MISTRAL} pipeline.context pipeline.local",
    "pipeline.preprocess": f"{ALL_OF_MISTRAL} pipeline.context pipeline.local",
    "pipeline.push": f"{ALL_OF_MISTRAL} pipeline.context pipeline.export",
    "pipeline.refusals": "pipeline.context pipeline.export pipeline.preprocess pipeline.train",
    "pipeline.report": f"{ALL_OF_MISTRAL} pipeline.context",
    "pipeline.reporter": ALL_OF_MISTRAL,
    "pipeline.restore": ALL_OF_MISTRAL,
    "pipeline.results": f"{ALL_OF_MISTRAL} pipeline.context",
    "pipeline.status": f"{ALL_OF_MISTRAL} pipeline.context pipeline.jobs pipeline.local pipeline.results",
    "pipeline.steps": ALL_OF_MISTRAL,
    "pipeline.train": f"{ALL_OF_MISTRAL} pipeline.context pipeline.local",
    "pipeline.verify": f"{ALL_OF_MISTRAL} pipeline.context",
    "slurm": "",
    "slurm.attempt": f"{ALL_OF_MISTRAL} pipeline.local slurm.chain slurm.culprit slurm.queue slurm.rendezvous "
    "slurm.submissions slurm.task",
    "slurm.chain": "",
    "slurm.changes": f"{ALL_OF_MISTRAL} pipeline.context slurm.submissions",
    "slurm.culprit": "errors pipeline.local",
    "slurm.endings": f"{ALL_OF_MISTRAL} slurm.attempt slurm.queue slurm.submissions",
    "slurm.follow": f"{ALL_OF_MISTRAL} slurm.held slurm.queue slurm.submissions",
    "slurm.held": f"{ALL_OF_MISTRAL} slurm.queue slurm.submissions",
    "slurm.history": f"{ALL_OF_MISTRAL} pipeline.jobs slurm.endings slurm.queue slurm.submissions",
    "slurm.lock": f"{ALL_OF_MISTRAL} pipeline.local slurm.submissions",
    "slurm.missing": f"{ALL_OF_MISTRAL} pipeline.context pipeline.export slurm.history slurm.plans slurm.submit",
    "slurm.plans": f"{ALL_OF_MISTRAL} pipeline.context pipeline.export pipeline.preprocess pipeline.train "
    "slurm.attempt slurm.submit",
    "slurm.queue": "errors",
    "slurm.refusals": "errors",
    "slurm.rendezvous": "errors files",
    "slurm.script": f"{ALL_OF_MISTRAL} pipeline.context slurm.chain slurm.queue slurm.submissions",
    "slurm.submissions": f"{ALL_OF_MISTRAL} pipeline.context slurm.queue",
    "slurm.submit": f"{ALL_OF_MISTRAL} pipeline.context slurm.chain slurm.changes slurm.held slurm.lock slurm.queue "
    "slurm.refusals slurm.script slurm.submissions slurm.task",
    "slurm.task": "",
}
# Rows that were written before their files; a row leaves this set when its file arrives.
PLANNED = {
    "pipeline.plan",
    "pipeline.report",
}
HOMES = {  # the only places that may import a library
    "submitit": ("slurm.",),
    "deepspeed": ("mistral.engine", "mistral.checkpoints"),
    "click": ("pipeline.cli", "pipeline.options"),
    "httpx2": ("mistral.asking", "mistral.connection", "mistral.refusals"),
}
PRINTERS = ("pipeline.cli", "pipeline.reporter")
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
LONGEST_FILE, LONGEST_FUNCTION = 330, 60


def module_name(path: Path) -> str:
    """`mistral.config` of mistral/config.py, `mistral` of mistral/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what a file imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            inside = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if base in PACKAGES and name in {*IMPORTS, *MODULES} else base for name in inside)


def allowed(module: str, name: str) -> bool:
    """Whether a module may import another one of the project."""
    for entry in IMPORTS[module].split():
        full = entry if entry.partition(".")[0] in PACKAGES else f"mistral.{entry}"
        if name == full or (full.endswith(".*") and (name == full[:-2] or name.startswith(full[:-1]))):
            return True
    return False


def wrong_imports(module: str, tree: ast.AST) -> list[str]:
    wrong = []
    for name in imported(tree):
        top = name.partition(".")[0]
        homes = HOMES.get(top, (module,))
        if name.startswith(".") or not module.startswith(homes) or (top in PACKAGES and not allowed(module, name)):
            wrong.append(name)
    return wrong


def broken_rules(module: str, tree: ast.AST) -> list[str]:
    """What a file does that only others may do, `line: what`."""
    found = []
    for node in ast.walk(tree):
        what = None
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit", "quit"):
            what = None if module in PRINTERS else f"{ast.unparse(node.func)}()"
        elif isinstance(node, ast.Name) and node.id == "SystemExit":
            what = None if module in PRINTERS else "SystemExit"
        elif isinstance(node, ast.Assert):
            what = "assert"
        elif isinstance(node, ast.ExceptHandler) and catches_everything(node) and not raises_again(node):
            what = "except Exception that goes on"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            what = f"{node.name}() of {lines} lines" if lines > LONGEST_FUNCTION else None
        if what:
            found.append(f"{getattr(node, 'lineno', 0)}: {what}")
    return found


def catches_everything(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)


def raises_again(handler: ast.ExceptHandler) -> bool:
    """Whether the block ends by raising."""
    return isinstance(handler.body[-1], ast.Raise)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_in_the_table_and_imports_only_what_its_row_allows(module):
    assert module in IMPORTS, f"{module} is new: add its row to the design and to this table"
    assert wrong_imports(module, ast.parse(MODULES[module].read_text(encoding="utf-8"))) == []


def test_a_row_without_a_file_is_planned():
    assert set(IMPORTS) - set(MODULES) <= PLANNED


def test_the_table_holds_no_circle():
    left = {module: {name for name in IMPORTS if name != module and allowed(module, name)} for module in IMPORTS}
    while free := [module for module, needs in left.items() if not needs]:
        left = {module: needs - set(free) for module, needs in left.items() if module not in free}
    assert left == {}


def test_the_library_knows_neither_the_commands_nor_slurm():
    for module, row in IMPORTS.items():
        if module.partition(".")[0] == "mistral":
            assert "pipeline" not in row
            assert "slurm" not in row


@pytest.mark.parametrize("module", MODULES)
def test_every_module_keeps_the_house_rules(module):
    text = MODULES[module].read_text(encoding="utf-8")
    assert broken_rules(module, ast.parse(text)) == []
    assert len(text.splitlines()) <= LONGEST_FILE
    assert ast.get_docstring(ast.parse(text)), "the first line of a module names its input and its output"


def test_no_file_has_a_name_that_says_nothing():
    for folder in (*PACKAGES, "tests", "benchmarks"):
        own = [path for path in (ROOT / folder).rglob("*.py") if ".venv" not in path.parts]
        assert [path for path in own if set(path.stem.split("_")) & VAGUE_NAMES] == []


def test_reading_configs_and_records_loads_no_torch():
    """`--help`, `plan` and `status` answer in half a second."""
    code = (
        "import sys, mistral.config, mistral.manifest, mistral.lease; print([m for m in sys.modules if m == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("mistral.errors", "import mistral.files"),
        ("mistral.errors", "from mistral import files"),
        ("mistral.errors", "from mistral.files import sha256_of"),
        ("mistral.errors", "from . import files"),
        ("mistral.training", "import pipeline.cli"),
        ("mistral.training", "def f():\n    from slurm import submit"),
        ("mistral.training", "import deepspeed.comm"),
        ("pipeline.train", "from submitit import AutoExecutor"),
        ("pipeline.train", "from pipeline import export"),
        ("pipeline.local", "import slurm.submit"),
    ],
)
def test_a_wrong_import_is_found(module, text):
    assert wrong_imports(module, ast.parse(text))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("mistral.provenance", "import mistral"),
        ("mistral.training", "from mistral import checkpoints, cohort"),
        ("mistral.engine", "import deepspeed"),
        ("pipeline.cli", "from pipeline.train import train\nfrom mistral import __version__"),
        ("slurm.submit", "import submitit"),
    ],
)
def test_a_right_import_is_let_through(module, text):
    assert wrong_imports(module, ast.parse(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "print(1)",
        "import sys\nsys.exit(1)",
        "raise SystemExit(1)",
        "assert x",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept (ValueError, BaseException) as e:\n    log(e)",
        "try:\n    f()\nexcept:\n    if x:\n        raise\n    g()",
        "def f():\n" + "    x()\n" * 60,
    ],
)
def test_a_broken_house_rule_is_found(text):
    assert broken_rules("mistral.files", ast.parse(text))


@pytest.mark.parametrize(
    "text",
    ["try:\n    f()\nexcept Exception as e:\n    log(e)\n    raise", "def f():\n" + "    x()\n" * 59, "log.print(1)"],
)
def test_a_kept_house_rule_is_let_through(text):
    assert broken_rules("mistral.files", ast.parse(text)) == []
