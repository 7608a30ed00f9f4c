"""A page of several experiments."""

import re
from dataclasses import replace
from functools import cache

from stages.reporting.blocks import Cell, Section, Table, Text
from stages.reporting.costs import costs_section
from stages.reporting.experiment import Experiment
from stages.reporting.markdown import markdown_table
from stages.reporting.page import html_table, page
from stages.results.costs import Cost, ResultCost
from stages.results.scores import Scores
from tests.reporting.made_up import made_up_scores, made_up_transfers
from tests.test_report import RESULTS, Page

COSTS = [
    Cost("fisher", "512 sentences", 1.5e12, 31.26, "two cores"),
    Cost("merge", "four models", None, 1.04, "two cores"),
]


@cache
def full_experiment() -> Experiment:
    """With everything that a report can show."""
    scores = made_up_scores()
    scores = replace(scores, results=[*scores.results, *made_up_transfers(scores.results)])
    introduction = "Is a *merge* as good as its parts? ![no](https://example.org/tracker.png) <b>No HTML.</b>"
    results = [ResultCost("fisher", [Cost("finetune-a", "training", 4e12, 60.0, "two cores"), *COSTS], 2e8)]
    return Experiment("Four domains", scores, introduction, COSTS, results)


def test_ids_and_links_of_several_experiments() -> None:
    small = Experiment("Four domains", Scores(RESULTS))
    found = Page()
    text = page("Two experiments", [full_experiment(), small])
    found.feed(text)
    assert len(found.ids) == len(set(found.ids))
    assert {"four-domains", "four-domains-2", "four-domains--accuracy", "four-domains-2--accuracy"} <= set(found.ids)
    outside = [reference for reference in found.references if reference.removeprefix("#") not in found.ids]
    assert outside == ["https://example.org/tracker.png"]  # the introduction's, as a link that somebody may follow
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(found.ids)  # clip paths and gradients inside the pictures
    assert text.count("<h2>Four domains</h2>") == 2


def test_sections_and_their_order() -> None:
    wanted = [
        "overview",
        "accuracy",
        "significance",
        "coefficients",
        "transfers",
        "mass",
        "similarity",
        "result-cost",
        "cost",
    ]
    assert [section.slug for section in full_experiment().sections] == wanted
    assert [section.slug for section in Experiment("Little", Scores(RESULTS[:1])).sections] == ["overview", "accuracy"]
    fishers = {"cosine": {"a": {"a": 1.0}}, "overlap": {"a": {"a": 1.0}}, "shared": {"a": {"a": 1.0}}}
    one = fishers | {"tensors": {"a": {"layer.0.query.weight": {"entries": 1.0, "sum": 1.0}}}}
    sections = Experiment("One Fisher", Scores(RESULTS[:1], {}, one)).sections
    assert [section.slug for section in sections] == ["overview", "accuracy", "mass"]


def test_an_introduction_is_markdown_that_fetches_nothing() -> None:
    text = page("A page", [full_experiment()])
    assert "Is a <em>merge</em> as good as its parts?" in text
    assert "<img" not in text
    assert "<b>" not in text


def test_titles_and_cells_are_text() -> None:
    text = page("<i>A</i>", [Experiment("<u>B</u>", Scores(RESULTS))])
    assert "<i>" not in text
    assert "<u>" not in text
    table = Table(["<a>", "b"], [["x|y", Cell("1 < 2", "(<i>)", strong=True, tone="better")]])
    assert '<td class="better"><strong>1 &lt; 2</strong> <small>(&lt;i&gt;)</small></td>' in html_table(table)
    assert markdown_table(table).splitlines()[2] == r"| x\|y | **1 \< 2**" + "\u00a0" + r"(\<i\>) |"
    assert html_table(replace(table, summary="More & more")).startswith("<details>\n<summary>More &amp; more</summary>")


def test_costs_and_their_sums() -> None:
    section: Section = costs_section(COSTS)
    table = section.blocks[0]
    assert isinstance(table, Table)
    assert table.rows == [
        ["fisher", "512 sentences", "1.50\u00a0×\u00a010¹²", "31.3", "two cores"],
        ["merge", "four models", "–", "1.0", "two cores"],
        ["all", "", "–", "32.3", ""],
    ]
    nothing = costs_section([Cost("merge", "a search's best", 0, 0.0, "two cores")]).blocks[0]
    assert isinstance(nothing, Table)
    assert nothing.rows[0][2:4] == ["0", "0.0"]


def test_results_that_do_different_tasks_are_compared_task_by_task() -> None:
    """As merges into targets with other labels are: each has its own target's task only."""
    parts = []
    for result in made_up_scores().results:
        for task in ("books", "films"):
            if result.name in ("books", "films", "average", "fisher"):
                metrics, per_example = {task: result.metrics[task]}, {task: result.per_example[task]}
                parts.append(replace(result, name=f"{result.name}-{task}", per_example=per_example, metrics=metrics))
    overview, _, significance, *_ = Experiment("Transfer", Scores(parts)).sections
    text = " ".join(block.markdown for block in overview.blocks if isinstance(block, Text))
    for task in ("books", "films"):
        assert f"is the most accurate on {task}:" in text
        assert f"The best single model, {task}-{task}," in text
    assert sum(isinstance(block, Table) for block in significance.blocks) == 4
