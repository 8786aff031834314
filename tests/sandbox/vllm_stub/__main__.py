"""`vllm serve <folder> --uds PATH …` without a GPU: vLLM 0.32's words, routes and metrics around made-up text.

It turns down what the real one turns down (arguments, model folder) and counts as the real one counts; what it plays
is the speed: `STUB_START_SECONDS` (2) until it answers, then `STUB_TOKENS_PER_SECOND` (100) for each request.
"""

import asyncio
import os
import socket
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[3])  # was this folder; our modules are tests.sandbox.vllm_stub.*

from tests.sandbox.vllm_stub.arguments import parse  # noqa: E402  (needs the path above)
from tests.sandbox.vllm_stub.compiled import compile_model  # noqa: E402
from tests.sandbox.vllm_stub.model import ModelError, check_model  # noqa: E402


def main() -> int:
    """Serve until SIGTERM; exit 2 for wrong arguments and 1 for a model that cannot be served, as the real one."""
    ready_at = time.monotonic() + float(os.environ.get("STUB_START_SECONDS", "2"))
    arguments = parse(sys.argv[1:])
    print(f"INFO:     vLLM 0.32.0 (stub) model {arguments.model}", flush=True)
    # As the real one: bound before the model is looked at, listening only when ready, and never removed. A path
    # that is taken is an error, so whoever starts us must clear what a former run left there.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        try:
            bound.bind(arguments.uds)
            model = check_model(arguments)
        except (OSError, ModelError) as error:
            kind = "ValueError" if isinstance(error, ModelError) else "OSError"
            sys.stderr.write(f"(APIServer pid={os.getpid()}) {kind}: {error}\n")
            return 1
        compile_model(arguments)
        # Only now: aiohttp takes a while to import, and what is wrong should be told at once.
        from tests.sandbox.vllm_stub.server import serve

        asyncio.run(serve(arguments, model, bound, ready_at=ready_at))
    return 0


if __name__ == "__main__":
    sys.exit(main())
