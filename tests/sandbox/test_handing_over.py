"""What a machine that got ready is told, what it tells, and how it is asked to finish before it goes."""

from datetime import timedelta
from typing import Any

import pytest

from bootstrap import ready, run
from bootstrap.steps import Remaining
from dynamic_providers.errors import BootError, BootstrapError, ConfigError, MismatchError, StoppedError
from dynamic_providers.lease import keys
from tests.sandbox.played import Played
from tests.sandbox.stage import UID, Stage


def test_failed_attempts_travel_with_the_machine_that_gets_ready(played_stage: Stage, played: Played) -> None:
    played.failures = [BootError("first token", "none"), MismatchError("another GPU")]
    played_stage.create(played_stage.request(attempts=3)).delete()
    (told,) = played.provisioned
    assert told["failures"] == {"first_token": 1, "mismatch": 1}
    assert told["ssh_lost_seconds"] == 0.0
    assert told["phases"].keys() >= {"scheduled", "image", "ssh", "weights", "engine", "first token"}
    assert told["cold_start_seconds"] > 2 * sum(told["phases"].values()), "two hosts before it took their time too"


def test_a_machine_that_served_before_is_told_nothing_new_of_its_boot(played_stage: Stage, played: Played) -> None:
    first = played_stage.create()
    again = played_stage.create()
    assert again.id == first.id
    assert len(played.provisioned) == 1
    again.delete()


def test_what_was_waited_for_logins_that_never_came_is_told(
    played_stage: Stage, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bootstrap import ssh

    async def never(target: ssh.Target, *, deadline: timedelta) -> ssh.Machine:
        played_stage.clock.sleep(deadline.total_seconds())
        monkeypatch.setattr(ssh, "connect", played.connect)
        raise BootError("ssh", "no login")

    monkeypatch.setattr(ssh, "connect", never)
    played_stage.create(played_stage.request(attempts=2, boot_minutes=10.0)).delete()
    (told,) = played.provisioned
    assert told["failures"] == {"ssh": 1}
    assert told["ssh_lost_seconds"] == pytest.approx(120, abs=2)  # its share of ten minutes


def test_what_is_put_back_has_a_deadline_of_its_own(
    played_stage: Stage, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = played_stage.create()
    told = list[timedelta]()

    async def fails_late(*given: Any, **more: Any) -> Any:
        remaining = next(value for value in given if isinstance(value, Remaining))
        told.append(remaining.boot)
        if len(told) == 1:
            played_stage.clock.sleep(18 * 60)
            raise BootstrapError("engine", "does not start")
        return await played.apply(*given, **more)

    monkeypatch.setattr(run, "apply", fails_late)
    with pytest.raises(BootstrapError, match="does not start"):
        machine.update(played_stage.request("other"))
    assert "the former settings serve again" in played_stage.said
    assert len(told) == 2
    assert min(told) > timedelta(minutes=19), "or the machine would end itself while the former model loads"
    machine.delete()


def test_an_update_tells_nothing_of_how_the_machine_came_up(played_stage: Stage, played: Played) -> None:
    machine = played_stage.create()
    machine.update(played_stage.request(max_hours=9.0))
    assert len(played.provisioned) == 1
    machine.delete()


def test_a_lease_cannot_be_made_shorter_than_it_has_lasted(played_stage: Stage, played: Played) -> None:
    machine = played_stage.create()
    played_stage.clock.sleep(2 * 3600)
    label = machine.instance.label
    with pytest.raises(ConfigError, match=r"lease.max_hours: 1.5 h are over already; write more"):
        machine.update(played_stage.request(max_hours=1.5))
    assert machine.instance.label == label
    machine.delete()


@pytest.mark.parametrize(
    ("state", "verdict", "said"),
    [
        pytest.param({}, "unchanged", "", id="serves"),
        pytest.param({"engine": {"state": "running"}}, "unchanged", "", id="runs"),
        pytest.param(
            {"engine": {"state": "unhealthy", "message": "raise need.min_vram_gib"}},
            "update",
            "its engine was given up: raise need.min_vram_gib",
            id="given-up",
        ),
        pytest.param({"ending": "idle"}, "unchanged", "is ending its own rental: idle", id="ending"),
    ],
)
def test_a_refresh_tells_what_the_machine_says(
    played_stage: Stage,
    played: Played,
    monkeypatch: pytest.MonkeyPatch,
    state: dict[str, Any],
    verdict: str,
    said: str,
) -> None:
    machine = played_stage.create()

    async def ask(*_: Any, **__: Any) -> dict[str, Any]:
        return {"settings": machine.outputs["applied"], "armed": True, "in_flight": 0, **state}

    monkeypatch.setattr(ready.Control, "_ask", ask)
    assert machine.read()
    assert machine.verdict() == verdict
    assert any(said in line for line in played_stage.said)
    machine.delete()


def test_a_machine_that_is_not_armed_serves_and_is_loud(played_stage: Stage, played: Played) -> None:
    played.is_armed = False
    machine = played_stage.create()
    assert machine.outputs["armed"] is False
    (said,) = [line for line in played_stage.said if line.startswith("NOT ARMED")]
    assert "HTTP 401" in said
    played.is_armed = True
    assert machine.read()
    assert machine.outputs["armed"] is True
    assert machine.verdict() == "unchanged"
    machine.delete()


class Busy:
    """A machine's control endpoint, with so many requests running that one ends at each look."""

    def __init__(self, left: list[int | None]) -> None:
        self.left, self.asked = left, list[tuple[str, str, Any]]()

    async def __call__(
        self, control: ready.Control, method: str, what: str, timeout: timedelta, body: Any = None
    ) -> dict[str, Any] | None:
        self.asked.append((method, what, body))
        left = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return None if left is None else {"in_flight": left}


@pytest.mark.parametrize(
    ("left", "looks"),
    [
        pytest.param([0], 1, id="idle"),
        pytest.param([2, 1, 1, 0], 4, id="busy"),
        pytest.param([None], 3, id="cannot-be-asked"),
        pytest.param([1, None, None, 1, 0], 5, id="an-answer-is-lost-now-and-then"),
        pytest.param([1, None, None, None, 1], 4, id="went-away"),
    ],
)
def test_before_it_goes_a_machine_finishes_what_it_is_answering(
    played_stage: Stage, played: Played, monkeypatch: pytest.MonkeyPatch, left: list[int | None], looks: int
) -> None:
    machine, is_busy = played_stage.create(), bool(left[0])
    busy = Busy(left)
    monkeypatch.setattr(ready.Control, "_ask", lambda *asked: busy(*asked))
    monkeypatch.setattr(ready, "RETRY_SECONDS", 0.01)
    machine.delete()
    method, what, body = busy.asked[0]
    assert (method, what) == ("PUT", "drain")
    assert body["seconds"] >= 60
    assert len(busy.asked) == looks
    assert not played_stage.show()
    assert any("draining, " in line for line in played_stage.said) == is_busy


def test_a_destroy_that_is_stopped_while_it_waits_destroys_nothing(
    played_stage: Stage, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = played_stage.create()
    busy = Busy([1])

    async def ask(*asked: Any) -> dict[str, Any] | None:
        played_stage.world.stop.request("Pulumi was told to stop")
        return await busy(*asked)

    monkeypatch.setattr(ready.Control, "_ask", ask)
    with pytest.raises(StoppedError):
        machine.delete()
    assert len(played_stage.show()) == 1
    played_stage.world.stop._reason = None
    busy.left = [0]
    monkeypatch.setattr(ready.Control, "_ask", lambda *asked: busy(*asked))
    machine.delete()


def test_the_control_token_is_the_observe_keys(played_stage: Stage, played: Played) -> None:
    machine = played_stage.create()
    tokens = set[str]()

    async def ask(control: ready.Control, *_: Any) -> dict[str, Any] | None:
        tokens.add(control.token)
        return {"in_flight": 0}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ready.Control, "_ask", ask)
        machine.delete()
    assert tokens == {keys.control_token(played_stage.fleet.observe, UID, machine.id)}
