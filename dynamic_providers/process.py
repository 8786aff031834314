"""The process that Pulumi's SDK runs our providers in: what it lacks, and how we make up for it (ADRs 0003 and 0006).

Nothing here imports Pulumi. The SDK is pinned, and `tests/unit/test_provider_grpc.py` drives it as the engine does.
"""

import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import ParamSpec, TypeVar

from dynamic_providers.errors import StackError
from dynamic_providers.stopping import Stop, exit_with_engine

P = ParamSpec("P")
R = TypeVar("R")

STOP = Stop()
"""Whether this process is still wanted. `join` gives it the engine to look at."""

_joined = threading.Lock()


def say(line: str) -> None:
    """Print a line for the operator, at once. A log that cannot be written stops nothing."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def answered(method: Callable[P, R]) -> Callable[P, R]:
    """Return *method* so that the engine gets an answer whatever it raises.

    The SDK answers for an `Exception` alone. Anything else ends its thread, and the engine waits for ever.
    """

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with STOP.operation():
            try:
                return method(*args, **kwargs)
            except Exception:
                raise
            except BaseException as error:
                raise RuntimeError(f"{method.__name__} was broken off: {error!r}") from error

    return call


def join() -> None:
    """Make the SDK's process ours, once: plain errors, an ear for `Cancel`, and an end when the engine ends.

    Does nothing in any other process, such as the program's own or a test's.
    """
    main = sys.modules["__main__"]
    servicer = getattr(main, "DynamicResourceProviderServicer", None)
    if servicer is None or not _joined.acquire(blocking=False):
        return
    # The SDK sends `traceback.format_exc()` of whatever a provider raises (pulumi/pulumi PR #24465), and offers no
    # other way: its main module, and nobody else, sees our `traceback`.
    setattr(main, "traceback", _Plain)  # noqa: B010 - the type checker knows no such attribute of a module
    # Its `Cancel` does nothing, and was bound when the server started: only the code behind it can still be changed.
    servicer.Cancel.__code__ = _cancel.__code__
    STOP.watch(sys.argv[1] if len(sys.argv) > 1 else None)
    threading.Thread(target=exit_with_engine, args=[STOP], name="engine-watch", daemon=True).start()


class _Plain:
    """Stands in for the module `traceback`: the message alone for errors that are meant for the operator."""

    @staticmethod
    def format_exc() -> str:
        error = sys.exc_info()[1]
        return str(error) if isinstance(error, StackError) else traceback.format_exc()


def _cancel(self, request, context):  # type: ignore[no-untyped-def]
    # Runs with the names of the SDK's main module, which knows nothing of ours: everything is imported here.
    from google.protobuf import empty_pb2

    from dynamic_providers.process import STOP

    STOP.request("Pulumi was told to stop")
    return empty_pb2.Empty()
