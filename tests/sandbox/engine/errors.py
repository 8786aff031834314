"""What ends a command with a message instead of a traceback."""


class EngineError(Exception):
    """Shown as `error: …`; `exit_code` is what the real CLI ends with in the same case."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ResourceError(EngineError):
    """A step failed: the message belongs to one resource."""

    def __init__(self, urn: str, message: str) -> None:
        super().__init__(message)
        self.urn = urn
