"""What is wrong with a params.yaml, in words: where, the value, and what is allowed."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from stages.merging.methods import METHODS
from stages.params.adapters import ADAPTERS
from stages.params.merges import ENSEMBLE, AsAdapter, Ensemble, Merge, Search
from stages.params.schema import FinetuneSettings, FisherSettings, Model, Params
from stages.running.section import Section
from stages.storage.source import FisherSource, Source
from stages.tasks.kinds import KINDS

KEYS = Params.model_fields.keys() - {"ensembles"}  # of the file
MAX_PROBLEMS = 10  # that a message lists


def listed(names: Iterable[str], wanted: str | None = None) -> str:
    """The names in a line; if one is close to `wanted`, only that one, as a question."""
    known = sorted(map(str, names))
    close = difflib.get_close_matches(str(wanted), known, n=1) if wanted is not None else []
    listed = ", ".join(known) or "none"
    return f"{listed} (did you mean {close[0]}?)" if close else listed


def explained(problems: Iterable[Mapping[str, Any]], path: Path) -> str:
    """What is wrong at each place in the file; what several branches of a union say of one place is joined by "or"."""
    lines: dict[str, str] = {}
    for problem in problems:
        place, explanation = _explain(problem)
        lines[place] = f"{lines[place]}, or {problem['msg'].lower()}" if place in lines else explanation
    found = [f"{shortened(place)}{explanation}" for place, explanation in lines.items()]
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
    if location[:1] == ["tasks"] and location[2:3] and location[2] in KINDS:
        del location[2]  # the kind, which is not on the way to a key
    ending = {"finetune": 2, "models": 4}.get(str(location[0]), 0) if location else 0  # of the path to an adapter
    of_adapter = ending > 0 and location[ending - 2 : ending] == ["finetune", "adapter"]
    if of_adapter:
        del location[ending : ending + 1]  # its type, which is not on the way to a key either
    place = ".".join(map(str, location)) or "(top level)"
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        if others := _of_other_kinds(problem["loc"]):
            return place, f": {others}; remove it"
        return place, f": unknown key; allowed: {listed(_allowed_keys(problem['loc']), str(location[-1]))}"
    if kind == "missing":
        return place, ": missing"
    if kind == "union_tag_invalid" and location[0] == "tasks":
        return f"{place}.kind", f" = {context['tag']!r}: unknown kind; allowed: {listed(KINDS)}"
    if kind.startswith("union_tag") and of_adapter:
        given = f" = {context['tag']!r}: unknown type" if kind == "union_tag_invalid" else ": missing"
        return f"{place}.type", f"{given}; allowed: {listed(ADAPTERS)}"
    if kind == "union_tag_not_found":
        return f"{place}.method", f": missing; allowed: {listed([*METHODS, ENSEMBLE])}"
    if kind == "union_tag_invalid":
        return f"{place}.method", f" = {context['tag']!r}: unknown method; allowed: {listed([*METHODS, ENSEMBLE])}"
    if kind == "value_error":
        return place, f": {context['error']}"
    if "[key]" in problem["loc"] and kind == "literal_error":
        others = " (or directory, config, split)" if location[2:3] == ["file"] else ""
        return place, f": unknown key; allowed: {context['expected']}{others}"
    if "[key]" in problem["loc"]:
        return place, ": bad name; allowed: a letter a-z, then letters a-z, digits and hyphens (at most 64)"
    return place, f" = {shortened(repr(problem['input']))}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def shortened(text: str) -> str:
    """A value as a message shows it, at most 80 characters."""
    return text if len(text) <= 80 else text[:77] + "..."


def _of_other_kinds(location: tuple[int | str, ...]) -> str:
    """Which kinds of task have the key at `location`, if it is one that this task's kind has not."""
    match location:
        case ("tasks", _, str(kind), str(key)):
            others = [name for name, settings in KINDS.items() if key in settings.model_fields]
            return f"is for tasks of the kind {' or '.join(others)}, and this one is {kind}" if others else ""
    return ""


def _allowed_keys(location: tuple[int | str, ...]) -> Iterable[str]:
    """The keys that the section at `location` (the unknown key's, as pydantic gives it) may have."""
    match location:
        case (_,):
            return KEYS
        case ("finetune", "adapter", str(kind), _) | ("models", _, "finetune", "adapter", str(kind), _):
            return ADAPTERS[kind].model_fields
        case ("finetune", _) | ("models", _, "finetune", _):
            return FinetuneSettings.model_fields
        case ("fisher", _):
            return FisherSettings.model_fields
        case ("models", _, "fisher", _):
            return FisherSettings.model_fields.keys() | FisherSource.model_fields.keys()
        case ("sources", _, _):
            return Source.model_fields
        case ("tasks", _, str(kind), *keys):
            return _keys_below(KINDS[kind], keys)
        case ("models", _, _):
            return Model.model_fields
        case ("merges", _, "search", _):
            return Search.model_fields
        case ("merges", _, "adapter", _):
            return AsAdapter.model_fields
        case ("ensembles", _, _):
            return Ensemble.model_fields
        case ("merges", _, "options", str(method), _):
            return (Merge.model_fields.keys() | METHODS[method].model_fields.keys()) - {"options"}
    return ()


def _keys_below(section: type[Section], keys: Sequence[int | str]) -> Iterable[str]:
    """The keys of the section in which the last of the keys stands; positions in lists are passed over."""
    for key in keys[:-1]:
        if isinstance(key, str) and key in section.model_fields:
            inner = _section_in(section.model_fields[key].annotation)
            if inner is None:
                return ()
            section = inner
    return section.model_fields


def _section_in(annotation: object) -> type[Section] | None:
    """The section that a field's type is, or is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section_in(inner)) is not None), None)
