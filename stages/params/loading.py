"""params.yaml → `Params`, or an error that says what is wrong where."""

import math
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from stages.params.adapters import Ia3
from stages.params.merges import ENSEMBLE, Merge, Search, Weighted
from stages.params.problems import KEYS, explained, listed, shortened
from stages.params.schema import OverrideError, Params
from stages.running.errors import InputError
from stages.storage.statistics import STATISTICS

if TYPE_CHECKING:
    from ruamel.yaml.nodes import Node

PARAMS_FILE = Path("params.yaml")
MAX_CHARACTERS = 1_000_000  # of a params.yaml, with everything that aliases stand for written out


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check a params.yaml.

    Raises:
        InputError: it cannot be read or something in it is not allowed; the message has, for each problem, the key's
            path, the value and what is allowed.
    """
    return parse_params(_read_yaml(path), path)


def parse_params(content: object, path: Path = PARAMS_FILE) -> Params:
    """Check the content of a params.yaml, already read. Raises `InputError` as `load_params` does."""
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: must be a mapping with the keys {listed(KEYS)}")
    if "ensembles" in content:
        raise InputError(f"{path}: ensembles: unknown key; an ensemble is one of `merges`, with `method: {ENSEMBLE}`")
    try:
        params = Params.model_validate(content)
        for model in params.models:
            params.finetune_settings(model)
            params.fisher_settings(model)
    except ValidationError as error:
        raise InputError(explained(error.errors(), path)) from None
    except OverrideError as error:
        raise InputError(explained(error.problems, path)) from None
    _check_references(params, path)
    return params


def _read_yaml(path: Path) -> object:
    # As DVC reads it, YAML 1.2: to YAML 1.1 `1e-4` is a string.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML(typ="safe", pure=True)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CHARACTERS + 1)
        if len(content) > MAX_CHARACTERS:
            raise InputError(f"{path}: larger than {MAX_CHARACTERS:,} bytes")
        text = content.decode()
        if _written_out(yaml.compose(text)) > MAX_CHARACTERS:
            raise InputError(f"{path}: its aliases stand for more than {MAX_CHARACTERS:,} characters")
        return yaml.load(text)
    except FileNotFoundError:
        raise InputError(f"{path}: not found; run this from the project's root") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise InputError(f"{path}: not valid YAML: nested too deeply") from None
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except InputError:
        raise
    except Exception as error:  # ruamel passes on what Python makes of a bad value: `!!int x`, the date 2001-99-99
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _written_out(root: "Node | None") -> float:
    """How many characters and nodes there are below a node, with every alias replaced by what it stands for.

    Aliases of aliases would take exponential time and memory in whatever walks through the content.
    """
    from ruamel.yaml.nodes import MappingNode

    sizes: dict[int, float] = {}

    def size(node: "Node") -> float:
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # for an alias of what it is in
            if isinstance(node.value, str):
                sizes[id(node)] = 1 + len(node.value)
            elif isinstance(node, MappingNode):
                sizes[id(node)] = 1 + sum(size(key) + size(value) for key, value in node.value)
            else:
                sizes[id(node)] = 1 + sum(map(size, node.value))
        return sizes[id(node)]

    return size(root) if root is not None else 0


def _check_references(params: Params, path: Path) -> None:
    """Refuse names that point nowhere."""

    def known(name: str, names: Iterable[str], place: str, kind: str) -> None:
        if name not in names:
            raise InputError(f"{path}: {place}: unknown {kind} {name!r}; known: {listed(names, name)}")

    if params.fisher.estimator == "adam":
        raise InputError(
            f"{path}: fisher.estimator = 'adam': fine-tuning has to keep the moments, so it is a model's own setting; "
            "put `fisher: {estimator: adam}` under each model that is to have it"
        )
    for task_name, task in params.tasks.items():
        known(task.source, params.sources, f"tasks.{task_name}.source", "source")
    for model_name, model in params.models.items():
        known(model.base, {**params.sources, **params.models}, f"models.{model_name}.base", "source or model")
        known(model.task, params.tasks, f"models.{model_name}.task", "task")
        _check_adapter(params, model_name, path)
        if (task := params.tasks[model.task]).only_evaluates:
            raise InputError(
                f"{path}: models.{model_name}.task = {model.task!r}: its kind, {task.kind}, is for evaluation alone; "
                "give the model a task that it is made for"
            )
        if model.finetune is False and params.fisher_settings(model_name).estimator == "adam":
            raise InputError(
                f"{path}: models.{model_name}.fisher.estimator = 'adam': this model is brought in, not fine-tuned, so "
                "there are no moments of its optimizer; choose another estimator"
            )
        _check_estimator(params, model_name, f"{path}: models.{model_name}")
    _check_no_cycles(params, path)
    weighted: dict[str, Weighted] = {**params.merges, **params.ensembles}
    for name, section in weighted.items():
        if name in params.models:
            raise InputError(f"{path}: merges.{name}: there is a model of that name too; rename one of them")
        for model_name in section.coefficients:
            known(model_name, params.models, f"merges.{name}.coefficients.{model_name}", "model")
    for name, ensemble in params.ensembles.items():
        for member in ensemble.models:
            if (task := params.tasks[params.models[member].task]).averaging is None:
                raise InputError(
                    f"{path}: merges.{name}: {member} is of the kind {task.kind}, whose outputs have no mean that is a "
                    "prediction, so it has no part in an ensemble; remove it"
                )
    for merge_name, merge in params.merges.items():
        place = f"merges.{merge_name}"
        for option, model_name in merge.options.further_models.items():
            known(model_name, params.models, f"{place}.{option}", "model")
        if merge.search is not None:
            for task_name in merge.search.tasks or []:
                known(task_name, params.tasks, f"{place}.search.tasks", "task")
            _check_search(params, merge, merge.search, f"{path}: {place}.search")
        _check_inputs(params, merge, f"{path}: {place}")


def _check_adapter(params: Params, name: str, path: Path) -> None:
    """Refuse an adapter that points nowhere, on a base that is one itself, or of which something is asked in vain."""
    model = params.models[name]
    if model.adapter is not None and model.adapter not in params.sources:
        raise InputError(
            f"{path}: models.{name}.adapter: unknown source {model.adapter!r}; "
            f"known: {listed(params.sources, model.adapter)}"
        )
    if model.base in params.models and params.is_adapter(model.base):
        raise InputError(
            f"{path}: models.{name}.base: {model.base} is an adapter, and no base of another model; write it as a "
            "whole model by a merge of it alone, and bring that in"
        )
    settings = params.fisher_settings(name)
    if params.is_adapter(name) and settings.estimator == "adam":
        raise InputError(
            f"{path}: models.{name}.fisher.estimator = 'adam': the optimizer has moments of the adapter's parameters "
            "only; choose another estimator"
        )
    if settings.of is not None and "of" in (model.fisher or {}) and not params.is_adapter(name):
        raise InputError(f"{path}: models.{name}.fisher.of: is for models that are adapters; remove it")


def _check_no_cycles(params: Params, path: Path) -> None:
    """Refuse a model that is, by way of others perhaps, its own base."""
    for name in params.models:
        line = [name]
        while (base := params.models[line[-1]].base) not in params.sources:
            if base in line:
                raise InputError(f"{path}: models.{name}.base: goes round in a circle: {', '.join([*line, base])}")
            line.append(base)


def _check_estimator(params: Params, model: str, place: str) -> None:
    """Refuse an exact Fisher of a kind that has too many outputs for one."""
    estimated = params.models[model].fisher is not False and params.fisher_source(model) is None
    exact = estimated and params.fisher_settings(model).estimator == "exact"
    task = params.tasks[params.models[model].task]
    if exact and task.exact_passes is None:
        raise InputError(
            f"{place}.fisher.estimator = 'exact': an exact Fisher takes a backward pass for each output, and a model "
            f"of the kind {task.kind} has too many; put `fisher: {{estimator: sketch}}` under the model"
        )


def _check_search(params: Params, merge: Merge, search: Search, place: str) -> None:
    """Refuse a search on tasks that have no common metric to score λ by, or that the merged model cannot do."""
    own = {params.models[model].task for model in merge.models}
    tasks = params.search_tasks(merge)
    if not tasks:
        raise InputError(f"{place}.tasks: missing, and no task of the merged models has a metric to score λ by")
    primary = {}
    for task in tasks:
        kind = params.tasks[task].kind
        if params.tasks[task].only_evaluates:
            raise InputError(f"{place}.tasks: {task} is for evaluation alone, as its kind is {kind}; list other tasks")
        found = {metric.name: metric for metric in params.tasks[task].own_metrics}
        if not found:
            raise InputError(f"{place}.tasks: {task} has no metric to score λ by: its kind is {kind}")
        if search.metric is not None and search.metric not in found:
            raise InputError(
                f"{place}.metric = {shortened(repr(search.metric))}: {task}, whose kind is {kind}, has no such "
                f"metric; its metrics: {', '.join(found)}"
            )
        if search.normalize and task not in own:
            raise InputError(
                f"{place}.normalize: {task} is the task of none of the merged models, so there is no expert to measure "
                "by"
            )
        primary[task] = next(iter(found))
    if search.metric is None and len(set(primary.values())) > 1:
        listed = ", ".join(f"{task}: {name}" for task, name in primary.items())
        raise InputError(
            f"{place}.metric: missing, and the tasks have different primary metrics ({listed}); name one that all of "
            "them have, or list other tasks under `search.tasks`"
        )
    if merge.heads != "each" and (others := [task for task in tasks if task not in params.tasks_of(merge)]):
        raise InputError(
            f"{place}.tasks: {others[0]} asks for other outputs than the merged model has, which are those of "
            f"{params.models[merge.target_model].task}; list other tasks, or set `heads: each`"
        )


def _check_low_rank(params: Params, merge: Merge, place: str) -> None:
    """Refuse a LoRA adapter of a merge of other models."""
    for model in merge.models:
        if not params.is_adapter(model):
            raise InputError(f"{place}.adapter: is for merges of adapters, and {model} is a whole model; remove it")
        if params.models[model].adapter is None and isinstance(params.finetune_settings(model).adapter, Ia3):
            raise InputError(
                f"{place}.adapter: is for merges of LoRA adapters, and {model} is one of vectors, a merge of which is "
                "an adapter of vectors again; remove it"
            )


def _check_parameters_of_fisher(params: Params, model: str, merge: str) -> None:
    """Refuse a trained adapter's Fisher of other parameters than a merge averages; of a finished one, its file decides.

    LoRA adapters merge as weights, adapters of vectors as their vectors.
    """
    trained = None if params.models[model].adapter is not None else params.finetune_settings(model).adapter
    of = params.fisher_settings(model).of
    if not params.is_adapter(model) or trained is None or of is None or params.fisher_source(model) is not None:
        return
    if isinstance(trained, Ia3) != (of == "adapter"):
        wanted = "of: adapter" if isinstance(trained, Ia3) else "of: adapts` or `of: weights"
        raise InputError(f"{merge} needs another Fisher of {model} than that `of: {of}`; put `{wanted}` there")


def _check_inputs(params: Params, merge: Merge, place: str) -> None:
    """Refuse a merge whose method needs what its models do not have."""
    if merge.options.needs_base and params.base_of(merge) is None:
        listed = ", ".join(f"{model} from {params.models[model].base}" for model in merge.models)
        raise InputError(f"{place}: {merge.options.method} needs models of one base ({listed})")
    if merge.adapter is not None:
        _check_low_rank(params, merge, place)
    if merge.vocabulary != "same" and (adapters := [model for model in merge.models if params.is_adapter(model)]):
        raise InputError(
            f"{place}.vocabulary: {adapters[0]} is an adapter, whose rows are not matched by token; remove it"
        )
    kinds = [STATISTICS[name] for name in merge.options.statistics]
    for model in [*merge.models, *merge.options.further_models.values()]:
        if any(kind.is_of_parameters for kind in kinds) and params.models[model].fisher is False:
            raise InputError(f"{place}: {merge.options.method} needs the Fisher of {model}, which has `fisher: false`")
        if any(kind.is_of_parameters for kind in kinds):
            _check_parameters_of_fisher(params, model, f"{place}: {merge.options.method}")
    differentiated = [kind for kind in kinds if kind.takes_gradients and not kind.is_of_parameters]
    for kind, model in product(differentiated, merge.models):
        if params.fisher_settings(model).estimator == "adam":
            raise InputError(
                f"{place}: {merge.options.method} needs the {kind.title} of {model}, which its fisher.estimator, "
                "adam, does not give; choose another estimator"
            )
