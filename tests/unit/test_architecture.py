"""Dependencies point one way, and the core touches nothing of the world: read from the source, not from a drawing."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("infra", "dynamic_providers", "bootstrap")
# What the reaper takes along: it has httpx and nothing else.
REAPER = (
    "dynamic_providers.errors",
    "dynamic_providers.clock",
    "dynamic_providers.web",
    "dynamic_providers.lease.label",
    "dynamic_providers.lease.policy",
    "dynamic_providers.lease.keys",
    "dynamic_providers.lease.market",
    "dynamic_providers.vast.models",
    "dynamic_providers.vast.client",
    "dynamic_providers.vast.market",
)
CORE = (
    *(
        name
        for name in REAPER
        if name.rpartition(".")[2] not in {"clock", "client", "web"} and name[-11:] != "vast.market"
    ),
    "dynamic_providers.lease.certificates",
    "dynamic_providers.lease.metrics",
    "dynamic_providers.lease.monitoring",
    "dynamic_providers.lease.register",
    "dynamic_providers.vast.offers",
    "dynamic_providers.vast.request",
    "dynamic_providers.store.address",
    "dynamic_providers.store.manifest",
    "dynamic_providers.store.policy",
    "bootstrap.arguments",
    "bootstrap.steps",
    "bootstrap.render",
    "bootstrap.door",
    "bootstrap.push",
    "bootstrap.refusals",
    *(
        f"bootstrap.host.watching.{name}"
        for name in ("door", "drain", "engine", "lease", "memory", "mind", "moments", "reasons", "switch")
    ),
)
WORLD = {"httpx", "pulumi", "boto3", "botocore", "asyncssh", "asyncio", "socket", "subprocess", "os", "time", "ssl"}


@cache
def modules() -> dict[str, Path]:
    """Return every module of ours by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports_of(name: str) -> frozenset[str]:
    """Return what a module imports, in dotted names; ours as the module and not as the name in it."""
    found = set[str]()
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            module = node.module or ""
            found |= {f"{module}.{a.name}" if f"{module}.{a.name}" in modules() else module for a in node.names}
    return frozenset(found)


def needs_of(name: str) -> set[str]:
    """Return all that must be there for a module to be imported: ours, followed, and the tops of others'."""
    needs, todo = set[str](), [name]
    while todo:
        for other in imports_of(todo.pop()):
            mine = other in modules()
            if mine and other not in needs:
                todo.append(other)
            needs.add(other if mine else other.partition(".")[0])
    return needs


def importers_of(*prefixes: str) -> set[str]:
    return {
        name
        for name in modules()
        if any(one == prefix or one.startswith(f"{prefix}.") for one in imports_of(name) for prefix in prefixes)
    }


def test_the_modules_are_found() -> None:
    assert {*REAPER, *CORE, "infra.__main__", "dynamic_providers.vast.resource"} <= modules().keys()


@pytest.mark.parametrize(
    ("package", "never"),
    [
        pytest.param("dynamic_providers", ("infra", "tests"), id="providers-know-no-program"),
        pytest.param(
            "dynamic_providers.lease", ("infra", "bootstrap", "dynamic_providers.vast"), id="lease-knows-no-market"
        ),
        pytest.param("dynamic_providers.lease", ("dynamic_providers.store",), id="lease-knows-no-store"),
        pytest.param("dynamic_providers.store", ("dynamic_providers.vast", "bootstrap"), id="store-knows-no-machine"),
        pytest.param("bootstrap", ("infra", "tests"), id="bootstrap-knows-no-program"),
        pytest.param(
            "bootstrap", ("dynamic_providers.vast", "dynamic_providers.store"), id="bootstrap-knows-no-market"
        ),
        pytest.param("infra", ("tests",), id="nothing-knows-a-sandbox"),
    ],
)
def test_dependencies_point_one_way(package: str, never: tuple[str, ...]) -> None:
    importers = importers_of(*never)
    assert [name for name in importers if name == package or name.startswith(f"{package}.")] == []


def test_of_the_providers_only_the_lifecycle_and_its_hands_know_bootstrap() -> None:
    assert {n for n in importers_of("bootstrap") if n.startswith("dynamic_providers")} == {
        "dynamic_providers.vast.lifecycle",
        "dynamic_providers.vast.machine",
        "dynamic_providers.vast.supply",
    }


@pytest.mark.parametrize("package", ["dynamic_providers", "bootstrap"])
def test_only_resources_know_pulumi(package: str) -> None:
    importers = {name for name in importers_of("pulumi") if name.startswith(package)}
    assert {name.rpartition(".")[2] for name in importers} <= {"resource"}


def test_the_lifecycle_runs_without_pulumi() -> None:
    assert "pulumi" not in needs_of("dynamic_providers.vast.lifecycle")
    assert "pulumi" in needs_of("dynamic_providers.vast.resource")  # the question can be answered yes


@pytest.mark.parametrize(
    "path", [p for p in modules().values() if p.name == "__init__.py"], ids=lambda p: p.parent.name
)
def test_no_init_does_anything(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


@pytest.mark.parametrize("name", REAPER)
def test_what_the_reaper_takes_along_needs_httpx_alone(name: str) -> None:
    others = {need for need in needs_of(name) if need not in modules()}
    assert others - sys.stdlib_module_names <= {"httpx"}
    assert needs_of(name) & modules().keys() <= set(REAPER)


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_nothing_that_touches_the_world(name: str) -> None:
    assert imports_of(name) & WORLD == set()
    shells = {other for other in needs_of(name) & modules().keys() if other not in CORE}
    assert shells == set()


@pytest.mark.parametrize("name", sorted(name for name in modules() if name.startswith("infra.")))
def test_no_file_of_the_program_shadows_a_library(name: str) -> None:
    # Pulumi puts infra/ first on sys.path: a `secrets.py` there would replace the real one.
    own = name.split(".")[1]
    assert own == "__main__" or own not in sys.stdlib_module_names | {"kubernetes", "pulumi", "yaml", "httpx"}


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_is_short(name: str) -> None:
    lines = modules()[name].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 350
