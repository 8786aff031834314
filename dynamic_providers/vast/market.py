"""vast.ai as the lease's rules see it: list, relabel, and a destroy that does not believe a 200."""

from datetime import timedelta

from dynamic_providers.clock import Clock
from dynamic_providers.errors import AccountError, LeakError, VastError
from dynamic_providers.vast.client import VastClient
from dynamic_providers.vast.models import Instance

DESTROY_WITHIN = timedelta(minutes=5)
"""How long an unwilling market is asked again before a human is called."""
PAUSE_SECONDS = 1.0
"""Between looks at the list, which may be asked once a second; grows, since a destroy may be asked every 3 s."""


class VastMarket:
    """The `Market` of `lease/market.py` on vast.ai."""

    def __init__(self, client: VastClient, clock: Clock | None = None) -> None:
        self.client = client
        self._clock = clock or Clock()

    def list(self) -> list[Instance]:
        """Return every instance of the account."""
        return self.client.list_instances()

    def relabel(self, instance_id: int, label: str) -> None:
        """Replace an instance's label."""
        self.client.relabel(instance_id, label)

    def destroy(self, instance_id: int) -> None:
        """End an instance: ask until a complete list has lacked it twice.

        Raises:
            LeakError: It was still there after `DESTROY_WITHIN`, or nobody could be asked.
        """
        deadline = self._clock.monotonic() + DESTROY_WITHIN.total_seconds()
        absences, pause = 0, PAUSE_SECONDS
        problem: object = "the market says it is destroyed, and lists it all the same"
        while absences < 2:
            try:
                if absences == 0:
                    self.client.destroy_instance(instance_id)
                gone = all(instance.id != instance_id for instance in self.list())
                absences = absences + 1 if gone else 0
            except AccountError as error:
                raise LeakError(instance_id, error) from error
            except VastError as error:
                problem, absences = error, 0
            if absences < 2:
                if absences == 0 and self._clock.monotonic() > deadline:
                    raise LeakError(instance_id, problem)
                self._clock.sleep(pause)
                pause = PAUSE_SECONDS if absences else min(pause * 1.5, 10.0)
