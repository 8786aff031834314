"""Choosing an offer: each requirement turns away alone and only beyond its bound; the rest is ranked by real cost."""

from dataclasses import replace
from typing import Any

import pytest

from dynamic_providers.errors import NoOfferError
from dynamic_providers.vast.models import GPUS
from dynamic_providers.vast.offers import (
    Plan,
    quote,
    render_survey,
    render_turned_away,
    require_offer,
    survey_offers,
    unmet_by,
)
from tests.unit.builders import a_need, a_plan, an_offer


def test_an_offer_that_has_everything_fits() -> None:
    assert unmet_by(an_offer(), a_plan()) == []


LIMITED = a_plan(max_usd_total=4.0)
DEDICATED = a_plan(need=a_need(dedicated=True))
SLOW_IS_FINE = a_plan(need=a_need(min_down_mbps=1.0))


@pytest.mark.parametrize(
    ("requirement", "plan", "bound", "beyond"),
    [
        pytest.param("gpus", a_plan(), {}, {"gpu": "RTX 3090"}, id="gpus"),
        pytest.param(
            "gpus", a_plan(need=a_need(gpus=("RTX 3090", "RTX 4090"))), {}, {"gpu": "RTX 4080"}, id="any-of-the-gpus"
        ),
        pytest.param("gpu_count", a_plan(), {"gpu_count": 1}, {"gpu_count": 2}, id="more-gpus-than-asked"),
        pytest.param(
            "gpu_count", a_plan(need=a_need(gpu_count=2)), {"gpu_count": 2}, {"gpu_count": 1}, id="fewer-gpus"
        ),
        # A nominal 24 GB card shows a little less; 2 % is the limit.
        pytest.param("min_vram_gib", a_plan(), {"vram_gib": 24 * 0.98}, {"vram_gib": 23.5}, id="min_vram_gib"),
        pytest.param(
            "max_usd_per_hour", a_plan(), {"usd_per_hour": 0.50}, {"usd_per_hour": 0.5001}, id="max_usd_per_hour"
        ),
        pytest.param("regions", a_plan(), {"country": "NO"}, {"country": "US"}, id="regions"),
        pytest.param("regions", a_plan(), {}, {"country": ""}, id="unknown-country"),
        pytest.param("disk_gb", a_plan(), {"available_disk_gb": 60.0}, {"available_disk_gb": 59.9}, id="disk_gb"),
        pytest.param("min_reliability", a_plan(), {"reliability": 0.95}, {"reliability": 0.9499}, id="min_reliability"),
        pytest.param("min_down_mbps", a_plan(), {"down_mbps": 500.0}, {"down_mbps": 499.0}, id="min_down_mbps"),
        pytest.param("verified", a_plan(), {"is_verified": True}, {"is_verified": False}, id="verified"),
        pytest.param(
            "datacenter",
            a_plan(need=a_need(datacenter=True)),
            {"is_datacenter": True},
            {"is_datacenter": False},
            id="datacenter",
        ),
        pytest.param("dedicated", DEDICATED, {"gpu_fraction": 1.0}, {"gpu_fraction": 0.99}, id="dedicated"),
        pytest.param("CUDA of the image", a_plan(), {"cuda": 13.0}, {"cuda": 12.9}, id="cuda"),
        pytest.param(
            "compute capability",
            a_plan(),
            {"compute_capability": 7.5},
            {"compute_capability": 7.0},
            id="compute-capability",
        ),
        pytest.param("public ports", a_plan(), {"direct_ports": 2}, {"direct_ports": 1}, id="public-ports"),
        pytest.param("max_hours", a_plan(), {"hours_left": 8.0}, {"hours_left": 7.99}, id="max_hours"),
        # 20 GB at half of 266⅔ Mbit/s take exactly 20 minutes.
        pytest.param("boot_minutes", SLOW_IS_FINE, {"down_mbps": 266.67}, {"down_mbps": 266.0}, id="boot_minutes"),
        pytest.param(
            "max_usd_total", LIMITED, {"usd_per_gb_down": 0.03}, {"usd_per_gb_down": 0.04}, id="max_usd_total"
        ),
    ],
)
def test_a_requirement_is_met_at_its_bound_and_turns_away_beyond(
    requirement: str, plan: Plan, bound: dict[str, Any], beyond: dict[str, Any]
) -> None:
    generous = {"gpu_count": plan.need.gpu_count, "gpu_fraction": 1.0, "is_datacenter": True}
    assert unmet_by(an_offer(**generous | bound), plan) == []
    assert unmet_by(an_offer(**generous | beyond), plan) == [requirement]


@pytest.mark.parametrize(
    ("need", "offer"),
    [
        pytest.param({"regions": ()}, {"country": ""}, id="any-region"),
        pytest.param({"verified": False}, {"is_verified": False}, id="unverified-allowed"),
        pytest.param({"disk_gb": None}, {"available_disk_gb": 0.0}, id="no-disk-asked"),
        pytest.param({}, {"gpu_fraction": 0.1}, id="a-slice-of-a-host"),
        pytest.param({}, {"is_datacenter": False}, id="a-living-room"),
    ],
)
def test_what_was_not_asked_turns_nobody_away(need: dict[str, Any], offer: dict[str, Any]) -> None:
    assert unmet_by(an_offer(**offer), a_plan(need=a_need(**need))) == []


def test_a_quote_counts_hours_loading_and_bytes() -> None:
    # 20 GB at half of 800 Mbit/s: 400 s.
    found = quote(an_offer(usd_per_hour=0.36, usd_per_gb_down=0.01, reliability=0.5), a_plan())
    assert found.load_minutes == pytest.approx(400 / 60)
    assert found.usd_lease == pytest.approx(0.36 * 8 + 0.36 * 400 / 3600 + 0.01 * 20)
    assert found.usd_first_hour == pytest.approx(0.36 + 0.01 * 20)
    assert found.usd_expected == pytest.approx(found.usd_lease / 0.5)


@pytest.mark.parametrize("broken", [{"down_mbps": 0.0}, {"reliability": 0.0}], ids=["no-speed", "no-reliability"])
def test_an_offer_without_numbers_is_merely_expensive(broken: dict[str, float]) -> None:
    assert quote(an_offer(**broken), a_plan()).usd_expected > 5 * quote(an_offer(), a_plan()).usd_expected


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        pytest.param({}, {"usd_per_hour": 0.41}, id="cheaper"),
        pytest.param({"usd_per_hour": 0.405}, {"usd_per_hour": 0.40, "down_mbps": 500.0}, id="dearer-but-loads-faster"),
        pytest.param({"usd_per_hour": 0.41}, {"usd_per_hour": 0.40, "reliability": 0.96}, id="dearer-but-reliable"),
        pytest.param(
            {"usd_per_hour": 0.41}, {"usd_per_hour": 0.40, "usd_per_gb_down": 0.02}, id="dearer-but-free-bytes"
        ),
        pytest.param({"id": 1000}, {"id": 1001}, id="alike-the-lower-id"),
    ],
)
def test_the_better_offer_comes_first(better: dict[str, Any], worse: dict[str, Any]) -> None:
    plan = a_plan(load_gb=100.0, boot_minutes=60.0)
    first, second = (
        an_offer(id=1000, **{k: v for k, v in better.items() if k != "id"}),
        an_offer(**{"id": 1001} | worse),
    )
    for offers in ([first, second], [second, first]):
        assert [found.offer.id for found in survey_offers(offers, plan).quotes] == [1000, 1001]


def test_for_a_short_lease_loading_weighs_more_than_the_price() -> None:
    slow, fast = an_offer(id=1, usd_per_hour=0.36, down_mbps=500.0), an_offer(id=2, usd_per_hour=0.40, down_mbps=5000.0)
    best = [
        require_offer(survey_offers([slow, fast], a_plan(hours=hours, load_gb=60.0, boot_minutes=60.0))).offer.id
        for hours in (0.5, 100.0)
    ]
    assert best == [2, 1]


def test_a_machine_that_let_us_down_is_avoided_and_counted() -> None:
    survey = survey_offers([an_offer(id=1, machine_id=7), an_offer(id=2, machine_id=8)], a_plan(), avoid={7})
    assert [found.offer.id for found in survey.quotes] == [2]
    assert survey.turned_away == {"let us down before": 1}


MIXED = [
    an_offer(id=1, country="US"),
    an_offer(id=2, country="US", usd_per_hour=0.9),
    an_offer(id=3, is_verified=False),
]


def test_a_no_counts_what_each_requirement_turned_away() -> None:
    with pytest.raises(NoOfferError) as caught:
        require_offer(survey_offers(MIXED, a_plan()))
    assert caught.value.turned_away == {"regions": 2, "max_usd_per_hour": 1, "verified": 1}
    text = str(caught.value)
    assert "3 with RTX 4090 were weighed" in text
    assert "regions 2, max_usd_per_hour 1, verified 1" in text
    assert "loosen the requirement" in text


def test_an_empty_market_is_told_apart_from_a_need_that_is_too_strict() -> None:
    with pytest.raises(NoOfferError, match="shows no 1 × RTX 4090 or RTX 3090 at all") as caught:
        require_offer(survey_offers([], a_plan(need=a_need(gpus=("RTX 4090", "RTX 3090")))))
    assert caught.value.turned_away == {}
    assert ", ".join(GPUS) in str(caught.value)


def test_a_survey_shows_the_best_why_it_won_and_what_was_turned_away() -> None:
    offers = [an_offer(id=100 + n, usd_per_hour=0.40 + n / 100) for n in range(8)]
    survey = survey_offers([*offers, *MIXED], a_plan())
    lines = render_survey(survey, rows=3)
    assert lines[0].startswith("8 of 11 offers fit; best first (with 60 GB of disk, for 8 h, 20.0 GB to load)")
    rows = [line.split() for line in lines[2:5]]
    assert [row[0] for row in rows] == ["100", "101", "102"]
    assert all({"500", "RTX", "4090", "99.00%", "SE"} <= set(row) for row in rows)
    assert "0.4000" in rows[0]
    assert lines[5] == "  … and 5 more"
    gap = survey.quotes[1].usd_expected - survey.quotes[0].usd_expected
    assert "offer 100 wins" in lines[6]
    assert lines[6].endswith(f"the next one costs {gap:.3f} USD more")
    assert lines[7].endswith("regions 2, max_usd_per_hour 1, verified 1")
    assert len(lines) == 8


def test_a_survey_with_one_offer_compares_it_with_nothing() -> None:
    lines = render_survey(survey_offers([an_offer()], a_plan()))
    assert len(lines) == 4
    assert "the next one" not in lines[-1]
    assert render_turned_away(survey_offers([an_offer()], a_plan())) == []


def test_a_survey_without_a_winner_names_none() -> None:
    lines = render_survey(survey_offers([replace(an_offer(), country="US")], a_plan()))
    assert lines[0].startswith("0 of 1 offers fit")
    assert not any("wins" in line for line in lines)
