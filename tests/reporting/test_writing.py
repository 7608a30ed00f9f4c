"""What the report shows of what models write."""

from dataclasses import replace
from pathlib import Path

from stages.reporting.blocks import Table, Text
from stages.reporting.experiment import Experiment
from stages.reporting.markdown import write_markdown
from stages.reporting.page import page
from stages.reporting.writing import SHOWN, writing_section
from stages.results.scores import Result
from tests.reporting.made_up import made_up_scores

PROMPT = "b" * SHOWN + "<script>alert(1)</script> | end"


def writing(text: str) -> list[Result]:
    """Two results that write for one example of `books`, and others that do not."""
    first, second, *others = made_up_scores().results

    def with_text(result: Result, text: str) -> Result:
        own = result.per_example["books"].copy()
        own["written"] = [{"prompt": PROMPT, "reference": "the *end*", "text": text}]
        return replace(result, per_example={**result.per_example, "books": own})

    return [with_text(first, text), with_text(second, ""), *others]


def test_each_example_is_a_table_of_what_the_results_write() -> None:
    section = writing_section(writing("a" * (SHOWN + 1)), ["books", "films"])
    assert section is not None
    introduction, task, table = section.blocks
    assert isinstance(introduction, Text)
    assert isinstance(task, Text)
    assert isinstance(table, Table)
    assert "books" in task.markdown
    assert table.rows == [
        ["prompt", f"…{PROMPT[-SHOWN:]}"],
        ["reference", "the *end*"],
        ["books", f"{'a' * SHOWN}…"],
        ["films", "(nothing)"],
    ]


def test_nothing_is_shown_where_nothing_writes() -> None:
    assert writing_section(made_up_scores().results, ["books"]) is None


def test_what_is_written_is_text(tmp_path: Path) -> None:
    """In the page and in Markdown, where it may look like either's notation."""
    scores = replace(made_up_scores(), results=writing("<img src=x> [a](b)"))
    experiment = Experiment("It", scores)
    html = page("It", [experiment])
    assert "&lt;script&gt;alert(1)&lt;/script&gt; | end" in html
    assert "&lt;img src=x&gt; [a](b)" in html
    assert "<script>" not in html
    write_markdown(experiment, tmp_path)
    found = (tmp_path / "report.md").read_text()
    assert r"\<script\>alert(1)\</script\> \| end" in found
    assert r"the \*end\*" in found
