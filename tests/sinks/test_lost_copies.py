from __future__ import annotations

from pathlib import Path

import pytest

from streamexit.sinks import delivery as module
from tests.sinks.test_delivery import Rig, run


@pytest.mark.parametrize("how", ["no room", "damaged"])
def test_a_result_whose_copy_is_gone_is_kept_or_counted(tmp_path: Path, how: str) -> None:
    """It was in memory when the spool let go of its copy; then the broker went, too."""

    async def body() -> None:
        rig = Rig(tmp_path, max_bytes=2 * 46 if how == "no room" else 1 << 24)
        rig.delivery.connected()
        rig.offer(100, 101, 102, 103)
        await rig.visit()
        assert rig.spool
        if how == "damaged":
            rig.spool.close()
            path = tmp_path / "spool.sqlite"
            path.write_bytes(b"\0" * path.stat().st_size)
            await rig.visit(seconds=module.CHECK_SECONDS)
            assert rig.spool.set_aside
        rig.delivery.disconnected()
        await rig.visit(seconds=module.AGAIN_SECONDS)
        assert rig.books_balance
        await rig.delivery.close()

    run(body)
