"""Runs a Pulumi program in a Python of its own: what the real CLI's `pulumi-language-python-exec` does.

Started by `processes.start_program`; imports nothing of the stand-in, since it runs in the program's environment.
"""

import sys

# The folder of this file must not serve the program's imports.
sys.path.pop(0)

import argparse
import asyncio
import logging
import os
import runpy
import traceback
from concurrent.futures import ThreadPoolExecutor

import pulumi
import pulumi.runtime

_ERROR_SHOWN = 32  # tells the engine that the message is out already


def main() -> int:
    """Configure the SDK, run the program to its end, report what went wrong through the engine's log."""
    arguments = _parse()
    pulumi.runtime.set_all_config(pulumi.runtime.get_config_env(), pulumi.runtime.get_config_secret_keys_env())
    pulumi.runtime.configure(
        pulumi.runtime.Settings(
            monitor=arguments.monitor,
            engine=arguments.engine,
            project=arguments.project,
            stack=arguments.stack,
            parallel=int(arguments.parallel),
            dry_run=arguments.dry_run == "true",
            organization=arguments.organization,
            root_directory=arguments.root_directory,
        )
    )
    sys.argv = [arguments.program]
    os.chdir(arguments.pwd)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # unfinished futures of a failed program are no news
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    pool = ThreadPoolExecutor(max_workers=max(int(arguments.parallel), 1) * 4)
    loop.set_default_executor(pool)
    try:
        loop.run_until_complete(pulumi.runtime.run_in_stack(lambda: _run(arguments.program)))
    except pulumi.RunError as err:
        pulumi.log.error(str(err))
        return 1
    except Exception:  # noqa: BLE001 - whatever the program raises is the user's to read
        pulumi.log.error(f"Program failed with an unhandled exception:\n{_user_traceback()}")
        return _ERROR_SHOWN
    finally:
        pool.shutdown(wait=True)
        loop.close()
    return 0


def _run(program: str) -> None:
    runpy.run_path(program, run_name="__main__")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in (
        "monitor",
        "engine",
        "project",
        "root_directory",
        "stack",
        "pwd",
        "dry_run",
        "parallel",
        "organization",
    ):
        parser.add_argument(f"--{name}")
    parser.add_argument("program")
    return parser.parse_args()


def _user_traceback() -> str:
    """Return the traceback from the program's first own frame on."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    main_file = os.path.join(os.getcwd(), "__main__.py")
    first = next((at for at, frame in enumerate(frames) if os.path.abspath(frame.filename) == main_file), 0)
    return traceback.format_exc(limit=-(len(frames) - first))


if __name__ == "__main__":
    sys.exit(main())
