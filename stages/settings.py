"""settings: params.yaml, checked and with the schema's defaults → results/settings/STAGE.json, a file for each stage.

It also writes which code each stage runs: results/code/STAGE.json.

DVC sees neither a default nor the order of a mapping, and does not run a stage whose parameters are left out. So no
other stage depends on params.yaml: each depends on its own file, which changes if and only if something does that the
stage is told by params.yaml. Where an order decides something, the file has a list.
"""

from stages.params import load_params
from stages.pipeline.graph import planned_stages
from stages.pipeline.places import CODE, SETTINGS, code_file, settings_file
from stages.pipeline.plan_file import check_ends
from stages.pipeline.stage_code import code_text
from stages.pipeline.stage_settings import settings_text
from stages.running.command import run_stage
from stages.storage.outputs import atomic_directory


def settings() -> None:
    """Write every stage's settings, and the digests of its code."""
    params = load_params()
    check_ends()
    stages = [f"fetch@{name}" for name in params.sources] + [f"prepare@{name}" for name in params.tasks]
    stages += planned_stages(params)
    with atomic_directory(SETTINGS) as partial:
        for stage in stages:
            (partial / settings_file(stage).name).write_text(settings_text(stage, params), encoding="utf-8")
    with atomic_directory(CODE) as partial:
        for stage in (*stages, "report"):
            (partial / code_file(stage).name).write_text(code_text(stage, params), encoding="utf-8")


if __name__ == "__main__":
    run_stage(settings)
