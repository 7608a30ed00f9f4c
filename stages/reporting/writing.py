"""What language models write: the first test examples of each task, and how every result goes on from their prompts."""

from collections.abc import Sequence

from stages.reporting.blocks import Block, Section, Table, Text
from stages.reporting.wording import escaped
from stages.results.scores import Result

SHOWN = 400  # characters of a text
ELLIPSIS = "…"
NOTHING = "(nothing)"


def writing_section(results: Sequence[Result], tasks: Sequence[str]) -> Section | None:
    """A table for each example: its prompt, its reference, and what each result writes; None if nothing writes."""
    blocks: list[Block] = []
    for task in tasks:
        written = {
            result.name: result.per_example[task]["written"]
            for result in results
            if task in result.per_example and "written" in result.per_example[task]
        }
        if not written:
            continue
        blocks.append(Text(f"The first test examples of {escaped(task)}:"))
        for number, example in enumerate(next(iter(written.values()))):
            texts = [[name, _beginning(found[number]["text"]) or NOTHING] for name, found in written.items()]
            given = [["prompt", _end(example["prompt"])], ["reference", _beginning(example["reference"])]]
            blocks.append(Table([f"example {number + 1}", "text"], [*given, *texts]))
    if not blocks:
        return None
    said = (
        "To look at, and no measure: from a prompt, each model goes on by always taking the most probable token, "
        "until the text ends or is long enough. Long texts are cut."
    )
    return Section("writing", "What the models write", [Text(said), *blocks])


def _beginning(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}{ELLIPSIS}"


def _end(text: str) -> str:
    return text if len(text) <= SHOWN else f"{ELLIPSIS}{text[-SHOWN:]}"
