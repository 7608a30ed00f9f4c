"""prepare@TASK: one source's tables → data/tasks/TASK/{train,validation,test}.arrow and task.json."""

import sys

from stages.pipeline.places import SOURCES, TASKS
from stages.pipeline.stage_settings import stage_params
from stages.running.command import run_stage
from stages.running.errors import InputError
from stages.storage.digests import verify_contents, write_contents
from stages.storage.outputs import atomic_directory
from stages.tasks.reading import reader
from stages.tasks.tables import split_examples, write_task


def prepare(name: str) -> None:
    """Turn the task's tables into examples in three splits."""
    tasks = stage_params(f"prepare@{name}").tasks
    if name not in tasks:
        raise InputError(f"params.yaml: tasks: there is no task {name!r}")
    task = tasks[name]
    verify_contents(SOURCES / task.source, task.files)
    splits, dropped = split_examples(task, SOURCES / task.source)
    for remark in reader(task.kind).remarks(task, splits):
        print(f"warning: {TASKS / name}: {remark}", file=sys.stderr)
    with atomic_directory(TASKS / name) as partial:
        write_task(partial, task, splits, dropped)
        write_contents(partial, besides="*.arrow")


if __name__ == "__main__":
    run_stage(prepare, "task")
