"""the command line's own help -> docs/cli.md; `make docs` runs it, and a test compares."""

from pathlib import Path

import click

from pipeline.cli import cli

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 110
HEAD = """# Command line

What each command says for `--help`. This page is generated: change `pipeline/cli.py`, then run `make docs`.
"""


def reference() -> str:
    """The whole page as markdown."""
    top = click.Context(cli, info_name="mistral-pipeline", terminal_width=WIDTH, **cli.context_settings)
    inner = [click.Context(command, parent=top, info_name=name) for name, command in cli.commands.items()]
    return "\n".join([HEAD, *map(section, [top, *inner])])


def section(context: click.Context) -> str:
    """One command's heading and help."""
    return f"## {context.command_path}\n\n```text\n{context.get_help()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
