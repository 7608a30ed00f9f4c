"""prepare@TASK: one source's tables → data/tasks/TASK/{train,validation,test}.arrow and task.json.

A kind without tables writes files of its own in their place.
"""

import sys

from stages.pipeline.places import SOURCES, TASKS
from stages.pipeline.stage_settings import stage_params
from stages.running.command import run_stage
from stages.running.errors import InputError
from stages.storage.digests import verify_contents, write_contents
from stages.storage.outputs import atomic_directory
from stages.tasks.reading import preparer
from stages.tasks.tables import prepare_tables
from stages.tasks.task import TableTask


def prepare(name: str) -> None:
    """Turn what the task is read from into examples."""
    tasks = stage_params(f"prepare@{name}").tasks
    if name not in tasks:
        raise InputError(f"params.yaml: tasks: there is no task {name!r}")
    task = tasks[name]
    source = SOURCES / task.source
    verify_contents(source, task.files)
    with atomic_directory(TASKS / name) as partial:
        if isinstance(task, TableTask):
            remarks = prepare_tables(task, source, partial)
        else:
            remarks = preparer(task.kind).prepare(task, source, partial)
        for remark in remarks:
            print(f"warning: {TASKS / name}: {remark}", file=sys.stderr)
        write_contents(partial, besides="*.arrow")


if __name__ == "__main__":
    run_stage(prepare, "task")
