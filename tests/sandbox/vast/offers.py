"""The offers on the market: which there are, who takes one, and how prices move."""

import random
from typing import Any

from tests.sandbox.vast.catalogue import GPU_KINDS
from tests.sandbox.vast.machines import Machine, make_machine, make_machines, offer_row

FIRST_MACHINE = 31_007
NEWCOMERS = 12


class OfferBoard:
    """Every machine of the market and the offers on its free GPUs; an offer's id is good for one rent."""

    def __init__(self, seed: int, now: float) -> None:
        self._rng = random.Random(seed)
        self._ids: dict[tuple[int, int], int] = {}
        self._next_offer = 20_100_000
        self._next_machine = FIRST_MACHINE
        self.machines: dict[int, Machine] = {}
        self._add(make_machines(self._rng, FIRST_MACHINE, now))

    def rows(self, storage_gb: float, now: float) -> list[dict[str, Any]]:
        """Render every offer there is."""
        return [
            offer_row(self.machines[machine_id], offer_id, size, storage_gb, now)
            for (machine_id, size), offer_id in self._ids.items()
        ]

    def find(self, offer_id: int) -> tuple[Machine, int] | None:
        """Find the machine behind an offer and how many of its GPUs are on offer; None if the offer is gone."""
        for (machine_id, size), known in self._ids.items():
            if known == offer_id:
                return self.machines[machine_id], size
        return None

    def take(self, machine: Machine, size: int) -> None:
        """Let so many GPUs: the offer is used up, and the others on the machine follow what is left."""
        machine.rented += size
        self._ids.pop((machine.machine_id, size), None)
        self._follow(machine)

    def give_back(self, machine: Machine, size: int) -> None:
        """Offer GPUs again, under a new id."""
        machine.rented -= size
        self._follow(machine)

    def reshuffle(self, now: float) -> None:
        """Let a day go by on the market: new prices, and some machines come and go."""
        for machine in self.machines.values():
            machine.usd = machine.usual_usd * self._rng.uniform(0.88, 1.12)
            machine.is_listed = machine.is_good or self._rng.random() > 0.1
            self._follow(machine)
        self._add(
            [
                make_machine(self._rng, self._rng.choice(GPU_KINDS), self._next_machine + 37 * n, now, is_good=False)
                for n in range(NEWCOMERS)
            ]
        )

    def _add(self, machines: list[Machine]) -> None:
        for machine in machines:
            self.machines[machine.machine_id] = machine
            self._next_machine = machine.machine_id + 37
            self._follow(machine)

    def _follow(self, machine: Machine) -> None:
        """Make the offers on a machine what its free GPUs allow; an offer that stays keeps its id."""
        slices = set(machine.slices)
        for size in {size for owner, size in self._ids if owner == machine.machine_id} - slices:
            del self._ids[machine.machine_id, size]
        for size in sorted(slices):
            if (machine.machine_id, size) not in self._ids:
                self._next_offer += self._rng.randint(1, 40)
                self._ids[machine.machine_id, size] = self._next_offer
