"""Draws the pictures of the concept pages: `python docs/concepts/pictures.py` writes an SVG for each.

Each stands on a light ground of its own, so that it reads the same on white and on dark pages.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

WIDTH = 900
INK = "#1e293b"
SOFT = "#64748b"
BLUE = "#dbeafe"
GREEN = "#dcfce7"
YELLOW = "#fef3c7"
RED = "#fee2e2"
GREY = "#e2e8f0"
STREAMS = ("#2563eb", "#d97706", "#059669")


class Picture:
    """Boxes, arrows and words on a card.

    Args:
        height: In pixels; the width is the same for all.
        title: Of the picture, for those who cannot see it.
    """

    def __init__(self, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" font-family="Helvetica, Arial, sans-serif">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{SOFT}"/></marker></defs>',
            f'<rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="10" fill="#f8fafc" '
            'stroke="#cbd5e1"/>',
        ]

    def box(
        self, x: float, y: float, w: float, h: float, *lines: str, fill: str = BLUE, size: int = 15
    ) -> None:
        """A box with centred lines; the first is bold."""
        self.bar(x, y, w, h, fill, edge=INK)
        top = y + h / 2 - (len(lines) - 1) * 10
        for i, line in enumerate(lines):
            self.words(x + w / 2, top + i * 20, line, bold=not i, size=size if not i else 13)

    def bar(self, x: float, y: float, w: float, h: float, fill: str, *, edge: str = "none") -> None:
        """A rectangle alone."""
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="5" fill="{fill}" stroke="{edge}"/>'
        )

    def words(
        self,
        x: float,
        y: float,
        text: str,
        *,
        bold: bool = False,
        size: int = 13,
        fill: str = INK,
        anchor: str = "middle",
    ) -> None:
        """One line, its middle at y."""
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{x}" y="{y + size * 0.35:.1f}" font-size="{size}" fill="{fill}" '
            f'text-anchor="{anchor}"{weight}>{escape(text)}</text>'
        )

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        """A line through the points, with a tip at the last."""
        path = "M" + "L".join(f"{x} {y}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<path d="{path}" fill="none" stroke="{SOFT}" stroke-width="1.8"{dash} marker-end="url(#tip)"/>'
        )

    def line(self, a: tuple[float, float], b: tuple[float, float], colour: str = SOFT) -> None:
        """A line without a tip."""
        self._parts.append(
            f'<path d="M{a[0]} {a[1]}L{b[0]} {b[1]}" stroke="{colour}" stroke-width="2"/>'
        )

    def text(self) -> str:
        """The file."""
        return "\n".join([*self._parts, "</svg>", ""])


def early_exits() -> Picture:
    """Three stages with an exit behind each; figures are those of the card of cifar10-resnet20."""
    picture = Picture(300, "A frame goes through stages; behind each it can leave")
    picture.box(30, 60, 90, 60, "frame", fill=GREY)
    exits = (("25%", "78%"), ("57%", "89%"), ("100%", "91%"))
    for i, (cost, right) in enumerate(exits):
        x = 190 + i * 240
        picture.box(x, 60, 120, 60, f"stage {i + 1}")
        picture.box(
            x - 20, 200, 160, 80, f"exit {i + 1}", f"cost {cost}", f"right {right}", fill=GREEN
        )
        picture.arrow((x + 60, 120), (x + 60, 198))
        picture.words(x + 68, 160, "sure: leave" if i < 2 else "all that are left", anchor="start")
        if i < 2:
            picture.arrow((x + 120, 90), (x + 238, 90))
            picture.words(x + 180, 72, "unsure: go on")
    picture.arrow((120, 90), (188, 90))
    picture.words(450, 28, "cost: of the full network, per frame that leaves there", fill=SOFT)
    return picture


def policies() -> Picture:
    """The row of a table for a budget of 40%: policy `direct` of cifar10-resnet20."""
    picture = Picture(300, "A budget picks a row of the table; its thresholds decide who leaves")
    picture.box(30, 110, 150, 80, "budget", "40% of the", "full network", fill=YELLOW)
    picture.arrow((180, 150), (228, 150))
    picture.box(
        230,
        90,
        160,
        120,
        "row of the table",
        "63 / 29 / 8 per cent",
        "leave at exits 1, 2, 3",
        fill=GREY,
    )
    picture.arrow((390, 130), (438, 95))
    picture.arrow((390, 170), (438, 205))
    for i, (threshold, share) in enumerate(((0.89, "63%"), (0.67, "29%"))):
        y = 80 + i * 110
        left, wide = 460, 300
        at = left + wide * threshold
        picture.words(left, y - 20, f"exit {i + 1}: score of a frame", anchor="start", bold=True)
        picture.bar(left, y, at - left, 30, BLUE)
        picture.bar(at, y, left + wide - at, 30, "#86efac")
        picture.line((at, y - 6), (at, y + 36), INK)
        picture.words(left + (at - left) / 2, y + 15, "below: on to the next stage")
        picture.words(left, y + 46, "0", fill=SOFT)
        picture.words(left + wide, y + 46, "1", fill=SOFT)
        picture.words(at, y - 20, f"threshold {threshold}", bold=True)
        picture.words(left + wide + 14, y + 6, f"{share} of all", anchor="start")
        picture.words(left + wide + 14, y + 24, "leave here", anchor="start")
    picture.words(
        460, 274, "exit 3 has no threshold: the 8% that are left leave there", anchor="start"
    )
    return picture


def budgets() -> Picture:
    """The control loop."""
    picture = Picture(320, "What a frame cost moves the thresholds of the next")
    picture.box(40, 40, 170, 70, "your budget", "say 40% per frame", fill=YELLOW)
    picture.box(360, 40, 180, 70, "debt", "spent more than allowed?")
    picture.box(670, 40, 190, 70, "thresholds", "of the next frame")
    picture.box(670, 190, 190, 70, "exit", "where the frame leaves", fill=GREEN)
    picture.box(360, 190, 180, 70, "cost", "25%, 57% or 100%", fill=GREEN)
    picture.arrow((210, 75), (358, 75))
    picture.words(284, 60, "allowed")
    picture.arrow((540, 75), (668, 75))
    picture.words(604, 60, "in debt: lower")
    picture.words(604, 92, "saved: higher")
    picture.arrow((765, 110), (765, 188))
    picture.arrow((670, 225), (542, 225))
    picture.arrow((450, 190), (450, 112))
    picture.words(460, 150, "spent", anchor="start")
    picture.box(40, 190, 170, 70, "recent scores", "of this stream", fill=GREY)
    picture.arrow((125, 260), (125, 298), (880, 298), (880, 75), (862, 75), dashed=True)
    picture.words(450, 283, "recent scores keep the mix of exits when scores drift", fill=SOFT)
    return picture


def batching() -> Picture:
    """Frames of three streams share batches, and survivors are regrouped."""
    picture = Picture(310, "Frames of all streams share batches; those that stay are regrouped")

    def frames(x: float, y: float, streams: str, step: float = 34) -> None:
        for i, stream in enumerate(streams):
            picture.bar(x + i * step, y, 28, 28, STREAMS["ABC".index(stream)])
            picture.words(x + i * step + 14, y + 14, stream, bold=True, fill="#ffffff")

    for i, stream in enumerate("ABC"):
        picture.words(30, 74 + i * 60, f"stream {stream}", anchor="start", bold=True)
        frames(110, 60 + i * 60, stream * 2)
        picture.arrow((184, 74 + i * 60), (258, 134))
    picture.bar(260, 60, 190, 148, BLUE, edge=INK)
    picture.words(355, 80, "stage 1", bold=True, size=15)
    picture.words(355, 104, "first batch", fill=SOFT)
    frames(289, 114, "ABCA")
    picture.words(355, 158, "second batch", fill=SOFT)
    frames(323, 168, "BC")
    picture.arrow((450, 134), (568, 134))
    picture.words(508, 116, "unsure: stay")
    picture.bar(570, 80, 190, 108, BLUE, edge=INK)
    picture.words(665, 100, "stage 2", bold=True, size=15)
    picture.words(665, 124, "one batch of those that stayed", fill=SOFT)
    frames(616, 138, "ACB")
    picture.arrow((355, 208), (355, 258))
    picture.words(355, 276, "sure: answered at exit 1", bold=True)
    picture.arrow((665, 188), (665, 258))
    picture.words(665, 276, "answered at exit 2", bold=True)
    picture.arrow((760, 134), (838, 134))
    picture.words(800, 116, "stage 3 ...")
    picture.words(
        450,
        28,
        "at each stage a frame of a live stream waits for company for max_wait_ms at most",
        fill=SOFT,
    )
    return picture


def sources() -> Picture:
    """The states of a stream."""
    picture = Picture(320, "The life of a stream")
    picture.words(30, 30, "live streams: opened again for ever", bold=True, anchor="start")
    picture.box(30, 60, 130, 60, "connecting", "first attempt")
    picture.box(270, 60, 130, 60, "online", "pictures come", fill=GREEN)
    picture.box(510, 60, 130, 60, "stalled", "no picture for 3 s", fill=YELLOW)
    picture.box(740, 60, 130, 60, "reconnecting", "lost, or given up", fill=YELLOW)
    picture.box(740, 200, 130, 60, "offline", "an attempt failed", fill=RED)
    picture.arrow((160, 90), (268, 90))
    picture.arrow((400, 90), (508, 90))
    picture.arrow((640, 90), (738, 90))
    picture.arrow((805, 120), (805, 198))
    picture.arrow((575, 60), (575, 38), (335, 38), (335, 58))
    picture.words(455, 26, "a picture", fill=SOFT)
    picture.arrow((380, 120), (380, 160), (775, 160), (775, 122))
    picture.words(565, 146, "connection lost")
    picture.words(688, 72, "after 10 s")
    picture.arrow((740, 215), (310, 215), (310, 122))
    picture.words(525, 200, "a picture, here or while reconnecting", fill=SOFT)
    picture.arrow((95, 120), (95, 245), (738, 245))
    picture.words(200, 230, "the first attempt failed", fill=SOFT)
    picture.words(525, 231, "pauses between attempts: 8% of the absence, 0.5 to 30 s", fill=SOFT)
    picture.line((30, 275), (870, 275), GREY)
    picture.words(30, 297, "recordings end:", bold=True, anchor="start")
    picture.words(150, 297, "online, then ended; error if one cannot be read.", anchor="start")
    picture.words(500, 297, "disabled: switched off, or outside its hours.", anchor="start")
    return picture


def delivery() -> Picture:
    """Results on their way to subscribers, with the spool beside."""
    picture = Picture(290, "Results that the broker has not confirmed are kept in a file")
    picture.box(30, 60, 130, 70, "engine", "answers")
    picture.box(240, 60, 150, 70, "outbox", "in frame order", "per stream")
    picture.box(560, 60, 130, 70, "broker", "MQTT", fill=GREY)
    picture.box(760, 60, 120, 70, "subscriber", "yours", fill=GREEN)
    picture.box(240, 200, 150, 70, "spool", "a file, bounded", fill=YELLOW)
    picture.arrow((160, 95), (238, 95))
    picture.arrow((390, 80), (558, 80))
    picture.words(474, 64, "live results")
    picture.arrow((558, 112), (392, 112), dashed=True)
    picture.words(474, 128, "confirmed (QoS 1)", fill=SOFT)
    picture.arrow((690, 95), (758, 95))
    picture.arrow((315, 130), (315, 198))
    picture.words(305, 165, "not confirmed in 0.25 s,", anchor="end")
    picture.words(305, 183, "or no connection", anchor="end")
    picture.arrow((390, 235), (625, 235), (625, 132))
    picture.words(509, 219, "once the broker is back: late results,")
    picture.words(509, 253, "marked historical, beside the live ones")
    picture.words(450, 28, "seq counts a stream's results: a gap is a loss", fill=SOFT)
    return picture


def traces() -> Picture:
    """Three parts of a data set, none of which does the work of another."""
    picture = Picture(330, "Three parts of a data set: to train on, to fit on, to judge on")
    rows = (
        (["training part"], "train", "the network", GREY),
        (["calibration part"], "record", "a trace", BLUE),
        (["test part", "or recordings"], "record", "another trace", GREEN),
    )
    for i, (part, does, gives, fill) in enumerate(rows):
        y = 50 + i * 90
        picture.box(30, y, 200, 60, *part, fill=fill)
        picture.arrow((230, y + 30), (358, y + 30))
        picture.words(294, y + 16, does)
        picture.box(360, y, 150, 60, gives, fill=fill)
    picture.arrow((435, 110), (435, 138), dashed=True)
    picture.words(445, 124, "runs every exit on every frame, once", anchor="start", fill=SOFT)
    picture.arrow((510, 170), (648, 170))
    picture.words(579, 156, "fit")
    picture.box(650, 140, 210, 60, "exit policies", "and their tables", fill=YELLOW)
    picture.arrow((755, 200), (755, 228))
    picture.arrow((510, 260), (648, 260))
    picture.words(579, 246, "judge")
    picture.box(650, 230, 210, 60, "a comparison", "at equal cost", fill=YELLOW)
    picture.words(450, 26, "no frame is on two of these lines", fill=SOFT)
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    "early-exits": early_exits,
    "policies-and-thresholds": policies,
    "traces": traces,
    "budgets": budgets,
    "batching": batching,
    "sources": sources,
    "delivery": delivery,
}
"""Name of the page -> its picture."""


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw().text(), encoding="utf-8")
