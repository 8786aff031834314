"""The error tree is what its documentation draws, and each error reads as one message."""

import inspect
import re

import pytest

from dynamic_providers import errors
from dynamic_providers.errors import BootError, BootstrapError, ConfigError, LeakError, NoOfferError, StackError


def drawn_parents() -> dict[str, str]:
    """Return error → parent as the module's docstring draws them."""
    parents, above = {}, dict[int, str]()
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([│ ├└─]*)([A-Z]\w+Error)\b", line):
            depth, name = len(match[1]) // 4, match[2]
            parents[name] = above.get(depth - 1, "Exception")
            above[depth] = name
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert drawn_parents() == {c.__name__: c.__base__.__name__ for c in classes if c.__base__}
    assert len(classes) > 10  # else the drawing was not found


@pytest.mark.parametrize(
    ("problems", "heading"),
    [
        pytest.param(["a: is wrong"], "1 problem in the stack's settings:", id="one"),
        pytest.param(["a: is wrong", "b: too"], "2 problems in the stack's settings:", id="several"),
    ],
)
def test_a_config_error_lists_every_problem_on_its_own_line(problems: list[str], heading: str) -> None:
    assert str(ConfigError(problems)).splitlines() == [heading, *(f"  - {line}" for line in problems)]


def test_a_leak_says_which_instance_and_how_to_end_it() -> None:
    text = str(LeakError(4242, "the market is down"))
    assert "MAY STILL BE BILLED" in text
    assert "the market is down" in text
    assert "vastai destroy instance 4242" in text


def test_a_boot_error_opens_with_its_phase() -> None:
    error = BootError("image", "no space left on device")
    assert (error.phase, str(error)) == ("image", "image: no space left on device")


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        pytest.param("", ["engine: exited"], id="nothing-printed"),
        pytest.param("one\ntwo\n", ["engine: exited", "  | one", "  | two"], id="last-lines-are-quoted"),
    ],
)
def test_a_bootstrap_error_quotes_what_the_step_printed(output: str, shown: list[str]) -> None:
    assert str(BootstrapError("engine", "exited", output=output)).splitlines() == shown


def test_the_counts_of_a_no_offer_error_are_its_own() -> None:
    counts = {"regions": 3}
    error = NoOfferError("nothing", counts)
    counts["regions"] = 0
    assert error.turned_away == {"regions": 3}


def test_every_error_is_a_message_for_the_operator() -> None:
    assert all(issubclass(getattr(errors, name), StackError) for name in drawn_parents())
