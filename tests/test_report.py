"""The report stage's files, from small made-up results."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stages.report import write_report
from stages.results.scores import Contributions, Result, Scores, read_scores
from stages.running.errors import InputError
from stages.storage.cards import write_json


def entry(accuracy: float) -> dict[str, float]:
    return {
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.05,
        "accuracy_high": accuracy + 0.05,
        "macro_f1": accuracy - 0.01,
        "examples": 100,
    }


def per_example(**rights: int) -> dict[str, Contributions]:
    return {
        task: {"examples": task, "metric": "accuracy", "values": [1] * right + [0] * (100 - right)}
        for task, right in rights.items()
    }


RESULTS = [
    Result(
        "books",
        "model",
        {"books": entry(0.9), "films": entry(0.7)},
        {
            "task": "reading",
            "method": "finetuned",
            "base": "tiny",
            "examples": 40,
            "epochs": 2,
            "learning_rate": 1e-4,
            "seed": 0,
        },
        per_example=per_example(books=90, films=70),
    ),
    Result(
        "films",
        "model",
        {"films": entry(0.85)},
        {"method": "brought in", "base": "b"},
        per_example=per_example(films=85),
    ),
    Result(
        "both",
        "merge",
        {"books": entry(0.8), "films": entry(0.8)},
        {
            "method": "fisher",
            "options": {"floor": 1e-6, "normalize": "l2"},
            "target": "books",
            "heads": "merge",
            "coefficients": {"books": 0.25, "films": 0.75},
            "models": {
                "books": {"fisher": {"estimator": "exact", "likelihood": "categorical", "examples": 7, "seed": 3}}
            },
        },
        per_example=per_example(books=80, films=80),
    ),
]


def test_tables(tmp_path: Path) -> None:
    write_report(Scores(RESULTS), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| books | model | **90.0**\u00a0(85.0–95.0) | 70.0\u00a0(65.0–75.0) | **80.0** |" in text
    assert "| films | model | – | **85.0**\u00a0(80.0–90.0) | – |" in text  # one task's mean is no mean
    assert "| both | fisher | 0.25 | 0.75 | floor = 1e-06, normalize = l2 | books | merged |" in text
    assert "| books | Fisher | exact | categorical | 7 | 3 |" in text
    assert "| books | reading | finetuned | tiny | 40 | 2 | 0.0001 | – | 0 |" in text
    assert "| both | 0.0 |  |" in text  # the matrix of differences: 10 points lost on one task, 10 won on the other
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 5
    assert pd.read_csv(tmp_path / "means.csv")["mean"].tolist() == [0.8, 0.85, 0.8]


def test_models_that_are_adapters(tmp_path: Path) -> None:
    """The table of models says so, and of which type and rank; without any it has no such column."""
    books, films, *others = RESULTS
    write_report(Scores(RESULTS), tmp_path)
    assert "| base | adapter |" not in (tmp_path / "report.md").read_text()
    trained: dict[str, Any] = {"type": "lora", "rank": 4, "rslora": True, "dora": False, "targets": "all-linear"}
    for adapter, words in (
        (trained, "LoRA, rank 4, rsLoRA"),
        ({"type": "ia3", "targets": None}, "(IA)³"),
        ("theirs", "theirs"),
    ):
        made = replace(books, origin={**books.origin, "adapter": adapter})
        write_report(Scores([made, films, *others]), tmp_path)
        text = (tmp_path / "report.md").read_text()
        assert "| base | adapter |" in text
        assert f"| books | reading | finetuned | tiny | {words} | 40 |" in text
        assert "| films | – | brought in | b | – |" in text


class Page(HTMLParser):
    """The tags, ids and references of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for key, value in attrs if key == "id"]
        self.references += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]


def test_page_is_self_contained(tmp_path: Path) -> None:
    write_report(Scores(RESULTS), tmp_path)
    page = Page()
    text = (tmp_path / "report.html").read_text()
    page.feed(text)
    assert page.tags.count("svg") == 2  # accuracy on two tasks
    assert page.tags.count("table") == 9
    assert {"script", "img", "link", "iframe"}.isdisjoint(page.tags)
    assert all(reference.removeprefix("#") in page.ids for reference in page.references)
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_pictures_show_every_name_and_have_colours_for_light_and_dark(tmp_path: Path) -> None:
    write_report(Scores(RESULTS), tmp_path)
    for number, names in ((1, ["books", "both"]), (2, ["books", "films", "both"])):
        picture = (tmp_path / f"accuracy-{number}.svg").read_text()
        words = "".join(ET.fromstring(picture).itertext())
        assert all(name in words for name in names)
        assert "prefers-color-scheme: dark" in picture
        used = set(re.findall(r"var\((--[a-z0-9-]+)", picture))
        assert {"--ink", "--merge", "--model"} <= used
        assert all(picture.count(f"{variable}:") == 2 for variable in used)
        literal = re.findall(r'(?:fill|stroke)="(#\w+|[a-z]+)"', picture)
        assert set(literal) <= {"none", "transparent"}, "a colour is the same on light and on dark"


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    odd = replace(RESULTS[0], origin={"method": "finetuned", "base": "<script>alert(1)</script>|x"})
    write_report(Scores([odd]), tmp_path)
    page = Page()
    page.feed((tmp_path / "report.html").read_text())
    assert "script" not in page.tags
    assert r"\<script\>alert(1)\</script\>\|x" in (tmp_path / "report.md").read_text()


def test_same_bits_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_report(Scores(RESULTS), tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_scores_of_an_earlier_version_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "scores.json", {"format_version": 1, "results": [], "sweeps": {}, "fishers": {}})
    with pytest.raises(
        InputError, match=r"scores\.json: is no collection of results as they are now; make or fetch .* again"
    ):
        read_scores(tmp_path)


@pytest.mark.parametrize("task", ["mean", "name", "role", "task", "accuracy", "score"])
def test_a_task_may_have_the_name_of_any_column(tmp_path: Path, task: str) -> None:
    """Nothing of it is lost, and nothing of the mean's."""
    one = replace(
        RESULTS[0], metrics={"books": entry(0.9), task: entry(0.5)}, per_example=per_example(books=90, **{task: 50})
    )
    two = replace(one, name="again", metrics={"books": entry(0.7), task: entry(0.5)})
    write_report(Scores([one, two]), tmp_path)
    table = pd.read_csv(tmp_path / "scores.csv")
    assert table[["task", "accuracy"]].values.tolist() == [["books", 0.9], [task, 0.5], ["books", 0.7], [task, 0.5]]
    assert pd.read_csv(tmp_path / "means.csv")["mean"].tolist() == [0.7, 0.6]
    text = (tmp_path / "report.md").read_text()
    assert f"|  |  | books | {task} | mean of tasks |" in text
    assert "| **90.0**\u00a0(85.0–95.0) | **50.0**\u00a0(45.0–55.0) | **70.0** |" in text
