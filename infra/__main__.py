"""What `pulumi` runs: reads the stack file and declares what its kind stands for."""

import signal

import pulumi

from dynamic_providers.errors import StackError
from infra.gpu_stack import gpu_stack
from infra.platform_settings import PlatformSettings
from infra.platform_stack import platform_stack
from infra.settings import load_settings

# When a resource fails, the engine may end the program by SIGINT while it waits: that is no news, and no traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    settings = load_settings()
    if isinstance(settings, PlatformSettings):
        platform_stack(settings)
    else:
        gpu_stack(settings, pulumi.Config().get)
except StackError as error:
    raise pulumi.RunError(str(error)) from error
