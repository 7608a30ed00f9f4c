"""`make plan`: params.yaml → models/dvc.yaml; `--check` says whether that file is what params.yaml asks for."""

import sys

from stages.params import load_params
from stages.pipeline.graph import PLAN_FILE
from stages.pipeline.plan_file import check_ends, check_plan, write_plan
from stages.running.command import run_stage


def plan() -> None:
    """Write models/dvc.yaml."""
    write_plan(load_params(), PLAN_FILE)


def check() -> None:
    """Check models/dvc.yaml, and what is written by hand in dvc.yaml."""
    check_plan(load_params())
    check_ends()


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        del sys.argv[1:]
        run_stage(check)
    else:
        run_stage(plan)
