"""What can befall an instance, in the words of who meets it: status messages and the state of its SSH server."""

from collections.abc import Mapping

from tests.sandbox.vast.faults import Fault
from tests.sandbox.vast.hosts import SshTrouble

Troubles = Mapping[str, Fault]

NEVER_RUNS = frozenset({"boot_hangs", "image_pull_error", "oci_error"})


def ssh_trouble(troubles: Troubles) -> SshTrouble:
    """Say what is wrong with the SSH server of an instance that starts."""
    dropped, changed = troubles.get("ssh_dropped"), troubles.get("ssh_other_host_key")
    return SshTrouble(
        is_refused="ssh_refused" in troubles or "ssh_late" in troubles,
        drops_after=None if dropped is None else dropped.after,
        other_key_after=None if changed is None else changed.after,
    )


def docker_message(troubles: Troubles, image: str) -> str | None:
    """Return what docker on the host said, None if it has nothing to complain of.

    The texts are docker's own; there is no list of what the market passes on. Source of what others look for in them:
    vast-ai/base-image tools/template_manager/test_template.py @a7552d1; dstack's vastai backend @511c318.
    """
    if "image_pull_error" in troubles:
        return f"Error response from daemon: manifest for {image} not found: manifest unknown: manifest unknown"
    if "oci_error" in troubles:
        return (
            "Error response from daemon: failed to create task for container: failed to create shim task"
            ": OCI runtime create failed: runc create failed: unable to start container process: unknown"
        )
    return None
