"""Outages of the broker: nothing of quality of service 1 is lost within the spool's bounds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import absent
from tests.faults.brokers import SCENARIOS, Town, ledger, suffer, town

pytestmark = [pytest.mark.broker, pytest.mark.slow]

AWAY = 3.0


@pytest.fixture(autouse=True)
def _mosquitto() -> None:
    if not shutil.which("mosquitto_passwd"):
        absent("mosquitto (apt install mosquitto)")


@pytest.mark.parametrize("happen", SCENARIOS, ids=lambda f: f.__name__)
def test_nothing_is_lost(
    happen: Callable[[Town, float], None], toy_pipeline: Path, tmp_path: Path
) -> None:
    """Each result comes, late ones are marked and in order, and frames go on being answered."""
    with town(tmp_path, toy_pipeline) as place:
        outage = suffer(place, happen, AWAY)
        assert place.collector.retained["stream/s0/status"]
    found = outage.ledger
    assert (found.missing, found.disordered, outage.lost) == (0, 0, 0)
    assert found.late > 0 or happen.__name__ == "stopped"
    assert outage.retained
    if outage.rate_during is not None:
        assert outage.rate_during > 0.7 * outage.rate_before


def test_a_spool_that_is_full_loses_the_oldest_and_says_how_many(
    toy_pipeline: Path, tmp_path: Path
) -> None:
    """Gaps in the numbers are as many as the books say, but for what had arrived unconfirmed."""
    with town(tmp_path, toy_pipeline, spool={"max_bytes": 20_000}) as place:
        place.cut_off()
        time.sleep(AWAY)
        place.connect_again()
        place.until_drained()
        count = len(place.collector.results)
        place.collector.until(lambda: len(place.collector.results) > count + 10)
        lost = place.metric("results_lost_total")
        found = ledger(list(place.collector.results))
    assert found.missing > 0
    assert found.missing <= lost <= found.missing + 100  # so many may be under way


def test_a_spool_that_is_damaged_stops_nothing(toy_pipeline: Path, tmp_path: Path) -> None:
    """Live results go on, the status says what is wrong, and a new file is begun."""
    (tmp_path / "results.spool").write_bytes(b"no database at all" * 1000)
    with town(tmp_path, toy_pipeline) as place:
        place.cut_off()
        time.sleep(AWAY)
        place.connect_again()
        place.until_drained()
        _, stderr = place.node.stop()
        found = ledger(list(place.collector.results))
    assert found.missing == 0
    assert "is damaged" in stderr
    assert (tmp_path / "results.spool.damaged").exists()
