"""A pytest plugin for `make test-real`: says aloud what was skipped, and lets CI skip only what it cannot have.

The official Pulumi CLI comes from its vendor, not from a package registry, so a machine without the way there goes on
without it. Everything else can be built anywhere; a skip of it in CI would be a hole that nobody sees.
"""

import os

import pytest

PARDONED = "the real Pulumi CLI"  # in the reason of the skip

_skipped: list[tuple[str, str]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note each skipped test with its reason."""
    if report.skipped and isinstance(report.longrepr, tuple):
        _skipped.append((report.nodeid, str(report.longrepr[2]).removeprefix("Skipped: ")))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note each module that skips itself as a whole."""
    if report.skipped and isinstance(report.longrepr, tuple):
        _skipped.append((report.nodeid, str(report.longrepr[2]).removeprefix("Skipped: ")))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail in CI where something was skipped that CI can have."""
    if _unpardoned() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what did not run."""
    terminalreporter.section("not run on this machine")
    for name, reason in _skipped:
        terminalreporter.line(f"SKIPPED {name}: {reason}")
    if not _skipped:
        terminalreporter.line("nothing: every heavy test ran")
    for name, _ in _unpardoned():
        terminalreporter.line(f"ERROR in CI this must not be skipped: {name}", red=True)


def _unpardoned() -> list[tuple[str, str]]:
    if os.environ.get("CI", "") in ("", "0", "false"):
        return []
    return [(name, reason) for name, reason in _skipped if PARDONED not in reason]
