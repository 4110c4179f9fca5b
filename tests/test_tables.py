"""lab/tables.py: text, Markdown, HTML and CSV."""

import csv

from lab.tables import Table, markdown_table, text_table

TABLE = Table(("title", "x, %"), (("a|b", "1,000"), ("<i>", "")))


def test_a_markdown_table_has_a_rule_with_the_alignments():
    assert markdown_table(["name", "n"], [["a", "1"], ["b|c", ""]], "lr") == (
        "| name | n |\n| --- | ---: |\n| a | 1 |\n| b\\|c |  |"
    )


def test_a_text_table_is_aligned_left_in_the_first_column_and_right_in_the_others():
    assert text_table(["title", "x"], [["a", "1,000"], ["longer", ""]]) == (
        "title       x\na       1,000\nlonger"
    )


def test_a_table_prints_as_text_and_as_markdown():
    assert str(TABLE) == text_table(TABLE.head, TABLE.rows)
    assert TABLE.markdown() == markdown_table(TABLE.head, TABLE.rows, "lr")


def test_a_table_shows_in_a_notebook_with_its_text_escaped():
    shown = TABLE._repr_html_()
    assert shown.count("<tr>") == 3
    assert "<th>title</th><th>x, %</th>" in shown
    assert "<td>&lt;i&gt;</td><td></td>" in shown


def test_a_csv_file_gives_the_cells_back(tmp_path):
    path = TABLE.to_csv(tmp_path / "new" / "table.csv")
    with path.open(newline="", encoding="utf-8") as file:
        assert [tuple(row) for row in csv.reader(file)] == [TABLE.head, *TABLE.rows]
