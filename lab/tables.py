"""Tables of text: for a terminal, a notebook, Markdown, and CSV."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.files import write_whole


@dataclass(frozen=True, repr=False)
class Table:
    """A table of text, which shows as one in a terminal and in a notebook. The first column names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        return text_table(self.head, self.rows)

    def markdown(self) -> str:
        """The table in Markdown."""
        return markdown_table(self.head, self.rows, "l" + "r" * (len(self.head) - 1))

    def _repr_html_(self) -> str:
        def line(tag: str, cells: Iterable[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line("td", row) for row in self.rows)
        return f"<table><thead>{line('th', self.head)}</thead><tbody>{body}</tbody></table>"

    def to_csv(self, path: str | Path) -> Path:
        """Write the table as CSV, in UTF-8; an existing file is replaced whole or not at all."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.head, *self.rows])
        return write_whole(path, text.getvalue().encode())


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], alignments: str) -> str:
    """A Markdown table. alignments: "l" or "r" for each column."""
    rule = [{"l": "---", "r": "---:"}[letter] for letter in alignments]
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (head, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:]))


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in plain text: the first column aligned left, the others right."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )
