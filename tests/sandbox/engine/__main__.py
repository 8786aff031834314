"""`python tests/sandbox/engine …`: the stand-in's command line."""

import sys
from pathlib import Path

# The folder of this file came first on the path; its module names must shadow nothing, so the root takes its place.
sys.path[0] = str(Path(__file__).resolve().parents[3])

from tests.sandbox.engine.cli import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
