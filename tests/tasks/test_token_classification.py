"""Token classification: what is read of every form of file, what is encoded, scored, and the Fisher against a loop."""

import gzip
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError
from safetensors.torch import load_file
from seqeval.metrics import f1_score
from sklearn.metrics import accuracy_score
from tokenizers import normalizers, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForTokenClassification, BertForTokenClassification

from stages.curvature import TokenCategorical, curvature_statistics, diagonal_fisher
from stages.curvature.vectors import Estimator
from stages.estimation.estimate import estimate
from stages.params import FinetuneSettings, FisherSettings
from stages.results.evaluation import predict
from stages.running.errors import InputError
from stages.running.placement import Placement
from stages.storage.cards import read_json, write_json
from stages.tasks.averaging import MeanOfSoftmax
from stages.tasks.data import TaskData
from stages.tasks.encoding import encode
from stages.tasks.kinds.token_classification.kind import KIND
from stages.tasks.kinds.token_classification.metrics import EntityF1, TagAccuracy
from stages.tasks.kinds.token_classification.settings import TokenClassification
from stages.tasks.prediction import batches
from stages.tasks.reading import reader
from stages.training.finetuning import train
from stages.training.finished import bring_in
from tests.curvature.reference import assert_same_fisher, reference_fisher, tokens
from tests.tasks.in_memory import read_examples, rows_of, split_examples, write_task
from tests.tasks.test_masked_lm import observed
from tests.tasks.test_texts import byte_level, tiny
from tests.test_finetune import outputs
from tests.tiny import WORDS, save_base, tiny_config, tiny_tokenizer

TAGS = ["adjective", "noun", "other"]
BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
WANTED = [(["good", "film"], [0, 1]), (["the", "bad", "book"], [2, 0, 1])]


def tag_of(word: str) -> int:
    """Of a word that `tiny_tokenizer` knows: the first eight are adjectives, then four nouns."""
    return 0 if (place := WORDS.index(word)) < 8 else 1 if place < 12 else 2


def sentences(rows: int, seed: int, shortest: int = 2, longest: int = 7) -> list[list[str]]:
    """Distinct sentences of known words."""
    random, found = np.random.default_rng(seed), dict[str, list[str]]()
    while len(found) < rows:
        words = random.choice(WORDS, size=random.integers(shortest, longest)).tolist()
        found[" ".join(words)] = words
    return list(found.values())


def examples(words: Sequence[Sequence[str]]) -> pd.DataFrame:
    return pd.DataFrame(
        {"words": map(json.dumps, words), "label": [json.dumps([tag_of(word) for word in own]) for own in words]}
    )


def settings(**changes: Any) -> TokenClassification:
    return TokenClassification.model_validate({"source": "s", "file": "f.jsonl", "labels": TAGS} | changes)


def make_tagging(directory: Path, rows: int = 60, shortest: int = 2, longest: int = 7, **changes: Any) -> TaskData:
    """A task of sentences of two to six words, two thirds of them to train on."""
    directory.mkdir(parents=True)
    frame = examples(sentences(rows, 0, shortest, longest))
    cuts = rows * 2 // 3, rows * 5 // 6
    splits = {"train": frame[: cuts[0]], "validation": frame[cuts[0] : cuts[1]], "test": frame[cuts[1] :]}
    write_task(directory, settings(**({"max_length": 16} | changes)), splits, {})  # type: ignore[arg-type]
    return TaskData.open(directory)


def tiny_tagger(labels: Sequence[str] = TAGS, seed: int = 0, **changes: Any) -> BertForTokenClassification:
    torch.manual_seed(seed)
    model = BertForTokenClassification(tiny_config(labels, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return make_tagging(tmp_path / "tagging")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny tagger."""
    tiny_tagger().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def read(file: Path, **changes: Any) -> tuple[list[tuple[list[str], list[int]]], int]:
    """The examples of a file, and how many rows are none."""
    own = settings(file=file.name, **changes)
    kind = reader("token-classification")
    found = read_examples(kind, own, {file.name: kind.open(own, file).table()})[file.name]
    pairs = zip(map(json.loads, found.examples["words"]), map(json.loads, found.examples["label"]), strict=True)
    return list(pairs), found.dropped


# Reading.


def written(file: Path, content: str) -> Path:
    file.write_text(content)
    return file


def test_every_form_of_table_is_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"words": words, "tag": [TAGS[position] for position in own]} for words, own in WANTED
    ]
    lists = [*rows, {"words": [], "tag": None}, {"words": None, "tag": None}]
    texts = [{key: " ".join(value) for key, value in row.items()} for row in rows] + [{"words": " ", "tag": ""}]
    numbers = [{"words": words, "tag": own} for words, own in WANTED]
    found = {}
    contents: dict[str, list[dict[str, Any]]] = {"lists": lists, "texts": texts, "numbers": numbers}
    for name, content in contents.items():
        found[f"{name}.jsonl"] = written(tmp_path / f"{name}.jsonl", "\n".join(map(json.dumps, content)))
        pd.DataFrame(content).to_parquet(tmp_path / f"{name}.parquet")
        found[f"{name}.parquet"] = tmp_path / f"{name}.parquet"
    pd.DataFrame(texts).to_csv(tmp_path / "texts.csv", index=False)
    found["texts.csv"] = tmp_path / "texts.csv"
    dropped = {"lists": 2, "texts": 1, "numbers": 0}
    for name, file in found.items():
        assert read(file) == (WANTED, dropped[name.partition(".")[0]]), name
    renamed = written(
        tmp_path / "renamed.json", json.dumps([{"tokens": ["good film", "is"], "pos": ["noun", "other"]}])
    )
    assert read(renamed, words="tokens", tag="pos") == ([(["good film", "is"], [1, 2])], 0), "a word may have a space"


def test_plain_texts_are_read(tmp_path: Path) -> None:
    slashed = "\n\tgood/adjective  film/noun\n\n\n the/other bad/adjective book/noun\n"
    assert read(written(tmp_path / "ca01", slashed), form="word/tag") == (WANTED, 0)
    (tmp_path / "ca02.gz").write_bytes(gzip.compress(slashed.replace("bad/", "1/2/").encode()))
    assert read(tmp_path / "ca02.gz", form="word/tag")[0][1][0] == ["the", "1/2", "book"]
    conll = "\ngood\tadjective\nfilm\tnoun\n\n\nthe\tother\nbad\tadjective\nbook\tnoun"
    assert read(written(tmp_path / "train.conll", conll), form="conll") == (WANTED, 0)
    four = "good A B adjective\nfilm A B noun\n\nthe\tA\tB\tother\nbad\tA\tB\tadjective\nbook\tA\tB\tnoun\n"
    columns = ["words", "part", "chunk", "tag"]
    assert read(written(tmp_path / "train.txt", four), form="conll", columns=columns) == (WANTED, 0)
    spaced = written(tmp_path / "spaced.txt", "10 000\tother\n")
    assert read(spaced, form="conll")[0] == [(["10 000"], [2])]


def test_tags_become_labels_by_the_first_pattern_that_matches(tmp_path: Path) -> None:
    labels = {"noun": ["nn*", "np"], "verb": ["v?", "*+hvz"], "not": ["[*]*"], "other": ["*"]}
    line = "a/nn-tl b/np c/np$ d/vb e/vbd f/pps+hvz g/* h/*-hl i/. j/nn+hvz"
    (found,) = read(written(tmp_path / "ca01", line), form="word/tag", labels=labels)[0]
    assert found[1] == [0, 0, 3, 1, 3, 1, 2, 2, 3, 0]
    assert settings(labels=labels).output_names == list(labels)
    assert json.loads(settings(labels=labels).model_dump_json())["labels"][:2] == [
        ["noun", "nn*", "np"],
        ["verb", "v?", "*+hvz"],
    ]


GOOD = {"words": ["good", "film"], "tag": ["adjective", "noun"]}


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"tag": ["noun"]}, {}, "has 2 words (words) and 1 tags (tag); give each word a tag"),
        ({"tag": []}, {}, "has 2 words (words) and 0 tags (tag)"),
        ({"words": None}, {}, "has 0 words (words) and 2 tags (tag)"),
        ({"tag": "noun noun noun"}, {}, "has 2 words (words) and 3 tags (tag)"),
        (
            {"tag": ["adjective", "Noun"]},
            {},
            "the tag 'Noun' of word 2, 'film', is none of the task's labels: adjective",
        ),
        ({"tag": [0, 3]}, {}, "the tag 3 of word 2, 'film', is none of the task's labels: adjective, noun, other"),
        ({"tag": [0, True]}, {}, "the tag True of word 2, 'film', is none of the task's labels"),
        ({"tag": [0, None]}, {}, "the tag None of word 2, 'film', is none of the task's labels"),
        ({"tag": [0, [1]]}, {}, "the tag [1] of word 2, 'film', is none of the task's labels"),
        (
            {"tag": [0, 1]},
            {"labels": {"a": ["*"], "b": ["b"]}},
            "the tag 0 of word 1, 'good', is no text, which patterns",
        ),
        ({"tag": [1, 0]}, {"labels": ["1", "0"]}, "the tag 1 of word 1, 'good', may be a label's name or its position"),
        (
            {},
            {"labels": {"a": ["adj*"], "b": ["v*"]}},
            "the tag 'noun' of word 2, 'film', matches no pattern in `labels`",
        ),
        ({"words": ["good", ""]}, {}, "word 2 (words) is '', and not a text; mend or remove it"),
        ({"words": ["good", 7]}, {}, "word 2 (words) is 7, and not a text"),
        ({"words": 7}, {}, "words is 7; give a list, or a text in which spaces separate"),
        ({"tag": {"a": 1}}, {}, "tag is {'a': 1}; give a list"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    first = {**GOOD, "tag": ["0", "1"]} if changes.get("labels") == ["1", "0"] else GOOD
    if isinstance(changes.get("labels"), dict):
        first = {"words": ["good"], "tag": ["adjective"]}
    file = written(tmp_path / "f.jsonl", f"{json.dumps(first)}\n\n{json.dumps(GOOD | row)}\n")
    with pytest.raises(InputError, match=rf"f\.jsonl: line 3: {re.escape(message)}") as refused:
        read(file, **changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (b"good/adjective film/noun\n\nbad film/noun", {"form": "word/tag"}, "line 3: 'bad' is no word with a tag"),
        (b"good/adjective /noun", {"form": "word/tag"}, "line 1: '/noun' is no word with a tag; write it as word/tag"),
        (
            b"good/adjective\nbad/Adjective",
            {"form": "word/tag"},
            "line 2: the tag 'Adjective' of word 1, 'bad', is none",
        ),
        (b"good/adjective\nb\xe4d/adjective", {"form": "word/tag"}, "line 2 is not UTF-8 text; save the file as UTF-8"),
        (
            b"good\tadjective\nfilm",
            {"form": "conll"},
            "line 2: has 1 cells, and not 2 (words, tag); separate them by tabs",
        ),
        (
            b"\n\ngood\tadjective\n\nbad\tnoun\nfilm\tx",
            {"form": "conll"},
            "line 5: the tag 'x' of word 2, 'film', is none",
        ),
        (b"a\tb", {"form": "conll", "columns": ["a", "b"]}, "has no column 'words'; `columns` names a, b"),
        (b'{"words": "a"}', {}, "has no column 'tag'; its columns: words"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "f.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=rf"f\.jsonl: {re.escape(message)}") as refused:
        read(tmp_path / "f.jsonl", **changes)
    assert "\n" not in str(refused.value)


def test_files_that_are_missing_or_not_compressed(tmp_path: Path) -> None:
    written(tmp_path / "f.gz", "good/adjective")
    with pytest.raises(InputError, match=r"f\.gz: cannot be read as a text: Not a gzipped file"):
        read(tmp_path / "f.gz", form="word/tag")
    with pytest.raises(InputError, match=r"ca01: no such file in the source; it has: f\.gz"):
        read(tmp_path / "ca01", form="conll")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["noun"]}, "must name at least two labels"),
        ({"labels": ["noun", "noun"]}, "names a label twice"),
        ({"labels": {"noun": [], "other": ["*"]}}, "at least 1 item"),
        ({"tag": "words"}, "`words`, `tag` must be different columns"),
        ({"form": "word/tag", "columns": ["a"]}, "remove the key"),
        ({"form": "text"}, "'table', 'word/tag' or 'conll'"),
        ({"metric": "entity_f1"}, "'entity_f1' is none of this task's: tag_accuracy"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        settings(**changes)


def test_the_metric_that_counts_is_entity_f1_where_labels_mark_entities() -> None:
    def names(**changes: Any) -> list[str]:
        return [metric.name for metric in settings(**changes).own_metrics]

    assert names() == names(labels=["O", "B-PER", "X"]) == names(labels=["O", "P"]) == ["tag_accuracy"]
    assert names(labels=BIO) == ["entity_f1", "tag_accuracy"]
    assert names(labels=BIO, metric="tag_accuracy") == ["tag_accuracy", "entity_f1"]
    (found, _) = settings(labels=BIO).own_metrics
    assert isinstance(found, EntityF1)
    assert found.labels == tuple(BIO)


def test_a_prepared_task(tmp_path: Path) -> None:
    """No sentence is in two splits, whatever its tags are; the card counts the words of each label."""
    lines = [" ".join(f"{word}/{TAGS[tag_of(word)]}" for word in words) for words in sentences(50, 1)]
    again = [line.replace("noun", "other") for line in lines[:5]]
    written(tmp_path / "ca01", "\n".join([*lines, *again]))
    own = settings(file=["ca01"], form="word/tag", labels={"adjective": ["adj*"], "rest": ["*"], "never": ["x"]})
    splits, dropped = split_examples(own, tmp_path)
    assert dropped == {"no_words": 0, "repeated_sentence": 5}
    assert {split: len(frame) for split, frame in splits.items()} == {"train": 34, "validation": 8, "test": 8}
    assert pd.concat(splits.values())["words"].is_unique
    assert list(reader("token-classification").remarks(own, rows_of(splits))) == [
        "no example of the label 'never' in any split"
    ]
    (tmp_path / "task").mkdir()
    write_task(tmp_path / "task", own, splits, dropped)
    card = read_json(tmp_path / "task/task.json")
    words = [word for own_words in splits["test"]["words"] for word in json.loads(own_words)]
    adjectives = sum(tag_of(word) == 0 for word in words)
    assert card["counts"]["test"] == {"adjective": adjectives, "rest": len(words) - adjectives, "never": 0}
    assert TaskData.open(tmp_path / "task").read("test").equals(splits["test"])


# Encoding.


def test_labels_are_at_each_words_first_token(tmp_path: Path, task: TaskData) -> None:
    """`bad-film` is three tokens; unknown words are tokens too."""
    frame = pd.DataFrame({"words": ['["the", "bad-film", "xyz"]', '["good"]'], "label": ["[2, 1, 0]", "[0]"]})
    encoded = KIND.encode(tiny_tokenizer(), frame, task, tiny_tagger(), seed=0)
    assert encoded["labels"] == [[-100, 2, 1, -100, -100, 0, -100], [-100, 0, -100]]
    assert [len(ids) for ids in encoded["input_ids"]] == [7, 3]
    assert [target.tolist() for target in KIND.targets(encoded)] == [[2, 1, 0], [0]]
    batch = KIND.collator(tiny_tokenizer(), tiny_tagger())(
        [{key: values[row] for key, values in encoded.items()} for row in (0, 1)]
    )
    assert batch["labels"].tolist()[1] == [-100, 0, -100, -100, -100, -100, -100]
    assert batch["attention_mask"].sum(1).tolist() == [7, 3]
    assert KIND.largest_first(encoded).tolist() == [0, 1]


@pytest.mark.parametrize("side", ["right", "left"])
def test_words_beyond_the_length_are_not_predicted_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], side: str
) -> None:
    task = make_tagging(tmp_path / "short", max_length=6)
    frame = examples([["good", "film"], ["the", "day", "is", "fine", "great"]])
    frame.loc[2] = ['["good-day", "is", "bad"]', "[1, 2, 0]"]  # a word that is cut in two, if the beginning is cut off
    tokenizer = tiny_tokenizer()
    tokenizer.truncation_side = side
    rows = Dataset.from_pandas(frame)
    encoded = encode(KIND, tokenizer, rows, task, tiny_tagger(), seed=0)
    targets = [target.tolist() for target in KIND.targets(encoded)]
    assert targets == ([[0, 1], [2, 1, 2, 0], [1, 2]] if side == "right" else [[0, 1], [1, 2, 0, 0], [2, 0]])
    assert KIND.not_predicted(rows, encoded) == 2
    assert capsys.readouterr().err == "short: 2 of 10 words are beyond max_length = 6; not predicted\n"


def test_an_evaluation_says_how_many_words_are_not_predicted(tmp_path: Path, checkpoint: Path) -> None:
    long, short = make_tagging(tmp_path / "long"), make_tagging(tmp_path / "short", max_length=5)
    card = {"base_model_prefix": "bert", "labels": TAGS, "task": "long", "origin": {}}
    write_json(checkpoint / "checkpoint.json", card)
    found, said = predict(checkpoint, [long, short])
    words = [len(json.loads(words)) for words in long.read("test")["words"]]
    assert said == {"not_predicted": {"short": sum(max(0, number - 3) for number in words)}}
    assert said["not_predicted"]["short"] > 0
    assert (found["short"].targets != -100).sum(1).tolist() == [min(3, number) for number in words]


def test_sentences_that_cannot_be_read_are_refused(tmp_path: Path, task: TaskData) -> None:
    frame = examples([["good", "film"]])
    frame.loc[1] = ['["bad", "\\u2003", "film"]', "[0, 2, 1]"]
    with pytest.raises(InputError, match=r"no token of the word '\\u2003' of tagging \(word 2 of 'bad"):
        KIND.encode(tiny_tokenizer(), frame, task, tiny_tagger(), seed=0)
    with pytest.raises(InputError, match=r"tagging\.max_length = 16: the model reads at most 9 tokens; lower it"):
        KIND.encode(tiny_tokenizer(), frame[:1], task, tiny_tagger(max_position_embeddings=9), seed=0)
    with pytest.raises(InputError, match=r"tasks\.no\.max_length = 2: no word of 'good film' is before that; raise it"):
        KIND.encode(tiny_tokenizer(), frame[:1], make_tagging(tmp_path / "no", max_length=2), tiny_tagger(), seed=0)


def test_tokenizers_that_do_not_know_words_are_refused(tmp_path: Path) -> None:
    from transformers import CanineTokenizer

    CanineTokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match="CanineTokenizer, does not say of what word a token is; take a base with a fast"
    ):
        KIND.load_processor(tmp_path)


@pytest.mark.parametrize("prefix", [False, True])
def test_words_are_read_as_in_a_text(tmp_path: Path, prefix: bool) -> None:
    """Byte-level tokenizers need a space before them: otherwise they are glued together, as no model has seen them."""
    byte_level(tmp_path, eos_token="<|end|>")
    tokenizer = KIND.load_processor(tmp_path)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    task = TaskData(tmp_path / "task", "token-classification", tuple(TAGS), 20, {})
    model = tiny("gpt2", AutoModelForTokenClassification, num_labels=3)
    encoded = KIND.encode(tokenizer, examples([["good", "film"]]), task, model, seed=0)
    assert encoded["input_ids"] == [tokenizer("good film")["input_ids"]]
    first = [place for place, label in enumerate(encoded["labels"][0]) if label != -100]
    assert first == ([0, 5] if prefix else [0, 4])


def test_a_tokenizer_that_reads_words_otherwise_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(["the", "thethe"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="reads words that are given one by one otherwise than in a text"):
        KIND.load_processor(tmp_path)


# Models and the Fisher.


def test_a_new_head_has_the_tasks_labels(tmp_path: Path, task: TaskData) -> None:
    save_base(tmp_path / "base")
    torch.manual_seed(0)
    model = KIND.load_model(tmp_path / "base", TAGS, new_head=True)
    assert isinstance(model, BertForTokenClassification)
    checkpoint, curves, progress = outputs(tmp_path)
    train(
        tmp_path / "base",
        task,
        FinetuneSettings(epochs=12, batch_size=8, learning_rate=1e-2),
        checkpoint,
        curves,
        progress,
    )
    config = read_json(checkpoint / "config.json")
    assert config["id2label"] == {"0": "adjective", "1": "noun", "2": "other"}
    assert config["architectures"] == ["BertForTokenClassification"]
    card = read_json(checkpoint / "checkpoint.json")
    found, _ = predict(checkpoint, [task])
    accuracy = TagAccuracy().value(found["tagging"].outputs, found["tagging"].targets)
    assert accuracy > 0.8, "a word's tag is the word's own"
    assert card["origin"]["validation_tag_accuracy"] > 0.8
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="name the task's labels like the checkpoint's"):
        bring_in(checkpoint, make_tagging(tmp_path / "entities", labels=["x", "y", "z"]), tmp_path / "other")
    bring_in(checkpoint, task, tmp_path / "other")
    assert read_json(tmp_path / "other/checkpoint.json")["labels"] == TAGS


def made_batches(task: TaskData, rows: int, batch_size: int) -> list[dict[str, Tensor]]:
    tokenizer, model = tiny_tokenizer(), tiny_tagger()
    encoded = KIND.encode(tokenizer, task.read("train")[:rows], task, model, seed=0)
    return list(batches(KIND.collator(tokenizer, model), encoded, KIND.largest_first(encoded), batch_size, Placement()))


def test_an_exact_fisher_is_the_loops(tmp_path: Path) -> None:
    """Of short sentences the library has it; padded together or one by one it is the same."""
    directory = tmp_path / "pairs"
    directory.mkdir()
    frame = examples(sentences(12, 3, longest=5))
    write_task(directory, settings(max_length=16), {"train": frame, "validation": frame, "test": frame}, {})
    task = TaskData.open(directory)
    wanted = reference_fisher(tiny_tagger(), made_batches(task, 12, 5), tokens)
    for size in (1, 12):
        found = diagonal_fisher(tiny_tagger(), made_batches(task, 12, size), likelihood=TokenCategorical())
        assert_same_fisher(found, wanted)


def test_the_empirical_fisher_is_exact_whatever_the_batches(tmp_path: Path, checkpoint: Path, task: TaskData) -> None:
    """By the stage's way from table to file."""
    wanted = reference_fisher(tiny_tagger(), made_batches(task, 40, 7), observed)
    for batch_size in (1, 6):
        own = FisherSettings(estimator="empirical", examples=None, batch_size=batch_size)
        estimate("diagonal", checkpoint, task, own, tmp_path / f"fisher-{batch_size}")
        assert_same_fisher(load_file(tmp_path / f"fisher-{batch_size}/fisher.safetensors"), wanted)
    card = read_json(tmp_path / "fisher-1/fisher.json")
    assert (card["likelihood"], card["examples"]) == ("token", 40)
    long = make_tagging(tmp_path / "long", shortest=9, longest=12)
    with pytest.raises(InputError, match=r"the exact Fisher of .* takes .* passes; use estimator='sketch'"):
        estimate("diagonal", checkpoint, long, FisherSettings(), tmp_path / "fisher")


@pytest.mark.parametrize("estimator", ["sketch", "sampled"])
def test_drawn_fishers_are_unbiased(task: TaskData, estimator: Estimator) -> None:
    """The mean over many draws lies within 5 standard errors of the float64 sum over all outcomes, per tensor."""
    (batch,) = made_batches(task, 3, 3)
    exact = reference_fisher(tiny_tagger(), [batch], tokens)
    model = tiny_tagger()
    draws = [
        diagonal_fisher(model, [batch], likelihood=TokenCategorical(), estimator=estimator, samples=2, seed=seed)
        for seed in range(80)
    ]
    rounding = 1e-12 * sum(float(value.sum()) for value in exact.values())  # all that BERT's key biases have
    for name, value in exact.items():
        sums = torch.tensor([float(draw[name].double().sum()) for draw in draws], dtype=torch.float64)
        error = float(sums.mean() - value.sum())
        assert abs(error) <= 5 * float(sums.std()) / len(draws) ** 0.5 + 1e-5 * float(value.sum()) + rounding, name


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "xlnet"])
def test_padding_changes_nothing_without_a_padding_token(tmp_path: Path, model_type: str) -> None:
    """XLNet's is on the left. Logits and Fishers of a batch are those of its sentences one by one."""
    model = tiny(
        model_type, AutoModelForTokenClassification, pad_token_id=None, eos_token_id=0, bos_token_id=0, num_labels=3
    )
    byte_level(tmp_path)
    tokenizer = KIND.load_processor(tmp_path)
    frame = examples([["good", "film"], ["a"], ["the", "day"]])
    task = TaskData(tmp_path / "task", "token-classification", tuple(TAGS), 20, {})
    encoded = KIND.encode(tokenizer, frame, task, model, seed=0)
    collate = KIND.collator(tokenizer, model)
    alone, together = (list(batches(collate, encoded, [0, 1, 2], size, Placement())) for size in (1, 3))
    assert bool(together[0]["labels"][1, 0] == -100) == (model_type == "xlnet")
    logits = []
    for made in (alone, together):
        with torch.no_grad():
            outputs_of = [(KIND.predicted(model, batch), batch["labels"]) for batch in made]
        logits.append([row[own != -100] for rows, labels in outputs_of for row, own in zip(rows, labels, strict=True)])
    for one, other in zip(*logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    fishers = [
        diagonal_fisher(model, made, likelihood=TokenCategorical(), estimator="sketch", samples=1)
        for made in (alone, together)
    ]
    for name, value in fishers[0].items():
        torch.testing.assert_close(fishers[1][name], value, rtol=1e-3, atol=1e-9 + 1e-5 * float(value.max()))


def test_factors_leave_padding_out(task: TaskData) -> None:
    """The head's inputs are those of all tokens that are no padding; its gradients those of the words."""
    name = "classifier.weight"
    alone, together = (
        curvature_statistics(
            tiny_tagger(),
            made_batches(task, 12, size),
            likelihood=TokenCategorical(),
            estimator="sketch",
            statistics=["gram", "kfac"],
        )
        for size in (1, 12)
    )
    for one, other in ((alone.input_factors, together.input_factors), (alone.output_factors, together.output_factors)):
        assert len(one) > 5
        torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-6)


# Metrics.


def made_outputs(labels: Sequence[str], seed: int, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, T, K] that are right more often than not, and targets with −100 beyond each sentence's words."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 10, rows)
    targets = np.where(np.arange(9) < lengths[:, None], random.integers(0, len(labels), (rows, 9)), -100)
    right = np.eye(len(labels))[np.maximum(targets, 0)]
    return random.normal(size=(rows, 9, len(labels))) + 1.5 * right, targets


def named(labels: Sequence[str], positions: np.ndarray, targets: np.ndarray) -> list[list[str]]:
    return [
        [labels[position] for position in own[there]] for own, there in zip(positions, targets != -100, strict=True)
    ]


def seqeval(outputs: np.ndarray, targets: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sentences without entities
        return float(f1_score(named(BIO, targets, targets), named(BIO, outputs.argmax(-1), targets)))


def scattered(outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same predictions as the Trainer has them: with positions between and before that do not count."""
    rows, positions, labels = outputs.shape
    wide = np.random.default_rng(0).normal(size=(rows, 2 * positions + 1, labels))
    marks = np.full((rows, 2 * positions + 1), -100)
    wide[:, 1::2], marks[:, 1::2] = outputs, targets
    return wide, marks


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_libraries(seed: int) -> None:
    outputs_, targets = made_outputs(BIO, seed)
    there = targets != -100
    wanted = {
        "tag_accuracy": accuracy_score(targets[there], outputs_.argmax(-1)[there]),
        "entity_f1": seqeval(outputs_, targets),
    }
    for metric in (TagAccuracy(), EntityF1().of(BIO)):
        assert metric.value(outputs_, targets) == pytest.approx(wanted[metric.name], rel=1e-12)
        np.testing.assert_array_equal(
            metric.per_example(*scattered(outputs_, targets)), metric.per_example(outputs_, targets)
        )


def test_nothing_found_and_nothing_to_find_is_zero() -> None:
    nothing = np.zeros((3, 2, 5))
    nothing[..., 0] = 1
    assert EntityF1().of(BIO).value(nothing, np.zeros((3, 2), dtype=int)) == 0
    assert TagAccuracy().value(nothing, np.full((3, 2), -100)) == 0


def test_the_bootstrap_is_that_of_examples() -> None:
    """Intervals of the metric and of differences, against drawing sentences and asking the libraries."""
    first, targets = made_outputs(BIO, 0)
    second = made_outputs(BIO, 1)[0] + 0.5 * np.eye(5)[np.maximum(targets, 0)]
    metric, random = EntityF1().of(BIO), np.random.default_rng(7)
    drawn = [random.integers(0, 60, 60) for _ in range(400)]
    scores = np.array([[seqeval(each[rows], targets[rows]) for each in (first, second)] for rows in drawn])
    one, other = (metric.per_example(each, targets) for each in (first, second))
    low, high = metric.interval(one)
    assert [low, high] == pytest.approx(np.quantile(scores[:, 0], [0.025, 0.975]).tolist(), abs=0.025)
    differences = metric.resampled_differences(one, other, np.random.default_rng(0), 4000)
    wanted = scores[:, 0] - scores[:, 1]
    assert np.quantile(differences, [0.05, 0.5, 0.95]) == pytest.approx(
        np.quantile(wanted, [0.05, 0.5, 0.95]), abs=0.025
    )
    assert metric.difference(one, other) == pytest.approx(seqeval(first, targets) - seqeval(second, targets))


def test_an_ensemble_averages_probabilities_at_each_word() -> None:
    first, targets = made_outputs(TAGS, 0)
    second = made_outputs(TAGS, 1)[0]
    mean = MeanOfSoftmax().mean([first, second], [0.25, 0.75])
    p, q = (torch.tensor(each).softmax(-1).numpy() for each in (first, second))
    np.testing.assert_allclose(np.exp(mean), 0.25 * p + 0.75 * q, rtol=1e-5)
    assert TokenClassification.averaging.__class__ is MeanOfSoftmax
    assert TagAccuracy().value(mean, targets) > 0.3


def test_predictions_are_kept_without_padding(checkpoint: Path, task: TaskData, tmp_path: Path) -> None:
    from stages.results.predictions import read_predictions
    from stages.storage.digests import write_contents

    write_json(
        checkpoint / "checkpoint.json",
        {"base_model_prefix": "bert", "labels": TAGS, "task": "tagging", "origin": {}},
    )
    own: Mapping[str, Any] = predict(checkpoint, [task])[0]
    (tmp_path / "eval").mkdir()
    own["tagging"].write(tmp_path / "eval", "tagging")
    write_contents(tmp_path / "eval")
    again = read_predictions(tmp_path / "eval", "tagging")
    np.testing.assert_array_equal(again.targets, own["tagging"].targets)
    np.testing.assert_array_equal(again.outputs, own["tagging"].outputs)
