# SPDX-License-Identifier: MIT
"""Pictures place the figures of their report correctly on the axes, name every series, and have readable text."""

import os
import re
from collections.abc import Callable
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from memslots.commands import cli
from memslots.commands import map as map_command
from memslots.traces import history, vectors

pytest.importorskip("matplotlib", reason="no matplotlib: pip install 'memslots[plot]'")

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from memslots import plot
from memslots.measure import fit, published
from memslots.plot import perf, rows, scale, style
from memslots.plot.addresses import address_text

PNG = b"\x89PNG\r\n\x1a\n"
TIMES = "\N{MULTIPLICATION SIGN}"
SIZES = (8, 64, 509, 4096, 32764)
LONG = "a_design_with_a_very_long_name_and_radix_nodes"


# ---- reports, and pictures of them ----------------------------------------------------------------


def row(case: str, backend: str, n_slots: int | None, ns: float) -> dict[str, Any]:
    tail = {"p50": ns, "p99": 3 * ns, "p999": 40 * ns}
    return {"case": case, "backend": backend, "n_slots": n_slots, "median": ns, **tail}


def report(own: tuple[str, ...] = ("idea",), sizes: tuple[int, ...] = SIZES) -> dict[str, Any]:
    """A report in which costs grow with the slots for array and list, and stay constant for tree and kernel."""
    results = [row("scenario/boot", name, None, 1000.0) for name in ("tree", "array", "kvm")]
    not_run = []
    for n in sizes:
        for case in ("unmap", "change/delete"):
            results += [row(case, "tree", n, 200.0), row(case, "array", n, 2.0 * n)]
            results += [row(case, name, n, (9.0 + 3 * i) * n) for i, name in enumerate(own)]
        results.append(row("change/log off", "tree", n, 10.0))
        results.append(row("change/log off", "array", n, 1e5))
        results.append(row("change/delete", "kvm", n, 15000.0))
        for what, batch in (("tree", 60.0), ("array", 60.0), ("tree+index", 20.0)):
            results.append(row("lookup/random/vm", what, n, batch))
            results.append(row("lookup/misses/batch", what, n, batch))
        results.append(row("lookup/misses/batch", "numpy", n, 50.0))
        if n < 4096:
            results.append(row("change/delete", "list", n, 7.0 * n))
        else:
            cell = {"case": "change/delete", "backend": "list", "n_slots": n}
            not_run.append({**cell, "reason": "filling a VM takes about 9 s"})
    known = {"case": "unmap", "n_slots": 32764, "factor": 110.5}
    return {
        "results": results,
        "published": [known],
        "not_run": not_run,
        "skipped": ["peer bisect: not installed"],
        "clock_ns": 21.0,
    }


def without_kvm(sizes: tuple[int, ...]) -> dict[str, Any]:
    found = report(sizes=sizes)
    found["results"] = [row for row in found["results"] if row["backend"] != "kvm"]
    found["skipped"].append("the real kernel: /dev/kvm: no such file")
    return found


#: Reports on which every picture must be readable.
REPORTS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": report,
    "many designs, long names": lambda: report(("idea", LONG, "skip", "trie", "btree16")),
    "no kvm": lambda: without_kvm((8, 32764)),
    "one number of slots": lambda: report(sizes=(509,)),
}


class Drawn(NamedTuple):
    figure: Figure
    texts: list[tuple[str, Any]]  # each text that was drawn, with its box in dots
    frame: Any  # the box of the figure, in dots


def record(draw: Callable[[Path], Path]) -> Drawn:
    """Lays a picture out as for a file, and records its visible texts."""
    figures: list[Figure] = []
    boxes: dict[Text, Any] = {}
    draw_text = Text.draw

    def keep(figure: Figure, *_: Any, **__: Any) -> None:
        figures.append(figure)
        figure.draw_without_rendering()

    def note(text: Text, renderer: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            boxes[text] = Text.get_window_extent(text, renderer)
        draw_text(text, renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        patch.setattr(Text, "draw", note)
        draw(Path("picture.png"))
    (figure,) = figures
    texts = [(text.get_text(), box) for text, box in boxes.items()]
    return Drawn(figure, texts, figure.bbox.frozen())


@cache
def drawn(name: str, variant: str = "plain") -> Drawn:
    return record(lambda path: getattr(plot, name)(REPORTS[variant](), path))


@cache
def drawn_map(name: str, at: int | None = None) -> Drawn:
    file = vectors.read(map_command.find(name))
    return record(lambda path: plot.memory_map_picture(file, path, at))


def panels(picture: Drawn) -> dict[str, Any]:
    """Title -> axes."""
    axes = [ax for ax in all_axes(picture.figure) if ax.get_visible() and ax.get_title(loc="left")]
    return {ax.get_title(loc="left"): ax for ax in axes}


def all_axes(figure: Any) -> list[Any]:
    return [*figure.axes, *(ax for part in figure.subfigs for ax in part.axes)]


def series(ax: Any, label: str) -> list[Any]:
    return [line for line in ax.lines if line.get_label() == label]


def legend_of(picture: Drawn) -> dict[str, Any]:
    (legend,) = picture.figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    return dict(zip(names, legend.legend_handles, strict=True))


def all_text(picture: Drawn) -> str:
    return " ".join(" ".join(text for text, _ in picture.texts).split())


def find(found: dict[str, Any], case: str, backend: str, n_slots: int | None) -> dict[str, Any]:
    wanted = (case, backend, n_slots)
    (hit,) = (r for r in found["results"] if (r["case"], r["backend"], r["n_slots"]) == wanted)
    return hit


def ratio(case: str, backend: str, n_slots: int | None) -> float:
    found = report()
    return float(
        find(found, case, backend, n_slots)["median"] / find(found, case, "tree", n_slots)["median"]
    )


# ---- every picture --------------------------------------------------------------------------------

REPORT_PICTURES = ("perf_picture", "latency_picture", "scale_picture")


def readable() -> list[Any]:
    """Each picture that must be readable, by name."""
    found = [
        pytest.param(lambda n=name, v=variant: drawn(n, v), id=f"{name}, {variant}")
        for name in REPORT_PICTURES
        for variant in REPORTS
        if (name, variant) != ("scale_picture", "one number of slots")
    ]
    maps = [("pc-migrate-boot", None), ("pc-migrate-boot", 13), ("q35-ivshmem-bars", None)]
    found += [pytest.param(lambda m=m: drawn_map(*m), id=f"map {m}") for m in maps]
    return found


@pytest.mark.parametrize("picture", readable())
def test_no_text_is_outside_the_picture(picture: Callable[[], Drawn]) -> None:
    found = picture()
    frame = found.frame
    outside = [
        text
        for text, box in found.texts
        if box.x0 < -1 or box.y0 < -1 or box.x1 > frame.x1 + 1 or box.y1 > frame.y1 + 1
    ]
    assert len(found.texts) > 10
    assert outside == []


@pytest.mark.parametrize("picture", readable())
def test_no_text_covers_another(picture: Callable[[], Drawn]) -> None:
    """Boxes may overlap a little in height: the box of a text with an exponent is higher than its letters."""
    clashes = []
    for (one, a), (other, b) in combinations(picture().texts, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        if width > 1 and height > 0.3 * min(a.height, b.height):
            clashes.append((one, other))
    assert clashes == []


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("name", REPORT_PICTURES)
def test_picture_has_the_format_of_its_suffix(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{suffix}"
    assert getattr(plot, name)(report(sizes=(8, 32764)), path) == path
    assert path.read_bytes().startswith(PNG if suffix == "png" else b"<?xml")


@pytest.mark.parametrize("name", REPORT_PICTURES)
def test_report_without_figures_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to compare|no percentiles|no case"):
        getattr(plot, name)({"results": []}, tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", REPORT_PICTURES)
def test_picture_names_missing_subjects_and_reasons(name: str) -> None:
    text = all_text(drawn(name, "no kvm"))
    assert "the real kernel: /dev/kvm: no such file" in text
    assert "bisect" not in text
    assert re.search(r"Not run: list, change: delete at .*32,764 slots: filling a VM takes", text)
    assert "kvm has changes only" in all_text(drawn(name))
    assert "kvm has changes only" not in text


@pytest.mark.parametrize("name", REPORT_PICTURES)
def test_wrong_answers_are_named_in_the_picture(name: str) -> None:
    found = report(sizes=(8, 509))
    find(found, "change/delete", "idea", 8)["checked"] = False
    text = all_text(record(lambda path: getattr(plot, name)(found, path)))
    assert "WRONG ANSWERS, so these times mean nothing: idea in change: delete" in text
    assert "WRONG" not in all_text(drawn(name))


def test_same_report_gives_the_same_svg(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot.perf_picture(report(sizes=(8,)), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


# ---- looks ----------------------------------------------------------------------------------------


def test_each_backend_has_its_own_look() -> None:
    assert len({*style.LOOKS.values(), *style.OWN_LOOKS}) == len(style.LOOKS) + len(style.OWN_LOOKS)
    names = [*style.LOOKS, *(f"idea{i}" for i in range(len(style.OWN_LOOKS)))]
    assert len(set(style.looks(names).values())) == len(names)


def test_new_designs_use_no_marker_of_a_known_backend() -> None:
    known = {style.LOOKS[name].marker for name in ("tree", "array", "list", "tree+index", "kvm")}
    assert not known & {look.marker for look in style.OWN_LOOKS}


def test_additional_design_changes_no_look() -> None:
    """The order makes no difference, except that the first of two designs with the same look keeps it."""
    alone = style.looks(["idea"])["idea"]
    firsts = {style.looks([f"d{i}"])[f"d{i}"] for i in range(300)}
    assert len(firsts) == len(style.OWN_LOOKS), "names spread over all looks"
    for i in range(300):
        assert style.looks(["tree", "idea", f"d{i}", "kvm"])["idea"] == alone
    free = [f"d{i}" for i in range(300) if style.looks([f"d{i}"])[f"d{i}"] != alone]
    for name in free:
        assert style.looks(["tree", name, "idea"])["idea"] == alone
    assert len(free) > 200


@pytest.mark.parametrize("name", REPORT_PICTURES)
def test_selection_of_cases_changes_no_look(name: str) -> None:
    """Of two names that hash to one look, the second keeps its other look in a picture without the first."""
    found = report(("idea",))
    same = next(
        f"d{i}"
        for i in range(300)
        if style.looks([f"d{i}"]) == {f"d{i}": style.looks(["idea"])["idea"]}
    )
    found["results"] += [row("lookup/random/vm", same, n, 70.0) for n in SIZES]
    everything = rows.looks_of(found, found["results"])
    lookups = [r for r in found["results"] if r["case"].startswith("lookup")]
    assert rows.looks_of(found, lookups)[same] == everything[same] != everything["idea"]
    picture = record(lambda path: getattr(plot, name)(found, path))
    colors = {to_hex(line.get_color()) for ax in all_axes(picture.figure) for line in ax.lines}
    assert everything[same].color.lower() in colors


# ---- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("p", "p.png"),
        ("p.", "p.png"),
        ("p.svg", "p.svg"),
        ("p.PNG", "p.PNG"),
        ("v1.2/p", "v1.2/p.png"),
    ],
)
def test_returned_path_is_the_written_file(name: str, written: str, tmp_path: Path) -> None:
    (tmp_path / "v1.2").mkdir()
    expected = tmp_path / written
    assert plot.check_picture(tmp_path / name) == expected
    assert not expected.exists()
    assert plot.latency_picture(report(sizes=(8,)), tmp_path / name) == expected
    assert expected.is_file()


def test_map_prints_the_name_of_the_written_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["map", "pc-migrate-boot", "-o", str(tmp_path / "m")]) == 0
    assert capsys.readouterr().out == f"pc-migrate-boot: drawn to {tmp_path / 'm.png'}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("p.doc", ValueError, r"suffix \.doc, use \.png or \.svg: .*supported"),
        ("no/p.png", FileNotFoundError, "there is no folder .*no"),
        ("folder.png", IsADirectoryError, "folder.png"),
        ("file/p.png", FileNotFoundError, "there is no folder"),
        ("/proc/self/p.png", OSError, "p.png"),
        ("fifo.png", OSError, "fifo.png"),
        ("folder.png/", ValueError, "suffix|folder"),
    ],
)
def test_unwritable_name_is_refused_before_drawing(
    name: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo.png")
    before = sorted(tmp_path.rglob("*"))
    if name.endswith("/"):
        error = IsADirectoryError  # pathlib removes the slash
        message = "folder.png"
    with pytest.raises(error, match=message):
        plot.check_picture(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        plot.check_picture(tmp_path / "p.png")


def test_format_that_needs_a_missing_program_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Example: .pgf without LaTeX."""

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("xelatex not found")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(ValueError, match=r"suffix \.pgf, .* xelatex not found"):
        plot.check_picture(tmp_path / "p.pgf")


def test_check_keeps_existing_files_and_links(tmp_path: Path) -> None:
    old, link = tmp_path / "old.png", tmp_path / "link.png"
    old.write_bytes(b"before")
    link.symlink_to(tmp_path / "target.png")
    assert plot.check_picture(old) == old
    assert plot.check_picture(link) == link
    assert old.read_bytes() == b"before"
    assert link.is_symlink()
    assert not link.exists()


# ---- perf -----------------------------------------------------------------------------------------

PERF_PANELS = {"8 slots": 8, "509 slots": 509, "32,764 slots": 32764, "real QEMU traces": None}
PLACES = {
    "unmap": 1,
    "change/delete": 3,
    "change/log off": 4,
    "lookup/random/vm": 6,
}  # 0, 2, 5: headings


def test_columns_are_the_smallest_a_middle_and_the_largest_size() -> None:
    assert list(panels(drawn("perf_picture"))) == list(PERF_PANELS)


def test_rows_are_grouped_below_headings() -> None:
    ax = panels(drawn("perf_picture"))["8 slots"]
    labels = [(t.get_position()[1], t.get_text(), t.get_fontweight()) for t in ax.get_yticklabels()]
    assert labels == [
        (0, "memslot_perf_test", "bold"),
        (1, "unmap", "normal"),
        (2, "changes", "bold"),
        (3, "delete", "normal"),
        (4, "log off", "normal"),
        (5, "lookups", "bold"),
        (6, "random", "normal"),
        (7, "misses, batch", "normal"),
    ]
    low, high = ax.get_ylim()
    assert low > high, "the first row is at the top"


@pytest.mark.parametrize("panel", PERF_PANELS)
def test_factor_1_has_a_tick_and_the_line_of_the_tree(panel: str) -> None:
    ax = panels(drawn("perf_picture"))[panel]
    ticks = dict(zip(ax.get_xticks(), (t.get_text() for t in ax.get_xticklabels()), strict=True))
    assert ticks[1.0] == f"1{TIMES}"
    low, high = ax.get_xlim()
    assert low < 1 < high
    (line,) = (
        line
        for line in ax.lines
        if list(line.get_xdata()) == [1, 1] and to_hex(line.get_color()) == style.BLUE.lower()
    )
    assert ax.get_xscale() == "log"
    assert line.get_zorder() < min(bar.get_zorder() for bar in ax.patches)


@pytest.mark.parametrize("panel", PERF_PANELS)
def test_bar_reaches_from_the_tree_to_the_array(panel: str) -> None:
    n = PERF_PANELS[panel]
    ax = panels(drawn("perf_picture"))[panel]
    wanted = {y: ratio(case, "array", n) for case, y in PLACES.items()} if n else {0: 1.0}
    bars = {round(bar.get_y() + bar.get_height() / 2, 6): bar for bar in ax.patches}
    for y, value in wanted.items():
        assert bars[y].get_x() == 1
        assert bars[y].get_x() + bars[y].get_width() == pytest.approx(value)


@pytest.mark.parametrize("panel", PERF_PANELS)
def test_end_of_a_bar_is_visible_at_factor_1(panel: str) -> None:
    """The stroke at the end is as high as the bar, drawn above the line of the tree, and wider than it."""
    n = PERF_PANELS[panel]
    ax = panels(drawn("perf_picture"))[panel]
    y, value = (PLACES["lookup/random/vm"], 1.0) if n else (0, 1.0)
    (end,) = (
        line
        for line in ax.lines
        if list(line.get_ydata()) == [y - perf.BAR / 2, y + perf.BAR / 2]
        and to_hex(line.get_color()) == style.VERMILLION.lower()
    )
    assert list(end.get_xdata()) == [value, value]
    (base,) = (line for line in ax.lines if list(line.get_xdata()) == [1, 1] and line is not end
               and to_hex(line.get_color()) == style.BLUE.lower())  # fmt: skip
    assert end.get_zorder() > base.get_zorder()
    assert end.get_linewidth() > base.get_linewidth()


@pytest.mark.parametrize("panel", PERF_PANELS)
def test_markers_are_at_their_factors(panel: str) -> None:
    n = PERF_PANELS[panel]
    ax = panels(drawn("perf_picture"))[panel]
    found = {}
    for line in ax.lines:
        if line.get_label() in style.LOOKS or line.get_label() == "idea":
            place = round(float(line.get_ydata()[0]))
            found[line.get_label(), place] = float(line.get_xdata()[0])
            look = rows.looks_of(report(), report()["results"])[line.get_label()]
            assert (to_hex(line.get_color()), line.get_marker()) == (
                look.color.lower(),
                look.marker,
            )
    wanted = {("kvm", 0): 1.0} if n is None else {
        ("idea", 1): ratio("unmap", "idea", n), ("idea", 3): ratio("change/delete", "idea", n),
        ("kvm", 3): 75.0, ("tree+index", 6): 1 / 3, ("tree+index", 7): 1 / 3, ("numpy", 7): 5 / 6,
    }  # fmt: skip
    if n in (8, 509):
        wanted["list", 3] = ratio("change/delete", "list", n)
    assert found == pytest.approx(wanted)


def numbers_left(ax: Any) -> dict[float, str]:
    """Height -> the text at the left edge."""
    notes = [t for t in ax.texts if isinstance(t, Annotation) and t.xycoords != "axes fraction"]
    return {t.xy[1]: t.get_text() for t in notes if t.xy[0] == 0}


def test_numbers_at_the_edges_are_factor_and_time() -> None:
    ax = panels(drawn("perf_picture"))["509 slots"]
    left = numbers_left(ax)
    assert left[PLACES["unmap"]] == f"5.1{TIMES}"
    assert left[PLACES["lookup/random/vm"]] == f"1.0{TIMES}"
    (right,) = ax.child_axes
    times = [t.get_text() for t in right.get_yticklabels()]
    assert dict(zip(right.get_yticks(), times, strict=True))[PLACES["unmap"]] == "200 ns"
    heads = {t.get_text() for t in ax.texts}
    assert {f"array {chr(0xF7)} tree", "tree"} <= heads


def test_legend_names_exactly_the_series() -> None:
    picture = drawn("perf_picture")
    legend = legend_of(picture)
    order = ["array", "list", "idea", "tree+index", "kvm", "numpy"]
    assert list(legend) == [
        f"tree (line at 1{TIMES})",
        *order,
        "hollow, at the right edge: not run",
    ]
    labels = {line.get_label() for ax in all_axes(picture.figure) for line in ax.lines}
    drawn_names = {label for label in labels if not label.startswith("_") and ":" not in label}
    assert drawn_names == set(order) - {"array"}
    assert to_hex(next(iter(legend.values())).get_color()) == style.BLUE.lower()
    assert to_hex(legend["array"].get_facecolor()) == style.VERMILLION.lower()
    for name in drawn_names:
        line = next(li for ax in all_axes(picture.figure) for li in series(ax, name))
        assert legend[name].get_marker() == line.get_marker()
        assert to_hex(legend[name].get_color()) == to_hex(line.get_color())


def test_case_not_run_has_a_hollow_marker_at_the_right_edge() -> None:
    picture = drawn("perf_picture")
    ax = panels(picture)["32,764 slots"]
    (mark,) = series(ax, "list: not run")
    assert mark.get_markerfacecolor() == "none"
    assert mark.get_marker() == style.LOOKS["list"].marker
    assert mark.get_ydata()[0] == PLACES["change/delete"]
    right = ax.transAxes.inverted().transform(
        ax.transData.transform((ratio("change/log off", "array", 8), 0))
    )
    assert right[0] < mark.get_xdata()[0] < 1
    assert not series(panels(picture)["8 slots"], "list: not run")
    assert "hollow, at the right edge: not run" not in legend_of(
        drawn("perf_picture", "one number of slots")
    )


def test_backend_not_run_is_named_in_its_place() -> None:
    found = report()
    gone = find(found, "unmap", "array", 32764)
    found["results"].remove(gone)
    found["not_run"].append(
        {**{k: gone[k] for k in ("case", "backend", "n_slots")}, "reason": "slow"}
    )
    ax = panels(record(lambda path: plot.perf_picture(found, path)))["32,764 slots"]
    left = numbers_left(ax)
    assert left[PLACES["unmap"]] == "not run"


def test_headline_gives_a_delete_and_a_lookup_not_the_extreme() -> None:
    """Log off at 8 slots has the largest factor."""
    title = " ".join(drawn("perf_picture").figure.get_suptitle().split())
    assert ratio("change/log off", "array", 8) == 1e4
    assert title == (
        f"With 32,764 slots the array takes 328{TIMES} as long as the tree for a delete "
        f"and 1.0{TIMES} as long for a random lookup"
    )


@pytest.mark.parametrize(
    ("pattern", "title"),
    [
        ("lookup/random", f"With 32,764 slots the array takes 1.0{TIMES} as long as the tree for a random lookup"),
        ("log off", f'With 32,764 slots the array takes 10000{TIMES} as long as the tree for "change: log off"'),
        ("scenario", f'In real QEMU traces the array takes 1.0{TIMES} as long as the tree for "scenario: boot"'),
    ],
)  # fmt: skip
def test_headline_fits_a_selection_of_cases(pattern: str, title: str) -> None:
    found = report()
    found["results"] = [r for r in found["results"] if pattern in r["case"]]
    picture = record(lambda path: plot.perf_picture(found, path))
    assert " ".join(picture.figure.get_suptitle().split()) == title


def test_overlapping_markers_are_spread_within_their_row() -> None:
    assert perf.lanes([]) == []
    assert perf.lanes([0.5, 0.1, 0.9]) == [0, 0, 0]
    assert perf.lanes([0.51, 0.1, 0.5]) == [perf.LANE / 2, 0, -perf.LANE / 2]
    many = perf.lanes([0.5 + 0.001 * i for i in range(9)])
    assert max(many) - min(many) < perf.LANES
    assert all(b > a for a, b in pairwise(many))


# ---- latency --------------------------------------------------------------------------------------


def test_tails_are_at_their_percentiles() -> None:
    ax = panels(drawn("latency_picture"))["8 slots"]
    kvm = [line for line in ax.lines if to_hex(line.get_color()) == style.BLACK]
    ends, p99, p999, p50 = (list(line.get_xdata()) for line in kvm)
    assert (ends, p99, p999, p50) == ([15e3, 600e3], [45e3], [600e3], [15e3])
    hollow, filled = (line.get_markerfacecolor() for line in kvm[2:])
    assert (hollow, filled) == ("white", style.BLACK)


def test_time_of_the_clock_is_a_band_from_the_left_edge() -> None:
    picture = drawn("latency_picture")
    for ax in panels(picture).values():
        (band,) = ax.patches
        assert band.get_x() == pytest.approx(ax.get_xlim()[0])
        assert band.get_x() + band.get_width() == pytest.approx(21)
        assert ax.get_xlim()[0] < 21
    assert to_hex(legend_of(picture)["the clock's own 21 ns"].get_facecolor()) == style.LIGHT
    assert "Each time includes the 21 ns that the clock itself takes" in all_text(picture)


def test_legend_of_latencies_names_every_backend() -> None:
    names = ["tree", "array", "list", "idea", "tree+index", "kvm"]
    percentiles = ["p50", "p99", "p99.9"]
    assert list(legend_of(drawn("latency_picture"))) == [
        *names,
        *percentiles,
        "the clock's own 21 ns",
    ]


def test_backend_not_run_is_named_in_its_line() -> None:
    picture = drawn("latency_picture")
    ax = panels(picture)["32,764 slots"]
    (text,) = ax.texts
    assert text.get_text() == "list: not run"
    assert to_hex(text.get_color()) == style.GREEN.lower()
    assert not panels(picture)["8 slots"].texts
    listed = panels(picture)["8 slots"].lines
    heights = {
        float(li.get_ydata()[0]) for li in listed if to_hex(li.get_color()) == style.GREEN.lower()
    }
    assert heights == {text.get_position()[1]}


def test_rows_with_fewer_backends_take_less_space() -> None:
    """Unmap has three backends, delete has five, lookups have two of these and the index."""
    picture = drawn("latency_picture")
    ax = panels(picture)["8 slots"]
    cases = [text.get_text() for text in ax.get_yticklabels()]
    heights = sorted(
        {round(float(li.get_ydata()[0]), 3) for li in ax.lines if li.get_marker() == "|"}
    )
    by_case = {case: [y - i for y in heights if abs(y - i) < 0.5] for i, case in enumerate(cases)}
    step = by_case["change: delete"][1] - by_case["change: delete"][0]
    assert len(by_case["change: delete"]) == 5
    for case in ("unmap", "lookup: random"):
        assert by_case[case] == pytest.approx([-step, 0, step], abs=0.002)


def test_title_of_latencies_gives_the_tail_of_a_delete() -> None:
    title = drawn("latency_picture").figure.get_suptitle()
    assert (
        title
        == "With 32,764 slots, 999 of 1,000 times a delete\ntakes no more than 8.0 µs (tree) and 2.6 ms (array)"
    )


# ---- scale ----------------------------------------------------------------------------------------


def test_panels_are_the_known_cases_in_order() -> None:
    assert list(panels(drawn("scale_picture"))) == ["change: delete", "lookup: random", "unmap"]


def test_lines_go_through_the_medians_of_the_report() -> None:
    ax = panels(drawn("scale_picture"))["change: delete"]
    for name in ("tree", "array", "list", "kvm", "idea"):
        (line,) = series(ax, name)
        sizes = [n for n in SIZES if name != "list" or n < 4096]
        assert list(line.get_xdata()) == sizes
        wanted = [find(report(), "change/delete", name, n)["median"] for n in sizes]
        assert list(line.get_ydata()) == wanted
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_filled_markers_are_the_points_of_the_fit() -> None:
    """The printed exponent is that of these points."""
    ax = panels(drawn("scale_picture"))["change: delete"]
    (line,) = series(ax, "array")
    (filled,) = series(ax, "array, fitted")
    assert line.get_markerfacecolor() == "white"
    assert list(filled.get_xdata()) == [509, 4096, 32764]
    assert filled.get_markerfacecolor() == style.VERMILLION
    exponent = fit.exponent(list(filled.get_xdata()), list(filled.get_ydata()))
    assert exponent == pytest.approx(1.0)
    assert "array  n$^{1.00}$" in [text.get_text() for text in ax.texts]
    assert "hollow markers (fewer slots) are left out of the fit" in all_text(
        drawn("scale_picture")
    )


@pytest.mark.parametrize("variant", ["plain", "no kvm"])
def test_ticks_are_the_powers_of_ten_in_every_panel(variant: str) -> None:
    for ax in panels(drawn("scale_picture", variant)).values():
        for ticks, (low, high) in (
            (ax.get_xticks(), ax.get_xlim()),
            (ax.get_yticks(), ax.get_ylim()),
        ):
            exponents = np.log10(ticks)
            assert exponents == pytest.approx(np.round(exponents))
            assert list(np.diff(np.round(exponents))) == [1] * (len(ticks) - 1)
            assert sum(low <= tick <= high for tick in ticks) >= 2


def test_panels_side_by_side_share_their_scale() -> None:
    found = panels(drawn("scale_picture"))
    assert found["change: delete"].get_ylim() == found["lookup: random"].get_ylim()


def test_label_is_connected_to_the_end_of_its_line() -> None:
    for ax in panels(drawn("scale_picture")).values():
        ends = {
            line.get_label(): (line.get_xdata()[-1], line.get_ydata()[-1])
            for line in ax.lines
            if not line.get_label().startswith("_") and "," not in line.get_label()
        }
        labels = {t.get_text().split("  ")[0]: t for t in ax.texts if "  " in t.get_text()}
        assert labels.keys() == ends.keys()
        for name, label in labels.items():
            assert label.xy == ends[name]
            assert label.arrow_patch is not None
            (line,) = series(ax, name)
            assert label.get_color() == line.get_color()


def test_arrow_ends_at_the_published_factor() -> None:
    ax = panels(drawn("scale_picture"))["unmap"]
    (arrow,) = (t for t in ax.texts if isinstance(t, Annotation) and not t.get_text())
    assert arrow.xyann == (32764, 200.0)
    assert arrow.xy == (32764, pytest.approx(200.0 * 110.5))
    texts = {t.get_text(): t for t in ax.texts}
    label = texts[f"published 110{TIMES}, here 328{TIMES}"]
    assert label.xy == arrow.xy
    for other in ("change: delete", "lookup: random"):
        assert not any(
            "published" in t.get_text() for t in panels(drawn("scale_picture"))[other].texts
        )


def test_source_of_the_published_factors_is_named() -> None:
    assert published.SOURCE in all_text(drawn("scale_picture"))
    without = report()
    without["published"] = []
    assert "Arrow:" not in all_text(record(lambda path: plot.scale_picture(without, path)))


def test_title_of_scale_gives_the_growth_of_a_delete() -> None:
    title = drawn("scale_picture").figure.get_suptitle()
    assert (
        title
        == "With n slots the time of a delete grows as n$^{0.00}$ (tree) and n$^{1.00}$ (array)"
    )


def test_close_heights_are_moved_apart() -> None:
    assert scale.apart([0.1, 0.5], 0.1) == [0.1, 0.5]
    assert scale.apart([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.5, 0.6, 0.7])
    assert scale.apart([0.9, 0.95, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (13, 75, [20, 50]),
        (13, 40, [20]),
        (21, 49, [30, 40]),
        (52, 58, [55]),
        (0.011, 0.019, [0.014]),
        (0.2, 0.9, [0.2, 0.5]),
    ],
)
def test_axis_without_a_power_of_ten_has_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert rows.decades(low, high) == pytest.approx(ticks)
    ax = Figure().subplots()
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    rows.log_axis(ax.xaxis, rows.decades(low, high), rows.tick_time)
    assert list(ax.xaxis.get_majorticklocs()) == pytest.approx(ticks)
    assert list(ax.xaxis.get_minorticklocs()) == []


def test_decades_include_1_and_are_evenly_spaced() -> None:
    assert rows.decades(8, 1200) == pytest.approx([10, 100, 1000])
    assert rows.decades(0.004, 2e6, 3) == pytest.approx([1, 1000, 1e6])
    for low in (0.001, 0.02, 0.3):
        for high in (2, 70, 5000):
            for most in (1, 2, 3, 9):
                found = rows.decades(low, high, most)
                assert 1 in found
                assert len(found) <= max(most, 1) + 1
                assert all(low <= tick <= high for tick in found)


# ---- memory maps ----------------------------------------------------------------------------------


def test_map_of_a_boot_has_title_rows_and_slots() -> None:
    said = all_text(drawn_map("pc-migrate-boot"))
    title = "pc-migrate-boot: 41 changes, never more than 9 slots"
    axes = ["guest physical address (not to scale)", "operations so far", "time since QEMU started"]
    kinds = [*history.KINDS, "0xfffc0000", "that no slot ever has", "12.3 s"]
    counts = [f"{n} {TIMES} {kind}" for n, kind in ((22, "create"), (6, "flags"))]
    assert [text for text in (title, *axes, *kinds, *counts) if text not in said] == []
    assert "Addresses are not to scale" in said


@pytest.mark.parametrize("at", [None, 13])
def test_map_uses_one_word_for_read_only(at: int | None) -> None:
    said = all_text(drawn_map("pc-migrate-boot", at))
    assert "256 KiB READONLY" in said or "256 KiB, READONLY" in said
    assert "ROM" not in said


def test_similar_addresses_are_printed_with_their_size() -> None:
    said = all_text(drawn_map("pc-migrate-boot"))
    assert "0x10000000 (256 MiB)" in said
    assert "0x100000000 (4 GiB)" in said
    assert address_text(0) == "0x0"
    assert address_text(0xA0000) == "0xa0000 (640 KiB)"
    assert address_text(45 << 28) == "0x2d0000000 (11.25 GiB)"
    assert address_text(0xFEBF0000) == "0xfebf0000", "4173760 KiB says nothing"
    assert address_text(1) == "0x1"


def small_file(folder: Path) -> vectors.VectorFile:
    """A create, a refused create, a create without effect, a move, a flag change, a log, a delete, and a lookup."""

    def set_op(gpa: int, size: int, flags: int = 0, ret: Any = 0) -> dict[str, Any]:
        numbers = {"slot": 0, "flags": flags, "gpa": hex(gpa), "size": hex(size)}
        return {"op": "set", **numbers, "hva": "arena+0x0", "ret": ret}

    page = 0x1000
    ops = [
        set_op(0, page),
        set_op(page + 1, page, ret="EINVAL"),
        set_op(0, page),
        set_op(4 * page, page),
        set_op(4 * page, page, flags=1),
        {"op": "get_dirty", "slot": 0, "ret": 0, "out": {"bytes": 8, "dirty": []}},
        {"op": "get_dirty", "slot": 7, "ret": "ENOENT"},
        set_op(4 * page, 0),
        {"op": "create_vcpu", "ret": 0},
    ]
    path = folder / "small.jsonl"
    vectors.write(path, {"scope": "memslots", "name": "small"}, ops)
    return vectors.read(str(path))


def strokes(picture: Drawn) -> dict[str, list[int]]:
    """Label of the row -> operation numbers."""
    ax = picture.figure.axes[-1]
    labels = [text.get_text() for text in ax.get_yticklabels()]
    found = {}
    for collection in ax.collections:
        segments = collection.get_segments()
        y = round(float(np.mean(segments[0][:, 1])))
        found[labels[y]] = [int(segment[0, 0]) for segment in segments]
    return found


def test_each_operation_of_a_file_has_one_stroke(tmp_path: Path) -> None:
    file = small_file(tmp_path)
    found = strokes(record(lambda path: plot.memory_map_picture(file, path)))
    assert found == {
        f"1 {TIMES} create": [1],
        f"1 {TIMES} delete": [8],
        f"1 {TIMES} move": [4],
        f"1 {TIMES} flags": [5],
        f"1 {TIMES} dirty log": [6],
        f"2 {TIMES} refused": [2, 7],
        f"2 {TIMES} no effect on slots": [3, 9],
    }


@pytest.mark.parametrize(("name", "ops"), [("pc-migrate-boot", 64), ("q35-ivshmem-bars", 7590)])
def test_trace_has_as_many_strokes_as_operations(name: str, ops: int) -> None:
    found = strokes(drawn_map(name))
    assert sorted(n for numbers in found.values() for n in numbers) == list(range(1, ops + 1))
    assert [int(label.split()[0].replace(",", "")) for label in found] == list(
        map(len, found.values())
    )


def test_each_box_spans_the_life_of_a_slot() -> None:
    file = vectors.read(map_command.find("pc-migrate-boot"))
    lives = history.lives(file)
    ax = drawn_map("pc-migrate-boot").figure.axes[0]
    legend = legend_of(drawn_map("pc-migrate-boot"))
    height = {text.get_text().split()[0]: text.get_position()[1] for text in ax.get_yticklabels()}
    boxes: list[tuple[float, float, str]] = []
    for collection in ax.collections:
        color = to_hex(collection.get_facecolor()[0])
        kind = next(
            (k for k, patch in legend.items() if to_hex(patch.get_facecolor()) == color), ""
        )
        for path in collection.get_paths() if kind else ():
            (left, bottom), (right, top) = path.vertices.min(axis=0), path.vertices.max(axis=0)
            assert top > bottom
            boxes.append((left, right, kind))
            (life,) = (n for n in lives if (n.begin, n.end) == (left, right))
            assert bottom == pytest.approx(height.get(f"{life.gpa:#x}", bottom))
            assert top == pytest.approx(height.get(f"{life.end_gpa:#x}", top))
    assert sorted(boxes) == sorted((n.begin, n.end, n.kind) for n in lives)


def test_map_at_an_operation_names_every_slot() -> None:
    file = vectors.read(map_command.find("pc-migrate-boot"))
    said = all_text(drawn_map("pc-migrate-boot", 13))
    assert "after 13 of 64 operations: 4 slots" in said
    assert "hole of 3.75 GiB" in said
    for slot in history.slots_at(history.lives(file), 13):
        assert f"slot {slot.id}: " in said


def test_long_trace_is_drawn(tmp_path: Path) -> None:
    file = vectors.read(map_command.find("pc-pam-smram"))
    assert plot.memory_map_picture(file, tmp_path / "map.png").read_bytes().startswith(PNG)


def test_nothing_to_draw_and_unknown_suffix_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["map", "pc-migrate-boot", "--at", "0", "-o", str(tmp_path / "m.png")]) == 2
    assert "no slots to draw" in capsys.readouterr().err
    assert cli.main(["map", "pc-migrate-boot", "-o", str(tmp_path / "m.doc")]) == 2
    assert "no picture with the suffix .doc, use .png or .svg" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
