"""A message is one line, whatever the names and values in it."""

from stages.running.errors import MAX_CHARACTERS, InputError


def test_what_is_not_printable_is_escaped() -> None:
    assert str(InputError("a.csv: no column 'é\n\x1b[2J\ud83d\u202e'")) == r"a.csv: no column 'é\n\x1b[2J\ud83d\u202e'"


def test_a_long_message_is_cut() -> None:
    for sign in "x\n":
        message = str(InputError("name " + sign * 10**6))
        assert len(message) == MAX_CHARACTERS
        assert message.endswith("…")
