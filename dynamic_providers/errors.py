"""Every error that the project raises, named by what the reader should do next.

StackError
├── ConfigError            fix the stack file; every problem at once; never retried
├── NoOfferError           nothing on the market fits; counts what each requirement turned away
├── StoreError             the bucket or the model in it: fix settings, keys, or push the model
├── VastError
│   ├── RefusedError           the market said no (status, code); not retried
│   │   ├── AccountError           key or credit: fix the account; no other offer would help
│   │   ├── NotFoundError          no such instance
│   │   └── OfferTakenError        another tenant was faster: take the next offer
│   └── UnavailableError       timeout, 429, 5xx: reads are retried with a pause, a create never is
├── HostError              this host does not keep its word: give it back, avoid it, take the next
│   ├── MismatchError          rented is not what was asked
│   └── BootError              a phase missed its deadline or failed for the host's reasons
├── BootstrapError         what we asked for does not run: step, last lines of its output
├── StoppedError           told to stop, or the engine is gone: what was rented has been given back
└── LeakError              still billing and we could not end it: a human must; holds the command
"""

from collections.abc import Mapping, Sequence


class StackError(Exception):
    """Anything that the operator should read as one message, without a traceback."""


class ConfigError(StackError):
    """The stack file asks for something that cannot be.

    Args:
        problems: One line a problem: key, value as given, and what would be right.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"{count} in the stack's settings:", *(f"  - {line}" for line in problems)]))


class NoOfferError(StackError):
    """No offer on the market fits the need.

    Args:
        message: The whole explanation, ready to print.
        turned_away: For each requirement, how many offers it turned away.
    """

    def __init__(self, message: str, turned_away: Mapping[str, int] | None = None) -> None:
        self.turned_away = dict(turned_away or {})
        super().__init__(message)


class StoreError(StackError):
    """The bucket cannot be used, or does not hold what was asked of it."""


class VastError(StackError):
    """The market did not do what was asked."""


class RefusedError(VastError):
    """The market said no, for good.

    Args:
        message: What it said, and what to change.
        status: HTTP status.
        code: The market's own word, such as `invalid_args`; empty if it gave none.
        new_contract: Id of an instance that exists *although* the call failed, and must be destroyed.
            Source: dstack, `VastAICreateInstanceError.created_instance_id` (dstackai/dstack @511c318).
    """

    def __init__(self, message: str, *, status: int = 0, code: str = "", new_contract: int | None = None) -> None:
        self.status = status
        self.code = code
        self.new_contract = new_contract
        super().__init__(message)


class AccountError(RefusedError):
    """Key or credit: every other offer would be refused as well."""


class NotFoundError(RefusedError):
    """There is no such instance (any more)."""


class OfferTakenError(RefusedError):
    """Another tenant was faster."""


class UnavailableError(VastError):
    """No answer that says anything: time-out, 429, 5xx. The outcome of a write is unknown."""


class HostError(StackError):
    """This host does not do what its offer promised; another may."""


class MismatchError(HostError):
    """What was rented is not what was asked."""


class BootError(HostError):
    """The machine missed the deadline of a phase, or failed in it for reasons of its own.

    Args:
        phase: `scheduled`, `image`, `ssh`, `weights`, `engine` or `first token`.
        message: What was seen last.
    """

    def __init__(self, phase: str, message: str) -> None:
        self.phase = phase
        super().__init__(f"{phase}: {message}")


class BootstrapError(StackError):
    """What we put on the machine does not run there; another machine would not help.

    Args:
        step: The step that failed.
        message: What to change.
        output: The last lines of what it printed, secrets redacted.
    """

    def __init__(self, step: str, message: str, *, output: str = "") -> None:
        self.step = step
        self.output = output.strip()
        text = f"{step}: {message}"
        if self.output:
            text += "\n" + "\n".join(f"  | {line}" for line in self.output.splitlines())
        super().__init__(text)


class StoppedError(StackError):
    """This run is not wanted any more.

    Args:
        reason: Who says so.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"stopped: {reason}")


class LeakError(StackError):
    """An instance is still billed and we could not end it.

    Args:
        instance_id: The market's id.
        reason: Why it could not be ended.
    """

    def __init__(self, instance_id: int, reason: object) -> None:
        self.instance_id = instance_id
        super().__init__(
            f"INSTANCE {instance_id} MAY STILL BE BILLED and could not be ended: {reason}\n"
            f"  end it yourself:  vastai destroy instance {instance_id}\n"
            f"  or in the browser: https://cloud.vast.ai/instances/"
        )
