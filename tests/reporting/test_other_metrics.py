"""The report on tasks with a metric that is a number and better when smaller, alone and beside accuracy."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.report import write_report
from stages.reporting.experiment import Experiment
from stages.reporting.significance import RESAMPLES, comparable_groups, compare
from stages.reporting.tables import difference_matrix, score_table
from stages.reporting.transfers import find_transfers
from stages.results.scores import Contributions, Result, Scores
from stages.results.shown import MINUS, shown, shown_difference
from tests.metrics import TOY_KIND, MeanAbsoluteError, RootMeanSquaredError, kind_with
from tests.reporting.made_up import merged
from tests.test_report import Page

EXAMPLES = 60
RMSE, MAE = RootMeanSquaredError(), MeanAbsoluteError()
TOYS = ("prices", "rents")
HALVES = {"prices": 0.5, "rents": 0.5}


@pytest.fixture(autouse=True)
def _toy_kind() -> Iterator[None]:
    with kind_with(TOY_KIND, RMSE, MAE):
        yield


def result(name: str, role: str, origin: dict[str, Any], searched: bool = False, **errors: float) -> Result:
    """A result whose error on a task is about so large, on the same examples as every other's."""
    metrics, per_example = {}, {}
    for task, error in errors.items():
        noise = np.random.default_rng(len(task)).normal(size=EXAMPLES)
        own = np.random.default_rng(sum(map(ord, name + task))).normal(size=EXAMPLES)
        distances = error * (0.8 * noise + 0.6 * own)
        values = distances**2
        value = RMSE.summary(values)
        metrics[task] = {"rmse": value, "rmse_low": value - 0.02, "rmse_high": value + 0.02}
        metrics[task] |= {"mean_absolute_error": float(np.abs(distances).mean()), "examples": EXAMPLES}
        found: Contributions = {"examples": f"test split of {task}", "metric": "rmse", "values": values.tolist()}
        per_example[task] = found
    return Result(name, role, metrics, origin, searched, per_example)


@cache
def results() -> tuple[Result, ...]:
    finetuned = {"method": "finetuned", "base": "base", "examples": 2000}
    sweep = [
        result(f"along-{step}", "merge", merged("fisher", {"prices": step, "rents": 1 - step}), prices=0.9, rents=0.9)
        for step in (0.25, 0.5, 0.75)
    ]
    kept = {"target": "prices", "heads": "target"}
    return (
        result("prices", "model", finetuned | {"task": "prices"}, prices=0.3, rents=1.5),
        result("rents", "model", finetuned | {"task": "rents"}, prices=1.4, rents=0.35),
        result("average", "merge", merged("isotropic", HALVES), prices=0.8, rents=0.8),
        result("kfac", "merge", merged("kfac", HALVES), searched=True, prices=0.5, rents=0.5),
        result("donated", "merge", merged("fisher", {"prices": 0.7, "rents": 0.3}) | kept, prices=0.4),
        *sweep,
    )


def shown_means(of: tuple[Result, ...]) -> dict[str, str]:
    return {found.name: shown(RMSE, found.means["rmse"]) for found in of}


def with_accuracy() -> tuple[Result, ...]:
    """A model and two merges of a classifier besides, on a task of their own."""
    found = []
    for name, role, right in (("critic", "model", 50), ("critics", "merge", 40), ("crowd", "merge", 45)):
        value = right / EXAMPLES
        metrics = {"books": {"accuracy": value, "accuracy_low": value - 0.1, "accuracy_high": value + 0.1}}
        values = [1.0] * right + [0.0] * (EXAMPLES - right)
        each: dict[str, Contributions] = {"books": {"examples": "b", "metric": "accuracy", "values": values}}
        metrics["books"] |= {"macro_f1": value, "examples": EXAMPLES}
        found.append(Result(name, role, metrics, {"method": "fisher" if role == "merge" else "x"}, per_example=each))
    return (*results(), *found)


POINTS = [
    {"point": i, "λ prices": i / 4, "λ rents": 1 - i / 4, "prices rmse": 0.5, "score": 0.9 - i / 10} for i in range(5)
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    with kind_with(TOY_KIND, RMSE, MAE):
        write_report(Scores(results(), {"kfac": POINTS}), out)
    return out


def test_comparisons_against_resampled_examples() -> None:
    """The mean over two tasks of a metric that is no mean of its examples."""
    random = np.random.default_rng(1)
    first, second = ([(random.normal(size=n) * scale) ** 2 for n in (90, 50)] for scale in (0.5, 0.7))
    resampled = []
    for _ in range(4000):
        by_task = []
        for a, b in zip(first, second, strict=True):
            rows = random.integers(0, len(a), len(a))
            by_task.append(np.sqrt(a[rows].mean()) - np.sqrt(b[rows].mean()))
        resampled.append(np.mean(by_task))
    found = compare(RMSE, first, second)
    observed = np.mean([np.sqrt(a.mean()) - np.sqrt(b.mean()) for a, b in zip(first, second, strict=True)])
    assert found.difference == pytest.approx(observed)
    noise = 0.12 * float(np.std(resampled))
    assert (found.low, found.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=noise)
    extreme = (np.abs(np.array(resampled) - observed) >= abs(observed)).mean()
    assert found.p_value == pytest.approx(extreme, abs=4 * np.sqrt(0.25 / 4000) * 0.5 + 2 / RESAMPLES)


def test_the_best_of_a_group_is_the_smallest() -> None:
    group = comparable_groups(results()[:4])[0]
    assert group.metric is RMSE
    assert [found.name for found in group.results] == sorted(
        (found.name for found in results()[:4]), key=lambda name: shown_means(results())[name]
    )
    assert group.results[0].name == "kfac"
    table = difference_matrix(group)
    best, worst = group.results[0].name, group.results[-1].name
    cells = {(str(row[0]), table.header[i]): row[i] for row in table.rows for i in range(1, len(table.header))}
    there, back = cells[best, worst], cells[worst, best]
    assert not isinstance(there, str)
    assert not isinstance(back, str)
    assert (there.tone, there.text[0]) == ("better", MINUS), "less is better"
    assert (back.tone, back.text[0]) == ("worse", "+")
    difference = group.comparisons[best, worst].difference
    assert there.text == shown_difference(RMSE, difference)


def test_the_table_has_numbers_and_the_smallest_is_bold() -> None:
    table = score_table(RMSE, results()[:4], TOYS)
    for column in (2, 3, 4):
        cells = {str(row[0].text if not isinstance(row[0], str) else row[0]): row[column] for row in table.rows}
        bold = [name for name, cell in cells.items() if not isinstance(cell, str) and cell.strong]
        values = {name: float(cell.text) for name, cell in cells.items() if not isinstance(cell, str)}
        assert bold == [min(values, key=lambda name: values[name])]
    assert list(table.header) == ["", "", "prices", "rents", "mean of tasks"]


def test_the_markdown_says_it_in_the_metrics_words(written: Path) -> None:
    text = (written / "report.md").read_text()
    means = shown_means(results())
    assert "## Root mean squared error\n" in text
    assert "Test root mean squared error, with 95 % bootstrap intervals" in text
    assert "The best of each column, the smallest, is bold." in text
    best = f"**kfac** has the best root mean squared error on the mean over the 2 tasks: {means['kfac']}."
    assert f"Of the 3 merges compared, {best}" in text
    line = next(line for line in text.splitlines() if line.startswith("- The best single model"))
    assert f"has {min(means['prices'], means['rents'])}: {MINUS}" in line
    assert "for the merge (95 % interval" in line
    assert "more than noise." in line, "a smaller error is no worse"
    assert "On each task by itself, a single model is still ahead of every merge." in text
    assert "the difference in root mean squared error. Less is better. **Bold**" in text
    assert "Root mean squared error on the mean over prices and rents:" in text
    assert "Mean absolute error:\n" in text
    assert "down and to the left is better" in text
    assert f"The best, {shown(RMSE, 0.5)}, is marked." in text
    assert "accura" not in text.lower()
    assert "percentage" not in text
    assert re.findall(r"per cent|\d %", text.replace("95 %", "")) == []


def test_the_pictures_axes_have_no_per_cent(written: Path) -> None:
    pictures = sorted(written.glob("*.svg"))
    names = {picture.stem for picture in pictures}
    assert {"rmse-1", "rmse-2", "along-prices-rents-1", "trade-off-prices-rents", "search-kfac"} <= names
    for picture in pictures:
        words = "".join(ET.fromstring(picture.read_text()).itertext())
        assert "%" not in words, picture
        assert "accuracy" not in words, picture
    assert "root mean squared error" in (written / "rmse-1.svg").read_text()


def test_the_page_says_the_same(written: Path) -> None:
    text = (written / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert len(page.ids) == len(set(page.ids))
    assert any(found.endswith("--rmse") for found in page.ids)
    assert "has the best root mean squared error" in text
    assert shown_means(results())["kfac"] in text
    assert 'class="better"><strong>\u2212' in text
    assert "accura" not in text.lower()


def test_tables_for_programs(written: Path) -> None:
    table = pd.read_csv(written / "scores.csv")
    assert {"name", "role", "task", "rmse", "rmse_low", "rmse_high", "mean_absolute_error"} <= set(table.columns)
    means = pd.read_csv(written / "means.csv")
    assert set(means["metric"]) == {"rmse"}
    assert means["mean"].tolist() == pytest.approx([found.means["rmse"] for found in results()])
    assert means["result"].tolist() == [found.name for found in results()]


def test_what_a_donor_gives_is_worse_where_the_error_grows() -> None:
    (transfer,) = find_transfers(results())
    assert (transfer.target, transfer.donor, transfer.metric) == ("prices", "rents", RMSE)
    assert transfer.difference > 0 > transfer.metric.gain(transfer.difference)


def test_tasks_of_two_metrics_have_a_section_each_and_no_mean_of_both(tmp_path: Path) -> None:
    both = with_accuracy()
    experiment = Experiment("Both", Scores(both))
    slugs = [section.slug for section in experiment.sections]
    assert slugs == ["overview", "rmse", "accuracy", "significance", "coefficients"]
    groups = comparable_groups(both)
    assert {(group.metric.name, tuple(group.tasks)) for group in groups} == {
        ("rmse", TOYS),
        ("rmse", ("prices",)),
        ("accuracy", ("books",)),
    }
    write_report(Scores(both), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "**crowd** is the most accurate on books: 75.0 %." in text
    assert "**kfac** has the best root mean squared error on the mean over the 2 tasks" in text
    assert text.count("the same test examples are drawn") == 2
    of_books, of_toys = text.split("## Accuracy")[1].split("\n## ")[0], text.split("## Root")[1].split("\n## ")[0]
    assert "crowd" in of_books
    assert "kfac" not in of_books
    assert "crowd" not in of_toys
    assert "mean of tasks" in of_toys
    assert "mean of tasks" not in of_books
    means = pd.read_csv(tmp_path / "means.csv")
    assert means["result"].tolist()[-1] == "crowd: accuracy"
    assert len(set(means["result"])) == len(means) == len(both)
