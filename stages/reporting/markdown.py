"""The report as Markdown, with its pictures as files."""

from pathlib import Path

from stages.reporting.blocks import Block, Cell, Figure, Table, Text
from stages.reporting.experiment import Experiment
from stages.reporting.palette import standalone
from stages.reporting.wording import UNBROKEN, escaped


def write_markdown(experiment: Experiment, out: Path) -> None:
    """Write `report.md` and its pictures into a directory."""
    parts = [f"# {escaped(experiment.title)}", *([experiment.introduction] if experiment.introduction else [])]
    for section in experiment.sections:
        parts += [f"## {escaped(section.title)}", *map(_block, section.blocks)]
        for figure in section.blocks:
            if isinstance(figure, Figure):
                for file, picture in zip(figure.files, figure.pictures, strict=True):
                    (out / file).write_text(standalone(picture.svg), encoding="utf-8")
    (out / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return block.markdown
    if isinstance(block, Table):
        title = f"{escaped(block.summary)}:\n\n" if block.summary else ""
        return title + markdown_table(block)
    pictures = "\n".join(
        f"![{escaped(picture.description)}]({file})" for file, picture in zip(block.files, block.pictures, strict=True)
    )
    return f"{pictures}\n\n{escaped(block.caption)}"


def markdown_table(table: Table) -> str:
    """A table in GitHub's notation."""
    lines = [[*map(escaped, table.header)], ["---" for _ in table.header], *([*map(_cell, row)] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return escaped(cell)
    text = f"**{escaped(cell.text)}**" if cell.strong else escaped(cell.text)
    return f"{text}{UNBROKEN}{escaped(cell.note)}" if cell.note else text
