"""The report as one HTML page of one or several experiments, which needs nothing beside it: no script, no fetch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from stages.reporting.blocks import Block, Cell, Figure, Section, Table, Text
from stages.reporting.experiment import Experiment
from stages.reporting.figures import inline
from stages.reporting.palette import declarations
from stages.reporting.wording import UNBROKEN


@dataclass(frozen=True)
class _Part:
    """A section or an experiment, ready for the template: `anchor` is its id, `body` its HTML."""

    anchor: str
    title: str
    body: Markup
    parts: Sequence["_Part"] = ()


def page(title: str, experiments: Sequence[Experiment]) -> str:
    """The page's HTML.

    Args:
        title: of the page.
        experiments: at least one; each has its own part, with ids that no other part has.
    """
    environment = Environment(
        loader=PackageLoader("stages.reporting"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    anchors = _anchors([experiment.title for experiment in experiments])
    parts = [
        _Part(
            anchor,
            experiment.title,
            _markdown(experiment.introduction),
            [_section(section, anchor) for section in experiment.sections],
        )
        for anchor, experiment in zip(anchors, experiments, strict=True)
    ]
    return environment.get_template("report.html.jinja").render(
        title=title,
        experiments=parts,
        light=Markup(declarations(dark=False)),
        dark=Markup(declarations(dark=True)),
    )


def _anchors(titles: Sequence[str]) -> list[str]:
    """An id per title: its words, and a number where another has the same."""
    found: list[str] = []
    for title in titles:
        words = "-".join(re.findall(r"[a-z0-9]+", title.lower())) or "experiment"
        number = 1
        while (anchor := words if number == 1 else f"{words}-{number}") in found:
            number += 1
        found.append(anchor)
    return found


def _section(section: Section, experiment: str) -> _Part:
    # Two hyphens: an anchor of an experiment has none, so none can be another's section.
    anchor = f"{experiment}--{section.slug}"
    body = Markup("\n").join(_block(block, f"{anchor}-{number}") for number, block in enumerate(section.blocks))
    return _Part(anchor, section.title, body)


def _block(block: Block, anchor: str) -> Markup:
    if isinstance(block, Text):
        return _markdown(block.markdown)
    if isinstance(block, Table):
        return html_table(block)
    return _figure(block, anchor)


def _markdown(text: str) -> Markup:
    """HTML of Markdown in which HTML is text, and pictures, which would be fetched, are not shown."""
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").disable("image").render(_typeset(text)))


def _typeset(text: str) -> str:
    return text.replace(" %", f"{UNBROKEN}%")


def _figure(figure: Figure, anchor: str) -> Markup:
    pictures = [
        Markup('<div class="picture">{}</div>').format(
            Markup(inline(picture.svg, f"{anchor}-{i}", picture.description))
        )
        for i, picture in enumerate(figure.pictures)
    ]
    return Markup('<figure>\n<div class="pictures">{}</div>\n<figcaption>{}</figcaption>\n</figure>').format(
        Markup("\n").join(pictures), _typeset(figure.caption)
    )


def html_table(table: Table) -> Markup:
    """A table's HTML; one with a summary is closed until it is opened, which takes no script."""
    words = {
        position
        for row in table.rows
        for position, cell in enumerate(row)
        if isinstance(cell, str) and re.search("[a-zA-Z]{3}", cell)
    }
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(_class("words" if position in words else ""), title)
        for position, title in enumerate(table.header)
    )
    rows = Markup("\n").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                _cell(cell, position < table.named_by, position in words) for position, cell in enumerate(row)
            )
        )
        for row in table.rows
    )
    body = Markup(
        '<div class="scroll" tabindex="0"><table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table></div>'
    ).format(head, rows)
    if not table.summary:
        return body
    return Markup("<details>\n<summary>{}</summary>\n{}\n</details>").format(table.summary, body)


def _cell(cell: Cell | str, names_row: bool, is_words: bool) -> Markup:
    if isinstance(cell, str):
        tag, kind = ("th", Markup(' scope="row"')) if names_row else ("td", _class("words" if is_words else ""))
        return Markup("<{0}{1}>{2}</{0}>").format(tag, kind, cell)
    content = Markup("<strong>{}</strong>").format(cell.text) if cell.strong else escape(cell.text)
    for part in cell.note.split(" ") if cell.note else ():  # at its breaking spaces only
        content += Markup(" <small>{}</small>").format(part)
    return Markup("<td{}>{}</td>").format(_class(cell.tone), content)


def _class(name: str) -> Markup:
    return Markup(' class="{}"').format(name) if name else Markup("")
