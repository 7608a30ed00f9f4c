"""Causal language modelling: what is read, what is trained, the Fisher of it, and what models write."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as t
from pydantic import ValidationError
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from stages.curvature import TokenCategorical, curvature_statistics, diagonal_fisher
from stages.curvature.vectors import Estimator
from stages.estimation.estimate import estimate
from stages.merging import merge_checkpoints
from stages.merging.ingredients import Ingredients
from stages.merging.merged_tensors import merging_at
from stages.merging.methods.isotropic.options import Isotropic
from stages.params import FinetuneSettings, FisherSettings
from stages.params.loading import parse_params
from stages.running.errors import InputError
from stages.running.placement import Placement
from stages.searching.live_model import LiveModel
from stages.storage.cards import read_json, write_json
from stages.tasks.data import TaskData
from stages.tasks.kinds.causal_lm.kind import KIND
from stages.tasks.kinds.causal_lm.reading import READER
from stages.tasks.kinds.causal_lm.settings import CausalLM
from stages.tasks.language_metrics import NegativeLogLikelihood, Perplexity
from stages.tasks.language_model import log_likelihood
from stages.tasks.outputs import Written
from stages.tasks.prediction import batches, examples_for, predict, targets
from stages.training.finetuning import train
from tests.curvature.reference import assert_same_fisher, reference_fisher
from tests.language import (
    CHAT,
    LETTERS,
    MARKED_CHAT,
    MARKS,
    VOCABULARY,
    letters_tokenizer,
    made_task,
    save,
    tiny_gpt2,
    tiny_llama,
    words,
)
from tests.tasks.in_memory import read_examples, read_table
from tests.test_finetune import outputs

PROMPTS = {"prompt": "q", "completion": "a"}


def settings(**keys: Any) -> CausalLM:
    return CausalLM(source="s", file="f.jsonl", max_length=16, **keys)


def ids(text: str) -> list[int]:
    return [len(MARKS) + LETTERS.index(letter) for letter in text]


def prompted(directory: Path, rows: int = 12, seed: int = 0, **keys: Any) -> TaskData:
    """A task whose completions are the prompts' first letters, of different lengths."""
    found = words(rows, seed, longest=5)
    columns = {"prompt": [f"{word} " for word in found], "completion": [word[:3] for word in found]}
    return made_task(directory, settings(**PROMPTS, **keys), columns)


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return prompted(tmp_path / "task")


@pytest.mark.parametrize(
    "keys", [{}, {"prompt": "q"}, {"completion": "a"}, {"text": "t", **PROMPTS}, {"messages": "m", "text": "t"}]
)
def test_examples_have_one_form(keys: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="give exactly one of `messages`, `prompt` with `completion`, or `text`"):
        settings(**keys)


def test_columns_are_different() -> None:
    with pytest.raises(ValidationError, match="`prompt`, `completion` must be different columns"):
        settings(prompt=["p", "q"], completion="q")


def test_all_forms_are_read(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "ab", "name": None}, {"role": "assistant", "content": "a"}]
    rows = [{"q": "ab", "a": "b", "t": "abc", "m": chat}, {"q": "a", "a": "c", "t": "d", "m": [*chat, *chat]}]
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pd.DataFrame(rows).to_parquet(tmp_path / "f.parquet")
    plain = [{key: message[key] for key in ("role", "content")} for message in chat]  # type: ignore[index]
    for file in ("f.jsonl", "f.parquet"):
        tables = {file: read_table(tmp_path / file, None)}
        found = read_examples(READER, settings(messages="m"), tables)[file].examples
        assert [json.loads(text) for text in found["messages"]] == [plain, plain + plain]
        found = read_examples(READER, settings(**PROMPTS), tables)[file].examples
        assert found.to_dict("list") == {"prompt": ["ab", "a"], "completion": ["b", "c"]}
        found = read_examples(READER, settings(prompt=["t", "q"], completion="a"), tables)[file].examples
        assert found.to_dict("list") == {"prompt": ["abc\nab\n", "d\na\n"], "completion": ["b", "c"]}
        assert read_examples(READER, settings(text="t"), tables)[file].examples.to_dict("list") == {
            "text": ["abc", "d"]
        }


GOOD = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("keys", "bad", "message"),
    [
        (PROMPTS, {"q": "a", "a": " "}, r"f\.jsonl: line 2: a is empty \(1 such rows\); remove them"),
        (PROMPTS, {"q": "", "a": "b"}, r"line 2: q is empty"),
        (PROMPTS, {"q": 5, "a": "b"}, r"line 2: q is not a text"),
        ({"text": "t"}, {"t": None}, r"line 2: t is not a text"),
        ({"text": "u"}, {"t": "a"}, r"has no column 'u'; its columns: t"),
        ({"messages": "m"}, {"m": "hello"}, r"line 2: m: is no list of messages \{role, content\}"),
        ({"messages": "m"}, {"m": []}, r"line 2: m: is no list of messages"),
        ({"messages": "m"}, {"m": ["hello"]}, r"line 2: m: message 1 is no \{role, content\}"),
        ({"messages": "m"}, {"m": [{"role": "user"}]}, r"line 2: m: message 1: content is not a text"),
        (
            {"messages": "m"},
            {"m": [*GOOD, {"role": "robot", "content": "a"}]},
            r"line 2: m: message 3: the role 'robot' is none of system, user, assistant",
        ),
        ({"messages": "m"}, {"m": GOOD[:1]}, r"line 2: m: has no message of the assistant, so that nothing is trained"),
        ({"messages": "m"}, {"m": GOOD[1:]}, r"line 2: m: begins with the assistant's message"),
        (
            {"messages": "m"},
            {"m": [GOOD[0], {"role": "assistant", "content": ""}]},
            r"line 2: m: message 2, the assistant's, is empty",
        ),
        (
            {"messages": "m"},
            {"m": [GOOD[0], GOOD[1] | {"tool_calls": [1]}]},
            r"line 2: m: message 2 has 'tool_calls', which is not read; remove it",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, keys: dict[str, str], bad: dict[str, Any], message: str) -> None:
    good = {"q": "a", "a": "b", "t": "a", "m": GOOD}
    first = {key: good[key] for key in bad}
    (tmp_path / "f.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(bad)}\n")
    with pytest.raises(InputError, match=message) as error:
        read_examples(READER, settings(**keys), {"f": read_table(tmp_path / "f.jsonl", None)})
    assert "\n" not in str(error.value)


def encoded(directory: Path, form: Mapping[str, str], tokenizer: Any, max_length: int = 16, **columns: Any) -> Any:
    task = made_task(directory, settings(**form).model_copy(update={"max_length": max_length}), columns, held=1)
    return KIND.encode(tokenizer, task.read("train"), task, tiny_llama(), seed=0)


def test_completions_are_trained_and_the_end(tmp_path: Path) -> None:
    tokenizer = letters_tokenizer()
    found = encoded(tmp_path / "a", PROMPTS, tokenizer, prompt=["ab", "c", "d"], completion=["cd", "e", "f"])
    assert found["input_ids"] == [[*ids("abcd"), 1]]
    assert found["labels"] == [[-100, -100, *ids("cd"), 1]]
    assert found["attention_mask"] == [[1] * 5]
    assert KIND.targets(found) == [3]
    cut = encoded(tmp_path / "b", PROMPTS, tokenizer, 3, prompt=["ab", "c", "d"], completion=["cd", "e", "f"])
    assert (cut["input_ids"], cut["labels"]) == ([ids("abc")], [[-100, -100, *ids("c")]])
    message = (
        r"task2: the example 'abc' has no token to train among the first 3 of its 6 tokens; raise tasks\.task2\.max"
    )
    with pytest.raises(InputError, match=message):
        encoded(tmp_path / "task2", PROMPTS, tokenizer, 3, prompt=["abc", "c", "d"], completion=["cd", "e", "f"])


def test_texts_are_trained_whole_after_what_opens_them(tmp_path: Path) -> None:
    texts = ["abc", "de", "f"]
    found = encoded(tmp_path / "a", {"text": "t"}, letters_tokenizer(), text=texts)
    assert (found["input_ids"], found["labels"]) == ([[*ids("abc"), 1]], [[-100, *ids("bc"), 1]])
    opening = letters_tokenizer()
    opening.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 1)]
    )
    found = encoded(tmp_path / "b", {"text": "t"}, opening, text=texts)
    assert (found["input_ids"], found["labels"]) == ([[3, *ids("abc"), 1]], [[-100, *ids("abc"), 1]])
    endless = letters_tokenizer(eos_token=None)
    found = encoded(tmp_path / "c", {"text": "t"}, endless, text=texts)
    assert (found["input_ids"], found["labels"]) == ([ids("abc")], [[-100, *ids("bc")]])
    with pytest.raises(InputError, match=r"the example 'a' has no token to train among the first 16 of its 1 tokens"):
        encoded(tmp_path / "d", {"text": "t"}, endless, text=["a", "b", "c"])


def conversations(*turns: str) -> list[str]:
    """The same conversation thrice, as a prepared task has it; every second turn is the assistant's."""
    roles = ["user", "assistant"]
    messages = [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)]
    return [json.dumps([{"role": "system", "content": extra}, *messages]) for extra in ("a", "b", "c")]


@pytest.mark.parametrize("template", [CHAT, MARKED_CHAT])
def test_the_assistants_turns_are_trained(tmp_path: Path, template: str) -> None:
    """By what the template marks, and by prefixes where it marks nothing."""
    tokenizer = letters_tokenizer(template)
    texts = conversations("ab", "c", "d", "ef")
    found = encoded(tmp_path / "a", {"messages": "m"}, tokenizer, messages=texts)
    assert found["input_ids"] == [
        [4, *ids("a"), 1, 5, *ids("ab"), 1, 6, *ids("c"), 1, 5, *ids("d"), 1, 6, *ids("ef"), 1][:16]
    ]
    assert found["labels"][0] == [*[-100] * 8, *ids("c"), 1, *[-100] * 4, *ids("ef")][:16]
    with pytest.raises(InputError, match=r"has no token to train among the first 8 of its 17 tokens"):
        encoded(tmp_path / "b", {"messages": "m"}, tokenizer, 8, messages=texts)


def test_a_marked_turn_ends_where_it_ends(tmp_path: Path) -> None:
    """Also with a space that the tokenizer drops: what comes after it is the user's."""
    tokenizer = letters_tokenizer(
        MARKED_CHAT.replace("+ '</s>' }}{% endgeneration %}", "+ ' ' }}{% endgeneration %}</s>")
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    found = encoded(tmp_path / "a", {"messages": "m"}, tokenizer, messages=conversations("a", "b", "c", "d"))
    assert found["labels"][0] == [*[-100] * 7, *ids("b"), *[-100] * 5, *ids("d"), -100]


BREAKING = CHAT.replace(
    "{% for", "{% if messages | length == 3 %}{{ raise_exception('too many') }}{% endif %}{% for", 1
)
FORGETTING = "{% for message in messages[-2:] %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            None,
            r"its tokenizer has no chat template; .* give tasks\.task `prompt` and `completion` in place of `messages`",
        ),
        (
            BREAKING,
            r"its chat template cannot write the conversation \(too many\); it is the conversation of task that begins",
        ),
        ("{{ nothing.here }}", r"its chat template cannot write the conversation \(.*nothing.*\)"),
        ("{% for", r"its chat template cannot write the conversation"),
        (FORGETTING, r"what its chat template makes of the conversation up to message 3 is not how the whole begins"),
        ("abc", r"what its chat template makes of the conversation up to message 3 is not how the whole begins"),
        ("{% generation %}{% endgeneration %}abc", r"has no token to train among the first 16 of its 3 tokens"),
    ],
)
def test_templates_that_do_not_do(tmp_path: Path, template: str | None, message: str) -> None:
    texts = conversations("ab", "c", "d", "ef") if template != BREAKING else conversations("ab", "c")
    with pytest.raises(InputError, match=message) as error:
        encoded(tmp_path / "task", {"messages": "m"}, letters_tokenizer(template), messages=texts)
    assert "\n" not in str(error.value)


def test_what_the_model_cannot_read(tmp_path: Path, task: TaskData) -> None:
    frame = task.read("train")
    with pytest.raises(InputError, match=r"tasks\.task\.max_length = 16: the model reads at most 9 tokens; lower it"):
        KIND.encode(letters_tokenizer(), frame, task, tiny_llama(max_position_embeddings=9), seed=0)
    with pytest.raises(InputError, match=r"but the model has embeddings of 9 tokens"):
        KIND.encode(letters_tokenizer(), frame, task, tiny_llama(vocab_size=9), seed=0)


def test_of_another_models_task_it_reads_the_beginnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing that is trained is among them, the message says so of this model, not of the task's settings."""
    place = save(tiny_llama(max_position_embeddings=4), tmp_path / "short", letters_tokenizer())
    model = KIND.load_model(place, [])
    task = made_task(tmp_path / "task", settings(text="t"), {"text": words(12, longest=9)}, 4)
    examples = examples_for(KIND, place, model, task.rows("test"), task, Placement())
    assert "task: the model reads 4 tokens of its texts, which may have 16" in capsys.readouterr().err
    assert max(map(len, examples.encoded["input_ids"])) == 4
    assert np.isfinite(predict(model, examples, task.metrics)).all()
    prompts = {"prompt": ["abcdef"] * 12, "completion": words(12)}
    late = made_task(tmp_path / "late", settings(prompt="q", completion="a"), prompts, 4)
    with pytest.raises(InputError, match=r"short: reads at most 4 tokens, too few for late, .* take a base that reads"):
        examples_for(KIND, place, model, late.rows("test"), late, Placement())
    fewer = KIND.load_model(save(tiny_llama(max_position_embeddings=4, vocab_size=9), tmp_path / "fewer"), [])
    with pytest.raises(
        InputError, match=r"^[^(]*its tokenizer makes the token .*embeddings of 9 tokens; take"
    ) as error:
        examples_for(KIND, tmp_path / "fewer", fewer, task.rows("test"), task, Placement())
    assert "reads at most" not in str(error.value), "which is not the reason"


def test_models_that_look_ahead_are_refused(tmp_path: Path) -> None:
    """transformers loads them as causal models; what they learn would be to copy the next token."""
    sizes: dict[str, Any] = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for decoder in (False, True):
        config = t.BertConfig(**sizes, intermediate_size=16, is_decoder=decoder)
        save(t.BertLMHeadModel(config), tmp_path / f"{decoder}")
    for load in (KIND.load_model, KIND.new_model):
        with pytest.raises(
            InputError, match=r"False/config\.json: the model sees the tokens after those that it predicts"
        ):
            load(tmp_path / "False", [])
        assert load(tmp_path / "True", []).config.is_decoder


def made_batches(task: TaskData, model: Any, size: int, tokenizer: Any = None) -> list[dict[str, Tensor]]:
    tokenizer = tokenizer or letters_tokenizer()
    found = KIND.encode(tokenizer, task.read("train"), task, model, seed=0)
    order = KIND.largest_first(found)
    assert [len(found["input_ids"][row]) for row in order] == sorted(map(len, found["input_ids"]), reverse=True)
    return list(batches(KIND.collator(tokenizer, model), found, order, size, Placement()))


def moved_left(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same batch with its padding on the left, and positions that count from each text's beginning."""
    lengths = batch["attention_mask"].sum(1).tolist()
    rolled = {
        key: torch.stack([row.roll(len(row) - length) for row, length in zip(value, lengths, strict=True)])
        for key, value in batch.items()
    }
    return rolled | {"position_ids": (rolled["attention_mask"].cumsum(1) - 1).clamp_min(0)}


def observed(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
    """The labels that are there, as the only outcome; position t predicts t + 1."""
    log_p, labels = torch.log_softmax(z[:-1], -1), batch["labels"][0][1:]
    trained = labels.ne(-100).nonzero()[:, 0]
    return [(1.0, log_p[trained, labels[trained]].sum())]


def every_token(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
    """All that might stand at each trained position: scores of different positions have no covariance."""
    log_p, labels = torch.log_softmax(z[:-1], -1), batch["labels"][0][1:]
    trained = labels.ne(-100).nonzero()[:, 0].tolist()
    return [(float(log_p[place, k].detach().exp()), log_p[place, k]) for place in trained for k in range(z.shape[-1])]


MODELS: dict[str, Callable[[], Any]] = {
    "llama": tiny_llama,
    "llama, tied": lambda: tiny_llama(tied=True),
    "gpt2": tiny_gpt2,
}
each_model = pytest.mark.parametrize("make", list(MODELS.values()), ids=list(MODELS))


@each_model
def test_the_empirical_fisher_is_exact_wherever_padding_is(
    tmp_path: Path, task: TaskData, make: Callable[[], Any]
) -> None:
    """By the stage's way from table to file, and padded on the left; against float64, one example at a time."""
    save(make(), tmp_path / "model")
    wanted = reference_fisher(make(), made_batches(task, make(), 1), observed)
    for size in (1, 4):
        out = tmp_path / f"fisher-{size}"
        estimate("diagonal", tmp_path / "model", task, FisherSettings(estimator="empirical", batch_size=size), out)
        assert_same_fisher(load_file(out / "fisher.safetensors"), wanted)
    left = [moved_left(batch) for batch in made_batches(task, make(), 4)]
    assert any((batch["attention_mask"][:, 0] == 0).any() for batch in left)
    found = diagonal_fisher(make(), left, likelihood=TokenCategorical(shift=True), estimator="empirical")
    assert_same_fisher(found, wanted)
    card = read_json(tmp_path / "fisher-4/fisher.json")
    assert (card["likelihood"], card["examples"]) == ("causal", 4)


@pytest.mark.parametrize("estimator", ["sketch", "sampled"])
def test_drawn_fishers_are_unbiased(task: TaskData, estimator: Estimator) -> None:
    """The mean over many draws lies within 5 standard errors of the float64 sum over all outcomes, per tensor."""
    model = tiny_llama(tied=True)
    right = made_batches(task, model, 4)
    exact = reference_fisher(tiny_llama(tied=True), made_batches(task, model, 1), every_token)
    fisher = [
        [
            diagonal_fisher(
                model, given, likelihood=TokenCategorical(shift=True), estimator=estimator, samples=2, seed=seed
            )
            for seed in range(60)
        ]
        for given in (right, [moved_left(batch) for batch in right])
    ]
    for draws in fisher:
        for name, value in exact.items():
            sums = torch.tensor([float(draw[name].double().sum()) for draw in draws], dtype=torch.float64)
            error = float(sums.mean() - value.sum())
            assert abs(error) <= 5 * float(sums.std()) / len(draws) ** 0.5 + 1e-5 * float(value.sum()), name
    for one, other in zip(*fisher, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5 * float(value.max()))


def test_an_exact_fisher_is_refused_in_params_and_an_ensemble_is_not() -> None:
    params: dict[str, Any] = {
        "sources": {"s": {"path": "s", "sha256": "0" * 64}},
        "tasks": {"t": {"kind": "causal-lm", "source": "s", "file": "f.jsonl", "text": "t"}},
        "models": {"m": {"base": "s", "task": "t"}},
    }
    with pytest.raises(
        InputError, match=r"an exact Fisher takes a backward pass for each output, .* causal-lm has too many"
    ):
        parse_params(params)
    params |= {"fisher": {"estimator": "sketch"}, "merges": {"e": {"method": "ensemble", "coefficients": {"m": 1}}}}
    assert parse_params(params).ensembles.keys() == {"e"}


def test_factors_leave_padding_out(task: TaskData) -> None:
    """One text at a time, or padded together on either side."""
    model = tiny_llama()
    alone, together = made_batches(task, model, 1), made_batches(task, model, 4)
    found = [
        curvature_statistics(
            model, given, likelihood=TokenCategorical(shift=True), estimator="sketch", statistics=["kfac"]
        )
        for given in (alone, together, [moved_left(batch) for batch in together])
    ]
    assert found[0].output_factors
    for other in found[1:]:
        for wanted, same in (
            (found[0].input_factors, other.input_factors),
            (found[0].output_factors, other.output_factors),
        ):
            for name, value in wanted.items():
                torch.testing.assert_close(same[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))


def test_log_likelihoods_and_metrics_against_cross_entropy() -> None:
    random = np.random.default_rng(0)
    logits = torch.tensor(random.normal(size=(5, 150, 30)) * 8, dtype=torch.float32)
    labels = torch.tensor(random.integers(0, 30, (5, 150)))
    labels[torch.tensor(random.random((5, 150)) < 0.4)] = -100
    found = log_likelihood(logits, labels)
    losses = torch.nn.functional.cross_entropy(logits.double().mT, labels, reduction="none")
    torch.testing.assert_close(found[:, 0], -losses.sum(1), rtol=1e-6, atol=0)
    assert found[:, 1].tolist() == (labels != -100).sum(1).tolist()
    outputs_, counts = found.float().numpy(), found[:, 1].numpy()
    mean = float(torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), labels.flatten()))
    assert NegativeLogLikelihood().value(outputs_, counts) == pytest.approx(mean, rel=1e-6)
    assert Perplexity().value(outputs_, counts) == pytest.approx(np.exp(mean), rel=1e-5)
    hopeless = np.array([[-1e6, 1.0]])
    assert np.isfinite(Perplexity().value(hopeless, np.ones(1)))
    shifted = KIND.outputs(logits, labels)
    torch.testing.assert_close(shifted, log_likelihood(logits[:, :-1], labels[:, 1:]))


def test_the_bootstrap_draws_examples_with_their_tokens() -> None:
    random = np.random.default_rng(1)
    first = np.stack([-random.gamma(3, size=60), random.integers(1, 9, 60)], axis=1)
    second = first - np.array([0.2, 0]) * random.random((60, 1))
    for metric in (NegativeLogLikelihood(), Perplexity()):
        one, other = (metric.per_example(rows, rows[:, 1]) for rows in (first, second))
        draws = [random.integers(0, 60, 60) for _ in range(4000)]
        by_hand = np.array([metric.summary(one[rows]) for rows in draws])
        assert metric.interval(one) == pytest.approx(np.quantile(by_hand, [0.025, 0.975]), rel=0.03)
        found = metric.resampled_differences(one, other, np.random.default_rng(0), 4000)
        wanted = np.array([metric.summary(one[rows]) - metric.summary(other[rows]) for rows in draws])
        assert found.mean() == pytest.approx(wanted.mean(), rel=0.05)
        assert found.std() == pytest.approx(wanted.std(), rel=0.06)
        assert metric.gain(metric.difference(one, other)) > 0, "less is better"


def learnt(tmp_path: Path, name: str, task: TaskData, base: Path) -> Path:
    out, curves, progress = outputs(tmp_path, name)
    train(base, task, FinetuneSettings(epochs=2, batch_size=4, learning_rate=1e-2), out, curves, progress)
    return out


@pytest.mark.parametrize("tied", [False, True])
def test_training_merging_and_searching(tmp_path: Path, tied: bool) -> None:
    """The live model of a search scores what the merge on disk does, with tied embeddings and without."""
    base = save(tiny_llama(tied=tied), tmp_path / "base")
    tasks = {name: prompted(tmp_path / name, 30, seed) for seed, name in enumerate(("one", "two"))}
    places = {name: learnt(tmp_path, f"{name}-out", task, base) for name, task in tasks.items()}
    curve = pd.read_csv(tmp_path / "one-out/curves/eval/negative_log_likelihood.tsv", sep="\t")
    assert curve["negative_log_likelihood"].iloc[-1] < np.log(VOCABULARY) * 1.1
    card = read_json(places["one"] / "checkpoint.json")
    assert card["labels"] == []
    assert card["origin"]["validation_negative_log_likelihood"] == curve["negative_log_likelihood"].iloc[-1]
    assert ("lm_head.weight" in load_file(places["one"] / "model.safetensors")) is not tied
    λ = {"one": 0.3, "two": 0.7}
    metric = NegativeLogLikelihood()
    for heads in ("merge", "target"):
        live = LiveModel(Ingredients(places, Isotropic(), heads=heads), heads, dict.fromkeys(tasks.values()), metric)
        live.load(merging_at(Ingredients(places, Isotropic(), heads=heads), λ))
        out = tmp_path / heads
        merge_checkpoints(places, out, method="isotropic", coefficients=λ, heads=heads)
        merged, own = (load_file(place / "model.safetensors") for place in (out, places["one"]))
        if not tied:
            assert torch.equal(merged["lm_head.weight"], own["lm_head.weight"]) is (heads == "target")
        assert not torch.equal(merged["model.embed_tokens.weight"], own["model.embed_tokens.weight"])
        model = KIND.load_model(out, [])
        wanted = []
        for task in tasks.values():
            examples = examples_for(KIND, out, model, task.rows("validation"), task, Placement())
            wanted.append(metric.value(predict(model, examples, [metric]), targets(examples)))
        assert live.scores() == pytest.approx(wanted, rel=1e-5)


def test_a_head_of_its_own_and_none(tmp_path: Path) -> None:
    """A base that is a body alone gets a head from the seed; a merge with `heads: each` has several."""
    place = save(tiny_llama(), tmp_path / "model")
    head = {"lm_head.weight": torch.ones(VOCABULARY, 16)}
    assert torch.equal(KIND.load_model(place, [], head=head).lm_head.weight, head["lm_head.weight"])
    with pytest.raises(InputError, match=r"a head has the tensor classifier\.weight, which the model lacks"):
        KIND.load_model(place, [], head={"classifier.weight": torch.ones(1)})
    body = tiny_llama().model
    save(body, tmp_path / "body")
    with pytest.raises(InputError, match=r"lacks the tensor lm_head\.weight"):
        KIND.load_model(tmp_path / "body", [])
    loaded = KIND.load_model(tmp_path / "body", [], new_head=True)
    assert torch.equal(loaded.model.embed_tokens.weight, body.embed_tokens.weight)
    write_json(tmp_path / "body/config.json", {"model_type": "t5"})
    with pytest.raises(InputError, match="cannot be loaded as a causal language model"):
        KIND.load_model(tmp_path / "body", [])


def by_hand(model: Any, given: list[int], limit: int) -> list[int]:
    """Greedy generation without a cache."""
    found: list[int] = []
    while len(found) < limit and found[-1:] != [1]:
        with torch.no_grad():
            found.append(int(model(torch.tensor([given + found])).logits[0, -1].argmax()))
    return found


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_what_models_write(tmp_path: Path, task: TaskData, make: Callable[..., Any]) -> None:
    """Greedily, whatever a generation_config says; the same each time; as far as there are positions, or to the end."""
    model = make(3)
    model.generation_config.update(num_beams=2, repetition_penalty=5.0, do_sample=False, no_repeat_ngram_size=1)
    place, tokenizer = save(model, tmp_path / "model"), letters_tokenizer()
    model = KIND.load_model(place, [])
    examples = examples_for(KIND, place, model, task.rows("test"), task, Placement())
    found = KIND.written(model, examples, range(3), 64)
    assert found == KIND.written(model, examples, range(3), 64)
    assert model.generation_config.repetition_penalty == 5.0
    rows = task.read("test")
    for each, prompt, completion in zip(found, rows["prompt"], rows["completion"], strict=False):
        wanted = by_hand(model, ids(prompt), 32 - len(prompt))
        assert each == Written(prompt, completion, str(tokenizer.decode(wanted, skip_special_tokens=True)))
    short = KIND.written(model, examples, range(1), 2)
    assert short[0].text == tokenizer.decode(by_hand(model, ids(rows["prompt"][0]), 2), skip_special_tokens=True)


def test_what_is_written_of_texts_and_conversations(tmp_path: Path) -> None:
    """A text's second half is its reference; of a conversation it is the assistant's first turn."""
    place = save(tiny_llama(), tmp_path / "model", letters_tokenizer(CHAT))
    model = KIND.load_model(place, [])
    texts = made_task(tmp_path / "texts", settings(text="t"), {"text": ["abcdefg", "abc", "abcd"]}, held=1)
    chats = made_task(
        tmp_path / "chats", settings(messages="m"), {"messages": conversations("ab", "c", "d", "e")}, held=1
    )
    found = []
    for task in (texts, chats):
        examples = examples_for(KIND, place, model, task.rows("train"), task, Placement())
        found += KIND.written(model, examples, range(1), 4)
    assert [each[:2] for each in found] == [("abcd", "efg"), ("<|system|>a</s><|user|>ab</s><|assistant|>", "c")]


def test_a_padding_token_that_ends_texts_is_trained_where_it_stands(tmp_path: Path, task: TaskData) -> None:
    """GPT-2 has none, so the token that ends a text pads: its label stays, and padding has none."""
    tokenizer = letters_tokenizer(pad_token=None)
    model = tiny_gpt2()
    (batch,) = made_batches(task, model, 4, tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 1
    assert ((batch["labels"] == 1).sum(1) == 1).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
