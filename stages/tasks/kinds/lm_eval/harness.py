"""The library lm_eval, asked for tasks and for what models make of them, without network and code of tasks."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, UndefinedError

from stages.running.errors import InputError
from stages.tasks.dataset_files import one_line
from stages.tasks.kinds.lm_eval.metrics import Measure
from stages.tasks.kinds.lm_eval.yaml_files import HarnessTask
from stages.tasks.loading import Model
from stages.tasks.texts import Tokenizer

try:
    from lm_eval import utils
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as missing:
    raise InputError(
        f"tasks of the kind lm-eval need lm-evaluation-harness, which cannot be imported here ({missing}); run `pip "
        "install 'fisher-merging[lm-eval]'`"
    ) from None

MEASURED: dict[str, tuple[Measure, ...]] = {  # what there is for each item, by output_type
    "multiple_choice": ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"),
    "loglikelihood": ("acc",),
    "generate_until": ("exact_match",),
}
DEFAULTS: dict[str, tuple[Measure, ...]] = {  # of these, what lm_eval has where a task names no metric
    "multiple_choice": ("acc", "acc_norm"),
    "loglikelihood": ("acc",),
    "generate_until": ("exact_match",),
}
BATCH = 8  # an item has as many logits as positions and tokens of the vocabulary
Task = Any  # lm_eval has no types that type checkers see
LanguageModel = Any


@dataclass(frozen=True)
class Terms:
    """How the items of a task are given to a model.

    Attributes:
        few_shot: how many examples stand before each; None for as many as the task says.
        seed: of their choice.
        limit: how many items of each task; None for all.
        chat_template: whether the tokenizer's chat template writes the prompts.
    """

    few_shot: int | None
    seed: int
    limit: int | None
    chat_template: bool


@contextmanager
def sandboxed() -> Iterator[None]:
    """Inside this context, lm_eval's templates can do no more than write texts, and of its log errors alone are seen.

    A template could otherwise call whatever Python has. One that writes a value that is null is an error.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def written(value: object) -> object:
        if value is None:
            raise UndefinedError("a template writes a value that is null, which a prompt would have as `None`")
        return value

    log = logging.getLogger("lm_eval")
    before = utils.env, log.level
    sandbox = ImmutableSandboxedEnvironment(
        loader=before[0].loader,
        undefined=before[0].undefined,
        keep_trailing_newline=before[0].keep_trailing_newline,
        finalize=written,
    )
    sandbox.filters |= before[0].filters
    utils.env = sandbox
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        utils.env = before[0]
        log.setLevel(before[1])


def built(found: HarnessTask, measures: Sequence[Measure], terms: Terms, cache: Path) -> Task:
    """lm_eval's task, with its data; to be called, and used, inside `sandboxed`.

    Args:
        found: what it says.
        measures: which of its metrics are kept.
        terms: how its items are given to a model.
        cache: a directory for what the library `datasets` makes of the data.

    Raises:
        InputError: it has no such metrics, its data cannot be read, or it would not give the same results each time.
    """
    output_type = found.configuration.get("output_type", "generate_until")
    data = {split: [str((found.root / name).resolve()) for name in names] for split, names in found.data_files.items()}
    kwargs = found.configuration["dataset_kwargs"] | {"data_files": data, "cache_dir": str(cache)}
    said = {
        **found.configuration,
        "dataset_kwargs": kwargs,
        "metric_list": [_metric(found, output_type, measure) for measure in measures],
    }
    _refuse_drawing(found)
    with one_line(Path(found.place)):
        task = ConfigurableTask(config=said)
    _set_few_shot(task, found, terms)
    return task


def _metric(found: HarnessTask, output_type: str, measure: Measure) -> dict[str, Any]:
    """What lm_eval is told of a metric. Raises `InputError` if the task has none of that name, or not as a mean."""
    if output_type not in MEASURED:
        raise InputError(
            f"{found.place}: output_type = {output_type!r}: has no metric that is a mean over the items; those that "
            f"have are {', '.join(MEASURED)}"
        )
    plain = [{"metric": name} for name in DEFAULTS[output_type]]
    listed = found.configuration.get("metric_list", plain)
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    named = [entry for entry in entries if entry.get("metric") == measure]
    if len(named) > 1:
        raise InputError(f"{found.place}: metric_list: has {measure} twice; remove one of them")
    own = next(iter(named), None)
    if own is None or measure not in MEASURED[output_type]:
        names = [str(entry.get("metric")) for entry in entries]
        usable = [name for name in names if name in MEASURED[output_type]]
        raise InputError(
            f"{found.place}: {measure} is none of the metrics of {found.name} that are a mean over the items ("
            f"{', '.join(usable) or 'it has none'}, of {', '.join(names)}); name others in the task's `measures`"
        )
    wanted = {"aggregation": "mean", "higher_is_better": True, "hf_evaluate": False}
    for key, value in wanted.items():
        if own.get(key, value) != value:
            raise InputError(
                f"{found.place}: metric_list: {measure}: {key} = {own[key]!r}: must be {str(value).lower()}"
            )
    return {**own, "aggregation": "mean", "higher_is_better": True}


def _refuse_drawing(found: HarnessTask) -> None:
    """Refuse what would be drawn at random, and what there would be several results of."""
    generation = found.configuration.get("generation_kwargs", {})
    if generation.get("do_sample") or generation.get("temperature"):
        raise InputError(f"{found.place}: generation_kwargs: must not sample: put `do_sample: false`, no `temperature`")
    if found.configuration.get("repeats", 1) != 1:
        raise InputError(f"{found.place}: repeats: must be 1, as what is written is not drawn")
    if len(found.configuration.get("filter_list", [])) > 1:
        raise InputError(f"{found.place}: filter_list: has several filters, each with results of its own; keep one")


def _set_few_shot(task: Task, found: HarnessTask, terms: Terms) -> None:
    """Say how many examples stand before an item. Raises `InputError` if they may be the item itself."""
    own = task.get_config("num_fewshot")
    if terms.few_shot and own == 0:
        raise InputError(
            f"{found.place}: num_fewshot = 0: the task wants no examples before its items; remove it, or `few_shot`"
        )
    task.set_config(key="num_fewshot", value=(own or 0) if terms.few_shot is None else terms.few_shot)
    task.set_fewshot_seed(terms.seed)
    said, own_split = found.configuration, task.fewshot_cfg.split
    # In the order in which lm_eval looks for them.
    places = [own_split, *(said.get(f"{name}_split") for name in ("training", "validation", "test"))]
    place = next((split for split in places if split), None)
    evaluated = said.get("test_split") or said.get("validation_split")
    drawn = task.get_config("num_fewshot") and (own_split is not None or not task.fewshot_cfg.samples)
    files = [set(found.data_files.get(str(split), [])) for split in (place, evaluated)]
    left_out = own_split == said.get("test_split")  # then lm_eval leaves out the item itself
    if drawn and not left_out and not files[0].isdisjoint(files[1]):
        raise InputError(
            f"{found.place}: the examples before an item would be of the split or file that is evaluated, the item "
            "itself among them; name another one as `fewshot_split`"
        )


def check_items(task: Task, found: HarnessTask, limit: int | None) -> int:
    """How many items are evaluated.

    Args:
        task: newly built, so that examples are drawn as in an evaluation; of no use afterwards.
        found: what it says.
        limit: how many items at most; None for all.

    Raises:
        InputError: an item cannot be written, or what is right for it is no answer that it has: lm_eval takes it for
            wrong, whatever the model says; or this is so of an example before it.
    """
    number = 0
    if task.get_config("num_fewshot"):
        _check_drawn(task, found)
    with one_line(Path(found.place)):
        for item, document in task.doc_iterator(limit=limit):
            number += 1
            try:
                _check_item(task, found, item, document)
            except TemplateError as error:
                raise InputError(f"{found.place}: item {item} cannot be written: {error}") from None
    return number


def _check_item(task: Task, found: HarnessTask, item: int, document: Mapping[str, Any]) -> None:
    """Raise `InputError`, or what lm_eval and templates raise, if an item cannot be evaluated; see `check_items`."""
    task.fewshot_context(document, num_fewshot=task.get_config("num_fewshot"))
    text, target = task.doc_to_text(document), task.doc_to_target(document)
    choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
    if choices is not None and not _are_texts(choices):
        raise InputError(f"{found.place}: the choices of item {item}, {choices!r}, are no texts, or empty ones")
    if task.multiple_input and isinstance(target, list):
        raise InputError(f"{found.place}: what goes on after the choices of item {item}, {target!r}, is no text")
    right = text if task.multiple_input else target
    if (fault := _fault(right, choices, task)) is not None:
        raise InputError(f"{found.place}: what is right for item {item}, {right!r}, {fault}")
    # lm_eval asks the first item alone whether there are several.
    if isinstance(target, list) != bool(task.multiple_target):
        kind, other = ("a list", "none") if isinstance(target, list) else ("no list", "one")
        raise InputError(
            f"{found.place}: what is right for item {item}, {target!r}, is {kind}, and that of the first item "
            f"is {other}; lm_eval would read it wrongly"
        )


def _check_drawn(task: Task, found: HarnessTask) -> None:
    """Let the task raise `InputError` where it draws an example that does not say its answer.

    For a hidden one, −1, lm_eval would write the last choice, and for none nothing.
    """
    draw, own = task.sampler.sample, task.fewshot_cfg

    def checked(n: int, eval_doc: Mapping[str, Any] | None = None) -> Sequence[Mapping[str, Any]]:
        examples: Sequence[Mapping[str, Any]] = draw(n=n, eval_doc=eval_doc)
        for example in examples:
            text, target = task.doc_to_text(example, own.doc_to_text), task.doc_to_target(example, own.doc_to_target)
            choices = task.doc_to_choice(example, own.doc_to_choice) if own.doc_to_choice else None
            answer = target[0] if isinstance(target, list) and target else target
            right = text if task.multiple_input else answer
            known = isinstance(answer, str) and answer != ""
            if choices is not None and isinstance(right, int):
                known = 0 <= right < len(choices)
            if not known:
                raise InputError(
                    f"{found.place}: an example before the items, {text!r}, has the answer {right!r}, which is none"
                )
        return examples

    task.sampler.sample = checked


def _are_texts(choices: object) -> bool:
    """Whether these are texts, none of them empty, which has no tokens and no characters to divide by."""
    return isinstance(choices, list) and bool(choices) and all(isinstance(one, str) and one for one in choices)


def _fault(right: object, choices: Sequence[str] | None, task: Task) -> str | None:
    """Why something does not say what is right, in a form that lm_eval reads; None if it does.

    Of choices it is a position or, to be ranked, also one of them, or several positions; without, a text or, to be
    written, also a number, or several texts.
    """
    several = right if isinstance(right, list) else [right]
    if right is several and right and not _takes_several(task, choices):
        return "is a list, which lm_eval does not take here"
    ranked = task.OUTPUT_TYPE == "multiple_choice"
    if choices is not None and ranked and right in choices:
        return None
    if choices is not None:
        places = [one for one in several if isinstance(one, int) and 0 <= one < len(choices)]
        if ranked and places and all(choices.index(choices[one]) < one for one in places):
            return "has the text of a choice before it, which lm_eval takes for the more probable one"
        known = len(places) == len(several)
    else:
        types = (str, int, float) if task.OUTPUT_TYPE == "generate_until" and right is not several else (str,)
        known = not ranked and all(isinstance(one, types) and one != "" for one in several)
    return None if known and several else "is no answer that it has"


def _takes_several(task: Task, choices: Sequence[str] | None) -> bool:
    """Whether lm_eval takes any of several answers for right: not as continuations, nor by each of its metrics."""
    if task.OUTPUT_TYPE == "multiple_choice":
        return "acc_mutual_info" not in task._metric_fn_list
    return task.OUTPUT_TYPE == "generate_until" and choices is None


def language_model(model: Model, tokenizer: Tokenizer, most: int | None) -> LanguageModel:
    """lm_eval's view of a causal language model, which stays where it is; inside `sandboxed`.

    Args:
        model: in float32.
        tokenizer: its own; lm_eval may give it a padding token.
        most: how many tokens the model reads; None for as many as lm_eval believes it to read.
    """
    return HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, max_length=most, batch_size=BATCH)


def number_cut(lm: LanguageModel, task: Task) -> int:
    """Of how many items of a task that was evaluated lm_eval cut off the beginning, because the model reads no more."""
    cut = set()
    for request in task.instances:
        prompt, rest = request.args
        if request.request_type == "generate_until":
            room = lm.max_length - normalize_gen_kwargs(rest, lm.max_gen_toks)["max_gen_toks"]
            longer = len(lm.tok_encode(prompt)) > room
        else:  # the last token is predicted, not read
            longer = len(lm.tok_encode(prompt + rest)) + (not prompt) > lm.max_length + 1
        if longer:
            cut.add(request.doc_id)
    return len(cut)


def evaluated(lm: LanguageModel, tasks: Mapping[str, Task], terms: Terms) -> dict[str, Any]:
    """What lm_eval finds of a model, its own, on tasks that are built; inside `sandboxed`."""
    found: dict[str, Any] = evaluate(
        lm=lm,
        task_dict={"tasks": dict(tasks)},
        limit=terms.limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=terms.chat_template,
        fewshot_as_multiturn=True,  # as from its command line
    )
    return found
