"""Where progress is shown."""

from __future__ import annotations

import sys
from typing import TextIO


def progress_stream() -> TextIO | None:
    """Standard error; in a notebook standard output, since it shows the other as an error. May be None."""
    if type(sys.stderr).__module__.partition(".")[0] == "ipykernel":
        return sys.stdout
    return sys.stderr
