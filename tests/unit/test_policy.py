"""The rules of a lease: what is reaped, and which of two machines stays, whoever looks, in whatever order."""

import itertools
import random
from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dynamic_providers.lease.label import Phase
from dynamic_providers.lease.market import Rented
from dynamic_providers.lease.policy import (
    GRACE,
    MAX_LIFETIME,
    STALLED,
    Action,
    Activity,
    End,
    Left,
    Reading,
    Sample,
    choose_keeper,
    decide,
    judge_self,
    observe,
    parse_reading,
)
from tests.unit.builders import NOW, UID, a_label

HOUR = timedelta(hours=1)


def a_machine(id_: int, *, phase: Phase = Phase.BOOTING, age: timedelta = HOUR, label: str | None = None) -> Rented:
    return Rented(id_, label if label is not None else a_label(phase=phase).render(), NOW - age)


@pytest.mark.parametrize(
    ("twins", "busy", "kept"),
    [
        pytest.param([a_machine(1)], [], 1, id="the-only-one"),
        pytest.param([a_machine(1, age=HOUR), a_machine(2, age=2 * HOUR)], [], 2, id="oldest"),
        pytest.param([a_machine(2), a_machine(1)], [], 1, id="same-age-lowest-id"),
        pytest.param(
            [a_machine(1, phase=Phase.READY, age=HOUR), a_machine(2, age=2 * HOUR)], [], 1, id="ready-before-older"
        ),
        pytest.param(
            [a_machine(1, phase=Phase.READY, age=HOUR), a_machine(2, phase=Phase.READY, age=2 * HOUR)],
            [],
            2,
            id="both-ready-oldest",
        ),
        pytest.param([a_machine(1, phase=Phase.READY), a_machine(2)], [2], 2, id="busy-before-ready"),
        pytest.param([a_machine(1, age=2 * HOUR), a_machine(2)], [1, 2], 1, id="both-busy-oldest"),
        pytest.param(
            [a_machine(1, label="gpu-on-demand/?", age=2 * HOUR), a_machine(2, phase=Phase.READY)],
            [],
            2,
            id="unreadable-is-not-ready",
        ),
        pytest.param([a_machine(1), a_machine(2)], [77], 1, id="a-busy-stranger-changes-nothing"),
    ],
)
def test_the_keeper(twins: list[Rented], busy: Collection[int], kept: int) -> None:
    for order in itertools.permutations(twins):
        keeper, others = choose_keeper(order, busy)
        assert keeper is not None
        assert keeper.id == kept
        assert {keeper.id, *(other.id for other in others)} == {twin.id for twin in twins}
        assert len(others) == len(twins) - 1


def test_of_no_machines_none_is_kept() -> None:
    assert choose_keeper([]) == (None, [])


SECOND = timedelta(seconds=1)
FLEET = a_label().fleet_id
BOOTING = a_label(expires_at=NOW + HOUR, deadline=NOW + SECOND)
UNREADABLE = "gpu-on-demand/2/what-a-later-version-writes"


@pytest.mark.parametrize(
    ("label", "age", "expected", "rule"),
    [
        pytest.param(None, 9000 * HOUR, Action.KEEP, "1", id="no-label-is-foreign-however-old"),
        pytest.param("my-training", 9000 * HOUR, Action.KEEP, "1", id="foreign-is-kept-however-old"),
        pytest.param("", HOUR, Action.KEEP, "1", id="an-empty-label-is-foreign"),
        pytest.param("gpu-on-demandish/1", 9000 * HOUR, Action.KEEP, "1", id="nearly-our-prefix-is-foreign"),
        pytest.param(
            replace(BOOTING, fleet_id="deadbeef", deadline=NOW - HOUR).render(),
            HOUR,
            Action.KEEP,
            "1",
            id="another-fleets-boot-deadline-is-not-ours-to-judge",
        ),
        pytest.param(
            replace(BOOTING, fleet_id="deadbeef", expires_at=NOW).ready().render(),
            HOUR,
            Action.REAP,
            "2",
            id="another-fleets-expired-one-is-reaped",
        ),
        pytest.param(
            replace(BOOTING, expires_at=NOW).ready().render(), HOUR, Action.REAP, "2", id="expired-for-zero-seconds"
        ),
        pytest.param(
            replace(BOOTING, expires_at=NOW + SECOND).ready().render(), HOUR, Action.KEEP, "10", id="not-yet-expired"
        ),
        pytest.param(
            replace(BOOTING, expires_at=NOW).render(), HOUR, Action.REAP, "2", id="expiry-comes-before-the-deadline"
        ),
        pytest.param(UNREADABLE, MAX_LIFETIME - SECOND, Action.KEEP, "2", id="unreadable-is-kept-for-the-maximum"),
        pytest.param(UNREADABLE, MAX_LIFETIME, Action.REAP, "2", id="unreadable-is-ended-at-the-maximum"),
        pytest.param(BOOTING.render(), HOUR, Action.KEEP, "6", id="booting-until-its-deadline"),
        pytest.param(
            replace(BOOTING, deadline=NOW).render(), HOUR, Action.REAP, "6", id="booting-at-its-deadline-is-reaped"
        ),
        pytest.param(
            replace(BOOTING, deadline=NOW - HOUR).ready().render(), HOUR, Action.KEEP, "10", id="ready-has-no-deadline"
        ),
        pytest.param(
            replace(BOOTING, deadline=NOW).render()[:64], HOUR, Action.REAP, "6", id="a-cut-label-loses-only-its-tail"
        ),
    ],
)
def test_the_verdict(label: str | None, age: timedelta, expected: Action, rule: str) -> None:
    verdict = decide(Rented(1, label, NOW - age), FLEET, NOW)
    assert (verdict.action, verdict.reason.partition(":")[0]) == (expected, rule)
    assert verdict.is_alarming == (label == UNREADABLE)


@pytest.mark.parametrize(
    ("label", "ours", "belongs"),
    [
        pytest.param(a_label().render(), True, True, id="this-lease"),
        pytest.param(a_label(stack="another", run="x").ready().render(), True, True, id="whatever-its-run-and-phase"),
        pytest.param(a_label(uid="ffffffffffff").render(), True, False, id="another-lease"),
        pytest.param(a_label(fleet_id="deadbeef").render(), True, False, id="another-fleet"),
        pytest.param("gpu-on-demand/1/garbage", True, False, id="unreadable"),
        pytest.param("my-training", False, False, id="foreign"),
        pytest.param(None, False, False, id="no-label"),
    ],
)
def test_whose_a_machine_is(label: str | None, ours: bool, belongs: bool) -> None:
    machine = Rented(1, label, NOW)
    assert machine.is_ours == ours
    assert machine.belongs_to("c0ffee12", UID) == belongs


TICK = timedelta(seconds=5)
REST = Reading(in_flight=0, work=100.0, started_at=1000.0)
IDLE_SO_FAR = Activity(idle_for=HOUR, baseline=REST)


def a_sample(
    *, in_flight: int = 0, work: float = 100.0, started_at: float | None = 1000.0, at_door: int | None = 0
) -> Sample:
    return Sample(Reading(in_flight, work, started_at), at_door)


BLIND = Sample(None, None)


@pytest.mark.parametrize(
    ("sample", "is_busy", "idle_for", "unknown_for"),
    [
        pytest.param(a_sample(), False, HOUR + TICK, 0 * TICK, id="at-rest"),
        pytest.param(a_sample(in_flight=1), True, 0 * TICK, 0 * TICK, id="in-flight-at-the-engine"),
        pytest.param(a_sample(at_door=1), True, 0 * TICK, 0 * TICK, id="in-flight-at-the-door-alone"),
        pytest.param(a_sample(work=101), True, 0 * TICK, 0 * TICK, id="a-counter-moved-between-two-looks"),
        pytest.param(a_sample(work=0), True, 0 * TICK, 0 * TICK, id="a-counter-that-fell-is-a-restart"),
        pytest.param(a_sample(started_at=2000.0), True, 0 * TICK, 0 * TICK, id="another-process-is-a-restart"),
        pytest.param(BLIND, False, HOUR, TICK, id="nothing-can-be-read-neither-idle-nor-busy"),
        pytest.param(Sample(None, 0), False, HOUR, TICK, id="the-engine-cannot-be-read"),
        pytest.param(Sample(None, 2), True, 0 * TICK, 0 * TICK, id="busy-at-the-door-of-an-engine-that-cannot-be-read"),
        pytest.param(a_sample(at_door=None), False, HOUR, TICK, id="a-door-that-cannot-be-read-may-hide-work"),
        pytest.param(a_sample(in_flight=1, at_door=None), True, 0 * TICK, 0 * TICK, id="busy-behind-such-a-door"),
        pytest.param(a_sample(work=101, at_door=None), True, 0 * TICK, 0 * TICK, id="progress-behind-such-a-door"),
    ],
)
def test_what_a_look_says(sample: Sample, is_busy: bool, idle_for: timedelta, unknown_for: timedelta) -> None:
    seen = observe(IDLE_SO_FAR, sample, TICK)
    assert (seen.is_busy, seen.idle_for, seen.unknown_for) == (is_busy, idle_for, unknown_for)


def test_the_first_reading_is_the_baseline_and_no_activity() -> None:
    first = observe(Activity(), a_sample(work=500), HOUR)
    assert (first.is_busy, first.idle_for) == (False, timedelta(0))
    assert observe(first, a_sample(work=500), TICK).idle_for == TICK


def test_work_done_while_nothing_could_be_read_is_seen_afterwards() -> None:
    blind = observe(observe(IDLE_SO_FAR, BLIND, HOUR), BLIND, HOUR)
    assert blind.unknown_for == 2 * HOUR
    seen = observe(blind, a_sample(work=101), TICK)
    assert (seen.is_busy, seen.idle_for, seen.unknown_for) == (True, timedelta(0), timedelta(0))


def test_requests_without_progress_stall_and_any_token_ends_that() -> None:
    stuck = observe(observe(IDLE_SO_FAR, a_sample(in_flight=1), TICK), a_sample(in_flight=1), TICK)
    assert stuck.stalled_for == 2 * TICK
    assert observe(stuck, BLIND, TICK).stalled_for == 2 * TICK
    assert observe(stuck, a_sample(in_flight=1, work=101), TICK).stalled_for == timedelta(0)
    assert observe(stuck, a_sample(), TICK).stalled_for == timedelta(0)


def test_of_any_looks_none_that_sees_work_leaves_the_machine_idle_and_no_blind_one_moves_its_clock() -> None:
    for seed in range(200):
        dice, history = random.Random(seed), Activity()
        for _ in range(50):
            reading = Reading(dice.choice([0, 0, 1]), float(dice.choice([0, 1, 2])), dice.choice([1.0, 1.0, 2.0]))
            sample = Sample(dice.choice([reading, None]), dice.choice([0, 0, 3, None]))
            after = observe(history, sample, TICK)
            in_flight = (sample.engine.in_flight if sample.engine else 0) + (sample.at_door or 0)
            has_moved = sample.engine and history.baseline and sample.engine.work != history.baseline.work
            if in_flight or has_moved:
                assert after.is_busy
                assert after.idle_for == timedelta(0)
            assert after.idle_for in (timedelta(0), history.idle_for, history.idle_for + TICK)
            if after.unknown_for and not after.is_busy:
                assert after.idle_for == history.idle_for
            history = after


LIMIT = timedelta(minutes=15) + GRACE
RESTED = Activity(idle_for=LIMIT, baseline=REST)


@pytest.mark.parametrize(
    ("change", "activity", "expected"),
    [
        pytest.param({}, Activity(), None, id="nothing-speaks-against-it"),
        pytest.param({"expires_in": SECOND}, Activity(), None, id="not-yet-expired"),
        pytest.param({"expires_in": 0 * SECOND}, Activity(is_busy=True), End.EXPIRED, id="expired-even-when-busy"),
        pytest.param(
            {"expires_in": -HOUR, "phase": Phase.BOOTING}, Activity(), End.EXPIRED, id="expired-while-booting"
        ),
        pytest.param({"expires_in": -HOUR}, RESTED, End.EXPIRED, id="expiry-comes-before-idleness"),
        pytest.param({"phase": Phase.BOOTING}, RESTED, None, id="booting-is-never-idle"),
        pytest.param({"phase": Phase.BOOTING}, Activity(unknown_for=9 * HOUR), None, id="booting-may-be-unreadable"),
        pytest.param({"phase": Phase.BOOTING, "deadline_in": 0 * SECOND}, Activity(), End.DEADLINE, id="boot-deadline"),
        pytest.param(
            {"phase": Phase.BOOTING, "deadline_in": -HOUR}, Activity(is_busy=True), None, id="served-past-the-deadline"
        ),
        pytest.param({"deadline_in": -HOUR}, Activity(), None, id="ready-has-no-deadline"),
        pytest.param({}, RESTED, End.IDLE, id="idle-for-exactly-limit-and-grace"),
        pytest.param({}, replace(RESTED, idle_for=LIMIT - SECOND), None, id="the-reaper-goes-first"),
        pytest.param({"grace": 0 * SECOND}, replace(RESTED, idle_for=LIMIT - GRACE), End.IDLE, id="without-grace"),
        pytest.param({}, replace(RESTED, unknown_for=SECOND), None, id="unknown-now-is-not-idle"),
        pytest.param({}, replace(RESTED, is_busy=True), None, id="busy-now-is-not-idle"),
        pytest.param({}, Activity(unknown_for=LIMIT), End.UNKNOWN, id="unknown-for-exactly-limit-and-grace"),
        pytest.param({}, Activity(unknown_for=LIMIT - SECOND), None, id="unknown-for-less"),
        pytest.param({}, Activity(stalled_for=STALLED, is_busy=True), End.STALLED, id="in-flight-without-a-token"),
        pytest.param({}, Activity(stalled_for=STALLED - SECOND, is_busy=True), None, id="a-long-prefill-is-work"),
        pytest.param(
            {"idle": 2 * HOUR},
            Activity(stalled_for=2 * HOUR, is_busy=True),
            None,
            id="a-long-idle-limit-bounds-that-too",
        ),
    ],
)
def test_how_a_machine_judges_itself(change: dict[str, object], activity: Activity, expected: End | None) -> None:
    left = Left(Phase.READY, expires_in=HOUR, deadline_in=HOUR, idle=LIMIT - GRACE)
    assert judge_self(replace(left, **change), activity) is expected  # type: ignore[arg-type]


RECORDED = (Path(__file__).parents[1] / "sandbox/data/vllm-0.32-metrics.txt").read_text()


def test_the_page_of_the_pinned_vllm_is_read() -> None:
    assert parse_reading(RECORDED) == Reading(in_flight=0, work=26.0, started_at=1795224827.85)


PAGE = """\
# HELP vllm:num_requests_running 7
vllm:num_requests_running{engine="0",model_name="a}b\\"c"} 1.0
vllm:num_requests_running{engine="1",model_name="a}b\\"c"} 2.0
vllm:num_requests_waiting{engine="0"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:prompt_tokens_total{engine="0"} 10.0
vllm:prompt_tokens_by_source_total{engine="0"} 999.0
vllm:generation_tokens_total 5
process_start_time_seconds 1.5e+09
"""


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        pytest.param(PAGE, Reading(7, 15.0, 1.5e9), id="summed-over-engines-and-no-others-names"),
        pytest.param(PAGE.replace("process_", "x_"), Reading(7, 15.0, None), id="several-servers-name-no-start"),
        pytest.param(PAGE.replace("vllm:generation", "x"), Reading(7, 10.0, 1.5e9), id="a-model-that-makes-no-text"),
        pytest.param("", None, id="empty"),
        pytest.param("<html>", None, id="no-metrics"),
        pytest.param(PAGE.replace("vllm:num_requests_waiting{", "x{"), None, id="a-gauge-is-missing"),
        pytest.param(PAGE.replace("vllm:prompt_tokens_total", "x"), None, id="the-counter-is-missing"),
        pytest.param(PAGE.replace("} 2.0", "} NaN"), None, id="not-a-number"),
        pytest.param(PAGE.replace("} 2.0", "} +Inf"), None, id="endless"),
        pytest.param(PAGE.replace("} 2.0", "} -9"), None, id="less-than-nothing"),
        pytest.param(PAGE.replace("} 10.0", "} 1e99"), None, id="more-than-can-be-counted"),
        pytest.param(PAGE.replace("} 10.0", "} ten"), None, id="garbage"),
    ],
)
def test_an_engines_page(page: str, expected: Reading | None) -> None:
    assert parse_reading(page) == expected
