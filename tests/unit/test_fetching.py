"""What a download decides: what an answer means, how many requests run, which of them are too slow."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import count
from multiprocessing.connection import Pipe

import pytest

from bootstrap import contents
from bootstrap.host.fetching.answers import Answer, Fault, Range, find_fault, lifetime
from bootstrap.host.fetching.line import Line, read_head
from bootstrap.host.fetching.pace import (
    FIRST,
    HOLD_SECONDS,
    MOST,
    REQUESTS_PER_SECOND,
    WINDOW_SECONDS,
    Pace,
    choose_slow,
)
from bootstrap.host.fetching.worker import Worker
from dynamic_providers.store import folder

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


def a_range(signed: timedelta = timedelta(0), url: str = "") -> Range:
    """Return bytes 100 to 199 of 1000, by a URL that was signed so long before NOW for an hour."""
    at = (NOW - signed).strftime("%Y%m%dT%H%M%SZ")
    return Range(
        1, url or f"https://store/b/k?X-Amz-Date={at}&X-Amz-Expires=3600&X-Amz-Signature=s", "p", 100, 100, 1000
    )


def refused(code: str, message: str = "", status: int = 403) -> Answer:
    said = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, date=format_datetime(NOW, usegmt=True), said=said)


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("answer", "wanted", "kind"),
    [
        pytest.param(refused("AccessDenied", "Request has expired"), a_range(), "expired", id="s3-and-seaweedfs"),
        pytest.param(refused("ExpiredRequest"), a_range(), "expired", id="r2"),
        pytest.param(refused("AccessDenied"), a_range(2 * HOUR), "expired", id="ceph-says-nothing-but-its-clock-does"),
        pytest.param(refused("AccessDenied"), a_range(HOUR), "expired", id="to-the-second"),
        pytest.param(
            refused("AccessDenied"),
            a_range(url="https://store/b/k?Expires=1&Signature=s"),
            "expired",
            id="signature-v2",
        ),
        pytest.param(refused("AccessDenied"), a_range(HOUR / 2), "refused", id="in-time-and-denied"),
        pytest.param(refused("RequestTimeTooSkewed"), a_range(), "skewed", id="skewed"),
        pytest.param(refused("AccessDenied", "Request is not yet valid"), a_range(), "skewed", id="not-yet-valid"),
        pytest.param(refused("AccessDenied"), a_range(-HOUR), "skewed", id="signed-in-the-stores-future"),
        pytest.param(refused("SignatureDoesNotMatch"), a_range(), "refused", id="wrong-key"),
        pytest.param(refused("InvalidAccessKeyId"), a_range(), "refused", id="unknown-key"),
        pytest.param(refused("PermanentRedirect", status=301), a_range(), "refused", id="another-place"),
        pytest.param(refused("NoSuchKey", status=404), a_range(), "missing", id="missing"),
        pytest.param(Answer(429), a_range(), "busy", id="too-many-requests"),
        pytest.param(Answer(503), a_range(), "busy", id="overloaded"),
        pytest.param(Answer(416), a_range(), "corrupt", id="shorter-than-that"),
        pytest.param(Answer(206, 100, "bytes 100-199/999"), a_range(), "corrupt", id="another-size"),
        pytest.param(Answer(206, 100, "bytes 0-99/1000"), a_range(), "network", id="another-range"),
        pytest.param(Answer(206, 100), a_range(), "network", id="a-part-without-saying-which"),
        pytest.param(Answer(200, 1000), a_range(), "whole", id="the-whole-file"),
        pytest.param(Answer(200, 999), a_range(), "corrupt", id="another-whole-file"),
    ],
)
def test_why_bytes_do_not_come(answer: Answer, wanted: Range, kind: str) -> None:
    fault = find_fault(answer, wanted)
    assert fault is not None
    assert fault.kind == kind
    assert "X-Amz" not in fault.message


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        pytest.param(Answer(206, 100, "bytes 100-199/1000"), a_range(), id="as-asked"),
        pytest.param(Answer(206, 100, "bytes 100-199/*"), a_range(), id="of-unknown-size"),
        pytest.param(Answer(200, 1000), Range(1, "u", "p", 0, 1000, 1000), id="all-of-it-was-asked-for"),
        pytest.param(Answer(200, 1000), Range(1, "u", "p", 0, 1000, 1000, is_whole=True), id="in-one-piece"),
    ],
)
def test_what_was_asked_for_is_no_fault(answer: Answer, wanted: Range) -> None:
    assert find_fault(answer, wanted) is None


def test_of_what_the_store_says_only_its_code_is_repeated() -> None:
    said = refused("https://store/b/k?X-Amz-Signature=s", "https://store/b/k?X-Amz-Signature=s")
    assert find_fault(said, a_range()) == Fault(
        "refused",
        "the store takes its URL for wrong (HTTP 403, without a reason): the keys that signed it are not the bucket's"
        " any more, or may not read it; check them and run `pulumi up` again",
    )


def test_an_expired_url_tells_by_whose_clock() -> None:
    fault = find_fault(refused("AccessDenied"), a_range(3 * HOUR))
    assert fault is not None
    assert "signed 10800 s ago by the store's clock, for 3600 s" in fault.message


@pytest.mark.parametrize("after", ["7", "9999", "soon", ""])
def test_how_long_the_store_wants_to_be_left_alone(after: str) -> None:
    fault = find_fault(Answer(503, retry_after=after), a_range())
    assert fault is not None
    assert fault.retry_after == {"7": 7, "9999": 30}.get(after, 0)


@pytest.mark.parametrize(
    "url", ["https://store/b/k", "https://s/?X-Amz-Date=x&X-Amz-Expires=1", "https://s/?Expires=x"]
)
def test_a_url_may_not_say_when_it_ends(url: str) -> None:
    assert lifetime(url) == (0, 0)


@pytest.mark.parametrize("text", [b"", b"hello\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"])
def test_what_is_no_http_is_an_error_of_the_network(text: bytes) -> None:
    with pytest.raises(OSError, match="no HTTP"):
        read_head(text)


def test_a_connection_that_was_closed_since_the_kernel_called_for_it_is_nothing_new() -> None:
    ours, theirs = Pipe()
    worker = Worker(theirs)
    worker._receive(Line("http://127.0.0.1:9/b/k"))
    ours.close()
    worker.run()


# --- pace


def run_windows(pace: Pace, rates: list[float], *, is_full: bool = True, since: float = 0.0) -> list[int]:
    """Let a window pass at each rate; return the limits."""
    limits, total, now = [], 0.0, since
    for rate in rates:
        now += WINDOW_SECONDS * 1.001
        total += rate * WINDOW_SECONDS
        pace.look(now, int(total), is_full=is_full)
        limits.append(pace.limit)
    return limits


def test_connections_grow_while_that_brings_more() -> None:
    assert run_windows(Pace(0), [8e6, 16e6, 32e6, 64e6, 64e6]) == [2 * FIRST, 4 * FIRST, MOST, MOST, MOST]


def test_connections_that_bring_nothing_are_given_up() -> None:
    assert run_windows(Pace(0), [8e6, 8.5e6, 8e6]) == [2 * FIRST, FIRST, FIRST]


def test_growth_is_tried_again_after_a_while() -> None:
    windows = int(HOLD_SECONDS / WINDOW_SECONDS) + 3
    assert run_windows(Pace(0), [8e6] * windows)[-1] == 2 * FIRST


def test_connections_that_are_not_all_used_do_not_grow() -> None:
    assert run_windows(Pace(0), [8e6] * 5, is_full=False) == [FIRST] * 5


def test_a_store_that_has_had_too_much_gets_half_of_it() -> None:
    pace = Pace(0)
    for _ in range(20):  # one burst
        pace.refuse(10.0)
    assert pace.limit == FIRST // 2
    for seconds in count(11):
        pace.refuse(seconds)
        if pace.limit == 1:
            break
    pace.refuse(100)
    assert pace.limit == 1


def test_no_second_has_more_requests_than_its_share() -> None:
    pace = Pace(0)
    asked = sum(pace.may_ask(at / 1000) for at in range(2000))
    assert asked == 2 * REQUESTS_PER_SECOND


@pytest.mark.parametrize(
    ("rates", "finished", "slow"),
    [
        pytest.param({1: 1e3}, [20e6, 18e6], [1], id="stuck-behind-what-has-finished"),
        pytest.param({1: 1e3, 2: 20e6, 3: 20e6}, [], [1], id="stuck-beside-others"),
        pytest.param({1: 0.0, 2: 20e6, 3: 20e6}, [], [1], id="silent"),
        pytest.param({1: 5e6, 2: 20e6, 3: 20e6}, [], [], id="only-a-bit-slower"),
        pytest.param({1: 1e3, 2: 1e3, 3: 1e3}, [], [], id="all-are-slow"),
        pytest.param({1: 1e3}, [], [], id="nothing-to-compare-with"),
    ],
)
def test_a_request_is_slow_by_what_others_do(rates: dict[int, float], finished: list[float], slow: list[int]) -> None:
    assert choose_slow(rates, dict.fromkeys(rates, 16 * 2**20), finished) == slow


def test_a_slow_request_that_is_nearly_done_is_left_alone() -> None:
    assert choose_slow({1: 1e6, 2: 20e6, 3: 20e6}, {1: 10_000, 2: 0, 3: 0}, []) == []


# --- contents


@pytest.mark.parametrize(
    ("paths", "allow", "said"),
    [
        pytest.param(["config.json", "tokenizer.json", "a.safetensors"], (), [], id="a-model"),
        pytest.param(["tokenizer.json"], (), ["config.json"], id="no-config"),
        pytest.param(["config.json"], (), ["tokenizer"], id="no-tokenizer"),
        pytest.param(["config.json", "x.tiktoken"], (), [], id="another-tokenizer"),
        pytest.param(["config.json", "tokenizer.json", "a/b.bin"], (), ["a/b.bin"], id="pickled"),
        pytest.param(["config.json", "tokenizer.json", "a/b.bin"], ("pickle",), [], id="pickled-and-allowed"),
        pytest.param(["config.json", "tokenizer.json", "m.py", "n.so"], ("pickle",), ["m.py, n.so"], id="code"),
        pytest.param(["config.json", "tokenizer.json", "m.py"], ("code",), [], id="code-and-allowed"),
        pytest.param([f"{n}.pt" for n in range(7)], (), ["config", "tokenizer", "and 2 more"], id="all-at-once"),
    ],
)
def test_what_is_not_served(paths: list[str], allow: tuple[str, ...], said: list[str]) -> None:
    problems = contents.refused_files(paths, allow)
    assert len(problems) == len(said)
    assert all(word in problem for word, problem in zip(said, problems, strict=True))


@pytest.mark.parametrize("name", ["PICKLED", "CODE", "TOKENIZERS", "TOKENIZER_ENDINGS"])
def test_a_machine_refuses_what_a_push_refuses(name: str) -> None:
    assert getattr(contents, name) == getattr(folder, name)
