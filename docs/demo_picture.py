"""Draws docs/demo.svg: `python docs/demo_picture.py` runs the demo and keeps its table.

What the picture shows is what the node said at that moment; nothing is drawn by hand.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from rich.console import Console

from streamexit.cli.app import complain
from streamexit.cli.demo import demo_node, demo_sources, shipped_pipelines
from streamexit.cli.running import live_table, run_node, summary_table

SECONDS = 20
PICTURE_AT = 16


async def main() -> None:
    """Run, draw, write."""
    sources, said = demo_sources([])
    node = demo_node(sources, shipped_pipelines()[0], on_problem=complain)
    screen = Console(record=True, width=110)

    async def draw() -> None:
        await asyncio.sleep(PICTURE_AT)
        screen.print("[bold]$ make demo[/bold]")
        screen.print(said)
        screen.print(live_table(node))

    await run_node(node, duration=SECONDS, live=False, beside=draw())
    screen.print(summary_table(node))
    picture = screen.export_svg(title="streamexit demo")
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # no fonts from afar
    Path(__file__).with_name("demo.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
