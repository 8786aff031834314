"""The label on an instance: read back as written, robust against a cut, and never mistaken for another's."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from dynamic_providers.lease.label import MAX_LENGTH, Label, is_ours, parse_label, render_run
from tests.unit.builders import a_label

LONGEST = a_label(
    expires_at=datetime(2099, 12, 31, tzinfo=UTC),
    idle_minutes=10_080,
    fleet_id="0123456789abcdef",
    run="zzzzzzz",
    stack="a-stack-whose-name-goes-on-and-on-until-no-label-can-hold-it",
)
ESSENTIALS = "gpu-on-demand/1/1773529766/b1773502166/15/c0ffee12/0123456789ab"


def test_the_text_is_as_documented() -> None:
    assert a_label().render() == f"{ESSENTIALS}/tbwzg1/gpu-on"


@pytest.mark.parametrize(
    "label",
    [
        pytest.param(a_label(), id="booting"),
        pytest.param(a_label().ready(), id="ready"),
        pytest.param(a_label(idle_minutes=1), id="shortest-idle"),
        pytest.param(a_label(stack="team.gpu-on-2"), id="dots-and-dashes"),
        pytest.param(a_label(stack=""), id="no-name"),
    ],
)
def test_a_label_is_read_back_as_it_was_written(label: Label) -> None:
    assert parse_label(label.render()) == label


def test_a_fraction_of_a_second_is_dropped() -> None:
    precise = a_label(expires_at=a_label().expires_at + timedelta(microseconds=999_999))
    assert parse_label(precise.render()) == a_label()


@pytest.mark.parametrize(
    ("stack", "written"),
    [
        pytest.param("GPU-On", "gpu-on", id="capitals"),
        pytest.param("org/project/dev", "org-project-dev", id="slashes-would-be-fields"),
        pytest.param("gpu on_1", "gpu-on-1", id="spaces-and-underscores"),
        pytest.param("große Küche", "gro-e-k-che", id="not-ascii"),
        pytest.param("a\nb", "a-b", id="line-break"),
    ],
)
def test_an_odd_stack_name_is_made_to_fit(stack: str, written: str) -> None:
    text = a_label(stack=stack).render()
    assert text == f"{ESSENTIALS}/tbwzg1/{written}"
    assert parse_label(text) == a_label(stack=written)


def test_no_label_is_longer_than_the_market_keeps() -> None:
    text = LONGEST.render()
    assert len(text) == MAX_LENGTH
    assert re.fullmatch("[a-z0-9/.-]+", text)


def test_a_name_that_was_cut_costs_only_the_name() -> None:
    read = parse_label(LONGEST.render())
    assert read is not None
    assert LONGEST.stack.startswith(read.stack)
    assert read == a_label(
        expires_at=LONGEST.expires_at,
        idle_minutes=LONGEST.idle_minutes,
        fleet_id=LONGEST.fleet_id,
        run=LONGEST.run,
        stack=read.stack,
    )


@pytest.mark.parametrize("length", range(len(ESSENTIALS), len(a_label().render()) + 1))
def test_wherever_the_tail_is_cut_all_that_ends_a_machine_is_read(length: int) -> None:
    read = parse_label(a_label().render()[:length])
    assert read is not None
    assert read == a_label(run=read.run, stack=read.stack)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(ESSENTIALS[:-1], id="uid-cut"),
        pytest.param(ESSENTIALS + "c", id="uid-too-long"),
        pytest.param("gpu-on-demand/", id="prefix-alone"),
        pytest.param(ESSENTIALS.replace("/1/", "/2/", 1), id="later-version"),
        pytest.param(ESSENTIALS.replace("/b", "/x"), id="unknown-phase"),
        pytest.param(ESSENTIALS.replace("1773529766", "soon"), id="no-time"),
        pytest.param(ESSENTIALS.replace("1773529766", "177352976600"), id="a-time-that-no-calendar-holds"),
        pytest.param(ESSENTIALS.replace("/15/", "/-15/"), id="negative-idle"),
        pytest.param(ESSENTIALS.upper().replace("GPU-ON-DEMAND", "gpu-on-demand"), id="capitals"),
    ],
)
def test_ours_but_unreadable_is_neither_read_nor_foreign(text: str) -> None:
    assert parse_label(text) is None
    assert is_ours(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param("my-training", id="somebody-elses"),
        pytest.param(" " + ESSENTIALS, id="prefix-not-first"),
        pytest.param("gpu-on-demand", id="prefix-without-slash"),
        pytest.param("gpu-on-demand-2/1/", id="longer-prefix"),
        pytest.param(ESSENTIALS.upper(), id="capitals"),
    ],
)
def test_a_foreign_label_is_not_ours(text: str | None) -> None:
    assert parse_label(text) is None
    assert not is_ours(text)


def test_later_runs_sort_after_earlier_ones() -> None:
    starts = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=7, seconds=1) * n for n in range(0, 12_000, 37)]
    runs = [render_run(start) for start in starts]
    assert runs == sorted(runs)
    assert len(set(runs)) == len(runs)


def test_a_runs_id_is_its_start_in_base_36() -> None:
    start = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)
    assert int(render_run(start), 36) == start.timestamp()
