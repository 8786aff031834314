"""A machine pushes its metrics: all of them, through an outage, by its own certificate alone."""

import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bootstrap.host.watching.page import render_page
from dynamic_providers.lease.certificates import Leaf, make_ca, sign_leaf
from dynamic_providers.lease.register import NOT_PUSHED, PUSH_LABELS, find_metric
from tests.e2e.pushing import LABELS, Page, Pusher, listening_sockets, open_pusher
from tests.e2e.receiver import Receiver, Series, wait_for
from tests.sandbox.door_world import CA, SIGN
from tests.unit.metric_views import FULL

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

VLLM_PAGE = (Path(__file__).parents[1] / "sandbox/data/vllm-0.32-metrics.txt").read_text(encoding="utf-8")
CREATED = "# TYPE vllm:prompt_tokens_created gauge\nvllm:prompt_tokens_created 1.79522482785e+09\n"
OUTAGE_READS = 40
"""Ten minutes, at four reads a minute."""
SMALL_BUFFER = 150_000
"""Bytes: a few seconds, as fast as time runs here."""


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    folder = tmp_path / "receiver"
    folder.mkdir()
    with Receiver(folder, CA) as receiver:
        yield receiver


@pytest.fixture
def pusher(tmp_path: Path, receiver: Receiver) -> Iterator[Pusher]:
    pages = (VLLM_PAGE + CREATED, render_page(FULL).decode())
    with open_pusher(tmp_path / "machine", receiver.target, *pages) as pusher:
        yield pusher


def a_leaf(sign: str, authority: str, hours: float = 1) -> Leaf:
    expires_at = datetime.now(UTC) + timedelta(hours=hours)
    return sign_leaf(sign, authority, uid="uid0", instance_id=1, address="127.0.0.1", expires_at=expires_at)


def series_of(page: Page) -> set[Series]:
    """Return what is to arrive of a page."""
    labels = LABELS | {"job": page.job, "instance": LABELS["instance_id"]}
    return {
        frozenset(({"__name__": sample.name} | sample.labels | labels).items())
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
        if sample.name not in NOT_PUSHED and not sample.name.endswith("_created")
    }


def arrived(receiver: Receiver, page: Page) -> list[float]:
    """Return the numbers of a page's reads that have arrived, in the order of time."""
    numbers = receiver.values(page.counter)
    assert numbers == sorted(set(numbers)), "each once, in its order"
    return numbers


def assert_nothing_is_lost(receiver: Receiver, pusher: Pusher, but: int = 0) -> None:
    """Wait for all that has been read until now.

    Args:
        receiver: Where it is to be.
        pusher: Who read it.
        but: So many reads of each page may be missing: those that were under way when their reader was ended.
    """
    for page in (pusher.vllm, pusher.host):
        count = page.read

        def is_complete(page: Page = page, count: int = count) -> bool:
            there = sum(1 for number in arrived(receiver, page) if number <= count)
            # On a busy machine a read may take longer than it may; that it failed arrives in its place.
            failed = receiver.values(f'up{{job="{page.job}"}}').count(0)
            return there + failed >= count - but

        wait_for(is_complete, f"what was read of {page.job}")
        assert len(arrived(receiver, page)) > count / 2


def test_every_series_of_both_pages_arrives_with_the_labels_of_its_machine(receiver: Receiver, pusher: Pusher) -> None:
    pusher.start()
    wanted = series_of(pusher.vllm) | series_of(pusher.host)
    wait_for(lambda: wanted <= receiver.series(), "every series")
    every = receiver.series()
    assert len(wanted) > 400
    names = {dict(one)["__name__"] for one in every} - {page.counter for page in (pusher.vllm, pusher.host)}
    assert {name for name in names if find_metric(name) is None} == set(), "the register knows all that arrives"
    assert all(set(PUSH_LABELS) <= dict(one).keys() for one in every)


@pytest.mark.parametrize(
    ("end", "begin"),
    [
        pytest.param(Receiver.close_gate, Receiver.open_gate, id="nobody-listens"),
        pytest.param(Receiver.stop_prometheus, Receiver.start_prometheus, id="prometheus-is-down"),
    ],
)
def test_an_outage_of_the_receiver_loses_nothing(
    receiver: Receiver, pusher: Pusher, end: Callable[[Receiver], None], begin: Callable[[Receiver], None]
) -> None:
    pusher.start()
    pusher.wait_for_reads(4)
    end(receiver)
    pusher.wait_for_reads(OUTAGE_READS)
    wait_for(lambda: pusher.buffer().waiting, "waiting on the disk")
    begin(receiver)
    pusher.wait_for_reads(4)
    assert_nothing_is_lost(receiver, pusher)


def test_what_waits_survives_a_restart(receiver: Receiver, pusher: Pusher) -> None:
    receiver.close_gate()
    pusher.start()
    pusher.wait_for_reads(8)
    pusher.stop()
    assert pusher.buffer().waiting
    receiver.open_gate()
    pusher.start()
    pusher.wait_for_reads(4)
    assert_nothing_is_lost(receiver, pusher, but=1)


def test_a_buffer_that_is_full_gives_up_what_is_oldest(receiver: Receiver, pusher: Pusher) -> None:
    receiver.close_gate()
    pusher.start(buffer=f"{SMALL_BUFFER // 1000}KB")
    sizes = list[int]()

    def is_put(size: int) -> bool:
        sizes.append(pusher.buffer().waiting)
        return pusher.buffer().put > size

    wait_for(lambda: is_put(3 * SMALL_BUFFER), "more than there is room for")
    assert SMALL_BUFFER / 2 < max(sizes) <= SMALL_BUFFER
    pusher.stop()  # so that it does not sit out a pause in which more is given up
    count = pusher.host.read
    receiver.open_gate()
    pusher.start(buffer=f"{SMALL_BUFFER // 1000}KB")
    wait_for(lambda: arrived(receiver, pusher.host)[-1:] > [count], "what is read now")
    there = set(arrived(receiver, pusher.host))
    failed = receiver.values(f'up{{job="{pusher.host.job}"}}').count(0)
    assert len(set(range(1, count + 1)) - there) > failed, "some of it is lost"
    assert there & set(range(count - 4, count + 1)), "what came last is not"


def test_a_new_certificate_is_shown_without_a_restart(receiver: Receiver, pusher: Pusher) -> None:
    pusher.start()
    wait_for(receiver.gate_log, "the first request")
    first = receiver.gate_log()[-1]["request"]["tls"]["client_serial"]
    pusher.show(a_leaf(SIGN, CA, hours=9))

    def is_shown() -> bool:
        # vmagent reads its files again once a second, and shows them once for each connection.
        before = len(receiver.gate_log())
        receiver.close_gate()
        receiver.open_gate()
        wait_for(lambda: len(receiver.gate_log()) > before, "the next request")
        return bool(receiver.gate_log()[-1]["request"]["tls"]["client_serial"] != first)

    wait_for(is_shown, "the new certificate")
    assert receiver.gate_log()[-1]["status"] == 204


def test_a_certificate_of_another_fleet_lets_nothing_through_and_nothing_is_thrown_away(
    receiver: Receiver, pusher: Pusher
) -> None:
    stranger = make_ca("66" * 32, datetime.now(UTC))
    own = pusher.door.identity
    pusher.show(a_leaf("66" * 32, stranger))
    pusher.start()
    wait_for(lambda: "certificate" in pusher.log(), "the refusal")
    pusher.wait_for_reads(8)
    assert receiver.series() == set()
    assert receiver.gate_log() == []
    pusher.show(Leaf(own.certificate, own.private_key))
    assert_nothing_is_lost(receiver, pusher)


@pytest.mark.parametrize("line", ["GET /api/v1/query?query=up", "GET /api/v1/write", "POST /api/v1/read", "GET /"])
def test_a_machine_may_write_and_nothing_else(receiver: Receiver, tmp_path: Path, line: str) -> None:
    leaf = a_leaf(SIGN, CA)
    own = tmp_path / "certificate-and-key.pem"
    own.write_text(leaf.certificate + leaf.private_key)
    context = ssl.create_default_context(cadata=receiver.target.ca_certificate)
    method, _, path = line.partition(" ")
    url = httpx.URL(receiver.target.write_url).join(path)
    with httpx.Client(verify=context, trust_env=False) as stranger, pytest.raises(httpx.TransportError):
        stranger.request(method, url)
    context.load_cert_chain(own)
    with httpx.Client(verify=context, trust_env=False) as member:
        assert member.request(method, url).status_code == 404


def test_it_opens_no_port(receiver: Receiver, pusher: Pusher) -> None:
    pusher.start()
    wait_for(receiver.gate_log, "the first request")
    assert pusher.process
    assert listening_sockets(pusher.process.pid) == []
