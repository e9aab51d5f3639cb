"""Text from outside, made fit for one line of a terminal, a log, a CSV file or a page.

Class names, file names, strings of a manifest and keys of a checkpoint are written by whoever made the file. Unchanged
they could move a terminal's cursor, forge a second line, or show other letters than they hold.
"""

from __future__ import annotations

import unicodedata

MAX_LINE = 1200
"""Most characters of an error message or of any other line that carries text from outside."""

_JOINERS = "\u200c\u200d"
"""Format characters that Persian, Indic scripts and emoji need; all others are shown as escapes."""

_UNSHOWN = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"))
"""Unicode categories of what is no visible character: controls, bidirectional marks, lone surrogates and the like."""


def one_line(text: object, limit: int = MAX_LINE) -> str:
    r"""Shows text on one line of bounded length: what is no visible character becomes an escape such as ``\x1b``.

    Args:
        text: any object; its ``str`` is shown. A byte of a file name that is not UTF-8 (a lone surrogate, as
            ``os.fsdecode`` makes it) is shown as that byte.
        limit: most characters of the result. Longer text loses its middle, since a message ends with the remedy.

    Returns:
        Text that any encoding with an ``errors="backslashreplace"`` fallback, and UTF-8 without one, can write.
    """
    shown = str(text)
    if len(shown) > 4 * limit:  # bounded before it is looked at character by character
        shown = _shortened(shown, 4 * limit)
    if not shown.isprintable():
        shown = "".join(map(_visible, shown))
    return shown if len(shown) <= limit else _shortened(shown, limit)


def first_line(error: BaseException, limit: int = 240) -> str:
    """What an error says in its first line that is not empty, fit for a message; its class's name if it says nothing.

    Args:
        error: an error, usually of a library, whose text may be of several lines.
        limit: most characters of the result.
    """
    if isinstance(error, OSError) and error.strerror:
        return one_line(error.strerror, limit)
    lines = str(error).strip().splitlines()
    return one_line(lines[0].strip() if lines else type(error).__name__, limit)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _UNSHOWN or character in _JOINERS:
        return character
    code = ord(character)
    if character in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[character]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _shortened(text: str, limit: int) -> str:
    gap = " ... "
    head = 2 * (limit - len(gap)) // 3
    return text[:head] + gap + text[len(text) - (limit - len(gap) - head) :]
