"""What a real engine 3.260.0 did with the sample program, call by call, and how a run of the stand-in is held to it."""

import json
import re
import signal
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.sandbox.engine_world import DATA, Result, World

# Both engines ask every new process these; the SDK's host has no answer to them, and closing sends a Cancel.
PROBES = {"Handshake", "CheckConfig", "DiffConfig", "Cancel"}
CHANGES = {"Check", "Create", "Update", "Delete"}
UP = ("up", "-y", "--skip-preview", "-s")
FAILING = {8: 1, 9: 1, 15: 1, 17: -signal.SIGKILL, 18: 1}
SUMMARIES = {  # as the real CLI printed them
    1: ["+ 4 to create"],
    2: ["+ 4 created"],
    3: ["4 unchanged"],
    4: ["~ 1 updated", "3 unchanged"],
    5: ["~ 1 to update", "+-1 to replace", "2 changes. 2 unchanged"],
    6: ["+-1 replaced", "3 unchanged"],
    7: ["+ 1 created", "3 unchanged"],
    10: ["+-1 replaced", "3 unchanged"],
    11: ["+ 4 created"],
    12: ["- 4 deleted"],
    13: ["4 unchanged"],
    14: ["- 4 deleted"],
}


@dataclass(frozen=True)
class Run:
    """What one of the twenty runs came to."""

    result: Result
    calls: list[tuple[str, str, Any]]
    cancels: int
    outputs: Any
    state: dict[str, Any]


class Recorder:
    """Runs commands and keeps what each did, by the number of its transcript."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.runs: dict[int, Run] = {}

    def run(self, number: int, *words: str) -> None:
        """Run a command to its end and keep it."""
        self.world.calls()
        self.keep(number, words[-1], self.world.run(*words))

    def keep(self, number: int, stack: str, result: Result) -> None:
        """Keep what a command did."""
        events = [
            (
                line["method"].rsplit("/", 1)[1],
                line["progress"].removeprefix("request_").removeprefix("response_"),
                line,
            )
            for line in self.world.calls()
        ]
        cancels = sum(call == "Cancel" and event == "started" for call, event, _ in events)
        state = self.world.state(stack)
        root: dict[str, Any] = next(
            (found for found in state.get("resources", []) if found["type"] == "pulumi:pulumi:Stack"), {}
        )
        outputs = _plain(root.get("outputs", {}))
        self.runs[number] = Run(result, _comparable(events), cancels, outputs, state)

    def config(self, stack: str, **values: str) -> None:
        """Set configuration values."""
        for key, value in values.items():
            self.world.ok("config", "set", "-s", stack, key, "--", value)


def compare(run: Run, number: int) -> None:
    transcript = _transcript(number)
    calls = _comparable([(call, event, line) for call, event, line in transcript if call != "RegisterResourceOutputs"])
    assert run.result.code == FAILING.get(number, 0), run.result
    before, after = _split(run.calls)
    real_before, real_after = _split(calls)
    assert _by_resource(before) == _by_resource(real_before)  # reads run side by side, in no order
    assert after == real_after
    registered = [
        _plain(line["request"]["outputs"]) for call, _, line in transcript if call == "RegisterResourceOutputs"
    ]
    if registered and number not in (1, 5):  # a preview registers outputs and keeps none
        assert run.outputs == registered[-1]
    if expected := SUMMARIES.get(number):
        block = run.result.out.split("Resources:\n")[1].split("\n\n")[0]
        assert [line.strip() for line in block.splitlines()] == expected


def _transcript(number: int) -> list[tuple[str, str, Any]]:
    path = next((DATA / "transcripts").glob(f"{number:02}-*.jsonl"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["call"].split("/")[1], line["event"], line) for line in lines]


def _comparable(events: list[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    """Keep what must be the same: call, moment, and the whole message but for what is random."""
    kept = []
    for call, event, line in events:
        if call in PROBES:
            continue
        if line.get("errors"):
            message: Any = "error"
        else:
            message = line["request"] if event == "started" else line["response"]
            drop = {"randomSeed"} | ({"id"} if call == "Configure" else set())
            message = {key: value for key, value in message.items() if key not in drop and "resourceStatus" not in key}
        kept.append((call, event, _whole(message)))
    return kept


def _split(calls: list[tuple[str, str, Any]]) -> tuple[list[Any], list[Any]]:
    """Part what is read first from what the program brings about."""
    at = next((index for index, (call, _, _) in enumerate(calls) if call in CHANGES), len(calls))
    return calls[:at], calls[at:]


def _by_resource(calls: list[tuple[str, str, Any]]) -> dict[str, list[Any]]:
    """Sort calls by the resource they ask about; an answer belongs to the call before it with the same outcome."""
    found: dict[str, list[Any]] = defaultdict(list)
    for call, event, message in calls:
        if event == "started":
            found[message["urn"]].append((call, message))
        else:
            found[f"answers to {call}"].append(json.dumps(message, sort_keys=True))
    return {key: sorted(value) if key.startswith("answers") else value for key, value in found.items()}


def creating(world: World) -> bool:
    path = Path(world.env["PULUMI_DEBUG_GRPC"])
    return path.exists() and "ResourceProvider/Create" in path.read_text()


def state_after(number: int) -> dict[str, Any]:
    deployment: dict[str, Any] = json.loads((DATA / f"state-after-{number}.json").read_text())["deployment"]
    return deployment


def bare(deployment: dict[str, Any]) -> Any:
    """Return the state without times, ciphertexts and drawn ids."""
    text = json.dumps({key: deployment.get(key) for key in ("resources", "pending_operations", "metadata")})
    text = re.sub(r'"(created|modified)": "[^"]*"', r'"\1": "-"', text)
    text = re.sub(r'"(ciphertext|plaintext)": "(\\.|[^"\\])*"', '"sealed": "-"', text)
    return json.loads(re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}", "ID", text))


def _whole(value: Any) -> Any:
    """Write 2.0 as 2: the wire knows one kind of number."""
    return json.loads(re.sub(r"(\d)\.0\b", r"\1", json.dumps(value)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        inner = {key: _plain(item) for key, item in value.items()}
        if "4dabf18193072939515e22adb298388d" not in inner:
            return inner
        return json.loads(inner["plaintext"]) if "plaintext" in inner else inner["value"]
    return [_plain(item) for item in value] if isinstance(value, list) else value
