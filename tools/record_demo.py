"""Records a real run of the demo as `docs/images/demo.svg`, the picture in the README.

Run by hand when what the demo shows has changed: `.venv/bin/python tools/record_demo.py`.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console

from celery_reactive.cli.demo import story
from celery_reactive.cli.demo.board import LiveBoard, verdict_for

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "demo.svg"
SECONDS = 24.0


def main() -> int:
    """Play the demo and keep its last picture; 1 if a promise was broken."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=96, highlight=False)
    board = LiveBoard(screen)
    with story.set_stage(board) as stage:
        verdict = story.play(stage, board, SECONDS)
        board.close()
        paper = Console(file=io.StringIO(), record=True, width=96, highlight=False)
        paper.print(board.render())
        paper.print(verdict_for(verdict))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(paper.export_svg(title="make demo"))
    return 0 if verdict.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
