"""Values and differences of metrics, as people read them."""

import pytest

from stages.results.shown import MINUS, is_shown_as_zero, shown, shown_difference, with_unit
from stages.tasks.metrics import Accuracy
from tests.metrics import RootMeanSquaredError

SHARE, NUMBER = Accuracy(), RootMeanSquaredError()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.000"),
        (0.012345, "0.01235"),
        (0.5, "0.5000"),
        (1, "1.000"),
        (12.345, "12.35"),
        (-12.345, f"{MINUS}12.35"),
        (1234.56, "1,235"),
        (1234567, "1,234,567"),
        (1.5e-7, "1.500e\u221207"),
        (2.5e12, "2.500e+12"),
    ],
)
def test_a_number_has_four_digits(value: float, text: str) -> None:
    assert shown(NUMBER, value) == with_unit(NUMBER, value) == text


def test_a_share_is_in_per_cent() -> None:
    assert (shown(SHARE, 0.8906), with_unit(SHARE, 0.8906), shown(SHARE, None)) == ("89.1", "89.1 %", "–")


def test_differences_have_a_sign_but_for_none() -> None:
    assert [shown_difference(SHARE, x) for x in (0.0123, -0.0123, 0.0001, -0.0001)] == [
        "+1.2",
        f"{MINUS}1.2",
        *["0.0"] * 2,
    ]
    assert [shown_difference(NUMBER, x) for x in (0.0123, -12, 0, 1e-16)] == ["+0.01230", f"{MINUS}12.00", "0", "0"]
    assert [is_shown_as_zero(SHARE, x) for x in (0.0004, 0.0006)] == [True, False]
    assert [is_shown_as_zero(NUMBER, x) for x in (0.0, 1e-6)] == [True, False]
