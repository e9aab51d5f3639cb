"""Pickles of others, followed without running anything: plain values, and stand-ins for the few known names."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

MAX_INSTRUCTIONS = 600_000
"""Most instructions in the pickles of a file, copied items included; a tensor takes about thirty."""

_MAX_KEY = 16
_MAX_DEPTH = 32
"""Most levels of nested dicts and lists."""


class PickleRefusedError(Exception):
    """A pickle that is refused; the text is a noun phrase for the reason."""


class MalformedPickleError(PickleRefusedError):
    """A pickle that is damaged, or that none of the known programs writes."""


class OversizedPickleError(PickleRefusedError):
    """A pickle that holds more than any supported file."""


class ForbiddenNameError(PickleRefusedError):
    """A pickle that names something which its kind of file does not need; the text is that name."""


class InertUnpickler(pickle._Unpickler):
    """Python's own unpickler in Python, reduced to plain values.

    It imports nothing and calls only what ``stand_in`` returns. Its memory is bounded by the file, and its time by
    the number of instructions: what is repeated, hashed or traversed is counted or refused.

    Args:
        stream: one pickle after another; it must end where the file ends, because lengths in it are trusted.
        encoding: encoding of Python 2's strings.
    """

    memo: dict[int, Any]
    stack: list[Any]
    proto: int

    def __init__(self, stream: BinaryIO, encoding: str = "utf-8") -> None:
        super().__init__(stream, encoding=encoding)
        self._instructions = 0

    def stand_in(self, name: str) -> Any:
        """Stand-in for what a pickle names; an error for a name that is not known."""
        raise ForbiddenNameError(name)

    def set_state(self, target: object, state: object) -> None:
        """Sets the state of a value; only dicts have one, such as the versions of a state dict, and it is ignored."""
        if not isinstance(target, dict):
            raise MalformedPickleError("a pickle that changes an object")

    def load(self) -> Any:
        """Follows the next pickle, and leaves the stream at its end.

        Returns:
            Dicts, lists, tuples, text and numbers, and what the stand-ins made; never one list too often to traverse.

        Raises:
            PickleRefusedError: it is damaged, too large, or names something else; the subclass says which.
        """
        self.memo.clear()
        try:
            value = super().load()
        except PickleRefusedError:
            raise
        except Exception as error:  # damage leads to errors of many types
            raise MalformedPickleError("a damaged pickle") from error
        _check_traversable(value)
        return value

    def find_class(self, module: str, name: str) -> Any:
        """Same as ``stand_in``, in a pickle that begins like one."""
        if not self.proto:
            raise MalformedPickleError("text, or a pickle of protocol 0 or 1")
        return self.stand_in(f"{module}.{name}")

    def count(self, made: int) -> None:
        """Counts instructions and copied items, because one list could be copied a million times."""
        self._instructions += made
        if self._instructions > MAX_INSTRUCTIONS:
            raise OversizedPickleError(f"more than {MAX_INSTRUCTIONS:,} values")

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or not callable(function):
            raise MalformedPickleError("a pickle that calls something other than a function")
        self.count(len(arguments))
        self.stack.append(function(*arguments))

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise MalformedPickleError("a pickle that sets items of something other than a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            check_key(key)
            if key in target:
                raise MalformedPickleError(f"a dict with the key {key!r} twice")
            target[key] = value

    def _build(self) -> None:
        state = self.stack.pop()
        self.set_state(self.stack[-1], state)


def check_key(key: Any) -> None:
    """Checks that hashing a key is cheap: nested tuples take exponential time, and large integers collide."""
    for part in key if isinstance(key, tuple) and len(key) <= _MAX_KEY else (key,):
        if not (
            part is None or isinstance(part, str | bytes | float) or (isinstance(part, int) and abs(part) < 1 << 63)
        ):
            raise MalformedPickleError("a dict with keys that are neither text nor numbers")


def _check_traversable(value: Any) -> None:
    """Checks that a value can be traversed, compared and printed in reasonable time.

    A pickle can repeat one list many times: lists that hold ten times the same list, many levels deep, take a hundred
    bytes and an exponential time to traverse.
    """
    waiting, seen = [(value, 0)], 0
    while waiting:
        held, depth = waiting.pop()
        if isinstance(held, dict):
            held = held.values()
        elif not isinstance(held, list | tuple):
            continue
        seen += len(held)
        if seen > MAX_INSTRUCTIONS or depth > _MAX_DEPTH:
            raise OversizedPickleError("lists nested too deeply or too often")
        waiting += [(each, depth + 1) for each in held]


_FROM_PICKLE = (
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINUNICODE", "SHORT_BINUNICODE"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT"),
    *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "BINPERSID"),
)
"""Instructions of protocol 2 and later for plain values, which are followed as Python does."""


def _instructions() -> dict[int, Callable[[Any], None]]:
    """Steps by the byte of their instruction; any other one refuses the pickle."""

    def refused(name: str) -> Callable[[InertUnpickler], None]:
        def step(unpickler: InertUnpickler) -> None:
            raise MalformedPickleError(f"a pickle with the instruction {name}")

        return step

    def counted(original: Callable[[Any], None]) -> Callable[[InertUnpickler], None]:
        def step(unpickler: InertUnpickler) -> None:
            unpickler.count(1)
            original(unpickler)

        return step

    steps: dict[int, Callable[[Any], None]] = {
        **{getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _FROM_PICKLE},
        pickle.SETITEM[0]: lambda unpickler: unpickler._set_items([unpickler.stack.pop(-2), unpickler.stack.pop()]),
        pickle.SETITEMS[0]: lambda unpickler: unpickler._set_items(unpickler.pop_mark()),
        pickle.BUILD[0]: InertUnpickler._build,
        pickle.REDUCE[0]: InertUnpickler._call,
    }
    return {byte: counted(steps[byte]) if byte in steps else refused(f"{byte:#04x}") for byte in range(256)}


InertUnpickler.dispatch = _instructions()
