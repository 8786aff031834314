"""Where a command works: the project around the folder, its backend, the stack that is meant."""

import os
from functools import cached_property
from pathlib import Path

from tests.sandbox.engine.backend import ORGANIZATION, FileBackend, backend_url
from tests.sandbox.engine.errors import EngineError
from tests.sandbox.engine.project import Project, StackFile


class Workspace:
    """Looks things up when they are first needed: `version` needs none of them."""

    def __init__(self, folder: Path, stack: str, config_file: str) -> None:
        self.folder = folder
        self._stack = stack
        self._config_file = config_file

    @cached_property
    def project(self) -> Project:
        """The project of this folder."""
        return Project.find(self.folder)

    @cached_property
    def backend(self) -> FileBackend:
        """Where its state is kept."""
        return FileBackend(backend_url(self.project), self.project)

    def stack(self, word: str = "") -> str:
        """Return the stack that is meant: by word, flag, environment, or selection."""
        named = word or self._stack or os.environ.get("PULUMI_STACK") or self.backend.selected()
        if not named:
            raise EngineError(
                "no stack selected; please use `pulumi stack select` or `pulumi stack init` to choose one"
            )
        return self.short(named)

    def existing_stack(self, word: str = "") -> str:
        """Return the stack that is meant, which must be there."""
        stack = self.stack(word)
        self.backend.require(stack)
        return stack

    def short(self, named: str) -> str:
        """Return a stack's name without organization and project, which must be ours."""
        *above, stack = named.split("/")
        if above not in ([], [ORGANIZATION], [ORGANIZATION, self.project.name]):
            raise EngineError(f"{named!r} is not a stack of project {self.project.name!r}")
        return stack

    def stack_file(self, stack: str) -> StackFile:
        """Return the stack's file."""
        return self.project.stack_file(stack, self._config_file)
