"""Conversations: lists of {role, content} as tables have them, and as a chat template writes them."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from transformers.utils.chat_template_utils import render_jinja_template

from stages.running.errors import InputError
from stages.tasks.texts import Tokenizer

ROLES = ("system", "user", "assistant")
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # what a template has that marks the assistant's text itself

Messages = list[dict[str, str]]
T = TypeVar("T")


def read_conversation(value: object) -> str:
    """A table's cell as JSON text of a list of messages: the same text for the same conversation.

    Raises:
        ValueError: it is none that can be trained on; the error says why.
    """
    entries = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(entries, list) or not entries:
        raise ValueError("is no list of messages {role, content}, as .jsonl, .json and .parquet files can have")
    messages = [_message(number, entry) for number, entry in enumerate(entries, start=1)]
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise ValueError("has no message of the assistant, so that nothing is trained; remove the row")
    if roles[0] == "assistant":
        raise ValueError("begins with the assistant's message; put what it answers before it")
    return json.dumps(messages, ensure_ascii=False)


def _message(number: int, entry: object) -> dict[str, str]:
    if not isinstance(entry, dict):
        raise ValueError(f"message {number} is no {{role, content}}")
    given = {key: value for key, value in entry.items() if value is not None}
    for key in ("role", "content"):
        if not isinstance(given.get(key), str):
            raise ValueError(f"message {number}: {key} is not a text")
    if given["role"] not in ROLES:
        raise ValueError(f"message {number}: the role {given['role']!r} is none of {', '.join(ROLES)}")
    if further := sorted(given.keys() - {"role", "content"}):
        raise ValueError(f"message {number} has {further[0]!r}, which is not read; remove it")
    if given["role"] == "assistant" and not given["content"].strip():
        raise ValueError(f"message {number}, the assistant's, is empty")
    return {"role": given["role"], "content": given["content"]}


class ChatTemplate:
    """A tokenizer's chat template: conversations as tokens, and which of these are the assistant's.

    A template that marks the assistant's text by {% generation %} says it itself. Of any other, each of the assistant's
    turns is what follows the conversation before it with the generation prompt.

    Args:
        tokenizer: whose.
        task: the name of the task whose conversations these are, for messages.

    Raises:
        InputError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Tokenizer, task: str) -> None:
        if not tokenizer.chat_template:
            raise InputError(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template; take a base that has one, or give "
                f"tasks.{task} `prompt` and `completion` in place of `messages`"
            )
        self._tokenizer = tokenizer
        self._task = task
        try:
            self._template: str = tokenizer.get_chat_template()
        except ValueError as error:  # several templates, and none is the default
            raise InputError(f"{tokenizer.name_or_path}: {' '.join(str(error).split())[:400]}") from None

    def tokens(self, messages: Messages) -> tuple[list[int], list[bool]]:
        """A conversation's tokens, and which of them are the assistant's.

        Raises:
            InputError: the template refuses the conversation, or does not tell which tokens are the assistant's.
        """
        if GENERATION.search(self._template):
            return self._written(messages, self._marked)
        ids = self._written(messages, self._plain)
        trained = [False] * len(ids)
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._written(messages[:number], self._prompting)
                after = self._written(messages[: number + 1], self._plain)
                if not (ids[: len(before)] == before and ids[: len(after)] == after and len(before) < len(after)):
                    raise self._refusal(
                        messages,
                        f"what its chat template makes of the conversation up to message {number + 1} is not how the "
                        "whole begins, so that the assistant's tokens cannot be told; mark them in the template by "
                        "{% generation %}",
                    )
                trained[len(before) : len(after)] = [True] * (len(after) - len(before))
        return ids, trained

    def _plain(self, messages: Messages) -> list[int]:
        found: list[int] = self._tokenizer.apply_chat_template(messages)["input_ids"]
        return found

    def _prompting(self, messages: Messages) -> list[int]:
        found: list[int] = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        return found

    def _marked(self, messages: Messages) -> tuple[list[int], list[bool]]:
        """Tokens, and which of them begin in what the template marks.

        What `apply_chat_template` itself makes of the marks goes on to the conversation's end where a marked text ends
        with a character that no token has.
        """
        rendered: Any = render_jinja_template(
            [messages],
            chat_template=self._template,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        (text,), (marked,) = rendered
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        begins = [begin for begin, _ in found["offset_mapping"]]
        return found["input_ids"], [any(first <= begin < end for first, end in marked) for begin in begins]

    def _written(self, messages: Messages, write: Callable[[Messages], T]) -> T:
        try:
            return write(messages)
        except Exception as error:  # whatever a template makes of messages
            reason = " ".join(str(error).split())[:400]
            raise self._refusal(messages, f"its chat template cannot write the conversation ({reason})") from None

    def _refusal(self, messages: Sequence[dict[str, str]], reason: str) -> InputError:
        begin = messages[0]["content"][:40]
        return InputError(
            f"{self._tokenizer.name_or_path}: {reason}; it is the conversation of {self._task} that begins {begin!r}"
        )
