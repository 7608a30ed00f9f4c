"""What was done and what came of it, in plain words that the numbers decide."""

from collections.abc import Sequence

from stages.reporting.metric_words import words
from stages.reporting.significance import Comparison, Group, mean_score
from stages.reporting.wording import escaped, listing, number_of, p_value
from stages.results.scores import Result
from stages.results.shown import NOTHING, is_shown_as_zero, shown_difference, with_unit
from stages.tasks.metrics import Metric


def what_was_merged(results: Sequence[Result], tasks: Sequence[str]) -> str:
    """The models, how they were made, and what was made of them: a paragraph of Markdown."""
    models = [result for result in results if result.role == "model"]
    merges = [result for result in results if result.role == "merge"]
    baselines = [result for result in results if result.role == "baseline"]
    sentences = []
    if models:
        bases = {str(model.origin.get("base")) for model in models}
        trained = [model for model in models if model.origin.get("method") == "finetuned"]
        kind = ", fine-tuned" if len(trained) == len(models) else ""
        origin = f"{kind} from {escaped(bases.pop())}" if len(bases) == 1 else kind
        sentences.append(f"{number_of(len(models), 'model')}{origin}: {_names(models)}.")
        examples = [int(model.origin["examples"]) for model in trained if model.origin.get("examples")]
        if examples and len(trained) == len(models):
            sentences.append(f"Each was trained on {_span(examples)} examples.")
    if merges:
        methods = list(dict.fromkeys(str(merge.origin.get("method")) for merge in merges))
        searched = sum(merge.searched for merge in merges)
        found = f" (λ of {searched} found by a search on validation splits)" if searched else ""
        sentences.append(
            f"Out of them {number_of(len(merges), 'merge')} {'was' if len(merges) == 1 else 'were'} made{found}, "
            f"by {listing([_code(method) for method in methods])}."
        )
    known = {result.name for result in results}
    others = sorted({model for merge in merges for model in merge.origin.get("coefficients", {})} - known)
    if others:
        sentences.append(f"Merged too, but without test results of their own: {escaped(listing(others))}.")
    if baselines:
        sentences.append(
            f"Beside them, for comparison: {_names(baselines)}, which merge{'s' * (len(baselines) == 1)} nothing."
        )
    sizes = [int(r.metrics[task]["examples"]) for r in results for task in tasks if task in r.metrics]
    if sizes:
        over = "the task" if len(tasks) == 1 else f"{len(tasks)} tasks"
        names = escaped(tasks[0]) if len(tasks) == 1 else f"({escaped(listing(tasks))})"
        each = "" if len(tasks) == 1 else " each"
        sentences.append(f"All is measured on {over} {names}, {_span(sizes)} test examples{each}.")
    return " ".join(sentences)


def main_finding(group: Group) -> str:
    """The best merge of a group, and whether it differs from the others by more than noise: Markdown."""
    metric, tasks, comparisons = group.metric, group.tasks, group.comparisons
    merges, baselines, models = (
        [result for result in group.results if result.role == role] for role in ("merge", "baseline", "model")
    )
    if not merges:
        return ""
    best = merges[0]
    where = f"on {escaped(tasks[0])}" if len(tasks) == 1 else f"on the mean over the {len(tasks)} tasks"
    if merges[1:]:
        opening = f"Of the {len(merges)} merges compared, **{escaped(best.name)}** {words(metric).is_best} {where}"
    else:
        opening = f"The merge **{escaped(best.name)}** was measured {where}"
    value = mean_score(best, tasks)
    level = [merge for merge in merges[1:] if abs(mean_score(merge, tasks) - value) < NOTHING]
    averages = [merge for merge in merges[2:] if merge.origin.get("method") == "isotropic"]
    rivals = [
        ("Level with it" if level else "The runner-up", merges[1:2]),
        ("Plain averaging", averages[:1]),
        ("The best baseline", baselines[:1]),
        ("The best single model", models[:1]),
    ]
    lines = [
        f"- {what}, {escaped(rival.name)}, has {with_unit(metric, mean_score(rival, tasks))}: "
        f"{_verdict(metric, comparisons[best.name, rival.name])}."
        for what, found in rivals
        for rival in found
    ]
    paragraphs = [
        f"{opening}: {with_unit(metric, value)}{f', exactly level with {_names(level)}' if level else ''}.",
        "\n".join(lines),
        _specialists(metric, models, merges, tasks),
        "Which merge is best was read off these same test examples, which flatters it a little; the p-values are of "
        "each pair by itself."
        if merges[1:]
        else "",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _verdict(metric: Metric, found: Comparison) -> str:
    low, difference, high = (shown_difference(metric, value) for value in (found.low, found.difference, found.high))
    points = " points" if metric.unit == "share" else ""
    ahead = "no difference" if is_shown_as_zero(metric, found.difference) else f"{difference}{points} for the merge"
    numbers = f"{ahead} (95 % interval {low} to {high}, {p_value(found.p_value)})"
    if not found.is_beyond_noise:
        return f"{numbers}, which is within noise"
    worse = metric.gain(found.difference) < 0
    return f"{numbers}, which is more than noise" + ("; the merge is worse" if worse else "")


def _specialists(metric: Metric, models: Sequence[Result], merges: Sequence[Result], tasks: Sequence[str]) -> str:
    """On which tasks a single model is ahead of every merge; nothing for one task, of which all has been said."""
    if not models or len(tasks) < 2:
        return ""

    def best(results: Sequence[Result], task: str) -> float:
        return metric.best(result.score(task) for result in results)

    ahead = [task for task in tasks if metric.gain(best(models, task) - best(merges, task)) > 0]
    if not ahead:
        return f"On every task, some merge is {words(metric).as_good}."
    if len(ahead) == len(tasks):
        return "On each task by itself, a single model is still ahead of every merge."
    return f"By itself, a single model is still ahead of every merge on {escaped(listing(ahead))}."


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _names(results: Sequence[Result]) -> str:
    return escaped(listing([result.name for result in results]))


def _code(text: str) -> str:
    return f"`{text}`" if "`" not in text else escaped(text)
