"""Tokens must have the same numbers in all models, whichever files say so; how a tokenizer finds them may differ."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from stages.merging.vocabulary import refuse_other_vocabulary
from stages.running.errors import InputError
from tests.tiny import tiny_tokenizer

WORDS = ["<unk>", "a", "b", "c", "d"]


def word_level(directory: Path, words: list[str]) -> None:
    numbers = {word: number for number, word in enumerate(words)}
    Tokenizer(models.WordLevel(numbers, unk_token="<unk>")).save(str(directory / "tokenizer.json"))


def unigram(directory: Path, words: list[str]) -> None:
    pieces = [(word, -float(len(words) - number)) for number, word in enumerate(words)]
    Tokenizer(models.Unigram(pieces, unk_id=words.index("<unk>"))).save(str(directory / "tokenizer.json"))


def vocab_txt(directory: Path, words: list[str]) -> None:
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")


def vocab_txt_of_windows(directory: Path, words: list[str]) -> None:
    (directory / "vocab.txt").write_bytes("\r\n".join(words).encode())


def vocab_json(directory: Path, words: list[str]) -> None:
    (directory / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")


def with_added_tokens(directory: Path, words: list[str]) -> None:
    vocab_txt(directory, words[:-1])
    (directory / "added_tokens.json").write_text(json.dumps({words[-1]: len(words) - 1}))


def with_added_tokens_in_the_configuration(directory: Path, words: list[str]) -> None:
    vocab_txt(directory, words[:-1])
    added = {str(len(words) - 1): {"content": words[-1], "lstrip": True}}
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))


Form = Callable[[Path, list[str]], None]
FORMS: list[Form] = [word_level, unigram, vocab_txt, vocab_txt_of_windows, vocab_json, with_added_tokens]
FORMS += [with_added_tokens_in_the_configuration]


def in_directories(root: Path, first: Form, other: Form, words: list[str], others: list[str]) -> tuple[Path, Path]:
    ours, theirs = root / "ann", root / "bob"
    ours.mkdir()
    theirs.mkdir()
    first(ours, words)
    other(theirs, others)
    return ours, theirs


@pytest.mark.parametrize("other", FORMS)
@pytest.mark.parametrize("first", FORMS)
def test_forms_are_compared_with_each_other(tmp_path: Path, first: Form, other: Form) -> None:
    ours, theirs = in_directories(tmp_path, first, other, WORDS, WORDS)
    refuse_other_vocabulary(ours, theirs)
    for file in theirs.iterdir():
        file.unlink()
    other(theirs, ["<unk>", "a", "c", "b", "d"])
    with pytest.raises(
        InputError, match=r"bob.*: has another vocabulary than .*ann \(the token '[bc]' is \d, there \d\)"
    ):
        refuse_other_vocabulary(ours, theirs)


def test_flags_and_merges_are_no_difference(tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        tiny_tokenizer().save_pretrained(tmp_path / name)
    file = tmp_path / "bob/tokenizer.json"
    content = json.loads(file.read_text())
    for flag in ("lstrip", "rstrip", "normalized", "special"):
        content["added_tokens"][4][flag] = not content["added_tokens"][4][flag]
    content["normalizer"] = None
    file.write_text(json.dumps(content))
    refuse_other_vocabulary(tmp_path / "ann", tmp_path / "bob")


@pytest.mark.parametrize("others", [WORDS[:-1], [*WORDS, "e"]])
def test_tokens_that_one_model_lacks(tmp_path: Path, others: list[str]) -> None:
    """The row of a token that a model does not know is nothing to average; of a base it is where training began."""
    ours, theirs = in_directories(tmp_path, vocab_txt, word_level, WORDS, others)
    with pytest.raises(
        InputError, match=r"another vocabulary than .* \(it (lacks the token 'd'|has the token 'e' besides)"
    ):
        refuse_other_vocabulary(ours, theirs)
    refuse_other_vocabulary(ours, theirs, may_lack=True)


def test_a_number_that_means_another_token(tmp_path: Path) -> None:
    ours, theirs = in_directories(tmp_path, vocab_txt, vocab_txt, WORDS, [*WORDS[:-1], "e"])
    with pytest.raises(InputError, match=r"\(4 is the token 'e', there 'd'\)"):
        refuse_other_vocabulary(ours, theirs, may_lack=True)


@pytest.mark.parametrize(
    "name", ["spiece.model", "tokenizer.model", "spm.model", "sentencepiece.bpe.model", "source.spm"]
)
def test_sentencepiece_models_are_compared_as_they_are(tmp_path: Path, name: str) -> None:
    def form(directory: Path, words: list[str]) -> None:
        (directory / name).write_bytes("".join(words).encode())

    ours, theirs = in_directories(tmp_path, form, form, WORDS, WORDS)
    refuse_other_vocabulary(ours, theirs)
    form(theirs, WORDS[::-1])
    with pytest.raises(InputError, match=r"cannot be compared .* save it with `save_pretrained`"):
        refuse_other_vocabulary(ours, theirs)


def test_without_a_tokenizer_there_is_nothing_to_compare(tmp_path: Path) -> None:
    ours, theirs = in_directories(tmp_path, vocab_txt, lambda *_: None, WORDS, WORDS)
    refuse_other_vocabulary(ours, theirs)
    refuse_other_vocabulary(theirs, ours)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b'{"model": {"vocab": "x"}}', r"tokenizer\.json: has no model of tokens"),
        ("tokenizer.json", b'{"model": {"vocab": [1]}}', r"tokenizer\.json: its vocabulary is no list of tokens"),
        ("tokenizer.json", b'{"model": {"vocab": {}}, "added_tokens": [1]}', r"its added_tokens are no list"),
        ("vocab.json", b'{"a": "x"}', r"vocab\.json: the token 'a' has no number"),
        ("vocab.txt", b"\xff\xfe", r"vocab\.txt: is not UTF-8"),
        ("added_tokens.json", b'{"a": {}}', r"added_tokens\.json: the token 'a' has no number"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', "is no mapping of ids to tokens"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    ours, theirs = in_directories(tmp_path, vocab_txt, vocab_txt, WORDS, WORDS)
    if name == "vocab.json":
        (theirs / "vocab.txt").unlink()
    (theirs / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        refuse_other_vocabulary(ours, theirs)
