"""finetune-MODEL: base weights and one task → models/finetuned/MODEL/, and its training curves."""

import shutil

from stages.pipeline.needs import base_place
from stages.pipeline.places import FINETUNED, SOURCES, TASKS, TRAINING
from stages.pipeline.stage_settings import model_stage_params
from stages.running.command import run_stage
from stages.storage.checkpoint_files import ADAPTER_WEIGHTS, WEIGHTS, is_adapter
from stages.storage.digests import write_contents
from stages.storage.outputs import PARTIAL_PREFIX, atomic_directory
from stages.tasks.data import TaskData
from stages.training.finetuning import train
from stages.training.finished import bring_in, bring_in_adapter


def finetune(name: str) -> None:
    """Fine-tune the model `name`, or bring its finished checkpoint in (`finetune: false`).

    A fine-tuning that was killed goes on from what it saved beside its output.
    """
    params = model_stage_params("finetune", name)
    model = params.models[name]
    base, task = base_place(model.base, params), TaskData.open(TASKS / model.task)
    progress = FINETUNED / f"{PARTIAL_PREFIX}{name}.training"
    with atomic_directory(FINETUNED / name) as checkpoint, atomic_directory(TRAINING / name) as curves:
        if model.adapter is not None:
            bring_in_adapter(SOURCES / model.adapter, base, task, checkpoint, params.names_of_base(name))
        elif model.finetune is False:
            bring_in(base, task, checkpoint)
        else:
            keep_moments = params.fisher_settings(name).estimator == "adam"
            train(base, task, params.finetune_settings(name), checkpoint, curves, progress, keep_moments)
        write_contents(checkpoint, besides=ADAPTER_WEIGHTS if is_adapter(checkpoint) else WEIGHTS)
    shutil.rmtree(progress, ignore_errors=True)


if __name__ == "__main__":
    run_stage(finetune, "model")
