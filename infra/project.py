"""Finding the project and its stack files, where Pulumi would find them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamic_providers.errors import ConfigError, StackError
from infra.settings import read_stack_file

FILES = ("Pulumi.yaml", "Pulumi.yml")


@dataclass(frozen=True)
class Project:
    """A folder with a Pulumi.yaml.

    Attributes:
        root: The folder.
        name: The project's name, which stands before every key of a stack file.
        stack_folder: Where its stack files are.
    """

    root: Path
    name: str
    stack_folder: Path

    def stacks(self) -> dict[str, Path]:
        """Return the stack files: name of the stack → file."""
        found = sorted(self.stack_folder.glob("Pulumi.*.yaml"))
        return {path.name.removeprefix("Pulumi.").removesuffix(".yaml"): path for path in found}

    def read_stack(self, stack: str) -> dict[str, Any]:
        """Return the settings of one stack, unchecked.

        Raises:
            StackError: There is no such file, or it is no YAML.
        """
        # `organization/project/stack` names the same file; what is left of a `/` becomes `-` in its name.
        name = stack.removeprefix(f"organization/{self.name}/").replace("/", "-")
        stacks = self.stacks()
        if name not in stacks:
            there = ", ".join(stacks) or "none"
            raise StackError(f"no file Pulumi.{name}.yaml in {self.stack_folder}; stacks there: {there}")
        return read_stack_file(stacks[name], self.name)


def find_project() -> Project:
    """Return the project around the current folder, or around the one that `PULUMI_OPTION_CWD` names.

    Raises:
        StackError: There is none, or it cannot be read.
    """
    import yaml

    start = Path(os.environ.get("PULUMI_OPTION_CWD") or ".").resolve()
    for folder in (start, *start.parents):
        for path in (folder / name for name in FILES):
            if not path.is_file():
                continue
            try:
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise ConfigError([f"{path}: {' '.join(str(error).split())}"]) from error
            if not isinstance(content, dict) or not isinstance(content.get("name"), str):
                raise ConfigError([f"{path}: no `name` in it"])
            return Project(folder, content["name"], folder / str(content.get("stackConfigDir") or ""))
    raise StackError(f"no Pulumi.yaml in {start} or above; go to the project's folder")
