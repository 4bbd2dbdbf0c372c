# SPDX-License-Identifier: MIT
"""memslots map: its slots are those of an engine that plays the file; text, JSON and errors."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from memslots.commands import cli
from memslots.commands import map as map_command
from memslots.traces import history, player, vectors

MIB = 1 << 20


def set_op(slot: int, gpa: int, size: int, flags: int = 0, **more: Any) -> dict[str, Any]:
    numbers = {"slot": slot, "flags": flags, "gpa": hex(gpa), "size": hex(size)}
    return {"op": "set", **numbers, "hva": f"arena+{slot * MIB:#x}", "ret": 0, **more}


#: A boot in seven operations: create, create, refused, log on, no change, move, delete.
OPS = [
    set_op(0, 0, MIB),
    set_op(1, 4 * MIB, MIB, flags=2),
    set_op(2, 0, MIB, ret="EEXIST"),
    set_op(0, 0, MIB, flags=1),
    set_op(0, 0, MIB, flags=1),
    set_op(1, 8 * MIB, MIB, flags=2),
    set_op(0, 0, 0),
]


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "small.jsonl"
    vectors.write(path, {"scope": "memslots", "name": "small"}, OPS)
    return str(path)


def test_life_of_a_slot_ends_with_its_next_change(path: str) -> None:
    lives = history.lives(vectors.read(path))
    shown = [(life.id, life.gpa, life.kind, life.begin, life.end) for life in lives]
    assert shown == [
        (0, 0, "RAM", 1, 4),
        (1, 4 * MIB, "READONLY", 2, 6),
        (0, 0, "RAM, logged", 4, 7),
        (1, 8 * MIB, "READONLY", 6, 8),
    ]
    assert history.most_slots(lives) == 2


@pytest.mark.parametrize("name", ["pc-migrate-boot", "pc-dimm-migrate", "q35-dimm-hotplug-63"])
def test_map_has_the_slots_of_the_engine(name: str) -> None:
    file = vectors.read(map_command.find(name))
    lives = history.lives(file)
    for n in (len(file.ops) // 2, len(file.ops)):
        part = file._replace(ops=file.ops[:n])
        with closing(player.open_backend("tree", file.header)) as vm:
            player.play(part, vm)
            held = [(s.id, s.gpa, s.size, int(s.flags)) for s in vm.memslots()]
        shown = history.slots_at(lives, n)
        assert [(s.id, s.gpa, s.size, s.flags) for s in shown] == held


def test_text_lists_slots_and_holes(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["map", path, "--at", "4"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == "small after 4 of 7 operations: 2 slots, 2 MiB"
    assert [" ".join(row.split()) for row in rows] == [
        "0x000000..0x100000 1 MiB slot 0 RAM, logged at arena+0x0",
        "3 MiB hole",
        "0x400000..0x500000 1 MiB slot 1 READONLY at arena+0x100000",
    ]


def test_json_output_accepts_a_packaged_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["map", "pc-migrate-boot", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["ops"], shown["at"]) == ("pc-migrate-boot", 64, 64)
    assert (shown["changes"], shown["most_slots"], len(shown["slots"])) == (41, 9, 9)
    assert shown["slots"][0]["gpa"] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing"], "missing: no such file, and no packaged trace has this name"),
        (["pc-migrate-boot", "--at", "65"], "--at 65: the file has 64 operations"),
        (["pc-migrate-boot", "--at", "-1"], "--at -1"),
        ([__file__], "not JSON"),
    ],
)
def test_impossible_request_is_an_error_with_a_reason(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["map", *arguments]) == 2
    assert reason in capsys.readouterr().err
