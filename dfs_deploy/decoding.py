"""What may be wrong with the text of a file that somebody else wrote."""

from __future__ import annotations

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for JSON that is malformed, of other types, not in UTF-8, or nested without end."""
