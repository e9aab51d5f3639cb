"""Random choices of one case, and notes of what was changed."""

from __future__ import annotations

import random
from pathlib import Path

NUMBERS = (
    *(-(2**63), -(2**31), -1, 0, 1, 2, 3, 7, 8, 9, 16, 31, 32, 33, 127, 128, 255, 256, 999, 1000, 4096, 65535, 65536),
    *(
        10**5,
        10**6,
        10**7,
        10**8,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**32,
        2**40,
        2**53,
        2**63 - 1,
        2**63,
        2**64 - 1,
        10**30,
    ),
)
"""Integers at which readers tend to break."""


class Draw(random.Random):
    """Random choices that depend on the reader, the seed and the case's number alone.

    Attributes:
        notes: what was changed, in order.
        outside: a folder that no reader may touch; hostile paths point there.
    """

    def __init__(self, reader: str, seed: int, case: int, outside: Path) -> None:
        super().__init__(f"{reader}:{seed}:{case}")
        self.notes: list[str] = []
        self.outside = outside

    def note(self, text: object) -> None:
        """Keeps what was changed."""
        self.notes.append(str(text)[:200])

    def chance(self, share: float) -> bool:
        """True in this share of all draws."""
        return self.random() < share

    def number(self) -> int:
        """An integer, interesting or small."""
        return self.choice(NUMBERS) if self.chance(0.7) else self.randrange(-3, 300)

    def text(self) -> str:
        """A hostile string."""
        return self.choice(
            (
                "\x1b[2J\x1b]0;owned\x07",
                "a\nerror: forged line",
                "a\r\nb",
                "\u202egnp.exe",
                "\u2066\u2067x\u2069",
                "\x9b31mred",
                "\0",
                "a\0b",
                "\ud800",
                "caf\udce9",
                "\ufeff\u200b\u2028\u2029",
                "\U000e0041\U000e0042",
                "é\u0301" * 50,
                "[red]marked[/red]",
                "[link=file:///etc/passwd]x",
                "[/]",
                "=HYPERLINK(1)",
                "%s%n{0}{}",
                "<script>alert(1)</script>",
                "",
                " ",
                ".",
                "..",
                "../outside/secret.bin",
                str(self.outside / "secret.bin"),
                f"{self.outside}/new",
                "C:\\x",
                "a\\b",
                "a/../../b",
                "float32",
                "full",
                "skip",
                "x" * 300,
                "y" * 100_000,
                "\u202e" * 70_000,
            )
        )

    def part(self, length: int) -> tuple[int, int]:
        """Begin and end of a piece of something of a length; small pieces more often than large ones."""
        begin = self.randrange(length + 1)
        most = length - begin
        return begin, begin + (self.randrange(most + 1) if self.chance(0.2) else min(most, self.randrange(1, 17)))
