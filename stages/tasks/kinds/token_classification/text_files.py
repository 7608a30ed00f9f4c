"""Tagged sentences as plain text has them: `word/tag` tokens, or a word a line."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd

from stages.running.errors import InputError
from stages.tasks.table_files import Table, TableFile, in_parts, text_lines

Token = tuple[str, str]  # word, tag
Sentence = tuple[int, list[Token]]  # the line that it begins in


def slashed(file: Path, words: str, tag: str) -> TableFile:
    """The sentences of a file that has one a line, of tokens `word/tag`; lines without a token do not count.

    A token's last slash is what separates.

    Args:
        file: plain text, perhaps compressed (.gz).
        words: what the column of words is to be called.
        tag: what the column of tags is to be called.

    Raises:
        InputError: there is no such file, it is no text, or a token has no tag.
    """

    def sentences() -> Iterator[Sentence]:
        for number, line in text_lines(file):
            if tokens := line.split():
                yield number, [_token(token, file, number) for token in tokens]

    return TableFile(file, lambda: _tables(file, sentences(), words, tag))


def one_a_line(file: Path, columns: Sequence[str], words: str, tag: str) -> TableFile:
    """The sentences of a file that has a word a line, and lines of white space alone between sentences.

    Args:
        file: plain text, perhaps compressed (.gz).
        columns: what the cells of a line are called, which tabs separate, or white space in a line without a tab.
        words: which of them has the word.
        tag: which of them has its tag.

    Raises:
        InputError: there is no such file, it is no text, or a line has another number of cells.
    """
    for name in (words, tag):
        if name not in columns:
            raise InputError(f"{file}: has no column {name!r}; `columns` names {', '.join(columns)}")
    at = columns.index(words), columns.index(tag)

    def sentences() -> Iterator[Sentence]:
        for filled, lines in groupby(text_lines(file), key=lambda line: bool(line[1].strip())):
            if filled:
                found = [(number, _cells(line, columns, file, number)) for number, line in lines]
                yield found[0][0], [(cells[at[0]], cells[at[1]]) for _, cells in found]

    return TableFile(file, lambda: _tables(file, sentences(), words, tag))


def _token(token: str, file: Path, line: int) -> Token:
    word, _, tag = token.rpartition("/")
    if not word or not tag:
        raise InputError(f"{file}: line {line}: {token!r} is no word with a tag; write it as word/tag")
    return word, tag


def _cells(line: str, columns: Sequence[str], file: Path, number: int) -> list[str]:
    cells = line.split("\t") if "\t" in line else line.split()
    if len(cells) != len(columns):
        raise InputError(
            f"{file}: line {number}: has {len(cells)} cells, and not {len(columns)} ({', '.join(columns)}); separate "
            "them by tabs, and name them all in `columns`"
        )
    return cells


def _tables(file: Path, sentences: Iterator[Sentence], words: str, tag: str) -> Iterator[Table]:
    """A row for each sentence, some at a time; its index is the line that the sentence begins in."""
    for found in in_parts(sentences):
        columns = {
            words: [[word for word, _ in tokens] for _, tokens in found],
            tag: [[own for _, own in tokens] for _, tokens in found],
        }
        rows = pd.DataFrame(columns, pd.Index([number for number, _ in found], dtype="int64"))
        yield Table(rows, file, lambda row: f"line {row}")
