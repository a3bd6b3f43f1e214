"""Tracebacks as text, with the frames of the strategy's own code."""

from __future__ import annotations

import os
import traceback

from .sources import is_own

# Of a longer traceback only the end is kept. A person reads less than this.
TRACEBACK_BYTES_MAX = 32 * 1024
_HEADER = "Traceback (most recent call last):\n"


def traceback_of(error: BaseException) -> str:
    """The last 32 KiB of the traceback as text: only frames of the strategy's own code.

    With TRELLIS_TRACEBACK=1 it has all frames, and the exceptions that caused this one.
    """
    if os.environ.get("TRELLIS_TRACEBACK", "0") != "0":
        lines = traceback.format_exception(error)
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if is_own(frame.filename)]
        # a SyntaxError has no frame; format_exception_only shows its place
        lines = [_HEADER, *traceback.format_list(own), *traceback.format_exception_only(error)]
    return printable("".join(lines)).encode()[-TRACEBACK_BYTES_MAX:].decode(errors="ignore")


def printable(told: str) -> str:
    """Text that UTF-8 can encode. A file name that is not UTF-8 has lone surrogates in Python."""
    return told.encode(errors="backslashreplace").decode()


def frames_of(text: str) -> str:
    """The frames of a traceback, without its first line and the message at its end."""
    lines = text.splitlines()
    # the message may have an indented line as well: its hint
    last = max((i for i, line in enumerate(lines) if line.startswith(("  File ", "    "))), default=-1)
    return "".join(f"{line}\n" for line in lines[: last + 1] if line != _HEADER.strip())
