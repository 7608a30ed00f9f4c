"""Evaluation of causal language models by lm-evaluation-harness."""

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError

from stages.running.errors import InputError
from stages.running.placement import Placement
from stages.running.scratch import scratch_directory
from stages.storage.cards import library_versions
from stages.storage.digests import verify_contents
from stages.tasks.data import TaskData
from stages.tasks.kind import Evaluator
from stages.tasks.kinds.lm_eval.harness import Terms, built, evaluated, language_model, number_cut, sandboxed
from stages.tasks.kinds.lm_eval.reading import FILES
from stages.tasks.kinds.lm_eval.yaml_files import read_task
from stages.tasks.loading import Model
from stages.tasks.outputs import Tested, Written
from stages.tasks.texts import Tokenizer, load_tokenizer, position_limit

Sample = Mapping[str, Any]  # what lm_eval keeps of an item


class HarnessKind(Evaluator):
    """Hands a model that is loaded to lm_eval; an output is lm_eval's number for an item, a column for each measure."""

    def tested(
        self, checkpoint: Path, model: Model, task: TaskData, placement: Placement, shown: int, limit: int
    ) -> Tested:
        """What lm_eval makes of the model on the items of all of the task's tasks, in their order; see `Evaluator`.

        Raises:
            InputError: another version of lm_eval prepared the task, or the model cannot do it.
        """
        _check_version(task)
        verify_contents(task.directory, [FILES])
        tokenizer = load_tokenizer(checkpoint)
        terms = Terms(**{field.name: task.card[field.name] for field in fields(Terms)})
        _check_tokenizer(checkpoint, tokenizer)
        with scratch_directory() as cache, sandboxed():
            lm = language_model(placement.model(model).eval(), tokenizer, position_limit(model))
            found = {name: read_task(task.directory / FILES, file) for name, file in task.card["files"].items()}
            tasks = {name: built(own, task.card["labels"], terms, cache) for name, own in found.items()}
            if terms.chat_template:
                described = any(own.get_config("description") for own in tasks.values())
                _check_template(checkpoint, tokenizer, task, described)
            with _refusals(checkpoint, task), _as_long_as_asked(model):
                results = evaluated(lm, tasks, terms)
            cut = sum(number_cut(lm, own) for own in tasks.values())
        samples = [sample for name in tasks for sample in _of_task(checkpoint, task, name, results)]
        if cut:
            print(
                f"{task.name}: {cut} of {len(samples)} items have more than the {lm.max_length} tokens that the model "
                "reads; lm_eval cuts off their beginnings",
                file=sys.stderr,
            )
        outputs = np.array([[float(sample[measure]) for measure in task.labels] for sample in samples])
        written = [
            Written(prompt, str(sample["target"]), _beginning(tokenizer, sample["resps"][0][0], limit))
            for sample in samples[:shown]
            for prompt, *_ in sample["arguments"][:1]
            if isinstance(sample["resps"][0][0], str)
        ]
        return Tested(outputs, np.ones(len(outputs)), written, {"items_cut": cut} if cut else {})


def _check_version(task: TaskData) -> None:
    """Raise `InputError` if the task was prepared with another lm_eval, by which other models may be evaluated."""
    installed, prepared = library_versions("lm_eval")["lm_eval"], task.card["lm_eval"]
    if installed != prepared:
        raise InputError(
            f"{task.directory}: was prepared with lm_eval {prepared}, and {installed} is installed; install that one, "
            f"or run `dvc repro --force prepare@{task.name}`"
        )


def _check_tokenizer(checkpoint: Path, tokenizer: Tokenizer) -> None:
    """Raise `InputError` if lm_eval would take other tokens for an answer's than those that are.

    It takes what a text with the answer has more of than one without.
    """
    made = tokenizer("a", return_special_tokens_mask=True)
    if made["special_tokens_mask"][-1]:
        last = tokenizer.convert_ids_to_tokens(made["input_ids"])[-1]
        raise InputError(
            f"{checkpoint}: its tokenizer puts {last} after every text, which lm_eval would take for a part of the "
            "answers; take a base whose tokenizer does not"
        )
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise InputError(
            f"{checkpoint}: its tokenizer has neither a token that begins a text nor one that ends it, of which "
            "lm_eval needs one; take a base that has"
        )


def _check_template(checkpoint: Path, tokenizer: Tokenizer, task: TaskData, described: bool) -> None:
    """Raise `InputError` if there is no chat template, or it does not take what the tasks are described by, if any."""
    if not tokenizer.chat_template:
        raise InputError(
            f"{checkpoint}: its tokenizer has no chat template; take a base that has one, or put "
            f"tasks.{task.name}.chat_template: false"
        )
    if described:
        messages = [{"role": role, "content": f"0{role}0"} for role in ("system", "user")]
        try:
            written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError:  # lm_eval leaves out a message that is refused
            written = ""
        if messages[0]["content"] not in written:
            raise InputError(
                f"{checkpoint}: its chat template writes no system message, which the `description` of {task.name} is, "
                "so it would be left out; remove it, or take another base"
            )


@contextmanager
def _as_long_as_asked(model: Model) -> Iterator[None]:
    """Let the model write as many tokens as a task allows, where its generation_config.json has another number.

    transformers would heed that one, and neither the task's nor how many the model reads. The rest of it is how the
    model writes, as lm_eval has it.
    """
    own = model.generation_config
    model.generation_config = deepcopy(own)
    model.generation_config.max_new_tokens = None
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _refusals(checkpoint: Path, task: TaskData) -> Iterator[None]:
    """Make one line of what lm_eval raises where a model and a task do not suit each other."""
    try:
        yield
    except (AssertionError, TemplateError) as error:
        reason = " ".join(str(error).split())[:300] or "an answer has no token, or more than the model reads"
        raise InputError(f"{checkpoint}: lm_eval cannot evaluate it on {task.name}: {reason}") from error


def _of_task(checkpoint: Path, task: TaskData, name: str, results: Mapping[str, Any]) -> list[Sample]:
    """What lm_eval keeps of a task's items, in their order.

    Raises:
        InputError: a log-likelihood is not finite, so that nothing can be said of an item, or lm_eval's own number is
            not the mean of the items'.
    """
    samples: list[Sample] = sorted(results["samples"][name], key=lambda sample: int(sample["doc_id"]))
    found = [response[0][0] for sample in samples for response in sample["resps"] if isinstance(response[0], tuple)]
    if not np.isfinite(found).all():
        raise InputError(f"{checkpoint}: predicts logits that are not finite on {task.name}")
    for measure in task.labels:
        own = results["results"][name][f"{measure},{samples[0]['filter']}"]
        mean = sum(float(sample[measure]) for sample in samples) / len(samples)
        if not math.isclose(own, mean, rel_tol=1e-9, abs_tol=1e-12):
            raise InputError(
                f"{checkpoint}: lm_eval's {measure} on {name}, {own}, is not the mean over its items, {mean}; leave it "
                f"out of tasks.{task.name}.measures"
            )
    return samples


def _beginning(tokenizer: Tokenizer, text: str, limit: int) -> str:
    """The first tokens of a text."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return text if len(ids) <= limit else str(tokenizer.decode(ids[:limit]))


KIND = HarnessKind()
