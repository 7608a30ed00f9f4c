"""What stages and results cost: floating-point operations, counted on real batches, beside seconds that were measured.

Only matrix products are counted, which are nearly all, two operations a multiply-add. A training step is worth three
forward passes (the backward pass has two products where the forward pass has one), and so is an estimate with one
backward pass per example: its products are of the same sizes. An adapter's training step is worth two: the base's
weights need no gradients, and the adapter's own products are small.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.params import Merge, Params
from stages.pipeline.graph import planned_stages, stages_before
from stages.pipeline.needs import evaluated_models, evaluated_tasks
from stages.pipeline.places import EVAL, FINETUNED, MERGED, TASKS
from stages.results.costs import Cost, ResultCost
from stages.storage.cards import METRICS, read_json
from stages.storage.checkpoint_files import ADAPTER_STEM, STEM, is_adapter, own_card
from stages.storage.statistics import STATISTICS
from stages.tasks.data import TASK_CARD
from stages.tasks.task import Split

SAMPLE = 64  # examples that a forward pass is counted on
KINDS = {  # what is counted, by the first word of a stage's name
    "finetune": "fine-tuning",
    **{kind.stem: kind.work for kind in STATISTICS.values()},
    "search": "search for λ",
    "merge": "merge",
    "evaluate": "evaluation on the test splits",
}


@dataclass(frozen=True)
class Counted:
    """A project that has been run, and what its models' forward passes take.

    Attributes:
        root: where it is.
        params: its parameters.
        forward: by model and task, FLOPs of a forward pass over one example, as a mean over the task's examples.
    """

    root: Path
    params: Params
    forward: Mapping[tuple[str, str], float]


def count_forward_passes(root: Path, params: Params) -> Counted:
    """Count the forward passes of a project's models on the tasks that they are trained for or evaluated on."""
    by_source: dict[tuple[str, str], float] = {}
    forward = {}
    for model, section in params.models.items():
        evaluated = evaluated_tasks(model, params) if model in evaluated_models(params) else []
        for task in {section.task: None, **dict.fromkeys(evaluated)}:
            # Models of one source have one architecture; fine-tuning changes no count.
            key = (params.ancestors(model)[-1], task)
            if key not in by_source:
                by_source[key] = forward_flops(root / FINETUNED / model, root / TASKS / task)
            forward[model, task] = by_source[key]
    return Counted(root, params, forward)


def forward_flops(checkpoint: Path, directory: Path) -> float:
    """FLOPs of a forward pass over one example of a task: the mean over some training examples, little padded."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from stages.running.placement import Placement
    from stages.tasks import task_kind
    from stages.tasks.data import TaskData, draw_examples
    from stages.tasks.prediction import examples_for

    task = TaskData.open(directory)
    kind = task_kind(task.kind)
    model = kind.load_model(checkpoint, task.labels).eval()
    rows = draw_examples(task.rows("train"), SAMPLE, 0)
    batches = examples_for(kind, checkpoint, model, rows, task, Placement()).batches()
    # The kernels that CPUs have for attention are not among those that the counter knows; plain products are.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for batch in batches:
            model(**{key: tensor for key, tensor in batch.items() if key != "labels"})
    return counter.get_total_flops() / len(rows)


def stage_costs(counted: Counted, seconds: Mapping[str, float], runs_on: str) -> list[Cost]:
    """The cost of each stage that trains, estimates, searches, merges or evaluates.

    Args:
        counted: whose stages.
        seconds: stage → what was measured, of those that were.
        runs_on: the hardware, in words.
    """
    found = []
    for stage in planned_stages(counted.params):
        kind, _, name = stage.partition("-")
        if kind in KINDS:
            found.append(Cost(stage, KINDS[kind], _flops(kind, name, counted), seconds.get(stage), runs_on))
    return found


def result_costs(counted: Counted, costs: Iterable[Cost]) -> list[ResultCost]:
    """What each result needs, all stages before it counted once, and what it needs per example when it is used."""
    by_stage = {cost.stage: cost for cost in costs}
    needed = stages_before(counted.params)
    found = []
    for name in (*evaluated_models(counted.params), *counted.params.merges, *counted.params.ensembles):
        own = [by_stage[stage] for stage in needed[f"evaluate-{name}"] if stage in by_stage]
        found.append(ResultCost(name, own, _inference(name, counted)))
    return found


def _flops(kind: str, name: str, counted: Counted) -> float | None:
    """A stage's FLOPs; None where they are not counted (merges that solve systems or are factored)."""
    params, root = counted.params, counted.root
    if kind == "merge":
        return _merge_flops(name, counted)
    if kind == "evaluate":
        return _evaluation_flops(name, counted)
    if kind == "search":
        merge = params.merges[name]
        assert merge.search is not None
        tasks = params.search_tasks(merge)
        forward = {task: _forward(merge, task, counted) for task in tasks}
        return merge.search.points * sum(forward[task] * _examples(root, task, "validation") for task in tasks)
    task = params.models[name].task
    once = counted.forward[name, task]
    origin = own_card(root / FINETUNED / name)["origin"]
    if kind == "finetune":
        epochs = params.finetune_settings(name).epochs
        finished = params.models[name].finetune is False or params.models[name].adapter is not None
        worth = 2 if params.is_adapter(name) else 3
        return 0.0 if finished else worth * once * origin["examples"] * epochs
    statistic = next(each for each in STATISTICS.values() if each.stem == kind)
    if params.fisher_source(name) is not None and statistic.is_of_parameters:
        return 0.0
    settings = params.fisher_settings(name)
    examples = min(settings.examples or _examples(root, task, "train"), _examples(root, task, "train"))
    passes = {"exact": _exact_passes(counted, task), "empirical": 1, "adam": None}.get(
        settings.estimator, settings.samples
    )
    if not statistic.takes_gradients:
        return once * examples
    return 0.0 if passes is None else once * examples * (1 + 2 * passes)


def _merge_flops(name: str, counted: Counted) -> float | None:
    """Two or, with Fishers, four operations a value and model: weights times values, and their sums."""
    merge = counted.params.merges[name]
    per_value = {"isotropic": 2, "fisher": 4}.get(merge.options.method)
    if per_value is None or merge.adapter is not None:
        return None
    from stages.storage.tensors import TensorFiles

    directory = counted.root / MERGED / name
    merged = TensorFiles(directory, ADAPTER_STEM if is_adapter(directory) else STEM)  # an adapter's vectors
    values = sum(spec.elements for spec in merged.specs.values())
    return float(per_value * values * len(merge.models))


def _evaluation_flops(name: str, counted: Counted) -> float:
    if name in counted.params.ensembles:
        return 0.0  # of what the models' evaluations have kept
    merge = counted.params.merges.get(name)
    tasks = read_json(counted.root / EVAL / name / METRICS)["tasks"]
    forward = {task: counted.forward[name, task] if merge is None else _forward(merge, task, counted) for task in tasks}
    return sum(forward[task] * entry["examples"] for task, entry in tasks.items())


def _forward(merge: Merge, task: str, counted: Counted) -> float:
    """FLOPs of a forward pass of a merge: that of its target or, with heads of their own, of the task's own model."""
    own = [model for model in merge.models if counted.params.models[model].task == task]
    return counted.forward[own[0] if merge.heads == "each" else merge.target_model, task]


def _inference(name: str, counted: Counted) -> float:
    """FLOPs per example when the result is used on its own task: an ensemble asks all its models."""
    params = counted.params
    if name in params.models:
        return counted.forward[name, params.models[name].task]
    ensemble = params.ensembles.get(name)
    models = ensemble.models if ensemble is not None else [params.merges[name].target_model]
    own = params.models[models[0]].task
    return sum(counted.forward[model, own] for model in models)


def _exact_passes(counted: Counted, task: str) -> int | None:
    """Backward passes of an exact Fisher, for each example; where only the table tells, a task's card has them."""
    found: int | None = read_json(counted.root / TASKS / task / TASK_CARD).get("exact_passes")
    return counted.params.tasks[task].exact_passes if found is None else found


def _examples(root: Path, task: str, split: Split) -> int:
    from stages.tasks.arrow import open_rows
    from stages.tasks.data import split_file

    return len(open_rows(root / TASKS / task / split_file(split)))
