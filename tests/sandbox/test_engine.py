"""The stand-in engine beyond the conformance runs: options, failures, what is shown, and the command line."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.sandbox.engine_world import World, toy


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World.make(tmp_path_factory.mktemp("engine"), "toy")
    world.ok("stack", "init", "one")
    return world


@pytest.fixture
def world(made_once: World, tmp_path: Path) -> World:
    return made_once.copy(tmp_path)


def test_independent_resources_are_created_side_by_side(world: World) -> None:
    world.declare(*(toy(f"t{at}", slow_s=0.5) for at in range(4)))

    result = world.up(TOY_STUBBORN="1")

    assert result.code == 0, result
    deeds = [line.split()[0] for line in world.toys()]
    assert deeds == ["begin"] * 4 + ["create"] * 4


def test_failure_half_way_keeps_what_was_made_and_deletes_nothing(world: World) -> None:
    world.declare(toy("old"))
    assert world.up().code == 0
    world.declare(toy("slow", slow_s=0.5), toy("bad", fail=True), toy("late", "@slow"))

    result = world.up()

    assert result.code == 1
    assert "RuntimeError: bad does not work" in result.out
    assert "1 created" in result.out
    assert sorted(world.toys()) == ["create old", "create slow", "fail bad"]
    assert _names(world) == ["default", "old", "slow", "toy-one"]
    assert not world.state("one").get("pending_operations")


def test_what_is_no_longer_declared_is_deleted_dependents_first(world: World) -> None:
    world.declare(toy("a"), toy("b", "@a"), toy("c", opts={"depends_on": ["b"]}))
    assert world.up().code == 0
    world.toys()
    world.declare()

    result = world.up()

    assert result.code == 0, result
    assert world.toys() == ["delete c", "delete from a", "delete a"]
    assert "- 3 deleted" in result.out


def test_replacement_creates_first_unless_told_otherwise(world: World) -> None:
    world.declare(toy("a", "one"), toy("b", "uno", delete_first=True))
    assert world.up().code == 0
    world.toys()
    world.declare(toy("a", "two"), toy("b", "dos", delete_first=True, opts={"depends_on": ["a"]}))

    result = world.up()

    assert result.code == 0, result
    assert world.toys() == ["create two", "delete uno", "create dos", "delete one"]
    assert "+-2 replaced" in result.out


def test_delete_before_replace_takes_its_dependents_along(world: World) -> None:
    world.declare(toy("a", "one", delete_first=True), toy("b", "@a", delete_first=True))
    assert world.up().code == 0
    world.toys()
    world.declare(toy("a", "two", delete_first=True), toy("b", "@a", delete_first=True))

    assert world.up().code == 0

    assert world.toys() == ["delete from one", "delete one", "create two", "create from two"]


def test_a_create_that_fails_after_create_first_leaves_the_old_one(world: World) -> None:
    world.declare(toy("a", "one"))
    assert world.up().code == 0
    world.declare(toy("a", "two", fail=True))

    assert world.up().code == 1

    assert world.toys() == ["create one", "fail two"]
    assert _names(world) == ["a", "default", "toy-one"]


def test_retained_and_deleted_with_are_not_asked_to_be_deleted(world: World) -> None:
    world.declare(
        toy("host"), toy("guest", opts={"deleted_with": "host"}), toy("keep", opts={"retain_on_delete": True})
    )
    assert world.up().code == 0
    world.toys()

    assert world.run("destroy", "-y", "--skip-preview", "-s", "one").code == 0

    assert world.toys() == ["delete host"]
    assert _names(world) == []


def test_protected_is_neither_deleted_nor_replaced(world: World) -> None:
    world.declare(toy("a", "one", opts={"protect": True}))
    assert world.up().code == 0
    world.toys()

    destroyed = world.run("destroy", "-y", "--skip-preview", "-s", "one")
    world.declare(toy("a", "two", opts={"protect": True}))
    replaced = world.up()

    assert (destroyed.code, replaced.code) == (1, 1)
    assert "marked for protection" in destroyed.out
    assert "marked for protection" in replaced.out
    assert world.toys() == []


def test_ignored_changes_are_none(world: World) -> None:
    world.declare(toy("a", note="x", opts={"ignore_changes": ["note"]}))
    assert world.up().code == 0
    world.declare(toy("a", note="y", opts={"ignore_changes": ["note"]}))

    result = world.up()

    assert "2 unchanged" in result.out
    assert world.toys() == ["create a"]


@pytest.mark.parametrize(
    "option", [{"import_": "x"}, {"replace_on_changes": ["text"]}], ids=lambda option: next(iter(option))
)
def test_an_option_that_is_not_supported_is_refused_loudly(world: World, option: dict[str, object]) -> None:
    world.declare(toy("a", opts=option))

    result = world.up()

    assert result.code == 1
    assert "the stand-in does not do" in result.out


def test_what_is_said_shows_at_once_and_keeps_its_layout(world: World) -> None:
    world.ok("config", "set", "log", "phase      s\n  image    12\n  ssh       3", "-s", "one")
    world.declare(toy("a", say="offer   usd\n  best  0.31", slow_s=2))
    up = world.start("up", "-y", "--skip-preview", "-s", "one")
    assert up.stdout is not None
    seen = []
    while "best" not in (line := up.stdout.readline()):
        seen.append(line)
    shown_at = time.monotonic()
    up.communicate()

    assert time.monotonic() - shown_at > 1  # the create was still going on
    text = "".join([*seen, line])
    assert "    phase      s\n      image    12\n      ssh       3\n" in text
    assert "    offer   usd\n      best  0.31\n" in text


def test_run_error_shows_its_message_and_no_traceback(world: World) -> None:
    world.ok("config", "set", "run_error", "three mistakes:\n  one\n  two\n  three", "-s", "one")

    result = world.run("preview", "-s", "one")

    assert result.code == 1
    assert "    error: three mistakes:\n      one\n      two\n      three\n" in result.out
    assert "Traceback" not in result.out + result.err


def test_objects_in_the_stack_file_reach_the_program_as_they_are(world: World) -> None:
    path = world.folder / "project" / "stacks" / "Pulumi.one.yaml"
    path.write_text(
        path.read_text()
        + "# the operator's own words\nconfig:\n"
        + "  toy:settings: {regions: [NO, EU], price: 0.50, at: 1:30, on: 2026-01-01}\n"
    )

    result = world.up()

    assert result.code == 0, result
    assert world.outputs("one")["config"] == {"regions": ["NO", "EU"], "price": 0.5, "at": "1:30", "on": "2026-01-01"}
    world.ok("config", "set", "toys", "[]", "-s", "one")
    assert "# the operator's own words" in path.read_text()


def test_other_stack_is_read_without_leaving_a_trace(world: World) -> None:
    world.declare(toy("a"))
    assert world.up().code == 0
    world.ok("stack", "init", "two")
    world.ok("config", "set", "other", "organization/toy/one", "-s", "two")

    world.ok("up", "-y", "--skip-preview", "-s", "two")

    assert world.outputs("two")["theirs"] == {"a": "from a", "hidden": "shh"}
    assert _names(world, "two") == ["toy-two"]


def test_other_stack_under_another_passphrase_gives_hollow_secrets(world: World) -> None:
    world.declare(toy("a"))
    world.ok("config", "set", "nested", "yes", "-s", "one")
    assert world.up().code == 0
    world.ok("stack", "init", "two", PULUMI_CONFIG_PASSPHRASE="y")
    world.ok("config", "set", "other", "organization/toy/one", "-s", "two", PULUMI_CONFIG_PASSPHRASE="y")

    out = world.ok("up", "-y", "--skip-preview", "-s", "two", PULUMI_CONFIG_PASSPHRASE="y")

    assert "eliding undecryptable secrets for stack reference 'organization/toy/one'" in out
    shown = json.loads(world.ok("stack", "output", "theirs", "--json", "-s", "two"))
    assert shown["hidden"] == {}
    assert shown["nested"] == {"open": 1, "deep": [{"hidden": {}}]}
    assert shown["a"] == "from a"


def test_a_wrong_passphrase_changes_nothing(world: World) -> None:
    wrong = world.up(PULUMI_CONFIG_PASSPHRASE="y")
    none = world.run("preview", "-s", "one", PULUMI_CONFIG_PASSPHRASE_FILE=str(world.folder / "missing"))
    del world.env["PULUMI_CONFIG_PASSPHRASE"]
    unset = world.run("preview", "-s", "one")

    prefix = "error: getting stack configuration: get stack secrets manager: "
    assert wrong.err == f"{prefix}incorrect passphrase\n"
    assert none.code == 0  # the plain variable comes first
    assert unset.err.startswith(f"{prefix}passphrase must be set with PULUMI_CONFIG_PASSPHRASE or")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["frob"], 1, 'unknown command "frob" for "pulumi"'),
        (["stack", "frob"], 1, 'unknown command "frob" for "pulumi stack"'),
        (["up", "--frob"], 1, "unknown flag: --frob"),
        (["up", "-s"], 1, "flag needs an argument: -s"),
        (["up", "-s", "nope", "-y"], 6, "no stack named 'nope' found"),
        (["up", "-s", "one"], 2, "--yes or --skip-preview or --preview-only must be passed in to proceed"),
        (["destroy", "-s", "one"], 2, "--yes or --skip-preview or --preview-only must be passed in to proceed"),
        (["stack", "init", "one"], 1, "stack 'organization/toy/one' already exists"),
        (["stack", "output", "nope", "-s", "one"], 1, "current stack does not have output property 'nope'"),
        (["stack", "rm", "-s", "one"], 1, "non-interactive mode requires --yes flag"),
        (["config", "get", "nope", "-s", "one"], 1, "configuration key 'nope' not found for stack 'one'"),
        (["up", "-y", "--json", "-s", "one"], 1, "the stand-in does --json for preview"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_bad_command_line_is_named(world: World, words: list[str], code: int, message: str) -> None:
    result = world.run(*words)

    assert (result.code, message in result.err) == (code, True), result


def test_stacks_and_values_come_and_go(world: World) -> None:
    world.ok("stack", "select", "one")
    world.ok("config", "set", "--path", "obj.l[0]", "x")
    world.ok("config", "set", "--path", "obj.n", "3")
    world.ok("config", "set", "--secret", "pw", "hush")
    assert world.ok("config", "get", "obj") == '{"l":["x"],"n":3}\n'
    assert world.ok("config", "get", "pw") == "hush\n"
    assert "pw   [secret]" in world.ok("config")
    assert "hush" not in (world.folder / "project" / "stacks" / "Pulumi.one.yaml").read_text()
    world.ok("config", "rm", "obj")
    assert world.run("config", "get", "obj").code == 1
    world.ok("stack", "init", "two")
    assert world.ok("stack", "ls").splitlines()[2].startswith("two*")
    world.ok("stack", "select", "one")
    assert json.loads(world.ok("stack", "ls", "--json"))[0]["current"] is True
    assert json.loads(world.ok("stack", "output", "--json")) == {}
    world.ok("stack", "rm", "-y", "two")
    assert "two" not in world.ok("stack", "ls")
    assert world.ok("version") == "v3.260.0+stand-in\n"
    assert "stand-in" in world.ok("--help")


def test_a_stack_moves_by_export_and_import(world: World) -> None:
    world.declare(toy("a"))
    assert world.up().code == 0
    exported = world.ok("stack", "export", "-s", "one")
    world.declare()
    assert world.up().code == 0

    world.ok("stack", "import", "-s", "one", text=exported)

    assert world.outputs("one")["a"] == "from a"
    assert _names(world) == ["a", "default", "toy-one"]


def test_the_wrapper_runs_from_a_link_on_the_path(world: World) -> None:
    folder = world.folder / "bin"
    folder.mkdir()
    (folder / "pulumi").symlink_to(Path(__file__).parent / "engine" / "pulumi")
    world.env["PATH"] = f"{folder}{os.pathsep}{world.env['PATH']}"

    done = World(world.folder, ["pulumi"], world.env).ok("version")

    assert done == "v3.260.0+stand-in\n"


@pytest.mark.real
@pytest.mark.timeout(300)
def test_either_engine_takes_over_the_others_stack(world: World) -> None:
    real = _real(world)
    world.declare(toy("a", "one"))
    assert world.up().code == 0
    world.ok("config", "set", "--secret", "pw", "hush", "-s", "one")

    assert "2 unchanged" in real.up().out
    assert real.ok("config", "get", "pw", "-s", "one") == "hush\n"
    world.declare(toy("a", "two"))
    assert "+-1 replaced" in real.up().out
    assert "2 unchanged" in world.up().out
    assert world.outputs("one") == real.outputs("one")
    assert real.run("destroy", "-y", "--skip-preview", "-s", "one").code == 0
    assert world.toys() == ["create one", "create two", "delete one", "delete two"]


def _real(world: World) -> World:
    path = shutil.which("pulumi")
    if not path or "stand-in" in World(world.folder, [path], world.env).run("version").out:
        pytest.skip("the real Pulumi CLI is not on PATH")
    env = {key: value for key, value in world.env.items() if key != "PULUMI_DEBUG_GRPC"}
    return World(world.folder, [path], {**env, "PATH": f"{world.env['PATH']}{os.pathsep}{Path(path).parent}"})


def _names(world: World, stack: str = "one") -> list[str]:
    return sorted(record["urn"].rsplit("::", 1)[-1] for record in world.state(stack).get("resources", []))
