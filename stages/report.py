"""report: results/scores/ → results/report/: report.html, report.md with its pictures, scores.csv, means.csv.

The page has everything in it and opens offline; the Markdown says the same and takes its pictures from beside it.
"""

from pathlib import Path

import pandas as pd

from stages.pipeline.code import check_code
from stages.pipeline.places import REPORT
from stages.reporting.experiment import Experiment, tasks_of
from stages.reporting.markdown import write_markdown
from stages.reporting.page import page
from stages.results.scores import Scores, read_scores
from stages.running.command import run_stage
from stages.storage.outputs import atomic_directory

TITLE = "Merged models, evaluated"


def report() -> None:
    """Write the report on every model and merge of params.yaml."""
    check_code("report")
    scores = read_scores()
    with atomic_directory(REPORT) as partial:
        write_report(scores, partial)


def write_report(scores: Scores, out: Path) -> None:
    """Write the tables, the Markdown with its pictures, and the page into `out`."""
    results = scores.results
    long = pd.DataFrame(
        [
            {"name": result.name, "role": result.role, "task": task, **result.metrics[task]}
            for result in results
            for task in tasks_of(results)
            if task in result.metrics
        ]
    )
    long.to_csv(out / "scores.csv", index=False)
    means = [{"name": r.name, "metric": metric, "mean": mean} for r in results for metric, mean in r.means.items()]
    one = len({row["metric"] for row in means}) == 1
    shown = [{"result": row["name"] if one else f"{row['name']}: {row['metric']}", **row} for row in means]
    pd.DataFrame(shown).to_csv(out / "means.csv", index=False)
    experiment = Experiment(TITLE, scores)
    write_markdown(experiment, out)
    (out / "report.html").write_text(page(TITLE, [experiment]), encoding="utf-8")


if __name__ == "__main__":
    run_stage(report)
