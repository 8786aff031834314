"""The count of answers by client: across rotations, truncations, broken lines and agents that are started anew."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bootstrap.host.watching.clients import ClientCounts

Count = Callable[[], ClientCounts]


class Log:
    """The door's access log."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "access.log"
        self.written = Counter[tuple[str, str]]()

    def write(self, client: str, status: int = 200) -> None:
        """Log an answer."""
        with self.path.open("a") as file:
            file.write(json.dumps({"ts": 1.5, "status": status, "client": client}) + "\n")
        self.written[client, str(status)] += 1

    def rotate(self, number: int = 1) -> Path:
        """Put the log aside; a new one is made by the next answer."""
        aside = self.path.with_name(f"access-2026-11-27T10-00-{number:05}.log")
        self.path.rename(aside)
        return aside


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


@pytest.fixture
def count(tmp_path: Path) -> Iterator[Count]:
    """Start a counter; another one is the agent started anew. Its predecessor was killed, and did not say goodbye."""
    started: list[ClientCounts] = []

    def start() -> ClientCounts:
        started.append(ClientCounts(tmp_path / "access.log", tmp_path / "clients.json"))
        return started[-1]

    yield start
    for counter in started:
        counter.close()


def test_answers_are_counted_by_client_and_status(log: Log, count: Count) -> None:
    for client, status in (("alice", 200), ("alice", 200), ("bob", 200), ("alice", 400)):
        log.write(client, status)
    assert count().read() == {("alice", "200"): 2, ("alice", "400"): 1, ("bob", "200"): 1}


def test_no_log_is_no_answers(count: Count) -> None:
    assert count().read() == {}


def test_what_comes_later_is_added(log: Log, count: Count) -> None:
    counter = count()
    for number in range(1, 4):
        log.write("alice")
        assert counter.read() == {("alice", "200"): number}


@pytest.mark.parametrize(
    "line",
    [
        pytest.param('{"status": 401}', id="nobody-that-is-known"),
        pytest.param('{"status": 200, "client": ""}', id="an-empty-name"),
        pytest.param('{"status": 200, "client": ["alice"]}', id="a-name-that-is-none"),
        pytest.param('["alice"]', id="no-object"),
        pytest.param("not JSON", id="no-json"),
        pytest.param("", id="empty"),
        pytest.param("[" * 100_000, id="deeper-than-python-goes"),
        pytest.param("\x00\xff", id="no-text"),
    ],
)
def test_a_line_that_names_no_client_counts_for_nobody(log: Log, count: Count, line: str) -> None:
    log.path.write_text(line + "\n", encoding="latin-1")
    log.write("alice")
    assert count().read() == {("alice", "200"): 1}


def test_half_a_line_counts_once_it_is_whole(log: Log, count: Count) -> None:
    counter = count()
    with log.path.open("w", buffering=1) as file:
        file.write('{"status": 200, "cli')
        file.flush()
        assert counter.read() == {}
        file.write('ent": "alice"}\n')
        file.flush()
        assert counter.read() == {("alice", "200"): 1}


def test_half_a_line_is_read_again_by_an_agent_that_is_started_anew(log: Log, count: Count) -> None:
    log.write("alice")
    with log.path.open("a") as file:
        file.write('{"status": 200, "cli')
    assert count().read() == {("alice", "200"): 1}
    with log.path.open("a") as file:
        file.write('ent": "alice"}\n')
    assert count().read() == {("alice", "200"): 2}


def test_a_rotation_loses_nothing(log: Log, count: Count) -> None:
    counter = count()
    log.write("alice")
    counter.read()
    log.write("alice")  # not yet seen when the log is put aside
    log.rotate()
    log.write("bob")
    assert counter.read() == {("alice", "200"): 2, ("bob", "200"): 1}


def test_a_log_that_was_put_aside_and_packed_was_still_open(log: Log, count: Count) -> None:
    counter = count()
    log.write("alice")
    counter.read()
    log.write("alice")
    log.rotate().unlink()
    log.write("bob")
    assert counter.read() == {("alice", "200"): 2, ("bob", "200"): 1}


def test_between_two_logs_there_may_be_none(log: Log, count: Count) -> None:
    counter = count()
    log.write("alice")
    counter.read()
    log.rotate()
    assert counter.read() == {("alice", "200"): 1}
    log.write("alice")
    assert counter.read() == {("alice", "200"): 2}


def test_an_emptied_log_is_read_from_its_beginning(log: Log, count: Count) -> None:
    counter = count()
    for _ in range(5):
        log.write("alice")
    counter.read()
    log.path.write_text("")
    log.write("bob")
    assert counter.read() == {("alice", "200"): 5, ("bob", "200"): 1}


def test_an_agent_that_is_started_anew_goes_on(log: Log, count: Count) -> None:
    log.write("alice")
    count().read()
    log.write("alice")
    counter = count()
    assert counter.read() == {("alice", "200"): 2}
    assert counter.read() == {("alice", "200"): 2}


def test_a_rotation_while_no_agent_runs_loses_nothing(log: Log, count: Count) -> None:
    log.write("alice")
    count().read()
    log.write("alice")
    log.rotate()
    log.write("bob")
    assert count().read() == {("alice", "200"): 2, ("bob", "200"): 1}


@pytest.mark.parametrize("note", ["", "{", "[]", '{"counts": 1}', '{"counts": [], "inode": "x", "position": 0}'])
def test_a_note_that_cannot_be_read_is_no_note(log: Log, count: Count, tmp_path: Path, note: str) -> None:
    (tmp_path / "clients.json").write_text(note)
    log.write("alice")
    assert count().read() == {("alice", "200"): 1}


def test_a_note_that_cannot_be_written_costs_no_count(log: Log, count: Count, tmp_path: Path) -> None:
    (tmp_path / "clients.json.new").mkdir()
    log.write("alice")
    counter = count()
    assert counter.read() == {("alice", "200"): 1}
    log.write("alice")
    assert counter.read() == {("alice", "200"): 2}


def test_a_line_may_be_long_but_not_without_bounds(log: Log, count: Count) -> None:
    log.path.write_text(json.dumps({"status": 200, "client": "alice", "path": "x" * 3_500_000}) + "\n")
    log.write("bob")
    assert count().read() == {("bob", "200"): 1}  # longer than any line of ours: not held in memory
    log.path.write_text(json.dumps({"status": 200, "client": "alice", "path": "x" * 900_000}) + "\n")
    log.write("bob")
    assert count().read()["alice", "200"] == 1


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_in_whatever_order_every_answer_counts_once(log: Log, count: Count, seed: int) -> None:
    chance = random.Random(seed)
    counter, rotations, seen = count(), 0, set[int]()
    for _ in range(200):
        match chance.choice(["write", "write", "write", "read", "rotate", "anew"]):
            case "write":
                log.write(chance.choice(["alice", "bob"]), chance.choice([200, 400]))
            case "read":
                counter.read()
                seen |= {log.path.stat().st_ino} if log.path.exists() else set()
            # A log that comes and goes between two readings is lost: the door makes one of several megabytes.
            case "rotate" if log.path.exists() and log.path.stat().st_ino in seen:
                rotations += 1
                log.rotate(rotations)
            case "anew":
                counter = count()
    assert rotations > 5
    assert counter.read() == log.written
