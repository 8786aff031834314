"""What is slow to import is imported where it is used: every `pulumi` command starts two of our processes anew."""

import subprocess
import sys

SLOW = ("asyncssh", "cryptography", "boto3", "botocore", "click", "rich", "huggingface_hub")
LOOK = """
import sys
import infra.gpu_stack, infra.settings, dynamic_providers.vast.resource
print(*[name for name in {slow} if name in sys.modules])
import bootstrap.ssh
print("asyncssh" in sys.modules)
"""


def test_a_preview_loads_neither_ssh_nor_certificates_nor_storage_nor_what_draws() -> None:
    said = subprocess.run([sys.executable, "-c", LOOK.format(slow=SLOW)], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == ["", "True"]  # the question can be answered yes
