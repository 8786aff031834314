"""How much of a lease is used up, whatever was done to clocks, agent and machine."""

from dataclasses import replace
from typing import Any

import pytest

from bootstrap.host.watching.lease import Lease, Use, begin, go_on, parse_lease, what_is_left
from bootstrap.host.watching.moments import Moment, seconds_between
from dynamic_providers.lease.label import Phase
from dynamic_providers.lease.policy import MAX_LIFETIME

TOLD = Moment("one", 1000.0, 1_800_000_000.0)
RAW: dict[str, Any] = {
    "phase": "r",
    "expires_in": 3600,
    "deadline_in": 1200,
    "idle_seconds": 900,
    "grace_seconds": 600,
    "drain_seconds": 60,
    "at": {"boot_id": TOLD.boot_id, "boottime": TOLD.boottime, "wall": TOLD.wall},
}
DAY = 86400.0


def later(since: Moment, *, boot: float, wall: float, boot_id: str = "one") -> Moment:
    return Moment(boot_id, since.boottime + boot, since.wall + wall)


def a_lease(**changes: Any) -> Lease:
    lease = parse_lease(RAW | changes)
    assert lease is not None
    return lease


@pytest.mark.parametrize(
    ("now", "used"),
    [
        pytest.param(later(TOLD, boot=60, wall=60), 60, id="clocks-agree"),
        pytest.param(later(TOLD, boot=60, wall=90), 90, id="wall-clock-ahead-the-earlier-end-counts"),
        pytest.param(later(TOLD, boot=60, wall=30), 60, id="wall-clock-behind"),
        pytest.param(later(TOLD, boot=60, wall=-DAY), 60, id="clock-set-back-a-day"),
        pytest.param(later(TOLD, boot=-5, wall=-5), 0, id="never-less-than-nothing"),
        pytest.param(Moment("two", 5.0, TOLD.wall + 60), 60, id="another-life-of-the-machine"),
        pytest.param(Moment("two", 5.0, TOLD.wall - DAY), 0, id="another-life-and-a-clock-set-back"),
    ],
)
def test_what_a_lease_has_used_up_when_it_is_first_seen(now: Moment, used: float) -> None:
    assert begin(a_lease(), now).used == used


def test_a_restart_of_the_machine_with_its_clock_set_back_gives_no_time_back() -> None:
    lease = a_lease()
    before = go_on(begin(lease, TOLD), lease, later(TOLD, boot=600, wall=600))
    restarted = Moment("two", 10.0, TOLD.wall - DAY)
    after = go_on(before, lease, restarted)
    assert after.used == 600
    assert go_on(after, lease, later(restarted, boot=50, wall=50, boot_id="two")).used == 650


def test_time_that_the_wall_clock_alone_saw_stays_used_up_after_a_restart() -> None:
    lease = a_lease()
    before = go_on(begin(lease, Moment("zero", 1.0, TOLD.wall)), lease, Moment("zero", 601.0, TOLD.wall + 900))
    assert go_on(before, lease, Moment("two", 10.0, TOLD.wall - DAY)).used == 900


def test_time_that_a_machine_was_off_counts_where_its_clock_is_right() -> None:
    lease = a_lease()
    before = go_on(begin(lease, TOLD), lease, later(TOLD, boot=600, wall=600))
    assert go_on(before, lease, Moment("two", 10.0, TOLD.wall + 2000)).used == 2000


def test_a_wall_clock_that_ran_ahead_and_was_put_right_counts_no_longer() -> None:
    lease = a_lease()
    ahead = go_on(begin(lease, TOLD), lease, later(TOLD, boot=60, wall=3000))
    assert ahead.used == 3000
    assert go_on(ahead, lease, later(TOLD, boot=120, wall=120)).used == 120


def test_looks_in_between_change_nothing() -> None:
    lease, use = a_lease(), begin(a_lease(), TOLD)
    for second in range(1, 100):
        use = go_on(use, lease, later(TOLD, boot=second, wall=second))
    assert use.used == pytest.approx(99)


def test_what_is_left_is_what_was_told_without_what_is_used_up() -> None:
    left = what_is_left(a_lease(), Use(100.0, 700.0, TOLD))
    assert (left.phase, left.expires_in.total_seconds(), left.deadline_in.total_seconds()) == (Phase.READY, 2900, 500)
    assert (left.idle.total_seconds(), left.grace.total_seconds()) == (900, 600)


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "x"},
        {"phase": None},
        {"expires_in": "3600"},
        {"expires_in": None},
        {"expires_in": True},
        {"expires_in": float("nan")},
        {"expires_in": float("inf")},
        {"expires_in": 10**400},
        {"at": None},
        {"at": "now"},
        {"at": {"boot_id": "one", "boottime": 1}},
        {"drain_seconds": []},
    ],
    ids=str,
)
def test_a_lease_that_cannot_be_read_is_none(change: dict[str, Any]) -> None:
    assert parse_lease(RAW | change) is None
    assert parse_lease({}) is None


def test_no_lease_lasts_longer_than_the_longest_there_is() -> None:
    assert a_lease(expires_in=1e10).expires_in == MAX_LIFETIME.total_seconds()


@pytest.mark.parametrize(
    ("change", "tick"),
    [
        pytest.param({}, 5.0, id="as-usual"),
        pytest.param({"idle_seconds": 2, "grace_seconds": 1}, 0.3, id="short-limit"),
        pytest.param({"expires_in": 10}, 1.0, id="short-lease"),
        pytest.param({"expires_in": -10}, 0.2, id="never-without-a-pause"),
    ],
)
def test_looks_come_often_enough_for_the_shortest_limit(change: dict[str, Any], tick: float) -> None:
    assert a_lease(**change).tick == pytest.approx(tick)


def test_between_lives_of_a_machine_the_wall_clock_is_all_there_is() -> None:
    assert seconds_between(TOLD, replace(TOLD, boottime=1010.0, wall=0.0)) == 10
    assert seconds_between(TOLD, Moment("two", 0.0, TOLD.wall + 30)) == 30
    assert seconds_between(TOLD, Moment("two", 0.0, TOLD.wall - 30)) == 0
