"""What a merged checkpoint says of itself: `checkpoint.json` for programs, `README.md` for people."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from stages.merging.ingredients import Heads
from stages.merging.merged_tensors import Merging
from stages.storage.checkpoint_files import checkpoint_card
from stages.storage.statistic import UNVERIFIED, nothing_binds
from stages.storage.statistic_files import StatisticFiles
from stages.storage.statistics import STATISTICS
from stages.storage.tensors import fingerprint

STATISTIC_FACTS = ("estimator", "likelihood", "examples", "seed", "examples_fingerprint")


def merged_card(
    merging: Merging, heads: Heads, found: str, truncation: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The card of a merged checkpoint whose fingerprint is `found`.

    Args:
        merging: the merge.
        heads: what was done with them.
        found: the fingerprint.
        truncation: what `truncation.write_as_adapter` says, if it is an adapter of low rank.
    """
    it = merging.ingredients
    origin = {
        "method": it.options.method,
        "options": it.options.model_dump(exclude={"method"}),
        "precision": merging.precision,
        "target": it.target_name,
        "heads": heads if heads == "each" else ("target" if it.kept_heads else "merge"),
        **({"kept": sorted(it.kept_body)} if it.kept_body else {}),
        **({"vocabulary": _vocabulary(merging)} if it.vocabulary != "same" else {}),
        "coefficients": dict(merging.coefficients),
        "models": {name: _model(merging, name) for name in it.checkpoints},
        **({} if truncation is None else {"adapter": dict(truncation)}),
        **({UNVERIFIED: unverified} if (unverified := _unverified(merging)) else {}),
    }
    of = it.target.card
    return checkpoint_card(found, of.get("base_model_prefix"), it.target.output_names, of.get("task"), origin)


def _vocabulary(merging: Merging) -> dict[str, Any]:
    """How the result's tokens were chosen, and how many there are, where not all have the same."""
    it = merging.ingredients
    return {"rule": it.vocabulary} if it.rows is None else it.rows.numbers()


def _model(merging: Merging, name: str) -> dict[str, Any]:
    checkpoint = merging.ingredients.checkpoints[name]
    statistics = {
        files[name].tensors.stem: {key: files[name].card.get(key) for key in STATISTIC_FACTS}
        for files in merging.ingredients.statistics.values()
    }
    return {
        "checkpoint": fingerprint(checkpoint.tensors),
        "task": checkpoint.card.get("task"),
        **statistics,
    }


def _unverified(merging: Merging) -> list[str]:
    """The models whose statistics nothing binds to their checkpoints, those that have no part in the merge too."""
    it = merging.ingredients
    found = {name: files for those in it.statistics.values() for name, files in those.items() if _is_unverified(files)}
    further = [model for option, model in it.options.further_models.items() if _is_unverified(it.further[option])]
    return sorted({*found, *further})


def _is_unverified(statistic: StatisticFiles) -> bool:
    return bool(statistic.card.get(UNVERIFIED))


def model_card(card: Mapping[str, Any], trained: Mapping[str, Mapping[str, Any]]) -> str:
    """The model card (README.md, as Hugging Face has them) of a merged checkpoint.

    Args:
        card: its `merged_card`.
        trained: per model, how it was made: the `origin` of its own card.
    """
    origin = card["origin"]
    options = ", ".join(f"{key} = {value}" for key, value in origin["options"].items() if value is not None)
    lines = [
        "---",
        "library_name: transformers",
        "tags: [merge, fisher-merging]",
        "base_model_relation: merge",
        "---",
        "",
        f"# A merge of {len(origin['models'])} models",
        "",
        f"Method: {origin['method']}{f' ({options})' if options else ''}; computed in {origin['precision']}.",
        {
            "merge": "The heads are merged like the rest.",
            "target": f"The head is that of {origin['target']}.",
            "each": f"The head is that of {origin['target']}; every model's own is in `heads/`.",
        }[origin["heads"]],
        *([f"So is what another model lacks: {', '.join(origin['kept'])}."] if "kept" in origin else []),
        *(_truncation_words(origin["adapter"]) if "adapter" in origin else []),
        *(_vocabulary_lines(origin["vocabulary"]) if "vocabulary" in origin else ()),
        "",
        "| model | λ | task | examples | validation | weights |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [*_model_rows(origin, trained), *_statistics_table(origin)]
    if unverified := [_cell(name) for name in origin.get(UNVERIFIED, [])]:
        lines += ["", nothing_binds(unverified)]
    lines += [
        "",
        f"Labels: {json.dumps(card['labels'], ensure_ascii=False)}. Fingerprint: `{card['fingerprint']}`.",
        "`checkpoint.json` says the same for programs.",
    ]
    return "\n".join(lines) + "\n"


def _truncation_words(adapter: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"It is a LoRA adapter of rank {adapter['rank']}, by the singular value decomposition of each merged weight's "
        f"change: {adapter['relative_error']:.2%} of the change's norm is lost."
    )


def _vocabulary_lines(numbers: Mapping[str, Any]) -> Iterator[str]:
    """One sentence on the vocabulary: where its tokens come from."""
    if "tokens" not in numbers:
        yield f"Vocabulary: {numbers['rule']}; all models have the same."
        return
    yield (
        f"Vocabulary: {numbers['rule']}, rows matched by token. Of {numbers['tokens']} tokens, all models have "
        f"{numbers['shared']}, the target alone {numbers['target alone']}; of those that it lacks, "
        f"{numbers['added']} were added, {numbers['left out']} left out."
    )


def _model_rows(origin: Mapping[str, Any], trained: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, entry in origin["models"].items():
        made = trained.get(name, {})
        cells = [
            name,
            f"{origin['coefficients'][name]:.4g}",
            entry["task"],
            made.get("examples"),
            _validation(made),
            f"`{entry['checkpoint'][:12]}`",
        ]
        yield f"| {' | '.join('–' if cell is None else _cell(cell) for cell in cells)} |"


def _validation(made: Mapping[str, Any]) -> str | None:
    """What a model scored on its validation split and by which metric (or its loss), if its origin says so."""
    found = [(key.removeprefix("validation_"), made[key]) for key in made if key.startswith("validation_")]
    return " ".join(f"{name.replace('_', ' ')} {_cell(value)}" for name, value in found[:1]) or None


def _statistics_table(origin: Mapping[str, Any]) -> Iterator[str]:
    """What each model's statistics were estimated by and on, if the merge has any."""
    statistics = [
        (name, kind.stem, entry[kind.stem])
        for name, entry in origin["models"].items()
        for kind in STATISTICS.values()
        if kind.stem in entry
    ]
    if statistics:
        yield ""
        yield "| statistic | of | estimator | likelihood | examples | seed |"
        yield "| --- | --- | --- | --- | --- | --- |"
    for name, stem, facts in statistics:
        cells = [stem, name, *(facts.get(key) for key in ("estimator", "likelihood", "examples", "seed"))]
        yield f"| {' | '.join('–' if cell is None else _cell(cell) for cell in cells)} |"


def _cell(value: object) -> str:
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown.replace("|", "\\|").replace("\n", " ")
