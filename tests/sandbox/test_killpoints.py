"""Whatever breaks a run, at whatever moment: what comes next ends with exactly one machine, or with none.

Enumerated: one undisturbed run tells which moments there are, and a run is broken at every one of them, in every way.
After a death everything that may be typed next is typed; after the rest they take turns, and of a replacement only what
is not a creation is broken (KILL_POINTS=all: everything).
With real processes: `tests/e2e/test_killpoints.py`.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from dynamic_providers.errors import StackError, StoppedError
from dynamic_providers.lease.label import Phase
from dynamic_providers.lease.policy import Action, decide
from dynamic_providers.store.manifest import Manifest
from dynamic_providers.vast import lifecycle
from dynamic_providers.vast.rent import rent
from dynamic_providers.vast.request import LeaseTerms, MachineRequest
from tests.sandbox.clocks import PlayedClock
from tests.sandbox.fake_machines import FakeMachines
from tests.sandbox.killpoints import TOLD_TO_STOP, Break, Lab, Stack
from tests.sandbox.stage import Bucket, Stage, open_stage
from tests.sandbox.vast import machines
from tests.sandbox.vast.catalogue import GPU_KINDS

STOP_SECONDS = 5.0
"""Ctrl-C ends a run within this, of the market's time: a machine is given back, and seen to be gone."""
LATER_SECONDS = 15.0
BOOT = timedelta(minutes=LeaseTerms.boot_minutes)
IS_WHOLE_PRODUCT = os.environ.get("KILL_POINTS") == "all"

Asked = MachineRequest | None


@dataclass(frozen=True)
class Operation:
    """A run that is broken: from what is there to what is asked; the next time back again, where that is the same."""

    there: Asked
    asked: Asked
    turns: bool = False

    def turned(self, number: int) -> "Operation":
        return Operation(self.asked, self.there) if self.turns and number % 2 else self


def operation_of(name: str, stage: Stage) -> Operation:
    first = stage.request()
    return {
        "create": Operation(None, first),
        "update": Operation(first, stage.request("other"), turns=True),
        "replace": Operation(first, stage.request(max_usd_per_hour=0.6), turns=True),
        "destroy": Operation(first, None),
    }[name]


def with_small_releases(bucket: Bucket) -> Bucket:
    """Add releases of one blob each: every request to the bucket is a moment, and one for a blob stands for all."""
    small = {}
    for name in ("tiny", "other"):
        weights = next(file for file in bucket.releases[name].files if file.path == "model.safetensors")
        paths = ("config.json", "model.safetensors", "tokenizer.json")
        small[name] = Manifest(f"small-{name}", tuple(replace(weights, path=path) for path in paths))
        bucket.store.put_manifest(small[name])
    return replace(bucket, releases=small)


RENTED = "after market PUT asks/N"
RECOVERIES = ("up", "destroy", "refresh-up", "up-as-before")
"""What is typed after a run was broken. The last: whoever had changed the stack file has changed it back."""


@pytest.fixture
def lab(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Return a small market with neighbours in it that nobody may touch."""
    monkeypatch.setattr(machines, "GPU_KINDS", [replace(GPU_KINDS[0], machines=8)])
    with open_stage(with_small_releases(bucket), FakeMachines(), PlayedClock(), boot_seconds=6.0) as stage:
        stage.tell_market("account", credit=10_000)
        another_fleet = replace(stage.fleet, id="c0ffee12")
        neighbours = [
            rent(stage.world, stage.request(uid="ba9876543210"), "").instance_id,
            rent(stage.world, stage.request(fleet=another_fleet), "").instance_id,
            rent(stage.world, stage.request(), "").instance_id,
        ]
        stage.world.market.relabel(neighbours[-1], "somebody-elses")
        before, seen = {i.id: i.label for i in stage.show()}, len(stage.market.requests)
        lab = Lab(stage)
        with lab.open():
            yield lab
        written = [r["path"] for r in stage.market.requests[seen:] if r["method"] != "GET"]
        assert not [path for path in written if any(f"/{id_}/" in path for id_ in neighbours)]
        for id_ in neighbours:
            stage.world.market.destroy(id_)
        assert before.keys() == set(neighbours)


def moments_of(lab: Lab, operation: Operation) -> Sequence[str]:
    """Run it undisturbed; return its moments."""
    stack = Stack(lab)
    stack.go(operation.there)
    lab.breaker.arm(None, Break.DEAD)
    stack.go(operation.asked)
    moments = tuple(lab.breaker.moments)
    stack.go(None)
    return moments


def trials(moments: Sequence[str], name: str, how: Break, *, by_turns: bool) -> Iterator[tuple[int, str]]:
    """Give each moment at which a run is broken, and what is typed then: everything, or each in its turn."""
    recoveries = RECOVERIES if name in ("update", "replace") else RECOVERIES[:-1]
    if name == "replace" and how is not Break.DEAD and not IS_WHOLE_PRODUCT:
        moments = moments[: moments.index(RENTED) + 1]  # from there on, a replacement is a creation
    for number, moment in enumerate(moments):
        if how is Break.DEAD and number and moment.startswith("before"):
            continue  # to the world, a process that is dead after one request was dead before the next
        turn = number + number // len(recoveries) + list(Break).index(how)
        chosen = [recoveries[turn % len(recoveries)]] if by_turns else recoveries
        yield from ((number, recovery) for recovery in chosen)


REQUESTS = {
    "create": {
        *("store GET", "store HEAD", "market GET users/current", "market POST bundles", "market PUT asks/N"),
        *("market GET instances", "market GET instances/N", "market POST instances/N/ssh", "market PUT instances/N"),
        *("ssh login", "ssh nvidia-smi", "ssh sha256sum", "ssh tar -xzf", "ssh start.py", "ssh missing"),
        *("ssh status", "ssh fetch", "ssh naming_code", "ssh link", "ssh start", "ssh touch closed", "ssh open_door"),
        *("ssh lease", "door POST completions", "ssh ready", "ssh state"),
    },
    "destroy": {
        *("market GET instances", "market GET instances/N", "market DELETE instances/N", "market GET charges"),
        *("door GET state", "door PUT drain"),
    },
}
REQUESTS["replace"] = REQUESTS["create"] | REQUESTS["destroy"]
REQUESTS["update"] = {
    *REQUESTS["create"] - {"market GET users/current", "market POST bundles", "market PUT asks/N"},
    *("door GET state", "ssh stop", "ssh prune"),
} - {"market GET instances"}
"""What is enumerated; each has a moment before it and one after it, as often as it is made."""


@pytest.mark.parametrize("name", REQUESTS)
def test_the_moments_are_all_the_requests_that_there_are(lab: Lab, name: str) -> None:
    moments = moments_of(lab, operation_of(name, lab.stage))
    assert {moment.partition(" ")[2] for moment in moments} == REQUESTS[name]
    ends = [moment.partition(" ") for moment in moments]
    assert sorted(what for when, _, what in ends if when == "before") == sorted(
        what for when, _, what in ends if when == "after"
    )


HEAVY = {(name, how) for name in ("update", "replace") for how in (Break.LOST, Break.CUT)}
"""A minute together, and what is special in them is broken in `create` too."""


@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(name, how, id=f"{name}-{how.value}", marks=[pytest.mark.real] if (name, how) in HEAVY else [])
        for name in ("create", "update", "replace", "destroy")
        for how in Break
    ],
)
def test_whatever_breaks_a_run_what_comes_next_puts_it_right(lab: Lab, name: str, how: Break) -> None:
    break_everywhere(lab, name, how, by_turns=not IS_WHOLE_PRODUCT)


@pytest.mark.real
@pytest.mark.timeout(300)
@pytest.mark.skipif(IS_WHOLE_PRODUCT, reason="among the others already")
@pytest.mark.parametrize("name", ["create", "update", "replace", "destroy"])
def test_after_a_death_all_that_may_be_typed_puts_it_right(lab: Lab, name: str) -> None:
    break_everywhere(lab, name, Break.DEAD, by_turns=False)


def break_everywhere(lab: Lab, name: str, how: Break, *, by_turns: bool) -> None:
    """Break a run at each of its moments, and see that what comes next puts it right."""
    operation = operation_of(name, lab.stage)
    moments = moments_of(lab, operation)
    stack, problems = Stack(lab), []
    for number, recovery in trials(moments, name, how, by_turns=by_turns):
        turned = operation.turned(number)
        if stack.has != turned.there:
            stack.go(turned.there)
        found = list(trial(stack, turned, number, how, recovery))
        problems += [f"{number} {moments[number]}, then {recovery}: {problem}" for problem in found]
        if found:  # must not spoil the next trial
            stack = begin_anew(stack)
    stack.go(None)
    print(f"{name}, {how.value}: {len(moments)} moments")
    assert not problems, "\n".join(problems)


def trial(stack: Stack, operation: Operation, number: int, how: Break, recovery: str) -> Iterator[str]:
    """Break a run, look; recover, look; give every claim that does not hold."""
    lab, uid = stack.lab, stack.uid
    lab.breaker.arm(number, how)
    error = attempt(stack, operation.asked)
    uid = stack.uid or uid
    assert uid is not None
    yield from after_the_break(stack, uid, operation, how, error)
    lab.breaker.arm(None, how)
    if recovery == "refresh-up":
        stack.refresh()
    up = operation.there if recovery == "up-as-before" else operation.asked or operation.there
    wanted = None if recovery == "destroy" else up
    if failed := attempt(stack, wanted):
        yield f"that failed: {failed}"
    lab.stage.clock.sleep(LATER_SECONDS)
    yield from after_the_recovery(stack, uid, wanted)


def attempt(stack: Stack, asked: Asked) -> Exception | None:
    """Run it; return what it ended with. What kills the process, the SDK's thread turns into a RuntimeError."""
    try:
        stack.go(asked)
    except (StackError, RuntimeError) as error:
        return error
    return None


def after_the_break(stack: Stack, uid: str, operation: Operation, how: Break, error: Exception | None) -> Iterator[str]:
    """Say what is wrong before anybody does anything about it."""
    lab, own = stack.lab, stack.lab.own(uid)
    if not lab.breaker.is_broken:
        yield "the moment never came"
    if how is Break.DEAD and not isinstance(error, RuntimeError):
        yield f"a process that is dead ended with {error!r}"
    if how is not Break.DEAD and isinstance(error, RuntimeError):
        yield f"not one clear sentence: {error!r}"
    if operation.there is None and error and how in (Break.STOPPED, Break.LOST) and own:
        yield f"left rented: {[i.id for i in own]}, {error}"
    if how is Break.STOPPED and error:
        if lab.breaker.seconds_since > STOP_SECONDS:
            yield f"took {lab.breaker.seconds_since:.0f} s to stop"
        if not isinstance(error, StoppedError) or TOLD_TO_STOP not in str(error) or "\n" in str(error):
            yield f"does not say that it was told to stop: {error}"
    for instance in own:
        label = instance.parsed
        assert label is not None
        end = lab.stage.clock.now() + BOOT if label.phase is Phase.BOOTING else label.expires_at
        if (verdict := decide(instance, lab.stage.fleet.id, end)).action is not Action.REAP:
            yield f"nobody would end instance {instance.id}: {verdict.reason}"


def after_the_recovery(stack: Stack, uid: str, wanted: Asked) -> Iterator[str]:
    """Say what is wrong when all should be well."""
    lab = stack.lab
    own = [instance for lease in {uid, stack.uid or uid} for instance in lab.own(lease)]
    if wanted is None:
        if own or stack.id is not None:
            yield f"left: {[i.id for i in own]}, recorded: {stack.id}"
        return
    if [str(instance.id) for instance in own] != [stack.id]:
        yield f"there: {[i.id for i in own]}, recorded: {stack.id}"
        return
    label = own[0].parsed
    if label is None or label.phase is not Phase.READY:
        yield f"its label is {own[0].label}"
    if not lab.machine(own[0].id).serves(lifecycle.engine_of(wanted)):
        yield f"it serves {lab.machine(own[0].id).state}"
    if (recorded := MachineRequest.from_props(stack.outputs or {})) != replace(wanted, uid=recorded.uid):
        yield f"recorded is {recorded}"


def begin_anew(stack: Stack) -> Stack:
    """Give a fresh stack, whatever is left of the former one gone."""
    for instance in stack.lab.own(str(stack.uid)):
        stack.lab.stage.world.market.destroy(instance.id)
    return Stack(stack.lab)
