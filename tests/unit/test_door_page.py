"""What the agent reads from the front door's own page."""

import pytest

from bootstrap.host.watching.door import HANDED, handed_in_flight

PAGE = """\
# HELP caddy_http_requests_in_flight Number of requests currently handled by this server.
# TYPE caddy_http_requests_in_flight gauge
caddy_http_requests_in_flight{handler="log_append",server="door"} 3
caddy_http_requests_in_flight{handler="metrics",server="page"} 1
caddy_http_requests_in_flight{handler="reverse_proxy",server="door"} 5
caddy_http_requests_in_flight{handler="vars",server="door"} 8
"""
ONE = f'caddy_http_requests_in_flight{{handler="{HANDED}",server="door"}}'
OTHER = f'caddy_http_requests_in_flight{{handler="{HANDED}",host="a",server="door"}}'


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        pytest.param(PAGE, 3, id="the-one-route-of-the-one-server"),
        pytest.param(PAGE.replace('"log_append",server="door"', '"log_append",server="page"'), 0, id="other-server"),
        pytest.param('caddy_http_requests_in_flight{handler="metrics",server="page"} 1\n', 0, id="none-handed-yet"),
        pytest.param(f"{ONE} 2\n{OTHER} 4\n", 6, id="summed-over-other-labels"),
        pytest.param(f"{ONE} 1e+01\n", 10, id="as-go-writes-it"),
        pytest.param("", None, id="nothing"),
        pytest.param("<html>502</html>", None, id="another-page"),
        pytest.param(f"{ONE} NaN\n", None, id="no-number"),
        pytest.param(f"{ONE} -1\n", None, id="less-than-nothing"),
        pytest.param(f"{ONE} +Inf\n", None, id="endless"),
        pytest.param(f"{ONE} three\n", None, id="word"),
    ],
)
def test_requests_handed_to_the_engine(page: str, expected: int | None) -> None:
    assert handed_in_flight(page) == expected
