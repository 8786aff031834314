"""The engines that a heavy test runs by: whether it is the stand-in."""

import pytest

from tests.sandbox.world import real_pulumi

ENGINES = [
    pytest.param(True, id="stand-in"),
    pytest.param(
        False,
        id="real-cli",
        marks=pytest.mark.skipif(real_pulumi() is None, reason="needs the real Pulumi CLI, which is not here"),
    ),
]
