import math

import pytest

from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_number


@pytest.mark.parametrize(
    ("typed", "value"),
    [("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), ("inf", math.inf), ("2", 2), (2, 2), (0.5, 0.5), ("1e-3", 1e-3)],
)
def test_parse_number(typed, value):
    assert parse_number(typed, "attack.delta") == value


@pytest.mark.parametrize("typed", ["eight", "", "1/0", "1/2/3", None, [2], "8:255"])
def test_parse_number_refuses(typed):
    with pytest.raises(UserError, match=r"attack\.delta=.* is not a number"):
        parse_number(typed, "attack.delta")
