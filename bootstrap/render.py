"""The text of every file that is put on a machine. Pure: a machine's own paths are found out on the machine.

Layout, under `$GPU_WORKSPACE/gpu-on-demand` (default `/workspace/gpu-on-demand`), readable by its owner alone:

    container.env       the container's environment as `onstart` saw it, its own id and key included; NUL-separated
    bin/<name>-<sha256> programs: caddy, vmagent
    blobs/<sha256>      weights, under a name only once they are checked
    models/<digest>/    one release each: hard links to blobs
    caches/<hash>/      what the engine compiled, where start-up caches are kept
    bundle/             what `apply` puts there: host/ (programs of ours), the packages that they import,
                        supervisord.conf, and agent/, door/, engine/, push/, of which each file is what that program is
                        started from
    run/                working directory of everything: sockets, fetch.json and its progress, started/<program>
                        (SHA-256 of what it was started from), control/state.json (what is applied), lease.json (how
                        long it may last), provisioning.json (how it came up); `closed` shuts the door while things are
                        changed, `drain` until a moment; heartbeat is the agent's
    push-buffer/        metrics that nobody has taken yet
    log/                of each program, rotated
"""

import hashlib
import json
import shlex
from collections.abc import Mapping

from bootstrap.door import render_door, render_door_run
from bootstrap.push import render_push
from bootstrap.steps import Engine, Identity

ROOT = '"${GPU_WORKSPACE:-/workspace}/gpu-on-demand"'
"""The root as a shell on the machine writes it."""

DRAIN_SECONDS = 20
"""What a restart of the engine grants to running requests; `apply` closes the door first."""

FOR_EVER = {"autorestart": "true", "startretries": "1000000"}
PROGRAMS: Mapping[str, Mapping[str, str]] = {
    "fetch": {"command": "python3 ../bundle/host/fetch.py", "startsecs": "0"},
    # Who ends the rental comes first, and comes back at once, however often and however soon it ends.
    "agent": {**FOR_EVER, "startsecs": "0"},
    "door": {**FOR_EVER, "stopwaitsecs": "25"},
    # The agent starts it anew: it counts, and knows when there is sense in it.
    "engine": {"startretries": "0", "stopwaitsecs": "30"},
    "push": FOR_EVER,
}
"""What the supervisor runs. All but `fetch` comes back with the container if it ran before."""
KEPT = tuple(name for name in PROGRAMS if name != "fetch")

NOWHERE = "nowhere.invalid"
"""A domain that cannot exist (RFC 2606). vLLM takes an empty list of media domains for "all"."""


def render_supervisor_conf() -> str:
    """Return the supervisor's configuration.

    Its socket is named by way of `/proc/self/cwd`: it makes every path absolute, and a socket's may not exceed 107
    bytes, which a workspace may well do.
    """
    programs = "".join(_program(name, options) for name, options in PROGRAMS.items())
    return f"""\
[unix_http_server]
file = /proc/self/cwd/supervisor.sock
chmod = 0600

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisord]
logfile = ../log/supervisor.log
logfile_maxbytes = 1MB
logfile_backups = 1
pidfile = supervisor.pid
umask = 077
nocleanup = true
{programs}"""


def render_engine_run(engine: Engine) -> str:
    """Return the script that becomes vLLM: weights from the disk, nobody asked, nothing fetched.

    `--shutdown-timeout` because without it vLLM cuts running requests and may hang for ever; `VLLM_RPC_BASE_PATH`
    because its processes talk over unix sockets under TMPDIR, whose path may be too long (both tried with 0.32).
    """
    arguments = ["--uds", "engine.sock", "--served-model-name", engine.served_name]
    if engine.max_model_len is not None:
        arguments += ["--max-model-len", str(engine.max_model_len)]
    if engine.gpu_count > 1:
        arguments += ["--tensor-parallel-size", str(engine.gpu_count)]
    arguments += ["--allowed-media-domains", NOWHERE, "--shutdown-timeout", str(DRAIN_SECONDS), *engine.vllm_args]
    return f"""\
{_render_caches(engine)}export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_SERVER_DEV_MODE=0 VLLM_MEDIA_URL_ALLOW_REDIRECTS=0 VLLM_ALLOW_RUNTIME_LORA_UPDATING=0
rm -rf engine.sock engine.ipc
mkdir engine.ipc
export VLLM_RPC_BASE_PATH=engine.ipc
exec vllm serve "${{PWD%/run}}/{model_folder(engine)}" {shlex.join(arguments)}
"""


def _render_caches(engine: Engine) -> str:
    """Return what puts all compile caches into one folder; its path is part of what vLLM looks them up by.

    Source: vLLM 0.32 (`VLLM_CACHE_ROOT` holds torch's and Triton's since PR #39718), FlashInfer, the CUDA driver.
    """
    if not engine.startup_cache:
        return ""
    return f"""\
caches="${{PWD%/run}}/{cache_folder(engine)}"
export VLLM_CACHE_ROOT="$caches/vllm" FLASHINFER_WORKSPACE_BASE="$caches/flashinfer" CUDA_CACHE_PATH="$caches/cuda"
"""


def render_agent(engine: Engine, identity: Identity, code_sha256: str) -> Mapping[str, str]:
    """Return the files that the agent is started from.

    Args:
        engine: What is served.
        identity: Whose machine it is.
        code_sha256: Of the programs that lie beside it: other code is another agent.
    """
    facts = {**labels_of(engine, identity), "usd_per_hour": identity.usd_per_hour, "gpu_count": engine.gpu_count}
    run = "exec python3 ../bundle/host/agent.py\n"
    return {"run": run, "agent.json": json.dumps(facts, indent=1), "code.sha256": code_sha256}


def labels_of(engine: Engine, identity: Identity) -> dict[str, str]:
    """Return what tells this machine's metrics from those of others."""
    return {
        "stack": identity.stack,
        "model": engine.served_name,
        "instance_id": identity.instance_id,
        "machine_id": identity.machine_id,
        "uid": identity.uid,
    }


def render_programs(
    engine: Engine, identity: Identity, programs: Mapping[str, str], code_sha256: str
) -> Mapping[str, Mapping[str, bytes]]:
    """Return for each program the files, by name, that it is started from; in the order in which they start.

    Args:
        engine: What is served.
        identity: The machine's own secrets.
        programs: `caddy`, and `vmagent` where metrics are wanted, to their SHA-256.
        code_sha256: Of all that is the same on every machine.
    """
    door = {
        "run": render_door_run("../" + program_path("caddy", programs["caddy"])),
        "door.json": render_door(identity),
        "certificate.pem": identity.certificate,
        "key.pem": identity.private_key,
    }
    found: dict[str, Mapping[str, str]] = {
        "agent": render_agent(engine, identity, code_sha256),
        "door": door,
        "engine": {"run": render_engine_run(engine)},
    }
    if engine.monitoring and "vmagent" in programs:
        found["push"] = render_push(
            engine.monitoring,
            labels=labels_of(engine, identity),
            scrape_token=identity.scrape_token,
            ca_certificate=identity.ca_certificate,
            vmagent="../" + program_path("vmagent", programs["vmagent"]),
        )
    return {program: {name: text.encode() for name, text in files.items()} for program, files in found.items()}


def fingerprint(files: Mapping[str, bytes]) -> str:
    """Return what `program.sh` notes when it starts a program from these files."""
    return hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()


def model_folder(engine: Engine) -> str:
    """Return where a release lies, from the root."""
    return f"models/{engine.digest}"


def cache_folder(engine: Engine) -> str:
    """Return where the engine's compile caches lie, from the root."""
    return f"caches/{engine.compile_hash()}"


def blob_path(sha256: str) -> str:
    """Return where a blob lies, from the root."""
    return f"blobs/{sha256}"


def program_path(name: str, sha256: str) -> str:
    """Return where a program lies, from the root."""
    return f"bin/{name}-{sha256}"


def _program(name: str, options: Mapping[str, str]) -> str:
    shared = {
        "command": f"bash ../bundle/host/program.sh {name}",
        "autostart": f"%(ENV_AUTOSTART_{name.upper()})s" if name in KEPT else "false",
        "autorestart": "false",
        "killasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": f"../log/{name}.log",
        "stdout_logfile_maxbytes": "5MB",
        "stdout_logfile_backups": "2",
    }
    lines = "\n".join(f"{key} = {value}" for key, value in {**shared, **options}.items())
    return f"\n[program:{name}]\n{lines}\n"
