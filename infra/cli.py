"""The `gpu` command: what an operator does beside `pulumi`."""

import argparse
import sys
from collections.abc import Sequence

from dynamic_providers.errors import StackError
from infra import models_cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu", description="What you do beside `pulumi up` and `pulumi destroy`.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    models_cli.add_commands(commands.add_parser("models", help="the models in the bucket"))
    return parser
