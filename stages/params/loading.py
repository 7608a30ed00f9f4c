"""params.yaml → `Params`, or an error that says what is wrong where."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from stages.merging.methods import METHODS
from stages.params.merges import ENSEMBLE, Ensemble, Merge, Search, Weighted
from stages.params.schema import (
    Corruption,
    FinetuneSettings,
    FisherSettings,
    Images,
    Model,
    OverrideError,
    Params,
    Task,
    TaskSplit,
)
from stages.running.errors import InputError
from stages.storage.source import Source
from stages.tasks.metrics import metrics_of

if TYPE_CHECKING:
    from ruamel.yaml.nodes import Node

PARAMS_FILE = Path("params.yaml")
KEYS = Params.model_fields.keys() - {"ensembles"}  # of the file
MAX_CHARACTERS = 1_000_000  # of a params.yaml, with everything that aliases stand for written out
MAX_PROBLEMS = 10  # that a message lists


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
        raise InputError(f"{path}: must be a mapping with the keys {_listed(KEYS)}")
    if "ensembles" in content:
        raise InputError(f"{path}: ensembles: unknown key; an ensemble is one of `merges`, with `method: {ENSEMBLE}`")
    try:
        params = Params.model_validate(content)
        for model in params.models:
            params.finetune_settings(model)
            params.fisher_settings(model)
    except ValidationError as error:
        raise InputError(_explained(error.errors(), path)) from None
    except OverrideError as error:
        raise InputError(_explained(error.problems, path)) from None
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
            raise InputError(f"{path}: {place}: unknown {kind} {name!r}; known: {_listed(names, name)}")

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
            if not params.tasks[params.models[member].task].labels:
                raise InputError(
                    f"{path}: merges.{name}: {member} predicts no labels, so it has no part in an ensemble; remove it"
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


def _check_no_cycles(params: Params, path: Path) -> None:
    """Refuse a model that is, by way of others perhaps, its own base."""
    for name in params.models:
        line = [name]
        while (base := params.models[line[-1]].base) not in params.sources:
            if base in line:
                raise InputError(f"{path}: models.{name}.base: goes round in a circle: {', '.join([*line, base])}")
            line.append(base)


def _check_estimator(params: Params, model: str, place: str) -> None:
    """Refuse an exact Fisher with a class per token of a vocabulary."""
    estimated = params.models[model].fisher is not False and params.fisher_source(model) is None
    exact = estimated and params.fisher_settings(model).estimator == "exact"
    if exact and params.tasks[params.models[model].task].kind == "masked-lm":
        raise InputError(
            f"{place}.fisher.estimator = 'exact': a masked-lm model has a class per token of its vocabulary, and the "
            "exact Fisher takes a pass for each; put `fisher: {estimator: sketch}` under the model"
        )


def _check_search(params: Params, merge: Merge, search: Search, place: str) -> None:
    """Refuse a search on tasks that have no common metric to score λ by."""
    own = {params.models[model].task for model in merge.models}
    tasks = search.tasks or [task for task in params.tasks if task in own and metrics_of(params.tasks[task].kind)]
    if not tasks:
        raise InputError(f"{place}.tasks: missing, and no task of the merged models has a metric to score λ by")
    primary = {}
    for task in tasks:
        kind = params.tasks[task].kind
        found = {metric.name: metric for metric in metrics_of(kind)}
        if not found:
            raise InputError(f"{place}.tasks: {task} has no metric to score λ by: its kind is {kind}")
        if search.metric is not None and search.metric not in found:
            raise InputError(
                f"{place}.metric = {_shortened(repr(search.metric))}: {task}, whose kind is {kind}, has no such "
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


def _check_inputs(params: Params, merge: Merge, place: str) -> None:
    """Refuse a merge whose method needs what its models do not have."""
    if merge.options.needs_base and params.base_of(merge) is None:
        listed = ", ".join(f"{model} from {params.models[model].base}" for model in merge.models)
        raise InputError(f"{place}: {merge.options.method} needs models of one base ({listed})")
    for model in [*merge.models, *merge.options.further_models.values()]:
        if "diagonal" in merge.options.statistics and params.models[model].fisher is False:
            raise InputError(f"{place}: {merge.options.method} needs the Fisher of {model}, which has `fisher: false`")
    for model in merge.models:
        if "kfac" in merge.options.statistics and params.fisher_settings(model).estimator == "adam":
            raise InputError(
                f"{place}: {merge.options.method} needs the K-FAC factors of {model}, which its fisher.estimator, "
                "adam, does not give; choose another estimator"
            )


def _listed(names: Iterable[str], wanted: str | None = None) -> str:
    """The names in a line; if one is close to `wanted`, only that one, as a question."""
    known = sorted(map(str, names))
    close = difflib.get_close_matches(str(wanted), known, n=1) if wanted is not None else []
    listed = ", ".join(known) or "none"
    return f"{listed} (did you mean {close[0]}?)" if close else listed


def _explained(problems: Iterable[Mapping[str, Any]], path: Path) -> str:
    """What is wrong at each place in the file; what several branches of a union say of one place is joined by "or"."""
    lines: dict[str, str] = {}
    for problem in problems:
        place, explanation = _explain(problem)
        lines[place] = f"{lines[place]}, or {problem['msg'].lower()}" if place in lines else explanation
    found = [f"{_shortened(place)}{explanation}" for place, explanation in lines.items()]
    more = [f"and {len(found) - MAX_PROBLEMS} more"] if len(found) > MAX_PROBLEMS else []
    return f"{path}: {'; '.join(found[:MAX_PROBLEMS] + more)}"


def _explain(problem: Mapping[str, Any]) -> tuple[str, str]:
    """For one of pydantic's problems: the key's path; the value and what is allowed."""
    # Where pydantic goes into a union it adds the branch's name, for example "list[str]".
    location = [part for part in problem["loc"] if not re.match(r"\[key\]|[\w-]+\[|constrained-str$", str(part))]
    if location[:1] == ["merges"] and location[2:3] == ["options"]:
        del location[2:4]  # in the file the options stand beside the merge's other keys
    if location[:1] == ["ensembles"]:
        location[0] = "merges"  # where they stand in the file
    place = ".".join(map(str, location)) or "(top level)"
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = _listed(_allowed_keys(problem["loc"]), str(location[-1]))
        return place, f": unknown key; allowed: {allowed}"
    if kind == "missing":
        return place, ": missing"
    if kind == "union_tag_not_found":
        return f"{place}.method", f": missing; allowed: {_listed([*METHODS, ENSEMBLE])}"
    if kind == "union_tag_invalid":
        return f"{place}.method", f" = {context['tag']!r}: unknown method; allowed: {_listed([*METHODS, ENSEMBLE])}"
    if kind == "value_error":
        return place, f": {context['error']}"
    if "[key]" in problem["loc"]:
        return place, ": bad name; allowed: a letter a-z, then letters a-z, digits and hyphens (at most 64)"
    return place, f" = {_shortened(repr(problem['input']))}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _allowed_keys(location: tuple[int | str, ...]) -> Iterable[str]:
    """The keys that the section at `location` (the unknown key's, as pydantic gives it) may have."""
    match location:
        case (_,):
            return KEYS
        case ("finetune", _) | ("models", _, "finetune", _):
            return FinetuneSettings.model_fields
        case ("fisher", _):
            return FisherSettings.model_fields
        case ("models", _, "fisher", _):
            return FisherSettings.model_fields.keys() | Source.model_fields.keys()
        case ("sources", _, _):
            return Source.model_fields
        case ("tasks", _, "split", _):
            return TaskSplit.model_fields
        case ("tasks", _, "image", _):
            return Images.model_fields
        case ("tasks", _, "corruptions", _, _):
            return Corruption.model_fields
        case ("tasks", _, _):
            return Task.model_fields
        case ("models", _, _):
            return Model.model_fields
        case ("merges", _, "search", _):
            return Search.model_fields
        case ("ensembles", _, _):
            return Ensemble.model_fields
        case ("merges", _, "options", str(method), _):
            return (Merge.model_fields.keys() | METHODS[method].model_fields.keys()) - {"options"}
    return ()
