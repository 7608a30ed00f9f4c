"""What a report consists of, before it is Markdown or HTML: sections of text, tables and figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Text:
    """A paragraph or more, in Markdown; users' words in it have gone through `wording.escaped`."""

    markdown: str


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, a note that is set smaller (an interval), whether it is bold, and what it says."""

    text: str
    note: str = ""
    strong: bool = False
    tone: Literal["", "better", "worse"] = ""


@dataclass(frozen=True)
class Table:
    """A table, of plain text.

    Attributes:
        header: the columns' titles.
        rows: of cells, or of text alone.
        named_by: how many columns at the left say what a row is about.
        summary: what stands in its place until it is opened; without it, it is open.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    named_by: int = 1
    summary: str = ""


@dataclass(frozen=True)
class Picture:
    """An SVG with the palette's variables in it (`figures.picture` makes them), and what it shows, in words."""

    svg: str
    description: str


@dataclass(frozen=True)
class Figure:
    """One or several pictures beside each other, as the width allows, under one caption (plain text).

    `name` is the files' name, `NAME-1.svg` and so on if there are several, and must be unique in an experiment.
    """

    name: str
    pictures: Sequence[Picture]
    caption: str

    @property
    def files(self) -> list[str]:
        """The pictures' file names."""
        if len(self.pictures) == 1:
            return [f"{self.name}.svg"]
        return [f"{self.name}-{number}.svg" for number in range(1, len(self.pictures) + 1)]


Block = Text | Table | Figure


@dataclass(frozen=True)
class Section:
    """A titled part of an experiment's report; `slug` is its name in links, unique in the experiment."""

    slug: str
    title: str
    blocks: Sequence[Block]
