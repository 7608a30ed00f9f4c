"""Sequence-to-sequence language modelling: what is read, the Fisher of it, and what models learn and write."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tokenizers import normalizers
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
from stages.results.evaluation import contributions, metrics
from stages.results.evaluation import predict as evaluated
from stages.running.errors import InputError
from stages.running.placement import Placement
from stages.searching.live_model import LiveModel
from stages.storage.cards import read_json
from stages.tasks.data import TaskData
from stages.tasks.kinds.seq2seq_lm.kind import KIND
from stages.tasks.kinds.seq2seq_lm.metrics import ExactMatch
from stages.tasks.kinds.seq2seq_lm.reading import READER
from stages.tasks.kinds.seq2seq_lm.settings import Seq2SeqLM
from stages.tasks.language_metrics import NegativeLogLikelihood
from stages.tasks.prediction import batches, examples_for, predict, targets
from stages.training.finetuning import train
from tests.curvature.reference import assert_same_fisher, reference_fisher, tokens
from tests.language import (
    LETTERS,
    MARKS,
    VOCABULARY,
    in_order,
    letters_tokenizer,
    made_task,
    randomised,
    save,
    tiny_bart,
    tiny_t5,
    words,
)
from tests.tasks.in_memory import read_examples, read_table
from tests.test_finetune import outputs

MODELS: dict[str, Callable[..., Any]] = {"t5": tiny_t5, "bart": tiny_bart}
each_model = pytest.mark.parametrize("make", list(MODELS.values()), ids=list(MODELS))


def small_t5() -> Any:
    return randomised(tiny_t5(d_model=16, d_ff=16, d_kv=8, num_heads=2), noise=0.02)


def small_bart() -> Any:
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    layers = {f"{part}_ffn_dim": 16 for part in ("encoder", "decoder")}
    return randomised(tiny_bart(d_model=16, **heads, **layers), noise=0.02)


def settings(**keys: Any) -> Seq2SeqLM:
    return Seq2SeqLM(source="s", file="f.csv", **({"max_length": 12, "max_target_length": 12} | keys))


def ordering(directory: Path, rows: int = 12, held: int = 4, **keys: Any) -> TaskData:
    """A task whose targets are the inputs' letters in order."""
    found = words(rows, longest=3)
    return made_task(directory, settings(**keys), {"input": found, "target": [in_order(word) for word in found]}, held)


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return ordering(tmp_path / "task")


def ids(text: str) -> list[int]:
    return [len(MARKS) + LETTERS.index(letter) for letter in text]


def test_columns_are_different() -> None:
    with pytest.raises(ValidationError, match="`input`, `target` must be different columns"):
        settings(input="a", target="a")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"x": "", "y": "b"}, r"f\.jsonl: line 2: x is empty \(1 such rows\); remove them"),
        ({"x": "a", "y": " \n"}, r"line 2: y is empty"),
        ({"x": "a", "y": None}, r"line 2: y is not a text"),
        ({"x": ["a"], "y": "b"}, r"line 2: x is not a text"),
    ],
)
def test_rows_are_read_or_named(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    good = {"x": "ab", "y": "ba", "z": 1}
    (tmp_path / "f.jsonl").write_text(json.dumps(good))
    task = settings(input="x", target="y")
    found = read_examples(READER, task, {"f": read_table(tmp_path / "f.jsonl", None)})["f"].examples
    assert found.to_dict("list") == {"input": ["ab"], "target": ["ba"]}
    (tmp_path / "f.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    with pytest.raises(InputError, match=message):
        read_examples(READER, task, {"f": read_table(tmp_path / "f.jsonl", None)})
    with pytest.raises(InputError, match=r"has no column 'input'; its columns: x, y, z"):
        read_examples(READER, settings(), {"f": read_table(tmp_path / "f.jsonl", None)})


@each_model
def test_batches_are_what_transformers_makes_of_labels(tmp_path: Path, make: Callable[..., Any]) -> None:
    """Inputs and targets end; the decoder reads the targets one position later, and pads on by itself."""
    data = made_task(
        tmp_path / "task",
        settings(max_target_length=3),
        {"input": ["abc", "d", "e", "f"], "target": ["ba", "cde", "a", "b"]},
        1,
    )
    model, tokenizer = make(), letters_tokenizer()
    encoded = KIND.encode(tokenizer, data.read("train"), data, model, seed=0)
    assert encoded["input_ids"] == [ids("abc"), ids("d")]
    assert encoded["labels"] == [[*ids("ba"), 1], ids("cde")], "what is cut does not end"
    assert KIND.targets(encoded) == [3, 3]
    batch = KIND.collator(tokenizer, model)([{key: values[row] for key, values in encoded.items()} for row in (0, 1)])
    assert batch["labels"].shape == (2, 4), "a position more than the inputs, by which their padding is told apart"
    begin = model.config.decoder_start_token_id
    assert batch["decoder_input_ids"].tolist() == [[begin, *ids("ba"), 1], [begin, *ids("cde")]]
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 1, 0]] * 2
    with torch.no_grad():
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    found = KIND.outputs(logits, batch["labels"])
    assert float(-found[:, 0].sum() / found[:, 1].sum()) == pytest.approx(float(loss), rel=1e-5)


def test_what_models_cannot_read_or_write(tmp_path: Path) -> None:
    task = ordering(tmp_path / "task", max_target_length=30)
    frame = task.read("train")
    with pytest.raises(InputError, match=r"tasks\.task\.max_target_length = 30: the model writes at most 23 tokens"):
        KIND.encode(letters_tokenizer(), frame, task, tiny_bart(), seed=0)
    long = ordering(tmp_path / "long", max_length=30)
    with pytest.raises(InputError, match=r"tasks\.long\.max_length = 30: the model reads at most 24 tokens"):
        KIND.encode(letters_tokenizer(), frame, long, tiny_bart(), seed=0)
    with pytest.raises(InputError, match=r"but the model has embeddings of 9 tokens"):
        KIND.encode(letters_tokenizer(), frame, task, tiny_t5(vocab_size=9), seed=0)
    place = save(tiny_t5(), tmp_path / "model", letters_tokenizer(eos_token=None))
    with pytest.raises(InputError, match=r"its tokenizer has no token that ends a text, so that a model never stops"):
        KIND.load_processor(place)
    strange = ordering(tmp_path / "strange")
    unknown = {"input_ids": [ids("a")] * 4, "labels": [[2, 2, 2, 1]] * 4}
    with pytest.raises(InputError, match=r"does not know 12 of the 12 tokens"):
        KIND.refuse_unknown(letters_tokenizer(), unknown, strange)


def test_of_another_models_task_it_reads_and_writes_the_beginnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, place = ordering(tmp_path / "task", max_target_length=30), tmp_path / "bart"
    save(tiny_bart(max_position_embeddings=3), place, letters_tokenizer())
    model = KIND.load_model(place, task.labels)
    examples = examples_for(KIND, place, model, task.rows("test"), task, Placement())
    assert "task: the model reads 3 tokens of its texts, which may have 31" in capsys.readouterr().err
    assert max(map(len, examples.encoded["labels"])) == 2, "a batch may need a position more"
    assert max(map(len, examples.encoded["input_ids"])) == 3
    found = predict(model, examples, task.metrics)
    beyond = [len(target) > 1 for target in task.read("test")["target"]]  # with what ends it, of 2 at most
    assert any(beyond)
    assert not found[beyond][:, 2].any(), "what it cannot write is no exact match"


def made_batches(task: TaskData, model: Any, size: int) -> list[dict[str, Tensor]]:
    found = KIND.encode(letters_tokenizer(), task.read("train"), task, model, seed=0)
    return list(batches(KIND.collator(letters_tokenizer(), model), found, KIND.largest_first(found), size, Placement()))


def moved_left(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same batch with the encoder's padding on the left."""
    lengths = batch["attention_mask"].sum(1).tolist()
    rolled = {
        key: torch.stack([row.roll(len(row) - length) for row, length in zip(batch[key], lengths, strict=True)])
        for key in ("input_ids", "attention_mask")
    }
    return {**batch, **rolled}


def observed(z: Tensor, batch: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
    """The labels that are there, as the only outcome."""
    log_p, labels = torch.log_softmax(z, -1), batch["labels"][0]
    positions = labels.ne(-100).nonzero()[:, 0]
    return [(1.0, log_p[positions, labels[positions]].sum())]


@pytest.mark.parametrize("column", ["input", "target"])
def test_a_text_without_tokens(task: TaskData, column: str) -> None:
    tokenizer = letters_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("z", "")
    frame = task.read("train")
    frame.loc[2, column] = "zz"
    with pytest.raises(InputError, match=r"its tokenizer makes no token of the text 'zz' of task; remove it from the"):
        KIND.encode(tokenizer, frame, task, tiny_t5(), seed=0)


@each_model
def test_a_model_and_a_tokenizer_without_a_padding_token(
    tmp_path: Path, task: TaskData, make: Callable[..., Any]
) -> None:
    """The token that ends a text pads; outputs and Fisher are those of the examples one by one."""
    model = randomised(make(pad_token_id=None), noise=0.02)
    place = save(model, tmp_path / "model", letters_tokenizer(pad_token=None))
    loaded = KIND.load_model(place, [])
    assert loaded.config.pad_token_id is None
    examples = examples_for(KIND, place, loaded, task.rows("train"), task, Placement())
    assert loaded.config.pad_token_id == examples.processor.pad_token_id == 1
    (batch,) = examples.batches()
    assert (batch["input_ids"] == 1)[batch["attention_mask"] == 0].all()
    assert (batch["attention_mask"] == 0).any()
    alone = [
        {
            "input_ids": torch.tensor([ids(word)]),
            "decoder_input_ids": torch.tensor([[loaded.config.decoder_start_token_id, *ids(target)]]),
            "labels": torch.tensor([[*ids(target), 1]]),
        }
        for word, target in task.read("train").itertuples(index=False)
    ]
    fisher = reference_fisher(model, alone, observed)
    with torch.no_grad():
        wanted = [
            float(observed(model(**{key: own for key, own in one.items() if key != "labels"}).logits[0], one)[0][1])
            for one in alone
        ]
    np.testing.assert_allclose(predict(loaded, examples, task.metrics[:1])[:, 0], wanted, rtol=1e-4, atol=1e-5)
    estimate("diagonal", place, task, FisherSettings(estimator="empirical", batch_size=4), tmp_path / "fisher")
    assert_same_fisher(load_file(tmp_path / "fisher/fisher.safetensors"), fisher)


def test_an_ensemble_is_refused_in_params() -> None:
    params: dict[str, Any] = {
        "sources": {"s": {"path": "s", "sha256": "0" * 64}},
        "tasks": {"t": {"kind": "seq2seq-lm", "source": "s", "file": "f.csv"}},
        "fisher": {"estimator": "sketch"},
        "models": {"m": {"base": "s", "task": "t"}},
    }
    parse_params(params)
    ensemble = {"e": {"method": "ensemble", "coefficients": {"m": 1}}}
    with pytest.raises(
        InputError, match=r"m is of the kind seq2seq-lm, whose outputs have no mean that is a prediction"
    ):
        parse_params(params | {"merges": ensemble})


@each_model
def test_the_empirical_fisher_is_exact_whatever_the_batches(
    tmp_path: Path, task: TaskData, make: Callable[..., Any]
) -> None:
    """Tied embeddings of encoder, decoder and head too, by the stage's way from table to file."""
    save(randomised(make(), noise=0.02), tmp_path / "model")
    wanted = reference_fisher(randomised(make(), noise=0.02), made_batches(task, make(), 1), observed)
    for size in (1, 4):
        out = tmp_path / f"fisher-{size}"
        estimate("diagonal", tmp_path / "model", task, FisherSettings(estimator="empirical", batch_size=size), out)
        found = load_file(out / "fisher.safetensors")
        assert found.keys() == load_file(tmp_path / "model/model.safetensors").keys() & wanted.keys()
        assert_same_fisher(found, wanted)
    card = read_json(tmp_path / "fisher-4/fisher.json")
    assert (card["likelihood"], card["examples"]) == ("token", 4)


def test_what_is_no_parameter_is_merged_where_it_is_the_same(tmp_path: Path, task: TaskData) -> None:
    """BART's files have a bias that nothing trains, and no Fisher has."""
    places, fishers = {}, {}
    for seed, name in enumerate("ab"):
        places[name], fishers[name] = save(tiny_bart(seed), tmp_path / name), tmp_path / f"fisher-{name}"
        estimate("diagonal", places[name], task, FisherSettings(estimator="sketch"), fishers[name])
    λ = {"a": 0.5, "b": 0.5}
    merge_checkpoints(places, tmp_path / "both", method="fisher", coefficients=λ, statistics=fishers)
    merged, own = (load_file(place / "model.safetensors") for place in (tmp_path / "both", places["a"]))
    assert torch.equal(merged["final_logits_bias"], own["final_logits_bias"])
    assert not torch.equal(merged["model.shared.weight"], own["model.shared.weight"])
    other = tiny_bart(1)
    other.final_logits_bias.add_(1)
    save(other, tmp_path / "b")
    estimate("diagonal", places["b"], task, FisherSettings(estimator="sketch"), tmp_path / "again")
    with pytest.raises(InputError, match=r"lacks the tensor final_logits_bias"):
        merge_checkpoints(
            places, tmp_path / "no", method="fisher", coefficients=λ, statistics=fishers | {"b": tmp_path / "again"}
        )


def test_padding_on_the_left_gives_the_same_fisher(task: TaskData) -> None:
    """T5's encoder knows positions by their distances only."""
    model = randomised(tiny_t5(), noise=0.02)
    right = made_batches(task, model, 4)
    fishers = [
        diagonal_fisher(model, given, likelihood=TokenCategorical(), estimator="sketch", seed=1)
        for given in (right, [moved_left(batch) for batch in right])
    ]
    assert any((batch["attention_mask"] == 0).any() for batch in right)
    for name, value in fishers[0].items():
        torch.testing.assert_close(fishers[1][name], value, rtol=1e-3, atol=1e-5 * float(value.max()))


@pytest.mark.parametrize("make", [small_t5, small_bart], ids=["t5", "bart"])
@pytest.mark.parametrize("estimator", ["sketch", "sampled"])
def test_drawn_fishers_are_unbiased(tmp_path: Path, estimator: Estimator, make: Callable[[], Any]) -> None:
    """The mean over many draws lies within 5 standard errors of the float64 sum over all outcomes, per tensor."""
    data = made_task(tmp_path / "task", settings(), {"input": ["ab", "c", "d", "e"], "target": ["a", "b", "a", "b"]}, 1)
    model = make()
    exact = reference_fisher(make(), made_batches(data, model, 1), tokens)
    given = made_batches(data, model, 2)
    draws = [
        diagonal_fisher(model, given, likelihood=TokenCategorical(), estimator=estimator, samples=2, seed=seed)
        for seed in range(60)
    ]
    noise = 1e-12 * max(float(value.sum()) for value in exact.values())  # keys' biases have none but that
    for name, value in exact.items():
        sums = torch.tensor([float(draw[name].double().sum()) for draw in draws], dtype=torch.float64)
        error = float(sums.mean() - value.sum())
        assert abs(error) <= 5 * float(sums.std()) / len(draws) ** 0.5 + 1e-5 * float(value.sum()) + noise, name


@each_model
def test_factors_leave_padding_out(task: TaskData, make: Callable[..., Any]) -> None:
    """Of the encoder's and of the decoder's Linears, one example at a time or padded together."""
    model = make()
    alone, together = (
        curvature_statistics(
            model,
            made_batches(task, model, size),
            likelihood=TokenCategorical(),
            estimator="sketch",
            statistics=["kfac"],
        )
        for size in (1, 4)
    )
    assert any("encoder" in name for name in alone.input_factors)
    assert any("decoder" in name for name in alone.input_factors)
    for wanted, found in (
        (alone.input_factors, together.input_factors),
        (alone.output_factors, together.output_factors),
    ):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))


@pytest.fixture(scope="module", params=list(MODELS.values()), ids=list(MODELS))
def learnt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TaskData]:
    """A model from scratch that has learnt to order letters, in some seconds."""
    root = tmp_path_factory.mktemp("learnt")
    data = ordering(root / "task", rows=450, held=40)
    base = save(request.param(), root / "base")
    out, curves, progress = outputs(root)
    train(base, data, FinetuneSettings(epochs=10, batch_size=16, learning_rate=5e-3), out, curves, progress)
    assert not (curves / "eval/exact_match.tsv").exists()
    assert (curves / "eval/negative_log_likelihood.tsv").is_file()
    return out, data


def test_a_small_transduction_is_learnt(learnt: tuple[Path, TaskData]) -> None:
    """Exact match is the share of the greedy texts that are the targets; in evaluation and in a search."""
    place, data = learnt
    predictions, _ = evaluated(place, [data])
    own, by_name = predictions["task"], {metric.name: metric for metric in data.metrics}
    assert list(by_name) == ["negative_log_likelihood", "exact_match"]
    worth = metrics(predictions, {"task": data.metrics})["task"]
    assert worth["exact_match"] >= 0.9
    assert worth["negative_log_likelihood_low"] <= worth["negative_log_likelihood"] < 0.3
    model, test = KIND.load_model(place, []), data.read("test")
    hits, losses = [], []
    for word, target in zip(test["input"], test["target"], strict=True):
        given = [model.config.decoder_start_token_id]
        with torch.no_grad():
            while len(given) < 13 and given[1:][-1:] != [1]:
                logits = model(input_ids=torch.tensor([ids(word)]), decoder_input_ids=torch.tensor([given])).logits
                given.append(int(logits[0, -1].argmax()))
            labels = torch.tensor([[*ids(target), 1]])
            losses.append(float(model(input_ids=torch.tensor([ids(word)]), labels=labels).loss) * labels.numel())
        hits.append(given[1:] == [*ids(target), 1])
    assert own.outputs[:, 2].tolist() == hits
    np.testing.assert_allclose(-own.outputs[:, 0], losses, rtol=1e-3, atol=1e-5)
    assert [(each.prompt, each.reference) for each in own.written] == list(
        zip(test["input"], test["target"], strict=True)
    )[:3]
    assert [each.text == each.reference for each in own.written] == hits[:3]
    found = contributions(predictions, {"task": data.metrics[0]}, {"task": "f"})["task"]
    assert found["written"][0] == own.written[0]._asdict()
    live = LiveModel(Ingredients({"a": place}, Isotropic()), "merge", {data: None}, ExactMatch())
    live.load(merging_at(Ingredients({"a": place}, Isotropic()), {"a": 1.0}))
    assert live.scores()[0] >= 0.9


def test_nothing_is_written_where_no_metric_asks_for_it(
    learnt: tuple[Path, TaskData], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, data = learnt
    model = KIND.load_model(place, [])
    examples = examples_for(KIND, place, model, data.rows("validation"), data, Placement())
    both, plain = (predict(model, examples, of_it) for of_it in (data.metrics, data.metrics[:1]))
    assert (both.shape, plain.shape) == ((40, 3), (40, 2))
    np.testing.assert_array_equal(both[:, :2], plain)
    assert NegativeLogLikelihood().value(both, targets(examples)) == NegativeLogLikelihood().value(plain, plain)


def test_a_target_that_is_not_written_to_its_end_is_no_match(learnt: tuple[Path, TaskData], tmp_path: Path) -> None:
    """Neither one that is cut, nor one with letters that the tokenizer does not know."""
    place, _ = learnt
    words_ = ["abc", "bca", "cab", "a"]
    cut = made_task(
        tmp_path / "cut",
        settings(max_target_length=2),
        {"input": [*words_, "b", "c"], "target": [*map(in_order, words_), "b", "c"]},
        held=1,
    )
    strange = made_task(tmp_path / "strange", settings(), {"input": [*words_, "b", "c"], "target": ["a?"] * 6}, held=1)
    model = KIND.load_model(place, [])
    for data, wanted in ((cut, [0, 0, 0, 1]), (strange, [0, 0, 0, 0])):
        examples = examples_for(KIND, place, model, data.rows("train"), data, Placement())
        assert predict(model, examples, data.metrics)[:, 2].tolist() == wanted


def without(place: Path, lost: str) -> None:
    """Take a tensor out of a checkpoint's file."""
    file = place / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if name != lost}, file, {"format": "pt"})


def test_a_base_without_a_head_gets_one(tmp_path: Path) -> None:
    place = save(tiny_bart(tie_word_embeddings=False), tmp_path / "bart")
    without(place, "lm_head.weight")
    with pytest.raises(InputError, match=r"lacks the tensor lm_head\.weight"):
        KIND.load_model(place, [])
    assert KIND.load_model(place, [], new_head=True).lm_head.weight.shape == (VOCABULARY, 64)


@each_model
def test_gaps_in_a_base_are_not_filled_silently(tmp_path: Path, make: Callable[..., Any]) -> None:
    """T5's names have no prefix that tells its body from its head, so that a new head could excuse any gap."""
    place = save(make(), tmp_path / "model")
    names = sorted(load_file(place / "model.safetensors"))
    lost = next(name for name in names if "encoder" in name and name.endswith("weight"))
    without(place, lost)
    with pytest.raises(InputError, match=rf"lacks the tensor {lost}"):
        KIND.load_model(place, [], new_head=True)


def test_exact_match_is_a_mean(learnt: tuple[Path, TaskData]) -> None:
    outputs_ = np.array([[-1, 2, 1], [-3, 1, 0], [-2, 2, 1], [-1, 1, 1]], dtype=np.float32)
    metric = ExactMatch()
    assert metric.value(outputs_, np.ones(4)) == 0.75
    per_example = metric.per_example(np.repeat(outputs_, 30, axis=0), np.ones(120))
    random = np.random.default_rng(0)
    by_hand = [per_example[random.integers(0, 120, 120)].mean() for _ in range(4000)]
    assert metric.interval(per_example) == pytest.approx(np.quantile(by_hand, [0.025, 0.975]), abs=0.02)
