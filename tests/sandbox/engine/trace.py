"""`PULUMI_DEBUG_GRPC=<file>`: every call to a provider as a JSON line, secrets included, as the real CLI writes it."""

import json
import os
import threading
from typing import Any

_lock = threading.Lock()


def trace(method: str, progress: str, request: Any, response: Any = None, error: str = "") -> None:
    """Append one event; *progress* is `request_started` or `response_completed`."""
    path = os.environ.get("PULUMI_DEBUG_GRPC")
    if not path:
        return
    from google.protobuf.json_format import MessageToDict

    line: dict[str, Any] = {"method": f"/pulumirpc.ResourceProvider/{method}", "progress": progress}
    line["request"] = MessageToDict(request)
    if response is not None:
        line["response"] = MessageToDict(response)
    if error:
        line["errors"] = [error]
    with _lock, open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
