# SPDX-License-Identifier: MIT
"""The geometry of the pictures: both axes, directions, the order of rows and series, and each number at its place.

The reports here have no two equal figures, so an exchange of two rows, columns, series or axes moves something.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="no matplotlib: pip install 'memslots[plot]'")

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from test_plot import Drawn, all_axes, all_text, legend_of, numbers_left, panels, record, series

from memslots import plot
from memslots.measure import duel
from memslots.plot import addresses, latency, perf, rows, scale, style
from memslots.traces import history
from memslots.traces.vectors import Op, VectorFile

TIMES = "\N{MULTIPLICATION SIGN}"
BACKENDS = ("tree", "array", "list", "tree+index", "kvm")
CASES = (
    "unmap",
    "slot setup",
    "change/delete",
    "change/log off",
    "lookup/hot/vm",
    "lookup/random/vm",
)
SIZES = (8, 64, 4096)


def figure_of(case: int, backend: int, size: int) -> float:
    """A time that no other cell has; the tree is neither the fastest nor the slowest."""
    return float((120, 37, 900, 55, 2500)[backend] * (case + 1) + 7 * size * backend)


@cache
def report() -> dict[str, Any]:
    results = []
    for c, name in enumerate(CASES):
        for s, n in enumerate(SIZES):
            for b, backend in enumerate(BACKENDS):
                if backend == "kvm" and name.startswith("lookup"):
                    continue
                ns = figure_of(c, b, s)
                tail = {"p50": ns * 1.5, "p99": ns * 3.25, "p999": ns * 21, "group": 1}
                results.append(
                    {"case": name, "backend": backend, "n_slots": n, "median": ns, **tail}
                )
    published = [
        {"case": "unmap", "n_slots": 8, "factor": 3.0},
        {"case": "unmap", "n_slots": 64, "factor": 7.0},
        {"case": "unmap", "n_slots": 32764, "factor": 99.0},  # not measured here
        {"case": "slot setup", "n_slots": 4096, "factor": 0.25},
    ]
    return {
        "results": results,
        "published": published,
        "not_run": [],
        "skipped": [],
        "clock_ns": 30.0,
    }


def find(case: str, backend: str, n: int) -> dict[str, Any]:
    (hit,) = (
        r
        for r in report()["results"]
        if (r["case"], r["backend"], r["n_slots"]) == (case, backend, n)
    )
    return hit  # type: ignore[no-any-return]


def has(case: str, backend: str) -> bool:
    return backend != "kvm" or not case.startswith("lookup")


@cache
def drawn(name: str) -> Drawn:
    return record(lambda path: getattr(plot, name)(report(), path))


def x_of(line: Any) -> list[float]:
    return [float(x) for x in line.get_xdata()]


def y_of(line: Any) -> list[float]:
    return [float(y) for y in line.get_ydata()]


def color_of(line: Any) -> str:
    return str(to_hex(line.get_color())).lower()


def look_of(name: str) -> tuple[str, str]:
    return style.LOOKS[name].color.lower(), style.LOOKS[name].marker


# ---- costs --------------------------------------------------------------------------------------


def places() -> dict[str, float]:
    """case -> height, by the labels of the picture."""
    ax = next(iter(panels(drawn("perf_picture")).values()))
    texts = {t.get_text(): float(t.get_position()[1]) for t in ax.get_yticklabels()}
    names = {"delete": "change/delete", "log off": "change/log off"}
    names |= {"hot": "lookup/hot/vm", "random": "lookup/random/vm"}
    return {names.get(text, text): y for text, y in texts.items()}


def test_rows_of_costs_are_in_the_order_of_the_report_from_the_top() -> None:
    order = [
        "memslot_perf_test", "unmap", "slot setup", "changes", "change/delete", "change/log off",
        "lookups", "lookup/hot/vm", "lookup/random/vm",
    ]  # fmt: skip
    assert places() == {name: float(y) for y, name in enumerate(order)}
    for ax in panels(drawn("perf_picture")).values():
        bottom, top = ax.get_ylim()
        assert bottom > 8 > 0 > top


def test_columns_of_costs_are_sizes_in_ascending_order() -> None:
    found = panels(drawn("perf_picture"))
    assert list(found) == ["8 slots", "64 slots", "4,096 slots"]
    lefts = [ax.get_position().x0 for ax in found.values()]
    assert lefts == sorted(lefts)
    assert len({ax.get_xlim() for ax in found.values()}) == 1
    (part,) = drawn("perf_picture").figure.subfigs
    assert part.get_supxlabel() == "time as a multiple of the tree's"


@pytest.mark.parametrize("n", SIZES)
def test_bars_markers_and_numbers_are_those_of_their_cell(n: int) -> None:
    ax = panels(drawn("perf_picture"))[f"{n:,} slots"]
    bars = {bar.get_y() + bar.get_height() / 2: bar for bar in ax.patches}
    numbers = numbers_left(ax)
    (right,) = ax.child_axes
    times = dict(
        zip(right.get_yticks(), (t.get_text() for t in right.get_yticklabels()), strict=True)
    )
    for name in CASES:
        y, tree = places()[name], find(name, "tree", n)["median"]
        factor = find(name, "array", n)["median"] / tree
        bar = bars[y]
        assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx((1, factor))
        assert bar.get_height() == pytest.approx(perf.BAR)
        assert numbers[y] == rows.factor_text(factor)
        assert times[y] == rows.time_text(tree)
        for other in ("list", "tree+index", "kvm"):
            marks = [m for m in series(ax, other) if abs(y_of(m)[0] - y) < 0.5]
            assert len(marks) == has(name, other)
            for mark in marks:
                assert x_of(mark) == [pytest.approx(find(name, other, n)["median"] / tree)]
                assert (color_of(mark), mark.get_marker()) == look_of(other)
    assert len(bars) == len(CASES)


def test_bar_of_a_faster_array_points_to_the_left() -> None:
    ax = panels(drawn("perf_picture"))["8 slots"]
    low, high = ax.get_xlim()
    assert low < 1 < high
    assert min(bar.get_width() for bar in ax.patches) < 0
    ticks = ax.get_xticks()
    assert list(ticks) == sorted(ticks)


def test_numbers_of_a_faster_array_are_below_1() -> None:
    assert [rows.factor_text(f) for f in (0.25, 0.994, 0.996, 1.04, 9.94, 9.96, 110.5)] == [
        f"{t}{TIMES}" for t in ("0.25", "0.99", "1.0", "1.0", "9.9", "10", "110")
    ]


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0.4, "0 ns"), (999.4, "999 ns"), (999.6, "1.0 µs"), (9940, "9.9 µs"), (9960, "10 µs"),
     (1.5e6, "1.5 ms"), (2.5e9, "2.5 s"), (5e12, "5000 s")],
)  # fmt: skip
def test_time_text(ns: float, text: str) -> None:
    assert rows.time_text(ns) == text


def test_columns_are_chosen_from_many_sizes() -> None:
    def one(n: int) -> Any:
        return {name: {"tree": {"n_slots": n}} for name in ("a", "b", "c")}

    sizes = {n: one(n) for n in (2, 8, 64, 509, 4096)}
    sizes[300] = {"map": {"tree": {"n_slots": 300}}}
    found = perf._columns(dict(sorted(sizes.items())))
    assert list(found) == [2, 64, 4096]
    assert list(found[4096]) == ["map", "a", "b", "c"]
    assert [cases["a"]["tree"]["n_slots"] for cases in found.values()] == [2, 64, 4096]


# ---- latencies ----------------------------------------------------------------------------------


def tails() -> list[str]:
    return [name for name in CASES if name in latency.LATENCY_CASES]


def test_columns_of_latencies_are_the_fewest_and_the_most_slots() -> None:
    found = panels(drawn("latency_picture"))
    assert list(found) == ["8 slots", "4,096 slots"]
    left, right = (ax.get_position().x0 for ax in found.values())
    assert left < right
    for ax in found.values():
        assert ax.get_xlabel() == "time of one operation (logarithmic)"
        assert ax.get_xscale() == "log"
        bottom, top = ax.get_ylim()
        assert (bottom, top) == (len(tails()) - 0.5, -0.5)
    first = next(iter(found.values()))
    assert [t.get_text() for t in first.get_yticklabels()] == [rows.label(name) for name in tails()]
    assert list(first.get_yticks()) == list(range(len(tails())))


@pytest.mark.parametrize("n", [8, 4096])
def test_each_tail_is_drawn_in_its_row_at_its_percentiles(n: int) -> None:
    """From the top: one line for each backend; a line from p50 to p99.9, a stroke at p99, filled p50, hollow p99.9."""
    ax = panels(drawn("latency_picture"))[f"{n:,} slots"]
    for y, name in enumerate(tails()):
        heights = []
        for backend in (b for b in BACKENDS if has(name, b)):
            row, (color, mark) = find(name, backend, n), look_of(backend)
            lines = [li for li in ax.lines if color_of(li) == color and abs(y_of(li)[0] - y) < 0.5]
            (ends,) = (li for li in lines if len(x_of(li)) == 2)
            (stroke,) = (li for li in lines if li.get_marker() == "|")
            points = {li.get_markerfacecolor(): li for li in lines if li.get_marker() == mark}
            assert x_of(ends) == [row["p50"], row["p999"]]
            assert y_of(ends)[0] == y_of(ends)[1]
            assert x_of(stroke) == [row["p99"]]
            assert x_of(points["white"]) == [row["p999"]]
            assert x_of(points[style.LOOKS[backend].color]) == [row["p50"]]
            assert {y_of(li)[0] for li in lines} == {y_of(ends)[0]}
            heights.append(y_of(ends)[0])
        assert heights == sorted(heights)
        assert len(set(heights)) == len(heights)
        assert np.mean(heights) == pytest.approx(y)


def test_legend_of_latencies_shows_the_marks_of_the_picture() -> None:
    legend = legend_of(drawn("latency_picture"))
    for name in BACKENDS:
        assert (color_of(legend[name]), legend[name].get_marker()) == look_of(name)
    assert legend["p50"].get_markerfacecolor() == style.GREY
    assert legend["p99"].get_marker() == "|"
    assert legend["p99.9"].get_markerfacecolor() == "white"


def test_range_of_latencies_contains_every_time() -> None:
    for ax in panels(drawn("latency_picture")).values():
        low, high = ax.get_xlim()
        times = [x for line in ax.lines if color_of(line) != style.LIGHT for x in x_of(line)]
        assert low < min(times) <= max(times) < high


def test_title_of_latencies_is_that_of_the_most_slots() -> None:
    tree, array = (
        rows.time_text(find("change/delete", b, 4096)["p999"]) for b in ("tree", "array")
    )
    assert drawn("latency_picture").figure.get_suptitle() == (
        "With 4,096 slots, 999 of 1,000 times a delete\n"
        f"takes no more than {tree} (tree) and {array} (array)"
    )


# ---- growth -------------------------------------------------------------------------------------


def grown() -> list[str]:
    return [name for name in scale.CASES if name in CASES]


def test_panels_of_growth_are_in_order_row_by_row() -> None:
    found = panels(drawn("scale_picture"))
    titles = [rows.label(n) + (", per slot" if n == "slot setup" else "") for n in grown()]
    assert list(found) == titles
    spots = [ax.get_position() for ax in found.values()]
    order = sorted(range(len(spots)), key=lambda i: (-round(spots[i].y0, 3), spots[i].x0))
    assert order == list(range(len(spots)))
    lowest = list(found.values())[-scale.COLUMNS :]
    assert [ax.get_xlabel() for ax in lowest] == ["slots", "slots"]
    assert drawn("scale_picture").figure.get_supylabel() == "time of one operation"
    hidden = [ax for ax in drawn("scale_picture").figure.axes if not ax.get_visible()]
    assert len(hidden) == len(found) % 2


def test_each_line_of_growth_has_the_points_of_its_cells() -> None:
    """Slots on the horizontal axis, times on the vertical one; both rise away from the corner."""
    for name, ax in zip(grown(), panels(drawn("scale_picture")).values(), strict=True):
        for backend in (b for b in BACKENDS if has(name, b)):
            (line,) = series(ax, backend)
            assert x_of(line) == list(SIZES)
            assert y_of(line) == [find(name, backend, n)["median"] for n in SIZES]
            assert (color_of(line), line.get_marker()) == look_of(backend)
            (filled,) = series(ax, f"{backend}, fitted")
            assert (x_of(filled), y_of(filled)) == (x_of(line), y_of(line))  # three sizes: all
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        assert left < 8 < 4096 < right
        assert bottom < min(y for li in ax.lines for y in y_of(li))
        assert top > max(y for li in ax.lines for y in y_of(li))


def arrows(ax: Any) -> list[Any]:
    return [t for t in ax.texts if isinstance(t, Annotation) and not t.get_text()]


@pytest.mark.parametrize(("case", "n", "factor"), [("unmap", 64, 7.0), ("slot setup", 4096, 0.25)])
def test_arrow_points_from_the_tree_to_the_published_factor(
    case: str, n: int, factor: float
) -> None:
    """At the largest published size that was measured here; down where the published array is faster."""
    ax = panels(drawn("scale_picture"))[rows.label(case) + ", per slot" * (case == "slot setup")]
    (arrow,) = arrows(ax)
    tree, array = (find(case, name, n)["median"] for name in ("tree", "array"))
    assert arrow.xyann == (n, tree)
    assert arrow.xy == (n, pytest.approx(tree * factor))
    assert arrow.arrow_patch.get_arrowstyle().arrow == "-|>"
    texts = [t.get_text() for t in ax.texts]
    assert f"published {rows.factor_text(factor)}, here {rows.factor_text(array / tree)}" in texts
    low, high = ax.get_ylim()
    assert low < tree * factor < high


def test_labels_of_growth_have_the_order_of_the_ends_of_their_lines() -> None:
    for ax in panels(drawn("scale_picture")).values():
        labels = [t for t in ax.texts if t.get_text()]
        by_end = sorted(labels, key=lambda t: t.xy[1])
        heights = [t.xyann[1] for t in by_end]
        assert heights == sorted(heights)
        assert {t.xyann[0] for t in labels} == {1.04}


@pytest.mark.parametrize(
    ("n", "text"),
    [(1, "1"), (999, "999"), (1000, "1k"), (32_000, "32k"), (1e6, "1M"), (2.5e6, "2.5M")],
)
def test_count_at_the_axis(n: float, text: str) -> None:
    assert scale._short_count(n) == text


@pytest.mark.parametrize(
    ("ns", "text"), [(1, "1 ns"), (10, "10 ns"), (1e3, "1 µs"), (1e6, "1 ms"), (0.1, "0.1 ns")]
)
def test_time_at_the_axis(ns: float, text: str) -> None:
    assert rows.tick_time(ns) == text


def test_size_axis_is_labelled_at_powers_of_ten() -> None:
    ax = list(panels(drawn("scale_picture")).values())[-1]
    ticks = dict(zip(ax.get_xticks(), (t.get_text() for t in ax.get_xticklabels()), strict=True))
    assert ticks == {10.0: "10", 100.0: "100", 1000.0: "1k"}


def test_ticks_between_powers_of_ten_are_their_multiples() -> None:
    ax = Figure().subplots()
    ax.set_xscale("log")
    ax.set_xlim(1, 100)
    rows.log_axis(ax.xaxis, [1.0, 10.0, 100.0], rows.tick_time)
    between = sorted({round(x, 6) for x in ax.xaxis.get_minorticklocs() if 1 <= x <= 100})
    assert between == [*range(2, 10), *range(20, 100, 10)]


# ---- memory maps --------------------------------------------------------------------------------

PAGE = 4096


def changes() -> Iterator[dict[str, Any]]:
    """Slot 0 is RAM from op 1 to op 4; slot 1 is READONLY from op 2 to the end; slot 2 is above a hole."""
    for slot, flags, gpa, pages, t in (
        (0, 0, 0, 2, 0), (1, 2, 4 * PAGE, 4, 1_000_000), (2, 1, 1 << 20, 16, 1_100_000),
        (0, 0, 0, 0, 9_000_000), (2, 0, 1 << 20, 16, 9_100_000), (3, 0, 2 * PAGE, 1, 9_200_000),
    ):  # fmt: skip
        yield {"op": "set", "slot": slot, "flags": flags, "gpa": hex(gpa), "size": hex(pages * PAGE),
               "hva": f"arena+{slot}", "ret": 0, "t_us": t}  # fmt: skip


@cache
def file() -> VectorFile:
    ops = [Op(i, "set", op) for i, op in enumerate(changes(), 2)]
    return VectorFile(
        "small.jsonl", {"scope": "memslots", "name": "small", "about": "three slots"}, ops
    )


@cache
def drawn_map(at: int | None = None) -> Drawn:
    return record(lambda path: plot.memory_map_picture(file(), path, at))


def boxes(ax: Any) -> dict[str, list[tuple[float, float, float, float]]]:
    """Colour -> left, bottom, right, top of each box."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for collection in ax.collections:
        for path in collection.get_paths():
            (left, bottom), (right, top) = path.vertices.min(axis=0), path.vertices.max(axis=0)
            color = str(to_hex(collection.get_facecolor()[0])).lower()
            found.setdefault(color, []).append((left, bottom, right, top))
    return {color: sorted(all_of) for color, all_of in found.items()}


def test_scale_of_addresses_rises_with_the_size_and_cuts_holes() -> None:
    lives = history.lives(file())
    made = addresses.Scale(lives)
    assert made.edges == [0, 2 * PAGE, 3 * PAGE, 4 * PAGE, 8 * PAGE, 1 << 20, (1 << 20) + 16 * PAGE]
    assert [(made.edges[i], made.edges[i + 1]) for i in made.holes] == [
        (3 * PAGE, 4 * PAGE), (8 * PAGE, 1 << 20),
    ]  # fmt: skip
    heights = [made(b) - made(a) for a, b in zip(made.edges, made.edges[1:], strict=False)]
    d = addresses.DOUBLING
    slots = [1 + d, 1.0, 1 + 2 * d, 1 + 4 * d]
    hole = addresses.HOLE_SHARE * sum(slots)
    assert heights == pytest.approx([slots[0], slots[1], hole, slots[2], hole, slots[3]])
    assert made(0) == 0
    assert made.top == pytest.approx(sum(heights))


def test_boxes_span_operations_and_addresses() -> None:
    ax = drawn_map().figure.axes[0]
    made = addresses.Scale(history.lives(file()))
    kinds = dict(zip(history.KINDS, addresses.KIND_COLORS.values(), strict=True))
    found = boxes(ax)
    ram = [
        (1, made(0), 4, made(2 * PAGE)),
        (5, made(1 << 20), 7, made.top),
        (6, made(2 * PAGE), 7, made(3 * PAGE)),
    ]
    assert found[kinds["RAM"].lower()] == [pytest.approx(box) for box in ram]
    assert found[kinds["READONLY"].lower()] == [
        pytest.approx((2, made(4 * PAGE), 7, made(8 * PAGE)))
    ]
    assert found[kinds["RAM, logged"].lower()] == [pytest.approx((3, made(1 << 20), 5, made.top))]
    assert found[style.LIGHT] == [
        pytest.approx((0, made(3 * PAGE), 7, made(4 * PAGE))),
        pytest.approx((0, made(8 * PAGE), 7, made(1 << 20))),
    ]
    assert ax.get_xlim() == (0, 7)
    assert ax.get_ylim() == (0, pytest.approx(made.top))
    assert ax.get_ylabel() == "guest physical address\n(not to scale)"


def test_addresses_are_at_their_heights() -> None:
    ax = drawn_map().figure.axes[0]
    made = addresses.Scale(history.lives(file()))
    ticks = dict(zip((t.get_text() for t in ax.get_yticklabels()), ax.get_yticks(), strict=True))
    for gpa in (0, 4 * PAGE, (1 << 20) + 16 * PAGE):
        assert ticks[addresses.address_text(gpa)] == pytest.approx(made(gpa))
    assert list(ticks.values()) == sorted(ticks.values())


def test_pauses_are_marked_at_their_operations() -> None:
    """Before operation 4 there is a pause of 7.9 s, and before operation 2 one of 1 s; others are shorter."""
    ax = drawn_map().figure.axes[0]
    (top,) = ax.child_axes
    marks = dict(zip(top.get_xticks(), (t.get_text() for t in top.get_xticklabels()), strict=True))
    assert marks == {4: "9.0 s", 2: "1.0 s"}
    assert sorted(x_of(line)[0] for line in ax.lines) == [2, 4]


def test_kinds_of_operations_are_rows_from_the_top() -> None:
    ax = drawn_map().figure.axes[-1]
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == [f"1 {TIMES} flags", f"1 {TIMES} delete", f"4 {TIMES} create"]
    low, high = ax.get_ylim()
    assert low < 0 < 2 < high
    assert ax.get_xlabel() == "operations so far"


def test_legend_of_a_map_has_its_kinds() -> None:
    legend = legend_of(drawn_map())
    assert list(legend) == ["RAM", "RAM, logged", "READONLY"]
    for kind, patch in legend.items():
        assert to_hex(patch.get_facecolor()).lower() == addresses.KIND_COLORS[kind].lower()
        assert patch.get_hatch() == addresses.KIND_HATCHES[kind]


def test_title_of_a_map_counts_changes_and_slots() -> None:
    title = drawn_map().figure.get_suptitle()
    assert title == "small: 6 changes, never more than 3 slots at a time"
    assert "three slots" in all_text(drawn_map())


def test_map_at_an_operation_has_each_slot_in_its_row() -> None:
    ax = drawn_map(3).figure.axes[0]
    texts = {t.get_text(): t.get_position()[1] for t in ax.texts}
    assert sorted(texts, key=lambda text: texts[text]) == [
        "slot 0: 8 KiB, RAM, at arena+0",
        "hole of 8 KiB",
        "slot 1: 16 KiB, READONLY, at arena+1",
        "hole of 992 KiB",
        "slot 2: 64 KiB, RAM, logged, at arena+2",
    ]
    rows_of = [box for color, all_of in boxes(ax).items() for box in all_of]
    for y in texts.values():
        (box,) = (b for b in rows_of if b[1] < y < b[3])
        assert y == pytest.approx((box[1] + box[3]) / 2)
    assert drawn_map(3).figure.get_suptitle() == "small after 3 of 6 operations: 3 slots"


# ---- the page -----------------------------------------------------------------------------------


def test_order_of_backends_is_the_same_in_tables_and_pictures() -> None:
    names = ["numpy", "kvm", "idea", "tree+index", "list", "array", "tree"]
    found = rows.backends_of({"backend": name} for name in names)
    assert found == ["tree", "array", "list", "idea", "tree+index", "kvm", "numpy"]
    assert duel.DESIGNS == ("tree", "array", "list")


def test_pages_have_one_width_and_the_notes_below() -> None:
    for name in ("perf_picture", "latency_picture", "scale_picture"):
        picture = drawn(name)
        assert picture.figure.get_figwidth() == style.WIDTH
        lowest = min(ax.get_position().y0 for ax in all_axes(picture.figure) if ax.get_visible())
        (notes,) = (
            t
            for t in picture.figure.texts
            if "logarithm" in t.get_text() or "clock" in t.get_text()
        )
        assert notes.get_position()[1] < lowest
