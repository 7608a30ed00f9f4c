"""A message is one line, whatever the names and values in it; of what is damaged, a stage says more than a library."""

from pathlib import Path

from stages.running.errors import MAX_CHARACTERS, DamagedError, InputError, said


def test_what_is_not_printable_is_escaped() -> None:
    assert str(InputError("a.csv: no column 'é\n\x1b[2J\ud83d\u202e'")) == r"a.csv: no column 'é\n\x1b[2J\ud83d\u202e'"


def test_a_long_message_is_cut() -> None:
    for sign in "x\n":
        message = str(InputError("name " + sign * 10**6))
        assert len(message) == MAX_CHARACTERS
        assert message.endswith("…")


def test_a_library_knows_of_no_pipeline() -> None:
    error = DamagedError("models/it/a.json: is cut off", Path("models/it"))
    assert str(error) == "models/it/a.json: is cut off; make or fetch models/it again"
    assert said(error).startswith("models/it/a.json: is cut off; remove models/it and run `dvc repro`, after ")


def test_other_errors_say_what_to_do_themselves() -> None:
    assert said(InputError("params.yaml: not found")) == "params.yaml: not found"


def test_what_is_not_printable_is_escaped_by_both() -> None:
    error = DamagedError("a\nb: is cut off", Path("c\x1b[2J"))
    for line in (str(error), said(error)):
        assert "\n" not in line
        assert "\x1b" not in line
