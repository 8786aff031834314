"""The agent: looks after the machine, and ends its rental when nobody else does.

Runs on the machine beside the engine and the door, under the supervisor, which starts it anew whenever it ends; started
by its path, with the bundle's packages beside it. Python 3.11.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # was host/, whose modules have common names


def main() -> None:
    """Look for ever. The server may fail; looking, and the switch with it, goes on."""
    from bootstrap.host.watching.files import say
    from bootstrap.host.watching.market import Market
    from bootstrap.host.watching.server import Server, start_server
    from bootstrap.host.watching.view import Page
    from bootstrap.host.watching.watch import Watch

    os.umask(0o077)
    os.set_blocking(1, False)  # a supervisor that hangs must not hold up the log's writer
    market = Market()
    watch = Watch(market)
    market.start()
    page = Page(watch, market)
    servers: list[Server] = []

    def serve() -> None:
        if not servers:
            try:
                servers.append(start_server(watch, page.render))
            except OSError as error:
                say(f"agent.sock: {error.strerror}")

    serve()
    watch.run(serve)


if __name__ == "__main__":
    main()
