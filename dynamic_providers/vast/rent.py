"""From a request to an instance that is what was asked: survey, rent, verify; or adopt the one that is there."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from dynamic_providers.clock import Clock
from dynamic_providers.errors import (
    AccountError,
    BootError,
    LeakError,
    MismatchError,
    NoOfferError,
    OfferTakenError,
    RefusedError,
    StackError,
    StoppedError,
    UnavailableError,
    VastError,
)
from dynamic_providers.lease.label import Label, Phase, render_run
from dynamic_providers.lease.policy import choose_keeper
from dynamic_providers.stopping import Stop
from dynamic_providers.vast.client import VastClient
from dynamic_providers.vast.market import VastMarket
from dynamic_providers.vast.models import DOOR, GPUS, VRAM_TOLERANCE, Instance
from dynamic_providers.vast.offers import Quote, Survey, render_survey, require_offer, survey_offers
from dynamic_providers.vast.request import MachineRequest

APPEARS_WITHIN = timedelta(seconds=60)
"""A create may be read back only seconds later; so long we look before we say that nothing was rented.
Source: SkyPilot @04698d7 sky/provision/vast/utils.py; field reports of up to half a minute."""

LOOK_SECONDS = 2.0
"""Between looks at one instance: what the market allows."""


_KINDS = {"gpu": "GPU", "disk": "disk", "bwd": "bytes in", "bwu": "bytes out"}
"""What a receipt calls the market's kinds of charge."""


@dataclass(frozen=True)
class Rental:
    """An instance that this run is in charge of.

    Attributes:
        machine_id: The physical host, to avoid should it let us down.
        label: What stands, or is to stand, on the instance.
        has_served: It was ready once, for an earlier run.
    """

    instance_id: int
    machine_id: int
    label: Label
    has_served: bool = False


@dataclass(frozen=True)
class World:
    """What the lifecycle touches the outside by.

    Attributes:
        say: Prints one line for the operator, at once.
        clock: What waits go by.
        stop: Whether this run is still wanted.
        show: Shows a line in the place of the one before; None where lines only follow each other.
    """

    client: VastClient
    say: Callable[[str], None]
    clock: Clock = field(default_factory=Clock)
    stop: Stop = field(default_factory=Stop)
    show: Callable[[str], None] | None = None

    @property
    def market(self) -> VastMarket:
        """The same market, by the lease's rules."""
        return VastMarket(self.client, self.clock)


def survey_market(world: World, request: MachineRequest, avoid: Collection[int] = ()) -> Survey:
    """Return the market as *request* sees it; renting nothing.

    Raises:
        AccountError: The key is refused, or the account's credit ends before the first hour does: the market would
            stop the machine, and keep charging for its disk.
    """
    credit = world.client.credit_usd()
    names = [GPUS[name].vast for name in request.need.gpus]
    offers = world.client.search_offers(names, disk_gb=request.disk_gb)
    survey = survey_offers(offers, request.plan, avoid)
    first_hour = survey.quotes[0].usd_first_hour if survey.quotes else 0.0
    if credit <= first_hour:
        takes = f"; the first hour of the best offer takes {first_hour:.2f} USD" if survey.quotes else ""
        raise AccountError(
            f"the vast.ai account has {max(credit, 0):.2f} USD of credit{takes}\n"
            "  add credit under Billing at https://cloud.vast.ai/billing/, then run this again"
        )
    return survey


def adopt(world: World, request: MachineRequest) -> Rental | None:
    """Take charge of the instance that an earlier run rented for this lease; None if there is none worth keeping.

    Second machines of the lease, and one that is not what is asked, are given back.
    """
    twins = [instance for instance in world.market.list() if instance.belongs_to(request.fleet.id, request.uid)]
    keeper, others = choose_keeper(twins)
    if keeper is None or keeper.parsed is None:
        return None
    if others:
        give_back_twins(world, request, keep=keeper.id)
    faults = mismatches(keeper, request) + ["stopped"] * (keeper.intended != "running" or keeper.is_stopped)
    expires_at = _expiry(keeper, keeper.parsed, request)
    faults += ["its lease is over"] * (min(expires_at, keeper.parsed.expires_at) <= world.client.now())
    if faults:
        world.say(f"instance {keeper.id} of this lease is not what is asked ({'; '.join(faults)}): giving it back")
        give_back(world, keeper)
        return None
    world.say(f"adopting instance {keeper.id}, which an earlier run rented at {keeper.started_at:%F %T} UTC")
    label = replace(new_label(world, request), expires_at=expires_at)
    rental = Rental(keeper.id, keeper.machine_id, label, has_served=keeper.parsed.phase is Phase.READY)
    with given_back_on_error(world, rental):
        world.market.relabel(keeper.id, label.render())
    return rental


def _expiry(keeper: Instance, label: Label, request: MachineRequest) -> datetime:
    """Return the lease's end: as its label says, unless the stack file has come to ask for another length since.

    To a minute: the market dates the rent by its own clock, and another end would be another certificate.
    """
    asked = keeper.started_at + timedelta(hours=request.terms.max_hours)
    return label.expires_at if abs(asked - label.expires_at) < timedelta(minutes=1) else asked.replace(microsecond=0)


def give_back_twins(world: World, request: MachineRequest, keep: int) -> None:
    """Give back every other machine of this lease, such as one whose rent we had given up for lost.

    One that cannot be ended is told, and stops nothing: the machine that is kept is as it should be.
    """
    for twin in world.market.list():
        if twin.id != keep and twin.belongs_to(request.fleet.id, request.uid):
            world.say(f"instance {twin.id} is a second machine of this lease: giving it back")
            try:
                give_back(world, twin)
            except LeakError as error:
                world.say(str(error))


def rent(world: World, request: MachineRequest, onstart: str, avoid: Collection[int] = ()) -> Rental:
    """Rent the best offer that can still be had.

    Args:
        world: The market.
        request: What for.
        onstart: The script that the container runs; no secret in it.
        avoid: `machine_id`s that have let us down.

    Raises:
        NoOfferError: Nothing fits, or all that fits was taken while we looked.
    """
    survey = survey_market(world, request, avoid)
    require_offer(survey)
    for line in render_survey(survey):
        world.say(line)
    for quote in survey.quotes:
        world.stop.check()
        label = new_label(world, request)
        instance_id = _rent_offer(world, request, quote, label, onstart)
        if instance_id is not None:
            return Rental(instance_id, quote.offer.machine_id, label)
    raise NoOfferError(
        "every offer that fits was taken while we looked: run this again, or loosen need in the stack file"
    )


def new_label(world: World, request: MachineRequest) -> Label:
    """Return the label of a machine rented now, by the market's clock."""
    now, terms = world.client.now().replace(microsecond=0), request.terms  # a label has whole seconds
    return Label(
        expires_at=now + timedelta(hours=terms.max_hours),
        phase=Phase.BOOTING,
        deadline=now + timedelta(minutes=terms.boot_minutes),
        idle_minutes=terms.idle_minutes,
        fleet_id=request.fleet.id,
        uid=request.uid,
        run=render_run(now),
        stack=request.stack,
    )


def mismatches(instance: Instance, request: MachineRequest) -> list[str]:
    """Say in what the rented instance is not what was asked; empty means it is."""
    need = request.need
    is_met = {
        f"GPU {instance.gpu}": instance.gpu in need.gpus,
        f"{instance.gpu_count} GPUs": instance.gpu_count == need.gpu_count,
        f"{instance.vram_gib:.1f} GiB of GPU memory": instance.vram_gib >= need.min_vram_gib * VRAM_TOLERANCE,
        f"{instance.disk_gb:.0f} GB of disk": instance.disk_gb >= request.disk_gb,
        f"{instance.usd_per_hour:.4f} USD/h": instance.usd_per_hour <= need.max_usd_per_hour,
        f"country {instance.country or '?'}": not need.countries or instance.country in need.countries,
    }
    return [fault for fault, ok in is_met.items() if not ok]


@contextmanager
def given_back_on_error(world: World, rental: Rental) -> Iterator[None]:
    """Destroy and verify if the block fails: Pulumi keeps no record of a create that raises.

    Not if a later run has taken charge of the machine since: its label names that run.

    Raises:
        LeakError: The block failed and the machine could not be ended.
    """
    try:
        yield
    except BaseException as error:  # Ctrl-C too: the meter runs either way
        with world.stop.shielded():
            if _is_taken_over(world, rental):
                world.say(f"instance {rental.instance_id}: a later run has taken charge of it: leaving it alone")
                raise
            if isinstance(error, StackError):
                world.say(f"instance {rental.instance_id}: {str(error).splitlines()[0]}: giving it back")
            give_back(world, rental.instance_id)
        raise


def _is_taken_over(world: World, rental: Rental) -> bool:
    try:
        instance = world.client.show_instance(rental.instance_id)
    except VastError:  # then nobody knows; the meter decides
        return False
    label = instance.parsed if instance else None
    return label is not None and label.is_of_later_run_than(rental.label)


def give_back(world: World, instance: Instance | int) -> None:
    """Destroy an instance, verify that it is gone, and print what it cost.

    Raises:
        LeakError: It may still be billed.
    """
    instance_id = instance if isinstance(instance, int) else instance.id
    with world.stop.shielded():
        world.market.destroy(instance_id)
        for line in receipt(world, instance):
            world.say(line)


def receipt(world: World, instance: Instance | int) -> list[str]:
    """Return what the market charged for an instance that is gone, by its own books."""
    instance_id = instance if isinstance(instance, int) else instance.id
    stopped = f"instance {instance_id} is destroyed, billing stopped"
    now = world.client.now()
    since = now if isinstance(instance, int) else instance.started_at
    try:
        charge = world.client.charge_of(instance_id, since=since, until=now)
    except VastError as error:
        return [f"{stopped}; what it cost could not be read ({error})"]
    if charge is None:
        return [f"{stopped}; the market's books do not show its cost yet (vastai show invoices-v1 --charges)"]
    parts = ", ".join(f"{_KINDS.get(kind, kind)} {usd:.6f}" for kind, usd in charge.usd_by_kind.items())
    return [f"{stopped}: {charge.usd:.6f} USD ({parts})"]


def _rent_offer(world: World, request: MachineRequest, quote: Quote, label: Label, onstart: str) -> int | None:
    """Return the new instance's id; None if this offer is not to be had.

    Any outcome but a clean success is unknown: then the label says whether something was rented.
    """
    body = {
        "client_id": "me",
        "image": request.image,
        "disk": request.disk_gb,
        "label": label.render(),
        "runtype": "ssh_direct",
        "env": {f"-p {DOOR.partition('/')[0]}:{DOOR.partition('/')[0]}": "1"},
        "onstart": onstart,
        "price": None,  # on-demand
        "cancel_unavail": True,  # rather nothing than an instance that waits, stopped and billed for its disk
        "target_state": "running",
    }
    world.say(f"renting offer {quote.offer.id} (machine {quote.offer.machine_id})")
    try:
        return world.client.create_instance(quote.offer.id, body)
    except RefusedError as error:
        if error.new_contract is not None:  # refused, and rented all the same
            give_back(world, error.new_contract)
        if not isinstance(error, OfferTakenError):
            raise
        world.say(f"offer {quote.offer.id} was taken by somebody else: trying the next")
        return None
    except UnavailableError as error:
        world.say(f"no clean answer to renting offer {quote.offer.id} ({error}): looking for it by its label")
        return _find_by_label(world, label)


def _find_by_label(world: World, label: Label) -> int | None:
    """Return the instance that a create of unknown outcome has rented; None if it has not within a minute."""
    deadline = world.clock.monotonic() + APPEARS_WITHIN.total_seconds()
    while True:
        for instance in _list_or_warn(world):
            if instance.parsed is not None and instance.parsed.is_of_same_run_as(label):
                world.say(f"it was rented: instance {instance.id}")
                return instance.id
        if world.clock.monotonic() > deadline:
            world.say("nothing was rented")
            return None
        try:
            world.clock.sleep(LOOK_SECONDS)
        except StoppedError:
            with world.stop.shielded():  # a last look: what is there now must not be left there
                for instance in _list_or_warn(world):
                    if instance.parsed is not None and instance.parsed.is_of_same_run_as(label):
                        give_back(world, instance)
            raise


def _list_or_warn(world: World) -> list[Instance]:
    try:
        return world.market.list()
    except VastError as error:
        raise UnavailableError(
            f"{error}\n  whether a machine was rented is not known: `pulumi up` adopts it, `pulumi destroy` ends it"
        ) from error


def read_back(world: World, request: MachineRequest, rental: Rental) -> Instance:
    """Return the instance as the market shows it, checked against what was asked.

    Raises:
        MismatchError: It is something else.
        RefusedError: The market does not keep our label.
        BootError: The market does not show it.
    """
    deadline = world.clock.monotonic() + APPEARS_WITHIN.total_seconds()
    while (instance := world.client.show_instance(rental.instance_id)) is None:
        if world.clock.monotonic() > deadline:
            raise BootError("scheduled", f"the market does not show it {APPEARS_WITHIN.seconds} s after the rent")
        world.clock.sleep(LOOK_SECONDS)
    if not instance.belongs_to(rental.label.fleet_id, rental.label.uid):
        # Every host would be the same, and a machine without our label is one that nobody would end.
        raise RefusedError(f"the market keeps the label {instance.label!r} where {rental.label.render()!r} was given")
    if faults := mismatches(instance, request):
        raise MismatchError(f"rented is not what was asked: {'; '.join(faults)}")
    return instance
