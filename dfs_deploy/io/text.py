"""Text from outside, made safe for one line of a terminal, a log, a CSV file or a page.

Class names, file names, strings of a manifest and keys of a checkpoint come from the author of a file. Unchanged, they
could move the cursor of a terminal, forge a second line, or display other letters than they contain.
"""

from __future__ import annotations

import unicodedata

MAX_LINE = 1200
"""Most characters of an error message, or of another line with text from outside."""

_JOINERS = "\u200c\u200d"
"""Format characters that Persian, Indic scripts and emoji need; all other ones are escaped."""

_UNSHOWN = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"))
"""Unicode categories without visible characters: controls, bidirectional marks, lone surrogates and others."""


def one_line(text: object, limit: int = MAX_LINE) -> str:
    r"""Text on one line of bounded length; invisible characters become escapes such as ``\x1b``.

    Args:
        text: any object; its ``str`` is used. A byte of a file name that is not UTF-8 (a lone surrogate from
            ``os.fsdecode``) is shown as that byte.
        limit: most characters of the result. Longer text loses its middle, because a message ends with the remedy.

    Returns:
        Text that UTF-8 can encode, and any other encoding with ``errors="backslashreplace"``.
    """
    shown = str(text)
    if len(shown) > 4 * limit:  # bounded before the loop over characters
        shown = _shortened(shown, 4 * limit)
    if not shown.isprintable():
        shown = "".join(map(_visible, shown))
    return shown if len(shown) <= limit else _shortened(shown, limit)


def first_line(error: BaseException, limit: int = 240) -> str:
    """First non-empty line of an error's text, made safe for a message; the name of its class if it has no text.

    Args:
        error: an error, usually of a library, whose text may have several lines.
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
