"""The stand-in against what a real engine did with the same program: runs 01 to 14, one stack's life."""

import pytest

from tests.sandbox.conformance import UP, Recorder, Run, bare, compare, state_after
from tests.sandbox.engine_world import World

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    """Runs 01 to 14: one stack through its life, and a second one that refers to it."""
    record = Recorder(World.make(tmp_path_factory.mktemp("engine"), "sample"))
    record.world.ok("stack", "init", "one")
    record.run(1, "preview", "-s", "one")
    record.run(2, *UP, "one")
    record.run(3, *UP, "one")
    record.config("one", size="5")
    record.run(4, *UP, "one")
    record.config("one", first="c")
    record.run(5, "preview", "-s", "one")
    record.run(6, *UP, "one")
    (record.world.folder / "files" / "c").unlink()
    record.run(7, *UP, "one")
    record.config("one", second="broken")
    record.run(8, *UP, "one")
    record.config("one", second="b", size="-1")
    record.run(9, *UP, "one")
    record.config("one", size="5")
    record.run(10, *UP, "one")
    record.world.ok("stack", "init", "two")
    record.config("two", other="organization/sample/one", first="x", second="y")
    record.run(11, *UP, "two")
    record.run(12, "destroy", "-y", "--skip-preview", "-s", "two")
    record.run(13, "refresh", "-y", "--skip-preview", "-s", "one")
    record.run(14, "destroy", "-y", "--skip-preview", "-s", "one")
    return record.runs


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(1, 15), ids=lambda number: f"run-{number:02}")
def test_run_is_as_the_real_engine_did_it(runs: dict[int, Run], number: int) -> None:
    compare(runs[number], number)


def test_state_after_run_10_is_the_real_engines(runs: dict[int, Run]) -> None:
    assert bare(runs[10].state) == bare(state_after(10))
