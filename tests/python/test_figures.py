# SPDX-License-Identifier: MIT
"""The figures of the documentation are derived from a recorded run; another figure, text or record is noticed."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkout import needs_tools, tool

pytest.importorskip("tabulate", reason="no tabulate: the extra perf has it")
pytestmark = needs_tools


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tool with a page, a record and a list below tmp_path."""
    module = tool("figures")
    module.medians.cache_clear()
    rows = [
        ("RW", "tree", 8, 1330.0),
        ("RW", "array", 8, 85_000.0),
        ("a b/c", "tree+index", 509, 3.16),
    ]
    results = [{"case": c, "backend": b, "n_slots": n, "median": m} for c, b, n, m in rows]
    (tmp_path / "record.json").write_text(json.dumps({"results": results}))
    (tmp_path / "page.md").write_text("A | 1.33 us | 63.9 |\nwith the\nindex 3.16\nns, 1.33 us.\n")
    (tmp_path / "list.toml").write_text("""
record = "."
file = "record.json"
[[text]]
page = "page.md"
text = "| {time} | {factor} |"
time = "RW tree 8"
factor = "RW array/tree 8"
[[text]]
page = "page.md"
text = "with the index {index}, {time}."
index = "a b/c tree+index 509"
time = "RW tree 8"
""")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "LIST", tmp_path / "list.toml")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def test_derived_figures_are_those_of_the_page(
    figures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figures.main(["check"]) == 0
    assert capsys.readouterr().out == "figures: 4 derived, 0 different, 0 without a source\n"


@pytest.mark.parametrize(
    ("old", "new"), [("1.33 us |", "1.34 us |"), ("| 63.9 |", "| 64.0 |"), ("3.16\nns", "3.16\nus")]
)
def test_each_other_figure_is_noticed_and_written(
    figures: Any, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = figures.ROOT / "page.md"
    right = page.read_text()
    page.write_text(right.replace(old, new))
    assert figures.main(["check"]) == 1
    assert "4 derived, 1 different" in capsys.readouterr().out
    assert figures.main(["write"]) == 0
    assert page.read_text().split() == right.split()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("with the", "without an"), "has this text 0 times, not once"),
        (("A | ", "A | 1.33 us | 63.9 | B | "), "has this text 2 times, not once"),
    ],
)
def test_changed_text_is_noticed(
    figures: Any, change: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = figures.ROOT / "page.md"
    page.write_text(page.read_text().replace(*change))
    assert figures.main(["check"]) == 1
    assert message in capsys.readouterr().err


def test_missing_row_is_named(figures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    listed = figures.LIST.read_text()
    figures.LIST.write_text(listed.replace("RW tree 8", "RW tree 9", 1))
    assert figures.main(["check"]) == 1
    assert "there is no row RW, tree, 9 slots" in capsys.readouterr().err


def is_noticed_and_written(
    figures: Any, page: str, right: str, wrong: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page with one wrong place fails, the message names the page and the place, and the place is written again."""
    file = figures.ROOT / page
    file.write_text(wrong)
    assert figures.main(["check"]) == 1
    out = capsys.readouterr().out
    assert f"figures: {page}: {shown}" in out
    assert "1 different" in out
    assert figures.main(["write"]) == 0
    assert file.read_text() == right


# ---- tables ----------------------------------------------------------------------------------------------------

RECORDED = """kernel 6.18; microseconds
| change   |   engine | kernel    |
|----------|----------|-----------|
| create   |        1 | 21 (98)   |
| move     |        1 | 25 (73)   |
| trade    |        2 |           |
"""
PAGE = """A page.

| other | engine |
|---|---|
| move | 7 |

| change | engine | kernel |
|---|---|---|
| create | 1 | 21 (98) |
| move | 1 | 25 (73) |
| trade | 2 | |

The end.
"""


@pytest.fixture
def with_table(figures: Any) -> Any:
    """The tool with a second page, whose table is that of a recorded file."""
    (figures.ROOT / "mirrored.txt").write_text(RECORDED)
    (figures.ROOT / "table.md").write_text(PAGE)
    listed = figures.LIST.read_text()
    figures.LIST.write_text(f'{listed}[[table]]\npage = "table.md"\nfile = "mirrored.txt"\n')
    return figures


def test_table_of_a_page_is_that_of_its_file(
    with_table: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert with_table.main(["check"]) == 0
    assert capsys.readouterr().out == "figures: 7 derived, 0 different, 0 without a source\n"


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("25 (73)", "25 (74)", "| move | 1 | 25 (74) | -> | move | 1 | 25 (73) | (mirrored.txt)"),
        ("| trade | 2 | |", "| trade | 2 | 3 |", "| trade | 2 | 3 | -> | trade | 2 | |"),
        ("| create | 1 | 21 (98) |\n", "", "nothing -> | create | 1 | 21 (98) |"),
        ("| trade | 2 | |\n", "", "nothing -> | trade | 2 | |"),
        ("| move | 1 |", "| more | 1 | 2 |\n| move | 1 |", "| more | 1 | 2 | -> nothing"),
        (PAGE[PAGE.index("| create") : PAGE.index("\nThe end")], "", "nothing -> | create | 1 |"),
    ],
)
def test_each_other_row_of_a_table_is_noticed_and_written(
    with_table: Any, old: str, new: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert PAGE.count(old) == 1
    is_noticed_and_written(with_table, "table.md", PAGE, PAGE.replace(old, new), shown, capsys)


def test_page_shows_the_listed_rows_in_their_order(with_table: Any) -> None:
    with with_table.LIST.open("a") as listed:
        listed.write('rows = ["trade", "create"]\n')
    assert with_table.main(["check"]) == 1
    assert with_table.main(["write"]) == 0
    rows = "| trade | 2 | |\n| create | 1 | 21 (98) |\n\nThe end."
    assert f"|---|---|---|\n{rows}" in (with_table.ROOT / "table.md").read_text()
    assert with_table.main(["check"]) == 0


TWO_TABLES = f"""| change |
|---|
| 7 |

{RECORDED}
"""
HEADER = 'header = "| change | engine | kernel |"\n'


def test_file_with_more_tables_needs_a_header(
    with_table: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (with_table.ROOT / "mirrored.txt").write_text(TWO_TABLES)
    assert with_table.main(["check"]) == 1
    assert "has 2 tables, not one" in capsys.readouterr().err
    with with_table.LIST.open("a") as listed:
        listed.write(HEADER)
    assert with_table.main(["check"]) == 0
    page = with_table.ROOT / "table.md"
    page.write_text(PAGE.replace("21 (98)", "22 (98)"))
    assert with_table.main(["check"]) == 1
    assert with_table.main(["write"]) == 0
    assert page.read_text() == PAGE


@pytest.mark.parametrize(
    ("recorded", "header", "message"),
    [
        (
            TWO_TABLES,
            "| change | engine |",
            "0 tables with the header | change | engine |, not one",
        ),
        (
            RECORDED + RECORDED,
            "| change | engine | kernel |",
            "2 tables with the header | change |",
        ),
    ],
)
def test_header_that_does_not_name_one_table_is_refused(
    with_table: Any, recorded: str, header: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (with_table.ROOT / "mirrored.txt").write_text(recorded)
    with with_table.LIST.open("a") as listed:
        listed.write(f'header = "{header}"\n')
    assert with_table.main(["check"]) == 1
    assert message in capsys.readouterr().err


def test_row_can_be_named_by_its_first_cells(
    with_table: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = with_table.ROOT / "mirrored.txt"
    recorded.write_text(RECORDED.replace("| trade    |        2", "| move     |        2"))
    listed = with_table.LIST.read_text()
    with_table.LIST.write_text(listed + 'rows = ["move"]\n')
    assert with_table.main(["check"]) == 1
    assert "has the row move 2 times, not once" in capsys.readouterr().err
    with_table.LIST.write_text(listed + 'rows = ["move | 2", "create"]\n')
    assert with_table.main(["write"]) == 0
    rows = "| move | 2 | |\n| create | 1 | 21 (98) |\n\nThe end."
    assert f"|---|---|---|\n{rows}" in (with_table.ROOT / "table.md").read_text()


def test_page_can_show_the_rows_with_some_last_cell(with_table: Any) -> None:
    """Also if no row has it, and later one has it again."""
    page = with_table.ROOT / "table.md"
    listed = with_table.LIST.read_text()
    head = "|---|---|---|\n"
    for last, rows in (
        ("2", "| create | 1 | 21 (98) |\n| move | 1 | 25 (73) |\n"),
        ("21", "| create | 1 | 21 (98) |\n"),
        ("not", ""),
        ("25 (73)", "| move | 1 | 25 (73) |\n"),
    ):
        with_table.LIST.write_text(f'{listed}last = "{last}"\n')
        assert with_table.main(["check"]) == 1
        assert with_table.main(["write"]) == 0
        assert f"{head}{rows}\nThe end." in page.read_text()
        assert with_table.main(["check"]) == 0


RECORD = "date\tchange\tengine\tkernel\n29\tcreate\t1\t21\n29\tmove\t12345\t\n"


@pytest.fixture
def with_tabs(with_table: Any) -> Any:
    """The table of the page is a part of a record with tabs, in a folder of docs/results."""
    (with_table.ROOT / "results" / "runs").mkdir(parents=True)
    (with_table.ROOT / "results" / "runs" / "record.tsv").write_text(RECORD)
    listed = with_table.LIST.read_text().replace("mirrored.txt", "runs/record.tsv")
    with_table.LIST.write_text(f'{listed}columns = ["change", "engine", "kernel"]\n')
    return with_table


def test_page_shows_columns_of_a_record_with_tabs(with_tabs: Any) -> None:
    assert with_tabs.main(["write"]) == 0
    rows = "| create | 1 | 21 |\n| move | 12,345 | |\n\nThe end."
    assert f"|---|---|---|\n{rows}" in (with_tabs.ROOT / "table.md").read_text()
    assert with_tabs.main(["check"]) == 0


def test_missing_column_is_named(with_tabs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with_tabs.LIST.write_text(with_tabs.LIST.read_text().replace('"kernel"', '"KVM"'))
    assert with_tabs.main(["check"]) == 1
    assert "has no column KVM; it has date, change, engine, kernel" in capsys.readouterr().err


NOT_MEASURED = "mirrored: NOT measured: no /dev/kvm"


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("mirrored.txt", lambda _: NOT_MEASURED, f"0 tables, not one; it begins: {NOT_MEASURED!r}"),
        ("mirrored.txt", lambda _: None, "mirrored.txt; docs/results/README.md has the command"),
        ("table.md", lambda text: text.replace(" kernel", " KVM"), "header 0 times, not once: | change"),
        ("table.md", lambda text: text + text, "header 2 times, not once: | change | engine | kernel |"),
        ("list.toml", lambda text: f'{text}rows = ["split"]', "the row split 0 times, not once"),
    ],
    ids=["not measured", "no file", "no header", "header twice", "no row"],
)  # fmt: skip
def test_missing_file_table_or_row_is_named(
    with_table: Any, file: str, edit: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_table.ROOT / file
    text = edit(path.read_text())
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    for command in ("check", "write"):
        assert with_table.main([command]) == 1
        assert message in capsys.readouterr().err


# ---- other files, and links to the record ----------------------------------------------------------------------


@pytest.fixture
def with_files(figures: Any) -> Any:
    """The tool with a third page: sentences of goals.json and callgrind.json, and a link to the record."""
    rows = [
        ("P1", "a / b", "8 slots", 35.75),
        ("P1", "a / b", "4,096 slots", 143.4),
        ("P1", "c / b", "8 slots", 0.5),
    ]
    keys = ("goal", "what", "at", "value")
    goals = [dict(zip(keys, row, strict=True)) for row in rows]
    counts = [{"case": "hot", "slots": n, "instructions": 60.6 * n} for n in (1, 64)]
    record = figures.ROOT / "results" / "some-1"
    record.mkdir(parents=True)
    (record / "record.json").write_bytes((figures.ROOT / "record.json").read_bytes())
    (record / "goals.json").write_text(json.dumps({"figures": goals}))
    (record / "callgrind.json").write_text(json.dumps({"results": counts}))
    (figures.ROOT / "files.md").write_text(FILES)
    listed = figures.LIST.read_text().replace('record = "."', 'record = "results/some-1"')
    figures.LIST.write_text(listed + LISTED)
    tool("goal_figures").figures_of.cache_clear()
    return figures


FILES = """It takes 36 times, and 36 to 143 times as long.
Hot: 61 and
3,878. See [goals](results/some-1/goals.json).
"""
LISTED = """
[[text]]
page = "files.md"
file = "goals.json"
text = "takes {one} times, and {least} to {most} times"
one = "P1 | a / b | 8 slots"
least = "least P1 | a / b"
most = "most P1 | a / b"
[[text]]
page = "files.md"
file = "callgrind.json"
text = "Hot: {one} and {many}."
one = "hot | 1"
many = "hot | 64"
[[link]]
page = "files.md"
text = "[goals](results/{record}/goals.json)"
"""


def test_figures_of_other_files_are_those_of_the_page(
    with_files: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert with_files.main(["check"]) == 0, capsys.readouterr()
    assert capsys.readouterr().out == "figures: 10 derived, 0 different, 0 without a source\n"


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("takes 36", "takes 35", "35 -> 36 (P1 | a / b | 8 slots)"),
        ("and 36", "and 0.50", "0.50 -> 36 (least P1 | a / b)"),
        ("to 143", "to 144", "144 -> 143 (most P1 | a / b)"),
        ("Hot: 61", "Hot: 60", "60 -> 61 (hot | 1)"),
        ("3,878", "3878", "3878 -> 3,878 (hot | 64)"),
        ("results/some-1", "results/some-0", "some-0 -> some-1 (record)"),
    ],
)
def test_each_other_figure_or_link_is_noticed_and_written(
    with_files: Any, old: str, new: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert FILES.count(old) == 1
    is_noticed_and_written(with_files, "files.md", FILES, FILES.replace(old, new), shown, capsys)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a / b | 8 slots", "a / b | 9 slots", "no figure P1 | a / b | 9 slots"),
        ('"least P1 | a / b"', '"least P1 | a / c"', "no figure least P1 | a / c"),
        ("hot | 64", "hot | 65", "there is no lookup hot | 65"),
    ],
)
def test_missing_figure_of_another_file_is_named(
    with_files: Any, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = with_files.LIST.read_text()
    assert listed.count(old) == 1
    with_files.LIST.write_text(listed.replace(old, new))
    assert with_files.main(["write"]) == 1
    assert message in capsys.readouterr().err


# ---- the documentation -----------------------------------------------------------------------------------------


def test_figures_of_the_documentation_are_derived_again(capsys: pytest.CaptureFixture[str]) -> None:
    module = tool("figures")
    module.medians.cache_clear()
    assert module.main(["check"]) == 0, capsys.readouterr().out
