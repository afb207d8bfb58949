"""What a command found, line by line: coloured and wrapped under its indent on a terminal, unbroken elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

_UNBROKEN = 100_000  # columns


@dataclass(frozen=True, slots=True)
class Line:
    """`head` in `style`, then `text`; `indent` in columns. Text may be others': nothing in it is markup or control."""

    text: str
    head: str = ""
    style: str = ""
    indent: int = 0


def show(lines: list[Line]) -> None:
    """Print them to standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_UNBROKEN)
    for line in lines:
        gap = "  " if line.head and line.text else ""
        text = Text.assemble((_printable(line.head), line.style), gap, _printable(line.text))
        console.print(Padding(text, (0, 0, 0, line.indent), expand=False))


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
