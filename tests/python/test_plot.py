# SPDX-License-Identifier: MIT
"""Pictures are written from small reports, say what they show, and warn of nothing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from memslots.commands import cli
from memslots.commands import map as map_command
from memslots.traces import history, vectors

pytest.importorskip("matplotlib", reason="no matplotlib: pip install 'memslots[plot]'")

from matplotlib.figure import Figure

from memslots import plot

PNG = b"\x89PNG\r\n\x1a\n"


def row(case: str, backend: str, n_slots: int | None, ns: float) -> dict[str, Any]:
    tail = {"p50": ns, "p99": 3 * ns, "p999": 40 * ns}
    return {"case": case, "backend": backend, "n_slots": n_slots, "median": ns, **tail}


def report() -> dict[str, Any]:
    """Costs that rise with slots in the array and the list, and stay in the tree and the kernel."""
    results = [row("scenario/boot", name, None, 1000.0) for name in ("tree", "array", "kvm")]
    for n in (8, 509, 32764):
        for case in ("unmap", "change/delete"):
            results += [row(case, "tree", n, 200.0), row(case, "array", n, 2.0 * n)]
            results += [row(case, "idea", n, 9.0 * n)]
        results.append(row("change/delete", "kvm", n, 15000.0))
        for what, batch in (("tree", 60.0), ("array", 60.0), ("tree+index", 20.0)):
            results.append(row("lookup/random/vm", what, n, batch))
            results.append(row("lookup/misses/batch", what, n, batch))
        results.append(row("lookup/misses/batch", "numpy", n, 50.0))
        results.append(row("lookup/random/batch", "bisect", n, 50.0))
    published = {"case": "unmap", "n_slots": 32764, "factor": 110.5}
    not_run = {"case": "unmap", "backend": "list", "n_slots": 32764, "median": None}
    return {"results": [*results, not_run], "published": [published]}


@contextmanager
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures that are written meanwhile."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        yield figures


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(PNG if path.suffix == ".png" else b"<?xml")


PICTURES = {
    "perf_picture": [
        "array costs up to 328\N{MULTIPLICATION SIGN} the tree",
        "8 slots",
        "32,764 slots",
        "real QEMU traces",
        "scenario: boot",
        "multiple of the tree's cost",
        "unmap",
        "change: delete",
        "lookup: random",
        "lookup: misses, batch",
        "tree+index",
        "numpy",
        "kvm",
        "idea",
    ],
    "latency_picture": [
        "One tree operation in 1,000",
        "time of one operation",
        "tree+index",
        "p50",
        "p99.9",
    ],
    "scale_picture": [
        "change/delete grows as",
        "time of one",
        "slots",
        "published 110",
        "array  n",
        "tree+index  n",
    ],
}


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("name", PICTURES)
def test_a_report_becomes_a_picture(
    name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"picture.{suffix}"
    with drawn(monkeypatch) as figures:
        getattr(plot, name)(report(), path)
    assert is_picture(path)
    said = texts(figures[0])
    assert [text for text in PICTURES[name] if text not in said] == []


def test_the_largest_factors_are_named_in_the_title(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with drawn(monkeypatch) as figures:
        plot.perf_picture(report(), tmp_path / "p.png")
    title = figures[0].get_suptitle()
    assert "up to 328" in title
    assert "at 32,764 slots" in title
    assert re.search(r"as little as 0\.08.*at 8 slots", title, re.DOTALL)


def test_a_backend_looks_the_same_in_every_picture_and_like_no_other() -> None:
    from memslots.plot.style import looks

    names = ["kvm", "mine", "tree", "array", "list", "tree+index", "other"]
    found = looks(names)
    assert len(set(found.values())) == len(names)
    assert looks(["tree"])["tree"] == found["tree"]


def test_the_legend_has_the_designs_the_index_the_kernel_and_then_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with drawn(monkeypatch) as figures:
        plot.perf_picture(report(), tmp_path / "p.png")
    (legend,) = figures[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["array", "tree+index", "kvm", "idea", "numpy"]


def test_tails_lie_close_together_where_not_all_backends_took_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unmap has three backends, delete a fourth, lookups two of these and the index."""
    with drawn(monkeypatch) as figures:
        plot.latency_picture(report(), tmp_path / "p.png")
    ax = figures[0].axes[-1]
    cases = [text.get_text() for text in figures[0].axes[0].get_yticklabels()]
    heights = sorted(
        {round(float(line.get_ydata()[0]), 3) for line in ax.lines if line.get_marker() == "|"}
    )
    by_case = {case: [y - i for y in heights if abs(y - i) < 0.5] for i, case in enumerate(cases)}
    step = by_case["change: delete"][1] - by_case["change: delete"][0]
    assert len(by_case["change: delete"]) == 4
    for case in ("unmap", "lookup: random"):
        assert by_case[case] == pytest.approx([-step, 0, step], abs=0.002)


@pytest.mark.parametrize("name", PICTURES)
def test_a_report_without_figures_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to compare|no percentiles|no case"):
        getattr(plot, name)({"results": []}, tmp_path / "p.png")


def test_scale_draws_only_the_cases_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with drawn(monkeypatch) as figures:
        plot.scale_picture(report(), tmp_path / "p.png", ["unmap"])
    visible = [ax for ax in figures[0].axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in visible] == ["unmap"]


def test_the_same_report_gives_the_same_svg(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot.scale_picture(report(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


# ---- memory maps --------------------------------------------------------------------------------


def test_the_map_of_a_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.png"
    with drawn(monkeypatch) as figures:
        assert cli.main(["map", "pc-migrate-boot", "-o", str(path)]) == 0
    assert is_picture(path)
    said = texts(figures[0])
    title = "pc-migrate-boot: 41 changes, never more than 9 slots"
    axes = ["guest physical address", "operations so far", "time since QEMU started"]
    kinds = [*history.KINDS, "0xfffc0000", "that no slot ever has", "12.3 s"]
    counts = [f"{n} \N{MULTIPLICATION SIGN} {kind}" for n, kind in ((22, "create"), (6, "flags"))]
    assert [text for text in (title, *axes, *kinds, *counts) if text not in said] == []


def test_the_map_at_an_operation_names_every_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = vectors.read(map_command.find("pc-migrate-boot"))
    with drawn(monkeypatch) as figures:
        plot.memory_map_picture(file, tmp_path / "map.svg", at=13)
    said = texts(figures[0])
    assert "after 13 of 64 operations: 4 slots" in said
    assert "hole of 3.75 GiB" in said
    for slot in history.slots_at(history.lives(file), 13):
        assert f"slot {slot.id}: " in said


@pytest.mark.parametrize("name", ["q35-ivshmem-bars", "pc-pam-smram"])
def test_long_traces_are_drawn_too(name: str, tmp_path: Path) -> None:
    file = vectors.read(map_command.find(name))
    plot.memory_map_picture(file, tmp_path / "map.png")
    assert is_picture(tmp_path / "map.png")


def test_nothing_to_draw_and_an_unknown_suffix_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["map", "pc-migrate-boot", "--at", "0", "-o", str(tmp_path / "m.png")]) == 2
    assert "no slots to draw" in capsys.readouterr().err
    assert cli.main(["map", "pc-migrate-boot", "-o", str(tmp_path / "m.doc")]) == 2
    assert "not supported" in capsys.readouterr().err
