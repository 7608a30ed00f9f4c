"""The code that each stage runs, as the content of a file of its own.

DVC would take the files as dependencies of the stage. But it reads and writes every one of them in its lock file, some
forty a stage, whenever any stage has run: with the plan of a few merges that took longer than a merge.
"""

import json
from collections.abc import Callable, Iterable

from stages.params import Params
from stages.pipeline.code import code_of, recorded_code
from stages.pipeline.needs import ensemble_kinds, evaluated_tasks
from stages.storage.statistics import FACTORS, STATISTICS
from stages.tasks import module_of

DIAGONAL = STATISTICS["diagonal"].code


def stage_code(stage: str, params: Params) -> dict[str, str]:
    """Path → SHA-256 of the files of code that decide what the stage makes.

    Args:
        stage: its name, as dvc has it.
        params: the whole of params.yaml: of which kinds its tasks are, and which statistics it needs.

    Raises:
        KeyError: there is no such stage, task, model or merge.
    """
    kind, _, name = stage.replace("@", "-").partition("-")
    return code_of(*_MODULES[kind](name, params))


def code_text(stage: str, params: Params) -> str:
    """The content of a stage's file. Raises `KeyError` as `stage_code` does."""
    return json.dumps(stage_code(stage, params), indent=2) + "\n"


def changed_code(stage: str, params: Params) -> list[str]:
    """The files of the stage's code that are others than those that its file lists; none without that file.

    Raises:
        InputError: the file is damaged.
        KeyError: as `stage_code` does.
    """
    before, now = recorded_code(stage), stage_code(stage, params)
    return sorted({path for path, _ in before.items() ^ now.items()}) if before else []


def _fetch(name: str, params: Params) -> list[str]:
    # A GGUF file is pinned, but what it is de-quantised to is the code's doing.
    dequantised = params.sources[name].gguf is not None
    return ["fetch", "storage.sources", *(["storage.gguf"] if dequantised else [])]


def _prepare(name: str, params: Params) -> list[str]:
    return ["prepare", module_of(params.tasks[name].kind, "reading")]


def _finetune(name: str, params: Params) -> list[str]:
    return ["finetune", *_kinds([params.models[name].task], params)]


def _fisher(name: str, params: Params) -> list[str]:
    return ["fisher", *DIAGONAL, *_estimated_kind(name, params)]


def _factors(code: Iterable[str]) -> Callable[[str, Params], list[str]]:
    return lambda name, params: ["factors", *code, *_estimated_kind(name, params)]


def _estimated_kind(model: str, params: Params) -> list[str]:
    """The modules of the kind of the model's task, with its likelihood."""
    kind = params.tasks[params.models[model].task].kind
    return [module_of(kind, "kind"), module_of(kind, "likelihood")]


def _search(name: str, params: Params) -> list[str]:
    return ["search", *_method(name, params), *_kinds(params.search_tasks(params.merges[name]), params)]


def _merge(name: str, params: Params) -> list[str]:
    return ["merge", *_method(name, params)]


def _method(merge: str, params: Params) -> list[str]:
    """The modules of the merge's method, and those that say what its statistics are."""
    options = params.merges[merge].options
    statistics = [f"storage.statistics.{name}" for name in options.statistics]
    return [f"merging.methods.{options.method}.*", *statistics]


def _evaluate(name: str, params: Params) -> list[str]:
    if name in params.ensembles:
        kinds = set(ensemble_kinds(params.ensembles[name], params).values())
        return ["evaluate", *(module_of(kind, "settings") for kind in kinds)]
    return ["evaluate", *_kinds(evaluated_tasks(name, params), params)]


def _kinds(tasks: Iterable[str], params: Params) -> list[str]:
    """The modules of the tasks' kinds."""
    return [module_of(params.tasks[task].kind, "kind") for task in tasks]


def _similarity(_: str, __: Params) -> list[str]:
    return ["similarity", *DIAGONAL]


def _scores(_: str, __: Params) -> list[str]:
    return ["scores", "tasks.kinds"]


def _report(_: str, __: Params) -> list[str]:
    return ["report", "tasks.kinds"]


_MODULES: dict[str, Callable[[str, Params], list[str]]] = {
    **{kind.stem: _factors(kind.code) for kind in FACTORS.values()},
    "fetch": _fetch,
    "prepare": _prepare,
    "finetune": _finetune,
    "fisher": _fisher,
    "search": _search,
    "merge": _merge,
    "evaluate": _evaluate,
    "similarity": _similarity,
    "scores": _scores,
    "report": _report,
}
