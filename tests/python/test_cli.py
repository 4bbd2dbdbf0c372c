# SPDX-License-Identifier: MIT
"""The command line: exit codes, outputs that fail, Ctrl-C, narrow terminals, unknown names, missing libraries."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from checkout import ROOT, needs_tools

import memslots
from memslots.commands import arguments as command_arguments
from memslots.commands import cli, deliver, files, perf, scale, terminal
from memslots.lab import progress, subjects
from memslots.report import perf as report_perf
from memslots.report import scale as report_scale
from memslots.report import tables, words

COMMANDS = Path(__file__).parents[2] / "docs" / "commands.md"

#: The shortest measurement with tables.
PERF = ["perf", "--quick", "--only", "unmap", "--slots", "8", "--rounds", "1", "--no-kvm"]
SCALE = [
    "scale",
    "--quick",
    "--only",
    "change/move",
    "--max-slots",
    "600",
    "--rounds",
    "1",
    "--no-kvm",
]
MAP = ["map", "pc-migrate-boot"]

#: Each command with each of its outputs.
OUTPUTS = {
    f"{command[0]} {option}": [*command, option]
    for command, options in (
        (PERF, ("-o", "--picture")),
        (SCALE, ("-o", "--picture")),
        (MAP, ("-o",)),
    )
    for option in options
}
each_output = pytest.mark.parametrize("command", OUTPUTS.values(), ids=OUTPUTS)


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "memslots", *arguments],
        **{"capture_output": True, "text": True, "timeout": 120, "check": False, **more},
    )


def without_progress(err: str) -> str:
    """The text without the lines that a process prints on a busy machine."""
    return re.sub(r"memslots: \d+ of \d+ turns after \d+ s\n", "", err)


def assert_message(err: str, *parts: str) -> None:
    assert "Traceback" not in err
    for part in parts:
        assert part in err


@pytest.fixture
def no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self: Any) -> None:
        pytest.fail("the command measures")

    monkeypatch.setattr(perf._Lab, "measure", measure)


# ---- help, version, unknown names -----------------------------------------------------------------


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    alone = capsys.readouterr()
    assert cli.main(["--help"]) == 0
    assert alone == capsys.readouterr()
    assert "perf" in alone.out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"memslots {memslots.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["perf", "--only", "unmpa"], ["did you mean unmap?", "lookup/random/batch", "change/log on"]),
        (["perf", "--only", "xyz"], ["'xyz'", "slot setup"]),
        (["perf", "--only", "misess"], ["did you mean lookup/misses/vm"]),
        (["scale", "--only", "setup/loda"], ["did you mean setup/load?", "lookup/hva/vm"]),
        (["scale", "--only", "unmap", "--max-slots", "8"], ["no case for these numbers of slots"]),
        (["replay", "--backend", "trees", "pc-migrate-boot"], ["did you mean tree?", "array", "kvm"]),
        (["replay", "pc-migrte-boot"], ["did you mean pc-migrate-boot", "q35-ovmf-pflash"]),
        (["map", "pc-migrte-boot"], ["did you mean pc-migrate-boot", "q35-ovmf-pflash"]),
        (["map", "a/b.jsonl"], ["a/b.jsonl: No such file or directory"]),
        (["perf", "--slots", "8,many"], ["'many' is not a number from 2 to 32,764"]),
        (["perf", "--seed", "-1"], ["'-1' is not a number from 0 to"]),
        (["scale", "--max-slots", "99999999999"], ["'99999999999' is not a number from 1 to"]),
        (["pref"], ["'pref'", "perf"]),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("no_measurement")
def test_message_about_a_bad_value_names_the_valid_ones(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert_message(capsys.readouterr().err, *parts)


@pytest.mark.parametrize(
    ("n", "noun", "text"),
    [
        (0, "file", "0 files"),
        (1, "file", "1 file"),
        (1, "mismatch", "1 mismatch"),
        (2000, "mismatch", "2,000 mismatches"),
    ],
)
def test_plural_follows_the_number(n: int, noun: str, text: str) -> None:
    assert words.plural(n, noun) == text


# ---- documented command lines ---------------------------------------------------------------------


def documented() -> list[str]:
    """The command lines of the documents, the Makefile and the help.  A synopsis with [ ] is none."""
    found = [command.example for command in cli._COMMANDS.values()]
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("Makefile")):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        names = "|".join(cli._COMMANDS)
        found += re.findall(rf"(?:\$ |`|^|/)(memslots (?:{names})\b[^`\n#|>]*)", text, re.MULTILINE)
    lines = (line.replace("$(ARGS)", "").replace("...", "").strip() for line in found)
    return sorted({line for line in lines if not set(line) & set("[]\\<")})


@needs_tools
def test_documents_have_command_lines() -> None:
    assert len(documented()) >= 12
    assert {line.split()[1] for line in documented()} == set(cli._COMMANDS)


@needs_tools
@pytest.mark.parametrize("line", documented() if (ROOT / "docs").is_dir() else [])
def test_documented_command_line_is_accepted(line: str) -> None:
    argv = shlex.split(line.replace(" idea ", " tree "))[1:]  # idea: the reader's own design
    if argv[0] in ("import", "map", "replay") and argv[1:] in ([], ["--backend", "kvm"]):
        argv.append("FILE")  # a sentence that names a command without its file
    args = cli._parser(argv).parse_args(argv)
    assert callable(args.run)


# ---- exit codes with a closed pipe --------------------------------------------------------------------


class Closed(io.StringIO):
    """A stdout whose reader has ended."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def made_report(wrong: bool) -> Any:
    found = [{"case": "unmap", "backend": "tree", "n_slots": 8, "what": "off by one"}]
    return {"wrong": found * wrong, "results": []}


@pytest.mark.parametrize("json_wanted", [False, True])
@pytest.mark.parametrize(
    ("wrong", "full_disk", "code"),
    [(False, False, 141), (True, False, 1), (False, True, 2), (True, True, 2)],
)
def test_exit_code_with_a_closed_pipe(
    json_wanted: bool,
    wrong: bool,
    full_disk: bool,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Files are written in spite of it; a wrong answer and a file that cannot be written are more important."""
    path = tmp_path / ("no folder/a.json" if full_disk else "a.json")
    args = argparse.Namespace(json=json_wanted, output=path)
    monkeypatch.setattr(terminal, "discard_stdout", lambda: None)
    monkeypatch.setattr(sys, "stdout", Closed())
    report = made_report(wrong)

    def deliver_it() -> int:
        return deliver.deliver(report, args, lambda *_: "a table", [])

    if code == terminal.EXIT_PIPE:
        with pytest.raises(BrokenPipeError) as caught:
            deliver_it()
        assert caught.value.filename is None
    else:
        assert deliver_it() == code
    assert path.exists() == (not full_disk)
    said = capsys.readouterr().err
    assert ("WRONG: unmap, tree at 8 slots: off by one" in said) == wrong
    assert ("No such file or directory" in said) == full_disk


@pytest.mark.parametrize(
    ("wrong", "full_disk", "code"),
    [(False, False, 0), (True, False, 1), (False, True, 2), (True, True, 2)],
)
def test_exit_code_of_a_report(
    wrong: bool, full_disk: bool, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ("no folder/a.json" if full_disk else "a.json")
    args = argparse.Namespace(json=False, output=path)
    assert deliver.deliver(made_report(wrong), args, lambda *_: "a table", []) == code
    assert capsys.readouterr().out == "a table\n"
    if not full_disk:
        assert json.loads(path.read_text()) == made_report(wrong)


def test_closed_pipe_of_a_replay_with_a_mismatch() -> None:
    """The command reports the closed pipe, and no error of its own."""
    path = Path(__file__).parents[1] / "hostile" / "both.jsonl"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = run("replay", str(path), stdout=pipe, stderr=subprocess.PIPE, capture_output=False)
    assert (done.returncode, "Traceback" in done.stderr) == (terminal.EXIT_PIPE, False)


def test_exit_codes_have_their_numbers() -> None:
    codes = {name: value for name, value in vars(terminal).items() if name.startswith("EXIT_")}
    assert codes == {
        "EXIT_OK": 0, "EXIT_FOUND": 1, "EXIT_USAGE": 2, "EXIT_INTERRUPTED": 130, "EXIT_PIPE": 141,
    }  # fmt: skip


# ---- the arguments of a measurement -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "name", "slots", "turns"),
    [
        ([], "middle", (8, 509, 32_764), 5),
        (["--quick"], "quick", (8, 509, 32_764), 3),
        (["--full"], "full", (2, 8, 64, 509, 4096, 32_764), 21),
        (["--quick", "--slots", "600,8,600", "--rounds", "7"], "quick", (8, 600), 7),
    ],
)
def test_arguments_choose_the_amount_of_work(
    more: list[str], name: str, slots: tuple[int, ...], turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Lab:
        cells: ClassVar[list[Any]] = []
        names = ("unmap",)

        def __init__(self, mode: Any, *more: Any) -> None:
            seen.extend([mode, *more])

    monkeypatch.setattr(perf, "_Lab", Lab)
    assert cli.main(["perf", *more, "--no-kvm", "--only", "unmap", "--seed", "9"]) == 2
    mode, backends, seed, pattern, largest = seen
    assert (mode.name, mode.slots, mode.rounds) == (name, slots, turns)
    assert (
        mode.budget == {"quick": perf.QUICK, "middle": perf.MIDDLE, "full": perf.FULL}[name].budget
    )
    assert (seed, pattern, largest) == (9, "unmap", 600 if "--slots" in more else None)
    assert "kvm" not in backends


def test_sizes_of_a_sweep_end_at_the_requested_one() -> None:
    assert scale.sizes_up_to(509) == (8, 32, 128, 509)
    assert scale.sizes_up_to(600) == (8, 32, 128, 509, 600)
    assert scale.sizes_up_to(5) == (5,)
    assert scale.sizes_up_to(1_000_000) == scale.SIZES


@pytest.mark.parametrize(
    ("text", "first", "last", "ok"),
    [("2", 2, 8, True), ("8", 2, 8, True), ("1", 2, 8, False), ("9", 2, 8, False), ("2.0", 2, 8, False)],
)  # fmt: skip
def test_number_is_between_its_limits(text: str, first: int, last: int, ok: bool) -> None:
    if ok:
        assert command_arguments.number(text, first, last) == int(text)
    else:
        with pytest.raises(
            argparse.ArgumentTypeError, match=f"'{text}' is not a number from 2 to 8"
        ):
            command_arguments.number(text, first, last)


# ---- outputs that cannot be written ---------------------------------------------------------------


@each_output
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere/a.png", "there is no folder nowhere"),
        ("/proc/a.png", "/proc/a.png: "),  # no user can create a file there
        ("x" * 300 + ".png", "File name too long"),
        ("folder.png", "folder.png: Is a directory"),
    ],
)
@pytest.mark.usefixtures("no_measurement")
def test_unwritable_output_is_refused_before_the_measurement(
    command: list[str],
    path: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert cli.main([*command, path]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert_message(err, reason)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize("command", [[*PERF, "--picture"], ["map", "pc-migrate-boot", "-o"]])
@pytest.mark.usefixtures("no_measurement")
def test_unknown_picture_format_is_refused_before_the_measurement(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pgn"
    assert cli.main([*command, str(path)]) == 2
    assert_message(capsys.readouterr().err, f"{path}: no picture with the suffix .pgn, use .png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [[*PERF, "--picture"], ["map", "pc-migrate-boot", "--json", "-o"]]
)
def test_picture_without_a_suffix_is_reported_with_its_full_name(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command, str(tmp_path / "a")]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"memslots: picture: {path}" for path in sorted(tmp_path.iterdir(), reverse=True)
    ]
    assert (tmp_path / "a.png").is_file()


@pytest.mark.usefixtures("no_measurement")
def test_two_outputs_of_one_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for json_name, picture in (("a.png", "a.png"), ("a-latency.png", "a.png")):
        outputs = ["-o", str(tmp_path / json_name), "--picture", str(tmp_path / picture)]
        assert cli.main([*PERF, *outputs]) == 2
        assert_message(capsys.readouterr().err, "two outputs have this name")


def limited(file_size: int) -> Callable[[], None]:
    """Limits the size of each file, as a full disk does."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))


@each_output
def test_full_disk_is_reported_before_the_measurement(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    done = run(*command, str(path), preexec_fn=limited(0))
    assert (done.returncode, done.stdout) == (2, "")
    assert_message(done.stderr, f"memslots: {path}: File too large")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "limit"), [("-o", 5000), ("--picture", 15_000)])
def test_disk_that_fills_up_keeps_the_report_on_stdout_and_the_old_file(
    option: str, limit: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_text("an older result")
    done = run(*PERF, option, str(path), preexec_fn=limited(limit))
    assert done.returncode == 2
    assert_message(done.stderr, f"memslots: {path}: File too large")
    assert "0 cells with wrong answers" in done.stdout
    assert path.read_text() == "an older result"
    assert list(tmp_path.iterdir()) == [path]


def test_full_stdout_still_writes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with open("/dev/full", "w") as full:
        done = run(
            *PERF, "-o", str(path), stdout=full, stderr=subprocess.PIPE, capture_output=False
        )
    assert done.returncode == 2
    assert done.stderr == "memslots: standard output: No space left on device\n"
    assert json.loads(path.read_text())["command"] == "perf"


@pytest.mark.parametrize(
    "arguments",
    [["info", "--json"], ["--help"], [], MAP, PERF, SCALE, ["replay", "pc-migrate-boot"]],
)
def test_closed_pipe_ends_the_command_without_a_message(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = run(*arguments, stdout=pipe, stderr=subprocess.PIPE, capture_output=False)
    assert (done.returncode, without_progress(done.stderr)) == (terminal.EXIT_PIPE, "")


def test_closed_pipe_still_writes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = run(
            *PERF, "-o", str(path), stdout=pipe, stderr=subprocess.PIPE, capture_output=False
        )
    assert done.returncode == terminal.EXIT_PIPE
    assert json.loads(path.read_text())["command"] == "perf"


def test_output_to_a_device_or_link_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    assert cli.main([*PERF, "-o", str(link)]) == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["command"] == "perf"
    assert target.stat().st_mode & 0o777 == 0o640
    assert cli.main([*PERF, "-o", os.devnull]) == 0
    assert Path(os.devnull).is_char_device()
    assert capsys.readouterr().err == ""


def test_empty_picture_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.png"
    assert cli.main(["map", "pc-migrate-boot", "--at", "0", "-o", str(path)]) == 2
    assert_message(capsys.readouterr().err, f"no picture: {path}: ", "no slots to draw")
    assert list(tmp_path.iterdir()) == []


def test_kernel_that_becomes_unavailable_gives_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise OSError(19, "No such device")

    monkeypatch.setattr(perf, "refused_call_ns", refuse)
    assert perf._kvm_refused_ns() is None


# ---- Ctrl-C -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "name", "shown"),
    [
        (subjects.Engine, "__init__", False),
        (subjects.Engine, "changes", False),
        (perf, "fingerprint", False),
        (deliver, "_write", True),
        (deliver, "_draw", True),
    ],
)
def test_ctrl_c_ends_the_command(
    where: Any,
    name: str,
    shown: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return right(*args, **kwargs)

    right = getattr(where, name)
    monkeypatch.setattr(where, name, interrupted)
    outputs = ["-o", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png")]
    more = ["--only", "change/move"]
    assert cli.main([*PERF, *more, *outputs]) == terminal.EXIT_INTERRUPTED
    out, err = capsys.readouterr()
    assert err == "memslots: interrupted\n"
    assert ("0 cells with wrong answers" in out) == shown


@pytest.mark.parametrize("command", [MAP, SCALE, ["replay", "pc-migrate-boot"], ["info"]])
def test_ctrl_c_ends_every_command(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal comes where the command begins to work."""

    def interrupted(*args: Any) -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setattr(
        importlib.import_module(f"memslots.commands.{command[0]}"), "run", interrupted
    )
    assert cli.main(command) == terminal.EXIT_INTERRUPTED
    assert capsys.readouterr() == ("", "memslots: interrupted\n")


MEASURES = """
import sys
from memslots.commands import cli
from memslots.lab import progress
progress.LINE_EVERY = 0
sys.exit(cli.main(["perf", "--full", "--no-kvm"]))
"""


def test_ctrl_c_ends_a_real_measurement() -> None:
    command = [sys.executable, "-c", MEASURES]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stderr
            assert child.stderr.readline().startswith("memslots: 1 of ")
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=120)
        finally:
            child.kill()  # else the end of the with statement waits for a child that goes on
    assert (child.returncode, out) == (130, "")
    assert_message(err)
    assert err.endswith("memslots: interrupted\n")


# ---- progress -------------------------------------------------------------------------------------------


@pytest.fixture
def all_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)


@pytest.mark.usefixtures("all_lines")
def test_progress_is_printed_as_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([*PERF, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["command"] == "perf"
    lines = err.splitlines()
    counts = [re.fullmatch(r"memslots: (\d+) of (\d+) turns after \d+ s", line) for line in lines]
    assert [int(c[1]) for c in counts if c] == list(range(1, len(lines) + 1))
    assert {int(c[2]) for c in counts if c} == {len(lines)}


@pytest.mark.usefixtures("all_lines")
@pytest.mark.parametrize("cause", ["TERM", "tqdm"])
def test_progress_falls_back_to_lines_if_the_bar_fails(
    cause: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb" if cause == "TERM" else "xterm")
    if cause == "tqdm":
        monkeypatch.setitem(sys.modules, "tqdm", None)
    assert cli.main(["replay", "pc-migrate-boot"]) == 0
    assert "memslots: 64 of 64 ops after " in capsys.readouterr().err


@pytest.mark.usefixtures("all_lines")
def test_process_without_stderr_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["replay", "pc-migrate-boot", "no-such-trace"]) == 2
    assert capsys.readouterr().out.count("\n") == 1


# ---- terminals ------------------------------------------------------------------------------------------


@pytest.fixture(params=[120, 80, 40, 32])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(terminal, "_columns", lambda stream: request.param)
    return int(request.param)


def test_bar_has_the_width_of_the_terminal() -> None:
    try:
        control, terminal_end = os.openpty()
    except OSError as error:  # /dev/pts is not mounted in a bare root
        pytest.skip(f"there is no pseudo-terminal: {error}")
    with os.fdopen(control, "rb", buffering=0) as output, os.fdopen(terminal_end) as stdout:
        done = run(
            "info",
            capture_output=False,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={**os.environ, "COLUMNS": "30"},
        )
        text = output.read(4096).decode()
    assert (done.returncode, done.stderr) == (0, "")
    assert "\r\n          " in text  # the continuation of a wrapped line


@pytest.fixture(scope="module")
def reports() -> dict[str, Any]:
    """Reports of both commands, with all kinds of tables."""
    found = {}
    everything = ["--only", "*o*", "--slots", "8,600"]
    for arguments in ([*PERF, *everything], SCALE):
        done = run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found[arguments[0]] = json.loads(done.stdout)
    return found


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d\S*", text))


@pytest.mark.parametrize("command", ["perf", "scale"])
@pytest.mark.parametrize("width", [118, 80, 40, 32])
def test_reports_fit_the_terminal_and_keep_every_number(
    command: str, width: int, reports: dict[str, Any]
) -> None:
    text = {"perf": report_perf.text, "scale": report_scale.text}[command]
    whole, narrow = text(reports[command], None), text(reports[command], width)
    assert max(map(len, narrow.splitlines())) <= width
    assert numbers(narrow) == numbers(whole)
    if width == 118:
        assert "\n" in narrow


def test_wide_table_is_split_into_blocks_and_then_records() -> None:
    table = tables.Table(
        [["unmap", "1.00 us", "12"], ["move", "7 ns", "3,400"]], ["", "tree", "array"]
    )
    assert tables.text(table, 14).splitlines() == [
        "          tree",
        "-----  -------",
        "unmap  1.00 us",
        "move      7 ns",
        "",
        "       array",
        "-----  -----",
        "unmap     12",
        "move   3,400",
    ]
    assert tables.text(table, 13).splitlines() == [
        "-------------",
        "unmap",
        "  tree",
        "    1.00 us",
        "  array  12",
        "move",
        "  tree   7 ns",
        "  array",
        "    3,400",
    ]


@pytest.mark.parametrize(
    "arguments",
    [MAP, ["map", "q35-ovmf-pflash"], ["info"], ["replay", "pc-migrate-boot", "q35-ovmf-pflash"]],
)
def test_output_of_other_commands_fits_the_terminal(
    arguments: list[str], columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    whole = {word for line in lines for word in line.split() if len(word) > columns - 10}
    assert all(len(line) <= columns or whole & set(line.split()) for line in lines)


def test_pipe_gets_unwrapped_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert cli.main(["map", "pc-migrate-boot"]) == 0
    assert "  slot 0      RAM " in capsys.readouterr().out


def test_a_number_stays_with_its_unit() -> None:
    assert words.wrapped("it takes 80 ns each", 11).splitlines() == [
        "it takes",
        "  80 ns",
        "  each",
    ]


# ---- the environment ------------------------------------------------------------------------------------


def test_character_that_the_encoding_lacks_is_replaced() -> None:
    done = run(*PERF, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, without_progress(done.stderr)) == (0, "")
    assert re.search(r"unmap +!?\d\S+ [mnu]s +~\d+%", done.stdout)


def test_file_name_with_invalid_bytes_is_printed(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.jsonl"
    source = memslots.__path__[0] + "/traces/data/qemu/pc-migrate-boot.jsonl.gz"
    path += b".gz"
    Path(os.fsdecode(path)).write_bytes(Path(source).read_bytes())
    for arguments in (["map", path, "--json"], ["replay", path, "--json"], ["map", path + b"x"]):
        done = run(*map(os.fsdecode, arguments))
        assert done.returncode == (2 if arguments[1].endswith(b"x") else 0)
        assert_message(done.stderr)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONWARNINGS": "error"},
        {"HOME": "/proc", "MPLCONFIGDIR": "/proc", "XDG_CACHE_HOME": "/proc", "XDG_CONFIG_HOME": "/proc"},
        {"LC_ALL": "C", "TERM": "dumb", "NO_COLOR": "1"},
    ],
)  # fmt: skip
def test_pictures_are_drawn_in_any_environment(environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "map.svg"
    done = run("map", "pc-migrate-boot", "-o", str(path), env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"pc-migrate-boot: drawn to {path}\n"
    assert path.read_text().startswith("<?xml")


@pytest.mark.usefixtures("no_measurement")
@pytest.mark.parametrize("command", [[*PERF, "--picture"], ["map", "pc-migrate-boot", "-o"]])
def test_picture_without_matplotlib_names_the_extra(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "memslots.plot", None)
    assert cli.main([*command, str(tmp_path / "a.png")]) == 2
    assert_message(capsys.readouterr().err, "pip install 'memslots[plot]'")


def test_bad_limit_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEMSLOTS_MAX_LINE_BYTES", "many")
    for command in ("map", "replay"):
        assert cli.main([command, "pc-migrate-boot"]) == 2
        assert_message(capsys.readouterr().err, "MEMSLOTS_MAX_LINE_BYTES")


def test_closed_streams_do_not_break_a_command() -> None:
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f'"$0" -m memslots info {closed}', sys.executable],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")


# ---- the rest ---------------------------------------------------------------------------------------------


def test_sweep_stops_at_the_requested_number_of_slots(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([*PERF, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    sizes = {int(n) for row in report["crossover"] for n in row["factors"]}
    assert sizes == {2, 4, 8}
    assert {row["n_slots"] for row in report["results"]} == {8}


def test_document_lists_the_exit_codes() -> None:
    rows = re.findall(r"^\| (\d+) \|", COMMANDS.read_text(encoding="utf-8"), re.MULTILINE)
    codes = [value for name, value in vars(terminal).items() if name.startswith("EXIT_")]
    assert sorted(map(int, rows)) == sorted(codes)


def test_failed_write_leaves_no_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for error in (KeyboardInterrupt, ValueError, OSError):
        with pytest.raises(error):
            write_half(path, error)
    assert list(tmp_path.iterdir()) == []


def write_half(path: Path, error: type[BaseException]) -> None:
    with files.replacing(path) as part:
        part.write_text("half")
        raise error
