"""Question and choice as tokens, of which it is known which are the question's and which are the choice's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stages.running.errors import InputError, TooLongError
from stages.tasks.data import TaskData
from stages.tasks.texts import Tokenizer

TEXTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Pair:
    """A question with a choice.

    Attributes:
        inputs: what a model reads of it, by input; without the last token for a language model, which follows from
            the others and predicts nothing.
        question: the places of the question's tokens in it.
        choice: the choice's tokens, the last ones, which a language model is to predict; empty for a choice head.
    """

    inputs: dict[str, list[int]]
    question: list[int]
    choice: list[int]

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])

    def without(self, tokens: int) -> "Pair":
        """The same without so many tokens at the beginning of the question."""
        gone = set(self.question[:tokens])
        inputs = {
            key: [value for place, value in enumerate(values) if place not in gone]
            for key, values in self.inputs.items()
        }
        return replace(self, inputs=inputs, question=[place - tokens for place in self.question[tokens:]])


def for_a_head(tokenizer: Tokenizer, question: str, choices: Sequence[str]) -> list[Pair]:
    """The pairs that a choice head reads, as its tokenizer makes them. Raises `InputError` if a choice has no token."""
    made = tokenizer([question] * len(choices), list(choices), return_attention_mask=True, verbose=False)
    pairs = []
    for row, choice in enumerate(choices):
        whose = made.sequence_ids(row)
        if 1 not in whose:
            raise _without_tokens(tokenizer, choice)
        inputs = {key: made[key][row] for key in TEXTS if key in made}
        pairs.append(Pair(inputs, [place for place, part in enumerate(whose) if part == 0], []))
    return pairs


def for_a_language_model(tokenizer: Tokenizer, question: str, separator: str, choices: Sequence[str]) -> list[Pair]:
    """The pairs that a causal language model reads, each made of one text: question, separator, choice.

    The choice's tokens are those that reach into it: of all tokens, the first one that ends after the separator, and
    those that follow. So one that spans the border is the choice's, and one of the separator alone is the question's.
    What the tokenizer puts before a text stays; what it puts after one (a token that ends it) is left out.

    Raises:
        InputError: a choice has no token, or nothing stands before its first one.
    """
    begin = len(question) + len(separator)
    made = tokenizer(
        [question + separator + choice for choice in choices],
        return_attention_mask=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    pairs = []
    for row, choice in enumerate(choices):
        own = [place for place, special in enumerate(made["special_tokens_mask"][row]) if not special]
        first = next((place for place in own if made["offset_mapping"][row][place][1] > begin), None)
        if first is None:
            raise _without_tokens(tokenizer, choice)
        if first == 0:
            raise InputError(
                f"{tokenizer.name_or_path}: its tokenizer makes one token of the question {question[:40]!r} and the "
                "beginning of its choice; put another `separator` between them"
            )
        last = own[-1]
        inputs = {key: made[key][row][:last] for key in TEXTS if key in made}
        question_places = [place for place in own if place < first]
        pairs.append(Pair(inputs, question_places, made["input_ids"][row][first : last + 1]))
    return pairs


def _without_tokens(tokenizer: Tokenizer, choice: str) -> InputError:
    return InputError(
        f"{tokenizer.name_or_path}: its tokenizer makes no token of the choice {choice[:40]!r}; remove it from the "
        "table, or take another base"
    )


def cut(pairs: Sequence[Pair], question: str, task: TaskData) -> list[Pair]:
    """The pairs of an example, none longer than the task's `max_length`.

    Where one is, all lose the same number of tokens at the beginning of their question, so that their choices follow
    the same text.

    Raises:
        InputError: nothing would be left of a question.
    """
    over = max(map(len, pairs)) - task.max_length
    if over <= 0:
        return list(pairs)
    if any(len(pair.question) <= over for pair in pairs):
        raise TooLongError(
            f"tasks.{task.name}.max_length = {task.max_length}: a choice of the question {question[:40]!r} is so long "
            "that nothing of the question is left; raise it, or remove the question from the table"
        )
    return [pair.without(over) for pair in pairs]
