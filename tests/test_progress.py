"""lab/progress.py: where progress is shown."""

import io
import sys

from lab.progress import progress_stream


class OutStream(io.StringIO):
    """Named as that of a notebook's kernel."""


OutStream.__module__ = "ipykernel.iostream"


def test_progress_goes_to_standard_error_and_in_a_notebook_to_standard_output(monkeypatch):
    assert progress_stream() is sys.stderr
    monkeypatch.setattr(sys, "stderr", OutStream())
    assert progress_stream() is sys.stdout
    monkeypatch.setattr(sys, "stderr", None)  # a program without a console
    assert progress_stream() is None
