"""How many client requests the front door has handed to the engine and not yet finished, by Caddy's own count.

Pure: the page comes from `door.sock`. Standard library only, Python 3.11.
"""

import re

HANDED = "log_append"
"""What Caddy calls the route that hands requests to the engine.

It labels a route of the top level by the name of its first handler, and counts none but those of the top level (tried
with 2.11.7: modules/caddyhttp/metrics.go and routes.go). `bootstrap/door.py` gives this handler to that route alone.
"""

SERIES = re.compile(r"^caddy_http_requests_in_flight\{([^}]*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


def handed_in_flight(page: str) -> int | None:
    """Return how many such requests run; None if the page cannot be Caddy's, or does not say.

    A door that has handed none yet has no such series, but counts the request for this page.
    """
    if "caddy_http_requests_in_flight" not in page:
        return None
    total = 0.0
    for labels, value in SERIES.findall(page):
        said = dict(LABEL.findall(labels))
        if (said.get("server"), said.get("handler")) == ("door", HANDED):
            try:
                total += float(value)
            except ValueError:
                return None
    return int(total) if 0 <= total < float("inf") else None
