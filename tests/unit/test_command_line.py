"""What all commands share."""

from __future__ import annotations

import pytest

from sb3_pmpo.command_line import Parser

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["first"]),
        (["--module", "a", "b"], ["a", "b"]),
        (["--module", "a", "--module", "b", "c"], ["a", "b", "c"]),
    ],
)
def test_a_list_that_is_given_again_adds_up(given: list[str], expected: list[str]) -> None:
    default = ["first"]
    parser = Parser()
    parser.add_argument("--module", nargs="+", default=default)
    for _ in range(2):  # no call leaves anything to the next
        assert parser.parse_args(given).module == expected
    assert default == ["first"]


def test_a_list_without_a_default_adds_up() -> None:
    parser = Parser()
    parser.add_argument("--seeds", nargs="+", type=int)
    assert parser.parse_args([]).seeds is None
    assert parser.parse_args(["--seeds", "1", "--seeds", "2"]).seeds == [1, 2]
