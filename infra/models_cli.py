"""`gpu models`: what is in the bucket, and what its names stand for."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dynamic_providers.errors import StackError
from dynamic_providers.store import binaries, hub, tags, transfer
from dynamic_providers.store.client import Store
from dynamic_providers.store.folder import ModelFolder, read_folder
from dynamic_providers.store.manifest import NAME, NAME_RULE, TAG, TAG_RULE, Manifest, ModelRef, blob_key
from dynamic_providers.store.prune import YOUNG, Plan, plan_prune, prune
from dynamic_providers.store.verify import verify
from infra.buckets import open_bucket
from infra.progress import ReportOn, progress_shown, render_bytes

REF_HELP = "a model: name, name:tag or name@sha256:…"
KEEP = 3


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Declare what `gpu models` understands."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: object, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=run.__doc__)
        command.add_argument("-s", "--stack", help="whose bucket (default: the one that all stack files name)")
        command.set_defaults(run=run)
        return command

    push = add("push", _push, "put a model into the bucket")
    push.add_argument("origin", metavar="SOURCE", help=f"folder with config.json, tokenizer and weights; or {hub.FORM}")
    push.add_argument("--as", dest="name", metavar="NAME", help="its name in stack files (default: the source's own)")
    push.add_argument("--tag", dest="tags", metavar="TAG", action="append", default=[], help="set a tag on it as well")
    push.add_argument("--source", metavar="TEXT", help="where a folder came from, to be kept with it")
    push.add_argument("--allow-pickle", action="store_true", help="take weights that run code when they are loaded")
    push.add_argument("--allow-code", action="store_true", help="take code that comes with the model")
    listed = add("list", _list, "the models, or the releases of one")
    listed.add_argument("name", nargs="?", help="a model's name")
    add("show", _show, "what a release is").add_argument("ref", help=REF_HELP)
    check = add("verify", _verify, "read a release back, and compare every byte")
    check.add_argument("ref", help=REF_HELP)
    check.add_argument("--drop", action="store_true", help="remove what is damaged, so that a push puts it back")
    tag = add("tag", _tag, "let a tag stand for a release")
    tag.add_argument("ref", help=REF_HELP)
    tag.add_argument("tags", metavar="TAG", nargs="+", help="such as prod")
    tag.add_argument("--remove", action="store_true", help="take the tags off the model")
    clean = add("prune", _prune, "remove what nobody names")
    clean.add_argument("--keep", type=_at_least_one, default=KEEP, help=f"newest releases of each model ({KEEP})")
    clean.add_argument("--yes", action="store_true", help="do not ask")


def _push(arguments: argparse.Namespace) -> None:
    """Put a model into the bucket: only what is not there yet. Creates the bucket where it is missing."""
    name = choose_name(arguments.origin, arguments.name)
    for tag in arguments.tags:
        _check_tag(tag)
    allowed = [kind for kind in ("pickle", "code") if getattr(arguments, f"allow_{kind}")]
    is_hub = hub.is_hub(arguments.origin)
    if is_hub and arguments.source:
        raise StackError("--source: the hub's name is the source already; leave it out")
    # A wrong folder is told before anything is asked of the network.
    model = None if is_hub else read_folder(Path(arguments.origin), allowed)
    store = open_bucket(arguments.stack)
    if store.ensure_bucket():
        print(f"bucket {store.bucket} created at {store.endpoint}")
    with progress_shown() as report:
        for warning in binaries.push_binaries(store, report("programs")):
            _warn(warning)
        source = arguments.source
        if model is None:
            model, source = _download(arguments.origin, name, report, allowed)
        manifest = transfer.push_folder(store, model, name, report(name), source=source, tell=_warn)
    if arguments.tags:
        _set_tags(store, manifest.ref, arguments.tags)
    print(f"{manifest.name}: {len(manifest.files)} files, {render_bytes(manifest.bytes_total)}, in {store.bucket}")
    print(f"to serve exactly this release, in a stack file:  name: {manifest.ref}")


def _download(origin: str, name: str, report: ReportOn, allowed: Sequence[str]) -> tuple[ModelFolder, str]:
    found = hub.download(hub.HubRef.parse(origin), report(name), allowed)
    if found.left_out:
        print(f"{name}: left out {', '.join(found.left_out[:5])}{' …' if len(found.left_out) > 5 else ''}")
    return found.folder, str(found.ref)


def _list(arguments: argparse.Namespace) -> None:
    """List the models in the bucket; or the releases of one, the newest first."""
    store = open_bucket(arguments.stack)
    if arguments.name:
        _print_releases(store, ModelRef.parse(arguments.name).name)
        return
    rows = []
    for name, releases in store.all_releases().items():
        latest = store.resolve(ModelRef(name))
        known = tags.read_tags(store, name).digests
        rows.append([name, str(len(releases)), render_bytes(latest.bytes_total), ", ".join(sorted(known))])
    if not rows:
        print(f"bucket {store.bucket} holds no model yet; to put one there: gpu models push <folder>")
        return
    _print_table(["MODEL", "RELEASES", "LATEST HAS", "TAGS"], rows)


def _print_releases(store: Store, name: str) -> None:
    known = tags.read_tags(store, name)
    rows = []
    for release in store.releases(name):
        manifest = store.resolve(release.ref)
        pushed = f"{release.pushed_at:%Y-%m-%d %H:%M}"
        digest = str(release.ref.digest)
        rows.append([str(release.ref), pushed, render_bytes(manifest.bytes_total), ", ".join(known.of(digest))])
    _print_table(["RELEASE", "PUSHED (UTC)", "SIZE", "TAGS"], rows)


def _show(arguments: argparse.Namespace) -> None:
    """Say what a release is: where it came from, what its own files tell, and which files those are."""
    store = open_bucket(arguments.stack)
    manifest = store.resolve(ModelRef.parse(arguments.ref))
    for word, value in render_facts(manifest, tags.read_tags(store, manifest.name).of(manifest.digest)).items():
        print(f"{word:<14}  {value}")
    _print_table(["", "FILE", "SIZE", "SHA256"], [["", f.path, render_bytes(f.size), f.sha256] for f in manifest.files])


def _verify(arguments: argparse.Namespace) -> None:
    """Read a release back from the bucket and compare every byte with what was pushed."""
    store = open_bucket(arguments.stack)
    manifest = store.resolve(ModelRef.parse(arguments.ref))
    with progress_shown() as report:
        damages = verify(store, manifest, report(manifest.name))
    if not damages:
        print(f"{manifest.ref}: {len(manifest.files)} files, {render_bytes(manifest.bytes_total)}, all as pushed")
        return
    if arguments.drop:
        store.delete_objects([blob_key(damage.file.sha256) for damage in damages if damage.is_there])
    mend = f"gpu models push <source> --as {manifest.name}"
    if not arguments.drop and any(damage.is_there for damage in damages):
        mend = f"gpu models verify {arguments.ref} --drop, then: {mend}"
    lines = [f"  - {damage.file.path}: {damage.reason}" for damage in damages]
    raise StackError(
        "\n".join([f"{manifest.ref} is damaged in bucket {store.bucket!r}:", *lines, f"  mend it: {mend}"])
    )


def _tag(arguments: argparse.Namespace) -> None:
    """Let tags stand for a release; or, with --remove, for nothing any more."""
    for tag in arguments.tags:
        _check_tag(tag)
    store, ref = open_bucket(arguments.stack), ModelRef.parse(arguments.ref)
    if not arguments.remove:
        _set_tags(store, store.resolve(ref).ref, arguments.tags)
        return
    if tags.LATEST in arguments.tags:
        raise StackError(f"{tags.LATEST!r} stays: a push moves it, and so does gpu models tag <release> {tags.LATEST}")
    known = tags.read_tags(store, ref.name).digests
    for tag in arguments.tags:
        if tag not in known:
            raise StackError(tags.no_such_tag(ref.name, tag, known))
    _warn_unsafe(
        tags.change_tags(store, ref.name, lambda old: {t: d for t, d in old.items() if t not in arguments.tags})
    )
    print(f"{ref.name}: no tag {', '.join(arguments.tags)} any more; stacks that name it will not come up")


def _prune(arguments: argparse.Namespace) -> None:
    """Remove releases that are neither tagged nor among the newest, and blobs that no release of any model names."""
    store = open_bucket(arguments.stack)
    plan = plan_prune(store, arguments.keep)
    print("\n".join(render_plan(plan, store.bucket)))
    if plan.is_empty:
        return
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise StackError("nobody here to ask; nothing was removed. To remove it: --yes")
        answer = input("Remove it? A stack that names such a release by its digest will not come up again. [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return
    prune(store, plan)
    print(f"removed; {render_bytes(plan.freed_bytes)} are free, at once or when the bucket lets old versions go")


def choose_name(origin: str, given: str | None) -> str:
    """Return the model's name: as given, else that of the folder or the hub's repository, in small letters.

    Raises:
        StackError: What was given is no name.
    """
    if given is None:
        own = hub.HubRef.parse(origin).repo if hub.is_hub(origin) else Path(origin).resolve().name
        given = re.sub(r"[^a-z0-9.-]+", "-", own.rpartition("/")[2].lower()).strip("-.")
    if not NAME.fullmatch(given):
        raise StackError(f"--as: {given!r} is no model's name: {NAME_RULE}")
    return given


def render_facts(manifest: Manifest, known_tags: Sequence[str]) -> dict[str, str]:
    """Return what is known of a release: word → value; what is unknown is left out."""
    facts = manifest.facts
    found = {
        "release": str(manifest.ref),
        "tags": ", ".join(known_tags),
        "source": manifest.source,
        "license": facts.license,
        "format": facts.format,
        "parameters": facts.parameters and _render_count(facts.parameters),
        "dtype": facts.dtype,
        "quantization": facts.quantization,
        "context": facts.context_length and f"{facts.context_length} tokens",
        "GPU memory": facts.gpu_bytes and f"{facts.gpu_bytes / 2**30:.1f} GiB for weights, and cache on top",
        "holds": ", ".join(manifest.allow),
        "size": f"{render_bytes(manifest.bytes_total)} in {len(manifest.files)} files",
    }
    return {word: value for word, value in found.items() if value}


def render_plan(plan: Plan, bucket: str) -> list[str]:
    """Return what a prune would remove, for people."""
    lines = [f"release {ref}: neither tagged nor among the newest" for ref in plan.releases]
    if plan.blobs:
        lines.append(f"{len(plan.blobs)} blobs that no release names: {render_bytes(plan.freed_bytes)}")
    if plan.uploads:
        lines.append(f"{len(plan.uploads)} uploads that nobody went on with")
    if not lines:
        lines.append(f"bucket {bucket}: nothing to remove")
    if plan.spared_bytes:
        hours = YOUNG.total_seconds() / 3600
        lines.append(
            f"kept: {render_bytes(plan.spared_bytes)} younger than {hours:.0f} h, maybe of a push that still runs"
        )
    return lines


def _set_tags(store: Store, ref: ModelRef, wanted: Sequence[str]) -> None:
    digest = str(ref.digest)
    _warn_unsafe(tags.change_tags(store, ref.name, lambda old: old | dict.fromkeys(wanted, digest)))
    for tag in wanted:
        print(f"{ref.name}:{tag} is {ref}; a stack that names it serves it from its next `pulumi up` on")


def _check_tag(tag: str) -> None:
    if not TAG.fullmatch(tag):
        raise StackError(f"{tag!r} is no tag: {TAG_RULE}")


def _warn_unsafe(is_safe: bool) -> None:
    if not is_safe:
        _warn(tags.UNSAFE)


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _render_count(count: int) -> str:
    for unit, size in (("billion", 1e9), ("million", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of releases; write 1 or more")
    return int(text)
