"""A working day of 200 calls raises eight questions or fewer; every refund and deletion is asked about by itself."""

from pathlib import Path

import pytest

from tests.agents import ERAS
from tests.day import CONNECTIONS, day, equip, live
from tests.installed import make
from tests.upstream import Upstream

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("era", ERAS)
async def test_a_working_day_asks_eight_times_or_fewer_and_for_every_refund_and_deletion(
    tmp_path: Path, era: str
) -> None:
    with Upstream() as upstream:
        place = make(tmp_path / "home")
        equip(place, upstream)
        lived = await live(place, era)
        place.installation.close()
    assert lived.failed == []
    assert sum(lived.calls.values()) == len(upstream.requests) == 200
    assert {name.split("_", 1)[0] for name in lived.calls} == set(CONNECTIONS)
    assert len(lived.questions) <= 8, lived.asked
    assert lived.asked["stripe_create_refund"] == lived.calls["stripe_create_refund"] == 3
    assert lived.asked["gmail_trash_message"] == lived.calls["gmail_trash_message"] == 1
    for number in (1, 2, 3):
        assert sum(f'"ch_double_{number}"' in text for _, text in lived.questions) == 1
    refunds = [text for tool, text in lived.questions if tool in ("stripe_create_refund", "gmail_trash_message")]
    assert not any("one hour" in text for text in refunds)


def test_the_day_is_one_of_200_calls_of_every_kind() -> None:
    calls = [name for hour in day() for name, _ in hour]
    assert len(calls) == 200
    assert len(set(calls)) >= 10
