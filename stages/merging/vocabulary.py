"""Whether tokens have the same numbers in two checkpoints, whichever files their tokenizers are stored in."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.running.errors import InputError
from stages.storage.cards import read_json

Tokens = dict[str, int]

MATCH_BY_TOKEN = (
    "set `vocabulary: shared` to match rows by token and keep the target's tokens, or `vocabulary: union` to take in "
    "the tokens that other models have besides"
)
_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")  # that say which token has which number, best first
_MODELS = ("*.model", "*.spm", "*.tiktoken")  # binary files, of which only equal bytes are known to be equal


def refuse_other_vocabulary(first: Path, other: Path, *, may_lack: bool = False) -> None:
    """Refuse a checkpoint in which a token has another number than in the first; without a tokenizer all is well.

    How tokens are found in a text (their flags, the order of merges) is no difference.

    Args:
        first: a checkpoint.
        other: another one.
        may_lack: whether tokens that only one of them has are no difference.

    Raises:
        InputError: a token's number differs, or a tokenizer's files cannot be read or compared.
    """
    ours, theirs = _file_of(first), _file_of(other)
    if ours is not None and theirs is not None:
        if ours.name == theirs.name == "tokenizer.json" and ours.read_bytes() == theirs.read_bytes():
            return
        known, compared = (_tokens(first), _tokens(other)), theirs
    else:
        models, others = _models(first), _models(other)
        if not (ours or models) or not (theirs or others):
            return
        if models and models == others:
            return
        known, compared = (_loaded(first), _loaded(other)), theirs or other / next(iter(others))
    difference = next(_differences(*known, may_lack=may_lack), None)
    if difference is not None:
        raise InputError(
            f"{compared}: has another vocabulary than {first} ({difference}); merged row by row, the same row would "
            f"mean different words; {MATCH_BY_TOKEN}"
        )


def has_vocabulary(directory: Path) -> bool:
    """Whether a tokenizer is stored in a directory."""
    return _file_of(directory) is not None or bool(_models(directory))


def tokens_of(directory: Path) -> Tokens:
    """The number of each token of a checkpoint, whichever files its tokenizer is stored in.

    Raises:
        InputError: there is no tokenizer, it cannot be read, or two of its tokens have one number.
    """
    if not has_vocabulary(directory):
        raise InputError(
            f"{directory}: has no tokenizer, so its rows cannot be matched by token; save its tokenizer there with "
            "`save_pretrained`"
        )
    tokens = _tokens(directory) if _file_of(directory) is not None else _loaded(directory)
    named: dict[int, str] = {}
    for token, number in tokens.items():
        if number in named:
            raise InputError(f"{directory}: its tokens {named[number]!r} and {token!r} have one number, {number}")
        named[number] = token
    return tokens


def loaded_tokenizer(directory: Path) -> Any:
    """The tokenizer of a checkpoint, as transformers loads it.

    Raises:
        InputError: transformers cannot load it.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    try:
        return transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever transformers makes of a tokenizer that it cannot read
        raise InputError(
            f"{directory}: its tokenizer cannot be compared with the other models' "
            f"({' '.join(str(error).split())[:200]}); save it with `save_pretrained`, so that it has a tokenizer.json"
        ) from None


def _differences(ours: Tokens, theirs: Tokens, *, may_lack: bool) -> Iterator[str]:
    numbers = {number: token for token, number in ours.items()}
    for token, number in theirs.items():
        if token in ours and ours[token] != number:
            yield f"the token {token!r} is {number}, there {ours[token]}"
        elif token not in ours and number in numbers and numbers[number] not in theirs:
            yield f"{number} is the token {token!r}, there {numbers[number]!r}"
        elif token not in ours and not may_lack:
            yield f"it has the token {token!r} besides"
    if not may_lack:
        yield from (f"it lacks the token {token!r}" for token in ours if token not in theirs)


def _file_of(directory: Path) -> Path | None:
    return next((directory / name for name in _FILES if (directory / name).is_file()), None)


def _tokens(directory: Path) -> Tokens:
    """The number of each token, by the first of the files that is there, and what has been added to it."""
    file = _file_of(directory)
    assert file is not None
    if file.suffix == ".txt":
        tokens = dict(zip(_lines(file), range(1 << 40), strict=False))
    else:
        content = read_json(file)
        tokens = _in_tokenizer(file, content) if file.name == "tokenizer.json" else _numbers(file, content)
    if file.name != "tokenizer.json":
        tokens |= _rest(directory)
    return tokens


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except ValueError:
        raise InputError(f"{file}: is not UTF-8; fetch it again") from None
    return lines[:-1] if lines[-1] == "" else lines


def _in_tokenizer(file: Path, content: Mapping[str, Any]) -> Tokens:
    model, added = content.get("model"), content.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # a Unigram model: pairs of token and score
        try:
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        except (TypeError, ValueError):
            raise InputError(f"{file}: its vocabulary is no list of tokens with scores; fetch it again") from None
    if not isinstance(vocabulary, dict):
        raise InputError(f"{file}: has no model of tokens")
    try:
        return _numbers(file, vocabulary | {entry["content"]: entry["id"] for entry in added})
    except (TypeError, KeyError):
        raise InputError(f"{file}: its added_tokens are no list of tokens with ids; fetch it again") from None


def _rest(directory: Path) -> Tokens:
    """The numbers of the tokens that have been added, by the files beside a vocabulary."""
    found: Tokens = {}
    if (file := directory / "added_tokens.json").is_file():
        found |= _numbers(file, read_json(file))
    if (file := directory / "tokenizer_config.json").is_file():
        added = read_json(file).get("added_tokens_decoder") or {}
        try:
            found |= {entry["content"]: int(number) for number, entry in added.items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            raise InputError(f"{file}: its added_tokens_decoder is no mapping of ids to tokens") from None
    return found


def _numbers(file: Path, content: Mapping[str, Any]) -> Tokens:
    for token, number in content.items():
        if not isinstance(number, int):
            raise InputError(f"{file}: the token {token!r} has no number; fetch it again")
    return dict(content)


def _models(directory: Path) -> dict[Path, bytes]:
    return {
        file.relative_to(directory): file.read_bytes()
        for pattern in _MODELS
        for file in sorted(directory.glob(pattern))
        if file.is_file()
    }


def _loaded(directory: Path) -> Tokens:
    """The number of each token by the tokenizer that transformers loads."""
    return dict(loaded_tokenizer(directory).get_vocab())
