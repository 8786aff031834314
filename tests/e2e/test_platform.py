"""A team: one platform, a gpu stack that was alone and joins it, and the end of both, as their users type it."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.e2e.engines import ENGINES
from tests.sandbox.world import Plan, World

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
UP, DESTROY = "pulumi up -y --skip-preview -s", "pulumi destroy -y --skip-preview -s"
LIMIT_SECONDS = 120


@pytest.fixture(params=ENGINES, scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("s")
    with World(Plan(folder, stand_in=request.param, boot_seconds=0.0)) as standing:
        yield standing


def run(world: World, command: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        shlex.split(command),
        env={**world.environment, "HOME": str(world.plan.folder), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout


def ok(world: World, command: str) -> str:
    code, said = run(world, command)
    assert code == 0, said
    return said


def stand_by(world: World, platform: str | None, stack: str = "gpu-on") -> None:
    """Write the stack file of a gpu stack that names *platform*, or of one alone."""
    path = world.project / "stacks" / f"Pulumi.{stack}.yaml"
    document = yaml.safe_load(path.read_text())
    for key in ("platform", "store"):
        document["config"].pop(f"gpu-on-demand:{key}", None)
    own = {"gpu-on-demand:store": {"bucket": "gpu-inference-models", "location": "fsn1"}}
    document["config"] |= {"gpu-on-demand:platform": platform} if platform else own
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def bills(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        ok(world, "curl -sS " + world.environment["VAST_URL"] + "/sandbox/ledger")
    )["instances"]
    return found


def test_a_stack_alone_joins_a_platform_and_both_end(world: World) -> None:
    ok(world, f"{UP} gpu-on")
    stand_by(world, "platform")
    code, said = run(world, f"{UP} gpu-on")
    assert code != 0
    assert "bring it up first: pulumi up -s platform" in said
    assert [bill["to"] for bill in bills(world)] == [None], "what ran runs on"

    ok(world, f"{UP} platform")
    said = ok(world, f"{UP} gpu-on")
    former, present = bills(world)
    assert former["to"] <= present["from"], "the former machine is given back before the next one is rented"
    assert present["to"] is None
    fleet = json.loads(ok(world, "pulumi stack output --json -s platform"))["fleet"]["fleet_id"]
    assert f"/{fleet}/" in present["label"]
    assert "3 unchanged" in ok(world, f"{UP} gpu-on")

    exported = ok(world, "pulumi stack export -s gpu-on")
    given = json.loads(ok(world, "pulumi stack output --json --show-secrets -s platform"))["fleet"]
    assert given["sign"] not in exported
    assert given["observe"] not in exported

    code, said = run(world, f"{DESTROY} platform")
    assert code != 0
    assert "still holds model" in said
    ok(world, f"{DESTROY} gpu-on")
    assert all(bill["to"] for bill in bills(world))


@pytest.mark.parametrize(
    ("platform", "environment", "told"),
    [
        pytest.param("nosuch", {}, "there is no stack 'nosuch'; make it: pulumi stack init nosuch", id="no-such-stack"),
        pytest.param("gpu-qwen", {}, "stack 'gpu-qwen' has no output `fleet`", id="not-up"),
    ],
)
def test_a_platform_that_cannot_be_read_is_told(
    world: World, platform: str, environment: dict[str, str], told: str
) -> None:
    stand_by(world, platform, "gpu-coder")
    code, said = run(world, "pulumi preview -s gpu-coder", **environment)
    assert code != 0
    assert told in said


def test_a_platform_under_another_passphrase_is_told(world: World) -> None:
    other = {"PULUMI_CONFIG_PASSPHRASE": "other"}
    ok(world, f"{UP} platform")
    assert run(world, "pulumi stack init --no-select other", **other)[0] == 0
    path = world.project / "stacks" / "Pulumi.other.yaml"
    stand_by(world, "platform", "gpu-qwen30")
    config = yaml.safe_load((world.project / "stacks" / "Pulumi.gpu-qwen30.yaml").read_text())["config"]
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"config": config}, sort_keys=False))
    code, said = run(world, "pulumi preview -s other", **other)
    assert code != 0
    assert "is under another passphrase" in said
