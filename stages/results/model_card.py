"""The model card (README.md, as the Hub has them) of a model that is published with its Fisher."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.results.shown import capital, shown, unit_sign, with_unit
from stages.running.errors import first_names
from stages.storage.adapters import PREFIX
from stages.storage.checkpoint_files import CHECKPOINT_CARD
from stages.storage.source import Source, shown_url
from stages.storage.statistic import GIVEN, UNVERIFIED, nothing_binds
from stages.tasks.metrics import Metric
from stages.tasks.task import Task

if TYPE_CHECKING:  # they import torch, which a misspelt name need not wait for
    from stages.storage.checkpoint import Checkpoint
    from stages.storage.statistic_files import StatisticFiles


MARK = "<!-- written by stages.publish, which replaces a directory that has this line -->"
ESTIMATORS = {
    "exact": "the expectation of (∇ log p)² over the model's own predictions, computed exactly",
    "sketch": "the expectation of (∇ log p)² over the model's own predictions, estimated without bias by random signs",
    "sampled": "the expectation of (∇ log p)² over the model's own predictions, estimated without bias by drawn labels",
    "empirical": "(∇ log p)² of the observed labels, which is not the Fisher but resembles it",
    "adam": "the optimizer's mean of squared gradients while it was fine-tuned, a rough stand-in for the Fisher",
    GIVEN: "second moments of gradients that were taken as they came; how they were made is not known",
}
NOT_KNOWN = "not known"
PIN_ADVICE = {
    "hub": "`<commit>` is the commit to take, in full: the newest is the first in this repository's history.",
    "path": "`<sha256>` was printed when this was published; the error about 64 zeros in its place says it too.",
}


@dataclass(frozen=True)
class Publication:
    """A model and its Fisher, verified, and what its card says beside their own cards.

    Attributes:
        name: the model's name.
        task: what params.yaml says of its task.
        checkpoint: its weights, configuration and card.
        fisher: its diagonal Fisher.
        base: the source that it, or the model that it goes on from, was made from, with its name in params.yaml; None
            if params.yaml has it no more.
        data: the source of its task's examples.
        metrics: on the test splits, by task; empty if it has not been evaluated.
        measured_by: task → its metrics, the primary one first, of those tasks.
    """

    name: str
    task: Task
    checkpoint: "Checkpoint"
    fisher: "StatisticFiles"
    base: tuple[str, Source] | None
    data: Source
    metrics: Mapping[str, Mapping[str, float]]
    measured_by: Mapping[str, Sequence[Metric]]

    @property
    def adapted(self) -> tuple[str, Source | None] | None:
        """Of an adapter, what params.yaml calls its base, and its source; None for that of a model. Else None."""
        if self.checkpoint.base is None:
            return None
        name = str(self.checkpoint.card["origin"]["base"])
        return name, self.base[1] if self.base is not None and self.base[0] == name else None


def taking(publication: Publication, source: Mapping[str, str]) -> str:
    """The lines of another project's params.yaml that take the publication from `source`."""
    name, card = publication.name, publication.checkpoint.card
    place = ", ".join(f"{key}: {_json(value)}" for key, value in source.items())
    model = f"base: {name}, task: {card['task']}, finetune: false"
    if (base := publication.adapted) is not None:
        model = f"base: {base[0]}, adapter: {name}, task: {card['task']}"
    return f"""\
sources:
  {name}: {{{place}}}
models: # the task is one of yours{f", with the labels {_json(card['labels'])} in this order" if card["labels"] else ""}
  {name}: {{{model}, fisher: {{{place}}}}}"""


def model_card(publication: Publication, source: Mapping[str, str]) -> str:
    """The model card (README.md, as the Hub has them) of a publication that others take from `source`."""
    name, kind, card = publication.name, publication.task.kind, publication.checkpoint.card
    return f"""\
---
{_header(publication)}
---

{MARK}

# {name}

A {kind} model with its Fisher information: how much its predictions depend on each of its parameters. By that,
models of one base are merged into one ([Matena & Raffel 2022](https://arxiv.org/abs/2111.09832)).

- **Task:** {card["task"]}.{_labels(card["labels"])}
- **Data:** {publication.task.source}{_where(publication.data)}: {_files(publication.task)}.
{_making(publication)}
{_test_results(publication)}
## The Fisher

`{publication.fisher.tensors.stem}.safetensors` has a tensor per {_measured(publication)}'s name and in its shape.

{_fisher_facts(publication.fisher.card)}

{_binding(publication)}

## Use

With transformers:

```python
{_loading(publication.task, _json(source.get("hub", source.get("path"))), _base_of_adapter(publication))}
```

In another project of the Fisher merging pipeline, in `params.yaml`:

```yaml
{taking(publication, source)}
```

{PIN_ADVICE["hub" if "hub" in source else "path"]}
Without `fisher`, `dvc repro` estimates one on that project's own examples.

`{CHECKPOINT_CARD}` and `fisher.json` say the same for programs.
"""


def _measured(publication: Publication) -> str:
    """What the Fisher has a tensor for, and under whose name."""
    adapted = publication.checkpoint.adapted
    if publication.checkpoint.base is None:
        return "parameter, under the parameter"
    if adapted is None or any(name.startswith(PREFIX) for name in publication.fisher.tensors.stored):
        return "parameter of the adapter, under that"
    if publication.fisher.tensors.stored.keys() <= adapted.changed:
        return "weight that the adapter changes, under the weight"
    return "weight of the adapter's model, under the weight"


def _header(publication: Publication) -> str:
    """What the Hub reads: the model's pipeline, its base and its data, as far as these are on the Hub, as YAML."""
    from huggingface_hub import ModelCardData

    base = None if publication.base is None else publication.base[1].hub
    library = "transformers"
    if publication.adapted is not None:
        library, (_, source) = "peft", publication.adapted
        base = None if source is None else source.hub
    data = publication.data.hub if publication.data.repo_type == "dataset" else None
    return ModelCardData(
        library_name=library,
        pipeline_tag=publication.task.hub_pipeline,
        base_model=base,
        datasets=None if data is None else [data],
        tags=["fisher-merging", "fisher-information"],
    ).to_yaml()


def _files(task: Task) -> str:
    """What of its source the task is read from: a few names, and how many more."""
    return first_names([str(entry) for entry in task.entries])


def _loading(task: Task, place: str, base: str | None) -> str:
    """The lines of Python that load a model from where it is; an adapter, on its base."""
    if task.auto_class is None:
        return f"from transformers import pipeline\n\nmodel = pipeline({_json(task.hub_pipeline)}, {place})"
    load = f"{task.auto_class}.from_pretrained({place if base is None else base})"
    imported, model = "", load
    if base is not None:
        imported, model = "from peft import PeftModel\n", f"PeftModel.from_pretrained({load}, {place})"
    return (
        f"{imported}from transformers import {task.auto_class}, AutoTokenizer\n\n"
        f"model = {model}\ntokenizer = AutoTokenizer.from_pretrained({place})"
    )


def _base_of_adapter(publication: Publication) -> str | None:
    """What an adapter's base is called in Python: its repository on the Hub, or what params.yaml calls it."""
    if publication.adapted is None:
        return None
    name, source = publication.adapted
    return _json(name if source is None or source.hub is None else source.hub)


def _labels(labels: Sequence[str]) -> str:
    return f" **Labels,** in the order of the outputs: {_json(labels)}." if labels else ""


def _making(publication: Publication) -> str:
    """Base, fine-tuning and the validation split's metric (or loss), as items of a list."""
    origin = dict(publication.checkpoint.card["origin"])
    method, base = origin.pop("method"), origin.pop("base")
    items = [f"**Base:** {base}{_from(base, publication.base)}."]
    if method == "finetuned":
        examples, loss = origin.pop("examples"), origin.pop("validation_loss", None)
        scores = {metric: origin.pop(f"validation_{metric.name}", None) for metric in publication.task.own_metrics}
        what = "all weights"
        if (adapter := origin.pop("adapter", None)) is not None:
            what = f"an adapter ({', '.join(f'{key} {value}' for key, value in adapter.items())})"
        settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in origin.items())
        items.append(f"**Fine-tuning:** of {what}, by AdamW, on {examples:,} training examples; {settings}.")
        for metric, score in scores.items():
            if score is not None:
                items.append(f"**Validation {metric.title}:** {with_unit(metric, score)}.")
        if loss is not None:
            items.append(f"**Validation loss:** {loss:.4g} per hidden token.")
    else:
        finished = "the base is a finished model" if publication.adapted is None else "the adapter is a finished one"
        items.append(f"**Fine-tuning:** none here; {finished} and was taken as it is.")
    return "\n".join(f"- {item}" for item in items)


def _from(base: str, first: tuple[str, Source] | None) -> str:
    """Where a base is from; of one that is a model of params.yaml, where the source is from that it goes back to."""
    if first is None:
        return ""
    name, source = first
    return _where(source) if name == base else f", which goes back to {name}{_where(source)}"


def _where(source: Source) -> str:
    if source.hub:
        place = source.hub if source.repo_type == "model" else f"datasets/{source.hub}"
        return f" ([{source.hub}](https://huggingface.co/{place}), revision `{source.revision}`)"
    if source.url:
        return f" (from {shown_url(source.url)}, sha256 `{source.sha256}`)"
    return f" (from the package `{source.package}`)" if source.package else f" (local, sha256 `{source.sha256}`)"


def _test_results(publication: Publication) -> str:
    """The section on the test splits, a table for the tasks of the same metrics; nothing where there are no results."""
    if not publication.metrics:
        return ""
    alike: dict[tuple[str, ...], list[str]] = {}
    for task in publication.metrics:
        alike.setdefault(tuple(metric.name for metric in publication.measured_by[task]), []).append(task)
    tables = [_table(publication, tasks) for tasks in alike.values()]
    return "\n".join(["", "## On the test splits", "", *(line for table in tables for line in table)])


def _table(publication: Publication, tasks: Sequence[str]) -> list[str]:
    """The lines that say what there is of some tasks, which have the same metrics."""
    metrics = publication.measured_by[tasks[0]]
    primary = metrics[0]

    def row(task: str) -> str:
        entry = publication.metrics[task]
        low, high = (shown(primary, entry[f"{primary.name}_{end}"]) for end in ("low", "high"))
        first, *others = (shown(metric, entry[metric.name]) for metric in metrics)
        return f"| {' | '.join([task, f'{first} ({low}–{high})', *others, format(entry['examples'], ',')])} |"

    titles = ["task", *(_with_sign(metric) for metric in metrics), "examples"]
    header = [f"| {' | '.join(titles)} |", f"| {' | '.join('---' for _ in titles)} |"]
    said = f"{capital(primary.title)} with its 95 % bootstrap interval."
    return [said, "", *header, *map(row, tasks), ""]


def _with_sign(metric: Metric) -> str:
    sign = unit_sign(metric).strip()
    return f"{metric.title}, {sign}" if sign else metric.title


def _binding(publication: Publication) -> str:
    """What says that the Fisher is of these weights."""
    if publication.fisher.card.get(UNVERIFIED):
        return nothing_binds([publication.name])
    return "It fits these weights only: a merge compares the fingerprints and refuses it beside any other."


def _fisher_facts(card: Mapping[str, Any]) -> str:
    """What a Fisher's card says, as a table."""
    estimator = card.get("estimator")
    facts = {
        "estimator": f"`{estimator}`: {ESTIMATORS.get(estimator, NOT_KNOWN)}" if estimator else NOT_KNOWN,
        "origin": _fisher_origin(card.get("origin", {})),
        "draws per example": card.get("samples") if estimator in ("sketch", "sampled") else None,
        "likelihood": card.get("likelihood"),
        "examples": f"{card['examples']:,}, of the train split of {card['task']}"
        if {"examples", "task"} <= card.keys()
        else None,
        "fingerprint of the examples": card.get("examples_fingerprint"),
        "seed": card.get("seed"),
        "precision of the passes": card.get("precision"),
        "type of the entries": card.get("dtype"),
        "format version": card["format_version"],
        "fingerprint of the checkpoint": card["checkpoint"],
        "fingerprint of the Fisher": card["fingerprint"],
        "libraries": ", ".join(f"{library} {version}" for library, version in card.get("libraries", {}).items())
        or None,
    }
    rows = [f"| {fact} | {value} |" for fact, value in facts.items() if value is not None]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _fisher_origin(origin: Mapping[str, Any]) -> str | None:
    """Where a Fisher that was taken without a card is from, and the SHA-256 of its files."""
    if not origin:
        return None
    place = origin.get("hub") or origin.get("package") or "a local file"
    revision = f" at `{origin['revision']}`" if "revision" in origin else ""
    files = ", ".join(f"{name} (sha256 `{digest}`)" for name, digest in origin["files"].items())
    return f"{place}{revision}: {files}"


def _json(value: object) -> str:
    """A string or a list of strings as JSON, which YAML and Python read too."""
    return json.dumps(value, ensure_ascii=False)
