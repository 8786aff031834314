"""Choosing an offer: every requirement checked again on our side, the rest ranked by what it will really cost."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dynamic_providers.errors import NoOfferError
from dynamic_providers.vast.models import GPUS, VRAM_TOLERANCE, GpuNeed, Offer

SPEED_DISCOUNT = 0.5
"""Hosts state the speed of their best moment; half of it is what we plan with until we have measured the host."""

DOOR_AND_SSH = 2
"""Public ports that we need of a machine: the front door and SSH."""


@dataclass(frozen=True)
class Plan:
    """What a rental is for, as far as its price depends on it.

    Attributes:
        need: What the machine must be; `disk_gb` set.
        hours: The longest that it is kept.
        load_gb: Bytes that it downloads before the first token (image and weights), in GB.
        boot_minutes: What the download must fit into.
        max_usd_total: The most that the whole lease may cost; None is no limit.
    """

    need: GpuNeed
    hours: float
    load_gb: float
    boot_minutes: float = 20.0
    max_usd_total: float | None = None


@dataclass(frozen=True)
class Quote:
    """An offer that fits, with what it is expected to cost.

    Attributes:
        load_minutes: Download of image and weights at the discounted speed.
        usd_first_hour: Price of the first hour with all that is loaded in it.
        usd_lease: Price of the whole lease: hours, loading, bytes.
        usd_expected: The same over the reliability: what a lease that has to be begun again costs on average.
    """

    offer: Offer
    load_minutes: float
    usd_first_hour: float
    usd_lease: float
    usd_expected: float


@dataclass(frozen=True)
class Survey:
    """The market as one need sees it, best first."""

    plan: Plan
    quotes: tuple[Quote, ...]
    turned_away: Counter[str]
    considered: int


def unmet_by(offer: Offer, plan: Plan) -> list[str]:
    """Name the requirements that *offer* misses; empty means it fits."""
    need, quoted = plan.need, quote(offer, plan)
    met = {
        "gpus": offer.gpu in need.gpus,
        "gpu_count": offer.gpu_count == need.gpu_count,
        "min_vram_gib": offer.vram_gib >= need.min_vram_gib * VRAM_TOLERANCE,
        "max_usd_per_hour": offer.usd_per_hour <= need.max_usd_per_hour,
        "regions": not need.countries or offer.country in need.countries,
        "disk_gb": offer.available_disk_gb >= (need.disk_gb or 0),
        "min_reliability": offer.reliability >= need.min_reliability,
        "min_down_mbps": offer.down_mbps >= need.min_down_mbps,
        "verified": offer.is_verified or not need.verified,
        "datacenter": offer.is_datacenter or not need.datacenter,
        "dedicated": offer.gpu_fraction >= 1 or not need.dedicated,
        "CUDA of the image": offer.cuda >= need.min_cuda,
        "compute capability": offer.compute_capability >= need.min_compute_capability,
        "public ports": offer.direct_ports >= DOOR_AND_SSH,
        "max_hours": offer.hours_left >= plan.hours,
        "boot_minutes": quoted.load_minutes <= plan.boot_minutes,
        "max_usd_total": plan.max_usd_total is None or quoted.usd_lease <= plan.max_usd_total,
    }
    return [name for name, ok in met.items() if not ok]


def quote(offer: Offer, plan: Plan) -> Quote:
    """Say what *offer* is expected to cost for *plan*."""
    mbps = max(offer.down_mbps * SPEED_DISCOUNT, 1.0)
    load_hours = plan.load_gb * 8000 / mbps / 3600
    traffic = offer.usd_per_gb_down * plan.load_gb
    usd = offer.usd_per_hour * (plan.hours + load_hours) + traffic
    return Quote(offer, load_hours * 60, offer.usd_per_hour + traffic, usd, usd / max(offer.reliability, 0.01))


def survey_offers(offers: Sequence[Offer], plan: Plan, avoid: Collection[int] = ()) -> Survey:
    """Return the offers that fit, best first, and what turned the others away.

    Args:
        offers: What the market showed.
        plan: What they are for.
        avoid: `machine_id`s that have let us down.
    """
    quotes, turned_away = [], Counter[str]()
    for offer in offers:
        reasons = unmet_by(offer, plan) + ["let us down before"] * (offer.machine_id in avoid)
        turned_away.update(reasons)
        if not reasons:
            quotes.append(quote(offer, plan))
    quotes.sort(key=lambda q: (q.usd_expected, -q.offer.reliability, q.offer.id))
    return Survey(plan, tuple(quotes), turned_away, len(offers))


def require_offer(survey: Survey) -> Quote:
    """Return the best quote.

    Raises:
        NoOfferError: Nothing fits; says which requirement turned away how many.
    """
    if survey.quotes:
        return survey.quotes[0]
    need = survey.plan.need
    what = f"{need.gpu_count} × {' or '.join(need.gpus)}"
    if not survey.considered:
        raise NoOfferError(
            f"no offer fits: the market shows no {what} at all right now\n"
            f"  ask for more kinds of GPU under need.gpus (known: {', '.join(GPUS)}), or try again later"
        )
    lines = [
        f"no offer fits: {survey.considered} with {' or '.join(need.gpus)} were weighed, none meets every requirement"
    ]
    lines += [f"  {line}" for line in render_turned_away(survey)]
    lines.append("  loosen the requirement that turned most away in the stack file, or try again later")
    raise NoOfferError("\n".join(lines), survey.turned_away)


def render_survey(survey: Survey, rows: int = 5) -> list[str]:
    """Return the offers weighed as lines of a table, why the first one won, and what turned the others away."""
    need, plan = survey.plan.need, survey.plan
    lines = [
        f"{len(survey.quotes)} of {survey.considered} offers fit; best first (with {need.disk_gb:.0f} GB of disk,"
        f" for {plan.hours:g} h, {plan.load_gb:.1f} GB to load):",
        f"  {'offer':>9}  {'machine':>7}  {'GPU':<18} {'USD/h':>7}  {'USD lease':>9}  {'load':>8}  {'reliable':>8}  in",
    ]
    for q in survey.quotes[:rows]:
        gpu = f"{q.offer.gpu_count} × {q.offer.gpu}"
        lines.append(
            f"  {q.offer.id:>9}  {q.offer.machine_id:>7}  {gpu:<18} {q.offer.usd_per_hour:>7.4f}  {q.usd_lease:>9.3f}"
            f"  {q.load_minutes:>4.1f} min  {q.offer.reliability * 100:>7.2f}%  {q.offer.country}"
        )
    if len(survey.quotes) > rows:
        lines.append(f"  … and {len(survey.quotes) - rows} more")
    return [*lines, *_why(survey), *render_turned_away(survey)]


def render_turned_away(survey: Survey) -> list[str]:
    """Return how many offers each requirement turned away, most first."""
    if not survey.turned_away:
        return []
    counts = ", ".join(f"{name} {count}" for name, count in survey.turned_away.most_common())
    return [f"turned away (an offer can miss several): {counts}"]


def _why(survey: Survey) -> list[str]:
    if not survey.quotes:
        return []
    best, *others = survey.quotes
    text = f"offer {best.offer.id} wins: {best.usd_expected:.3f} USD expected, loading and reliability counted"
    if others:
        more = others[0].usd_expected - best.usd_expected
        text += f"; the next one costs {more:.3f} USD more"
    return [text]
