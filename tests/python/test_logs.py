# SPDX-License-Identifier: MIT
"""Logs of strace and QEMU: every line is a change, is left out with a reason, or is reported."""

import gzip
import json
import re
import warnings
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memslots
from memslots import MemFlag, kvm
from memslots.commands import cli
from memslots.lab import progress as lab_progress
from memslots.traces import logs, mtree_log, player, qemu_log, strace_log, vectors
from memslots.traces.changes import LogError

LOGS = Path(__file__).parent.parent / "logs"
DOCUMENT = LOGS.parent.parent / "docs" / "vectors.md"
SAMPLES = sorted(p.name for p in LOGS.glob("*-pc.txt")) + sorted(p.name for p in LOGS.glob("*.gz"))
READERS = {"strace": strace_log, "qemu": qemu_log, "mtree": mtree_log}

needs_samples = pytest.mark.skipif(
    not LOGS.is_dir(), reason="the tests were copied without their logs"
)


def read_lines(module, text):
    return module.read(iter(enumerate(text.splitlines(), 1)))


def read_one(module, text):
    """The only operation in the text, all of which must be understood."""
    log = read_lines(module, text)
    assert not log.not_understood, log.not_understood
    (change,) = log.changes
    return change.op


def reasons(log):
    return [line.reason for line in log.not_understood]


def text_of(name):
    path = LOGS / name
    return gzip.decompress(path.read_bytes()).decode() if name.endswith(".gz") else path.read_text()


def converted(tmp_path, name):
    out = tmp_path / "out.jsonl"
    logs.write(out, logs.to_vectors(LOGS / name, logs.read(LOGS / name)))
    return vectors.read(out)


# ---- the samples ---------------------------------------------------------------------------------


@needs_samples
@pytest.mark.parametrize("backend", ["tree", "array", "kvm"])
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_replay_without_a_mismatch(tmp_path, name, backend):
    if backend == "kvm" and (reason := kvm.available()):
        pytest.skip(reason)
    file = converted(tmp_path, name)
    with closing(player.open_backend(backend, file.header)) as vm:
        result = player.play(file, vm)
    assert (result.mismatches, result.not_compared, result.out_of_scope) == ([], 0, 0)
    assert result.ops == {"pc": 4 if "mtree" in name else 26, "q35": 244 if "mtree" in name else 339}[
        "q35" if "q35" in name else "pc"
    ]  # fmt: skip


@needs_samples
@pytest.mark.parametrize("machine", ["pc.txt", "q35.txt.gz"])
def test_three_logs_of_one_run_agree(machine):
    strace, qemu, mtree = (
        logs.read(LOGS / f"{kind}-{machine}") for kind in ("strace", "qemu-trace", "info-mtree-f")
    )
    assert [c.op for c in strace.changes] == [c.op for c in qemu.changes]
    ends = [memslots.load(LOGS / f"{kind}-{machine}") for kind in ("strace", "info-mtree-f")]
    assert covered(ends[0]) == covered(ends[1])
    assert len(ends[0]) >= len(ends[1]) == len(mtree.changes)


def covered(vm):
    """The ranges of guest addresses, with neighbours of the same kind merged."""
    ranges = []
    for slot in vm.memslots():
        readonly = bool(slot.flags & MemFlag.READONLY)
        if ranges and ranges[-1][1:] == [slot.gpa, readonly]:
            ranges[-1][1] = slot.gpa + slot.size
        else:
            ranges.append([slot.gpa, slot.gpa + slot.size, readonly])
    return ranges


@needs_samples
@pytest.mark.parametrize("name", [name for name in SAMPLES if "mtree" not in name])
def test_a_refused_change_in_a_sample_is_expected_as_such(tmp_path, name):
    """A changed result in the log must become a mismatch of the replay."""
    text = text_of(name)
    place = text.rindex("= 0" if "strace" in name else "ret=0")
    wrong = "= -1 EEXIST (File exists)" if "strace" in name else "ret=-17"
    log = tmp_path / "log.txt"
    log.write_text(text[:place] + wrong + "\n")
    out = tmp_path / "out.jsonl"
    logs.write(out, logs.to_vectors(log, logs.read(log)))
    file = vectors.read(out)
    with closing(player.open_backend("tree", file.header)) as vm:
        (mismatch,) = player.play(file, vm).mismatches
    assert mismatch.expected == {"ret": "EEXIST"}


@needs_samples
def test_hard_strace():
    log = logs.read(LOGS / "strace-hard.txt", vm_fd=10)
    assert [(c.line, c.op["op"], c.op["ret"]) for c in log.changes] == [
        (6, "set", 0),
        (9, "set", 0),
        (12, "set", "EEXIST"),
        (13, "set", "EINVAL"),
        (14, "set_fault", "EFAULT"),
        (15, "set_fault", "EFAULT"),
        (16, "set2", 0),
        (18, "set", 0),
        (19, "set", 0),
    ]
    assert log.changes[1].op == {
        "op": "set", "slot": 1, "flags": 3, "gpa": "0x200000", "size": "0x10000", "hva": "0x0", "ret": 0,
    }  # fmt: skip
    assert log.changes[3].op["flags"] == 16
    assert log.changes[8].op["slot"] == 1 << 16
    assert [(line.line, line.reason) for line in log.not_understood] == [
        (17, "KVM_SET_USER_MEMORY_REGION2 without its fields, which a newer strace prints"),
        (20, "flags is 'KVM_MEM_BROWN', not a number"),
        (21, "no memory_size"),
        (22, "strace injected the result; the kernel did not get the call"),
        (23, "the result is '?'"),
        (24, "the beginning of this call is missing"),
        (25, "no line of strace"),
        (28, "the line is cut or damaged"),
        (26, "the end of this call is missing"),
    ]
    assert log.left_out == {
        "signals, exits and messages of strace": 3,
        "other system calls": 2,
        "ioctls that change no slot": 3,
        "first halves of calls in two lines": 2,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            logs.LogWarning, match=r"strace-hard\.txt:17: 9 lines were not understood"
        ):
            memslots.load(LOGS / "strace-hard.txt")
    with pytest.raises(LogError, match=":17: 9 lines"):
        memslots.load(LOGS / "strace-hard.txt", strict=True)
    with pytest.warns(logs.LogWarning):
        vm = memslots.load(LOGS / "strace-hard.txt", backend="array")
    assert (vm.backend, len(vm), vm.address_spaces) == ("array", 3, 2)


# ---- strace --------------------------------------------------------------------------------------

REGION = (
    "{slot=1, flags=0, guest_phys_addr=0x1000, memory_size=4096, userspace_addr=0x7f0000000000}"
)
SET = {
    "op": "set",
    "slot": 1,
    "flags": 0,
    "gpa": "0x1000",
    "size": "0x1000",
    "hva": "0x7f0000000000",
    "ret": 0,
}
CALL = f"ioctl(10, KVM_SET_USER_MEMORY_REGION, {REGION}) = 0"


@pytest.mark.parametrize(
    "line",
    [
        CALL,
        f"123 {CALL}",
        f"[pid   123] {CALL}",
        f"123<qemu-system-x86> {CALL}",
        f"12:00:01 {CALL}",
        f"123 1700000000.123456 {CALL} <0.000010>",
        f"     0.000123 {CALL}",
        f"123 [00007f1234567890] {CALL}",
        f"123 [  16] {CALL}",
        CALL.replace("10,", "10<anon_inode:kvm-vm>,"),
        CALL.replace(") = 0", ")       = 0"),
        CALL.replace("}) = 0", "} /* ??? */) = 0"),
        CALL.replace("flags=0,", "flags=0 /* KVM_MEM_??? */,"),
        CALL.replace("KVM_SET_USER_MEMORY_REGION", "0x4020ae46"),
        CALL.replace("KVM_SET_USER_MEMORY_REGION", "_IOC(_IOC_WRITE, 0xae, 0x46, 0x20)"),
        CALL.replace("KVM_SET_USER_MEMORY_REGION", "0x4020ae46 /* KVM_SET_USER_MEMORY_REGION */"),
    ],
)  # fmt: skip
def test_spellings_of_one_call(line):
    assert read_one(strace_log, line) == SET


@pytest.mark.parametrize(
    ("result", "ret"),
    [
        ("0", 0),
        ("-1 EINVAL (Invalid argument)", "EINVAL"),
        ("-1 ENOMEM (Cannot allocate memory) <0.1>", "ENOMEM"),
    ],
)
def test_results(result, ret):
    assert (
        read_one(strace_log, f"ioctl(10, KVM_SET_USER_MEMORY_REGION, {REGION}) = {result}")["ret"]
        == ret
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("slot=1", "slot=4294967296", "more than 32 bits"),
        ("slot=1", "slot=x", "not a number"),
        ("slot=1", "slot=08", "not a number"),
        ("memory_size=4096", "memory_size=0x10000000000000000", "not a number"),
        ("memory_size=4096, ", "", "no memory_size"),
        ("= 0", "= -1 ENOSUCH (?)", "the result is"),
        ("= 0", "= ? ERESTARTSYS (To be restarted)", "the result is"),
        ("= 0", "= -1", "the result is"),
        ("}) = 0", "", "cut or damaged"),
        (REGION, "0x7ffe0000", "without its fields"),
        (" = 0", " = 0" + " " * 5000, "more than 4096"),
    ],
)
def test_calls_that_are_reported(old, new, reason):
    log = read_lines(strace_log, f"7 {CALL.replace(old, new)}")
    assert not log.changes
    assert [line for line in reasons(log) if reason in line], log


def test_calls_of_several_threads_are_joined_by_pid():
    halves = CALL.split(", guest")
    other = CALL.replace("slot=1", "slot=2").replace("0x1000", "0x9000")
    text = f"""1 {halves[0]} <unfinished ...>
2 {other.split(")")[0]} <unfinished ...>
1 <... ioctl resumed>, guest{halves[1]}
2 <... ioctl resumed>) = -1 EINVAL (Invalid argument)
3 <... write resumed>) = 3"""
    log = read_lines(strace_log, text)
    assert [(c.line, c.op["slot"], c.op["ret"]) for c in log.changes] == [
        (3, 1, 0),
        (4, 2, "EINVAL"),
    ]
    assert not log.not_understood


def test_guest_memfd_by_its_descriptor():
    region = REGION.replace("flags=0", "flags=KVM_MEM_GUEST_MEMFD")
    region = region.replace("}", ", guest_memfd_offset=4096, guest_memfd=12}")
    create = "ioctl(10, KVM_CREATE_GUEST_MEMFD, {size=8192, flags=0}) = 12"
    use = f"ioctl(10, KVM_SET_USER_MEMORY_REGION2, {region.replace('=12', '=12<anon_inode:[kvm-gmem]>')}) = 0"
    log = read_lines(strace_log, f"{create}\n{create}\n{use}")
    assert log.changes[-1].op | {"gmem": 1, "gmem_off": "0x1000", "flags": 4} == log.changes[-1].op
    assert logs.to_vectors("x", log).header["scope"] == "guest-memfd"
    assert "does not have its creation" in reasons(read_lines(strace_log, use))[0]


def test_several_vms(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text(f"{CALL}\n{CALL.replace('10,', '11,')}\n{CALL.replace('10,', '11,')}\n")
    with pytest.raises(
        LogError, match=r"choose one with --vm-fd; .*10 with 1 changes, 11 with 2 changes"
    ):
        logs.read(log)
    assert len(logs.read(log, vm_fd=11).changes) == 2
    assert logs.read(log, vm_fd=11).left_out == {"changes of other VMs": 1}
    with pytest.raises(LogError, match="descriptor 12 in this log of strace"):
        logs.read(log, vm_fd=12)


def test_a_new_vm_with_the_descriptor_of_an_earlier_one():
    text = f"{CALL}\nioctl(9, KVM_CREATE_VM, 0) = 10\n{CALL}"
    log = read_lines(strace_log, text)
    assert [c.line for c in log.changes] == [3]
    assert log.left_out["changes of an earlier VM that had the same file descriptor"] == 1


# ---- QEMU's trace --------------------------------------------------------------------------------

TAIL = "flags=0x0 gpa=0x1000 size=0x1000 ua=0x7f0000000000"


@pytest.mark.parametrize(
    ("line", "slot"),
    [
        (f"kvm_set_user_memory Slot#1 {TAIL} ret=0", 1),
        (f"kvm_set_user_memory Slot#65537 {TAIL} ret=0", 0x10001),
        (f"kvm_set_user_memory AddrSpace#1 Slot#1 {TAIL} ret=0", 0x10001),
        (
            f"kvm_set_user_memory AddrSpace#0 Slot#1 {TAIL} guest_memfd=-1 guest_memfd_offset=0x0 ret=0",
            1,
        ),
        (f"1234@1700000000.123456:kvm_set_user_memory Slot#1 {TAIL} ret=0", 1),
        (f"2024-01-02T03:04:05.123456Z kvm_set_user_memory Slot#1 {TAIL} ret=0", 1),
    ],
)
def test_variants_of_qemu_s_event(line, slot):
    assert read_one(qemu_log, line) == SET | {"slot": slot}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"kvm_set_user_memory Slot#1 {TAIL}", "cut or damaged"),
        (f"kvm_set_user_memory Slot#1 {TAIL} ret=-9999", "ret is -9999"),
        (f"kvm_set_user_memory Slot#1 {TAIL} ret=5", "ret is 5"),
        (f"kvm_set_user_memory AddrSpace#0 Slot#65537 {TAIL} ret=0", "more than 16 bits"),
        (f"kvm_set_user_memory Slot#1 {TAIL.replace('flags=0x0', 'flags=0x4')} ret=0", "creation"),
        ("qemu: warning: something", "no trace event"),
    ],
)
def test_events_that_are_reported(line, reason):
    log = read_lines(qemu_log, line)
    assert not log.changes
    assert reason in reasons(log)[0]


def test_refused_event_and_other_events():
    text = f"kvm_run_exit cpu_index 0, reason 2\nkvm_set_user_memory Slot#1 {TAIL} ret=-22"
    log = read_lines(qemu_log, text)
    assert (log.changes[0].op["ret"], log.left_out) == ("EINVAL", {"other trace events": 1})


def test_the_delete_that_qemu_does_not_trace(tmp_path):
    rom = TAIL.replace("flags=0x0", "flags=0x2")
    text = f"kvm_set_user_memory Slot#1 {TAIL} ret=0\nkvm_set_user_memory Slot#1 {rom} ret=0\n"
    (tmp_path / "log.txt").write_text(text)
    log = logs.read(tmp_path / "log.txt")
    assert [(c.line, c.op["size"], c.op["flags"]) for c in log.changes] == [
        (1, "0x1000", 0), (2, "0x0", 2), (2, "0x1000", 2),
    ]  # fmt: skip
    assert "1 deletes added" in log.notes[0]
    assert memslots.load(tmp_path / "log.txt").id_to_memslot(1).flags == MemFlag.READONLY


# ---- info mtree -f -------------------------------------------------------------------------------

MTREE = """(qemu) info mtree -f
FlatView #0
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000c7fff (prio 1, rom): a name @ with (odd) parts @0000000000001000 owner:{obj path=/x} KVM
  0000000000100800-00000000001027ff (prio 0, ram): pc.ram @0000000000100800 KVM

FlatView #1
 AS "cpu-smm-0", root: x
 Root memory region: x
  00000000000a0000-00000000000bffff (prio 0, ram): pc.ram @00000000000a0000 KVM
"""


def test_mtree():
    log = read_lines(mtree_log, MTREE)
    assert not log.not_understood
    assert [(c.op["slot"], c.op["flags"], c.op["gpa"], c.op["size"], c.op["hva"]) for c in log.changes] == [
        (0, 0, "0x0", "0xa0000", "arena+0x0"),
        (1, 2, "0xc0000", "0x8000", "arena+0x201000"),
        (2, 0, "0x101000", "0x1000", "arena+0x101000"),  # only the whole page
        (0x10000, 0, "0xa0000", "0x20000", "arena+0xa0000"),
    ]  # fmt: skip
    assert any("merges neighbours" in note for note in log.notes)
    assert any("no host addresses" in note for note in log.notes)


def test_mtree_takes_the_last_of_two_listings():
    log = read_lines(mtree_log, MTREE + MTREE.replace("9ffff", "8ffff"))
    assert log.changes[0].op["size"] == "0x90000"
    assert log.left_out["ranges of an earlier view of the same address space"] == 4


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("  0000000000000000-00000000000000ff (prio 0, ram): x KVM", "without a whole page"),
        ("  0000000000090000-00000000000affff (prio 0, ram): x KVM", "not above the range of line 6"),
        ("  fffffffffffff000-ffffffffffffffff (prio 0, ram): x KVM", "no slot can have"),
        ("  0000000000200000-00000000002fffff (prio 0, ram): x @00000fffffffffff KVM", "no slot can have"),
        ("  0000000000200000-0000000000", "no line of info mtree -f"),
    ],
)  # fmt: skip
def test_mtree_lines_that_are_reported(line, reason):
    text = MTREE.splitlines()
    text.insert(6, line)
    log = read_lines(mtree_log, "\n".join(text))
    assert [r for r in reasons(log) if reason in r], log.not_understood
    assert len(log.changes) == 4


# ---- files ---------------------------------------------------------------------------------------


def test_unknown_empty_and_special_files(tmp_path):
    for name, content in (("a", b""), ("b", b"hello\n"), ("c", b"\xff\x00" * 500)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LogError, match="no log of a known format"):
            logs.read(tmp_path / name)
    (tmp_path / "d.gz").write_bytes(gzip.compress(CALL.encode())[:-9])
    with pytest.raises(LogError, match="damaged gzip file"):
        logs.read(tmp_path / "d.gz")
    with pytest.raises(LogError, match="not a regular file"):
        logs.read("/dev/null")
    with pytest.raises(FileNotFoundError):
        logs.read(tmp_path / "missing")
    (tmp_path / "e").write_text("ioctl(3, TCGETS, 0x7ffe) = 0\n")
    with pytest.raises(LogError, match="no change of a slot in this log of strace"):
        logs.read(tmp_path / "e")
    (tmp_path / "f").write_text(f"kvm_set_user_memory Slot#1 {TAIL} ret=0\n")
    with pytest.raises(LogError, match="leave --vm-fd out"):
        logs.read(tmp_path / "f", vm_fd=3)


def test_limits_of_the_recording_machine_follow_from_its_changes(tmp_path):
    big = f"ioctl(10, KVM_SET_USER_MEMORY_REGION, {REGION}) = 0"
    big = big.replace("slot=1", "slot=32765").replace("0x7f0000000000", "0x80000000000000")
    (tmp_path / "log").write_text(big.replace("=0x1000", "=0x80000000000000") + "\n")
    converted = logs.to_vectors("x", logs.read(tmp_path / "log"))
    assert converted.header["oracle"] == {
        "caps": {"nr_memslots": 32766},
        "limits": {"gpa_bits": 56, "hva_end_max": "0xfffffffffff000"},
    }
    assert len(memslots.load(tmp_path / "log")) == 1


def test_load_of_a_vector_file_and_its_errors(tmp_path):
    vm = memslots.load(vectors.packaged("pc-migrate-boot"))
    assert len(vm) > 3
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(LogError, match=r"bad\.jsonl:1: "):
        memslots.load(tmp_path / "bad.jsonl")
    text = f"{CALL}\n{CALL.replace('slot=1', 'slot=2')}\n"
    (tmp_path / "log").write_text(text)
    with pytest.raises(LogError, match=r"log:2: the engine refuses this change: .*overlaps"):
        memslots.load(tmp_path / "log")
    (tmp_path / "log").write_text(CALL.replace("slot=1", f"slot={70 << 16}"))
    with pytest.raises(LogError, match="address space 70; the engine has at most 64"):
        memslots.load(tmp_path / "log")


# ---- the command ---------------------------------------------------------------------------------


def run(capsys, *argv):
    code = cli.main(["import", *map(str, argv)])
    return code, *capsys.readouterr()


@needs_samples
def test_import_and_replay(tmp_path, capsys):
    out = tmp_path / "run.jsonl.gz"
    code, text, err = run(capsys, LOGS / "strace-pc.txt", "-o", out, "--strict")
    assert (code, err) == (0, "")
    assert text.splitlines()[-1] == (
        "strace: 26 changes, 0 of them refused by the kernel, 4 slots at the end, 0 lines not understood"
    )
    assert cli.main(["replay", str(out)]) == 0
    assert "26 ops, 0 mismatches" in capsys.readouterr().out
    assert cli.main(["map", str(out)]) == 0


@needs_samples
def test_import_names_what_it_did_not_understand(tmp_path, capsys):
    out = tmp_path / "run.jsonl"
    code, text, err = run(capsys, LOGS / "strace-hard.txt", "-o", out)
    assert (code, err) == (0, "")
    assert out.exists()
    assert (
        "strace-hard.txt:17: not understood: KVM_SET_USER_MEMORY_REGION2 without its fields" in text
    )
    assert "3 left out: ioctls that change no slot" in text
    assert text.rstrip().endswith("9 lines not understood")
    out.unlink()
    code, text, err = run(capsys, LOGS / "strace-hard.txt", "-o", out, "--strict")
    assert code == 1
    assert not out.exists()
    assert "9 lines not understood (--strict); nothing is written" in err


@needs_samples
def test_import_as_json(capsys):
    code, text, err = run(capsys, LOGS / "strace-hard.txt", "--json", "--vm-fd", 10)
    found = json.loads(text)
    assert (code, err, found["format"], found["changes"], found["refused"]) == (
        0,
        "",
        "strace",
        9,
        4,
    )
    assert (found["not_understood"], len(found["lines"]), found["written"]) == (9, 9, None)


def test_import_with_bad_arguments(tmp_path, capsys):
    (tmp_path / "log").write_text(CALL)
    for argv, message in (
        ([tmp_path / "log", "-o", tmp_path / "out.txt"], "ends with .jsonl"),
        ([tmp_path / "log", "-o", tmp_path / "no" / "out.jsonl"], "there is no folder"),
        ([tmp_path / "missing"], "No such file"),
        ([tmp_path / "log", "--vm-fd", "-1"], "is not a number"),
        (["/dev/null"], "not a regular file"),
    ):
        code, text, err = run(capsys, *argv)
        assert (code, text) == (2, ""), argv
        assert message in err


def test_import_of_more_than_the_shown_lines(tmp_path, capsys):
    (tmp_path / "log").write_text(CALL + "\n" + "7 nonsense\n" * 1100)
    code, text, _ = run(capsys, tmp_path / "log")
    assert code == 0
    assert text.count("not understood: no line of strace") == 20
    assert "1,080 more lines not understood" in text
    found = json.loads(run(capsys, tmp_path / "log", "--json")[1])
    assert (found["not_understood"], len(found["lines"])) == (1100, 1000)


@needs_samples
def test_the_commands_of_the_document_print_its_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(LOGS.parent)
    (block,) = re.findall(r"```\n(\$ memslots import.*?)```", DOCUMENT.read_text(), re.DOTALL)
    for part in block.split("$ memslots ")[1:]:
        command, _, output = part.partition("\n")
        assert cli.main(command.split()) == 0
        assert capsys.readouterr().out == output


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_progress_of_a_long_log(tmp_path, capsys, monkeypatch, suffix):
    text = (CALL + "\n" + "7 read(3, 0x1, 2) = 2\n" * 10_000).encode()
    path = tmp_path / f"log{suffix}"
    path.write_bytes(gzip.compress(text) if suffix else text)
    monkeypatch.setattr(lab_progress, "LINE_EVERY", 0)
    code, _, err = run(capsys, path)
    shown = [line.split() for line in err.splitlines()]
    assert code == 0
    assert len(shown) == 9
    numbers = [int(words[1].replace(",", "")) for words in shown]
    assert numbers == sorted(numbers)
    assert numbers[-1] <= path.stat().st_size == int(shown[0][3].replace(",", ""))


# ---- any text ------------------------------------------------------------------------------------

HARD = (LOGS / "strace-hard.txt").read_text().splitlines() if LOGS.is_dir() else [CALL]
SEEDS = {
    "strace": [*HARD, CALL, "9 ioctl(9, KVM_CREATE_VM, 0) = 10", CALL[:40] + " <unfinished ...>"],
    "qemu": [f"kvm_set_user_memory AddrSpace#1 Slot#{n} {TAIL} ret={r}" for n in (0, 1, 99999) for r in (0, -22)],
    "mtree": MTREE.splitlines(),
}  # fmt: skip
PIECES = [
    "{",
    "}",
    "=",
    ",",
    "0",
    "0x",
    "-1",
    "NULL",
    "slot=",
    " KVM",
    "/* ??? */",
    "<unfinished ...>",
    "\x00",
    "\u2028",
    "9" * 30,
]


@st.composite
def damaged(draw, kind):
    """Lines of a real log, some of them cut, doubled, with characters replaced or pieces put in."""
    lines = draw(st.lists(st.sampled_from(SEEDS[kind]), max_size=12))
    for n, line in enumerate(lines):
        for _ in range(draw(st.integers(0, 2))):
            at = draw(st.integers(0, len(line)))
            new = draw(st.sampled_from(PIECES) | st.text(max_size=5))
            line = line[:at] + new + line[at + draw(st.integers(0, 30)) :]
        lines[n] = line
    return lines


@pytest.mark.parametrize("kind", READERS)
def test_no_text_breaks_a_reader(kind, tmp_path):
    """Every line counts once, and the result is a valid vector file or a LogError."""

    @settings(max_examples=150)
    @given(damaged(kind))
    def check(lines):
        log = READERS[kind].read(iter(enumerate(lines, 1)))
        added = sum("without a trace event" in c.op.get("note", "") for c in log.changes)
        counted = len(log.changes) - added + log.left_out.total() + log.nr_not_understood
        assert counted == sum(bool(line.strip()) for line in lines)
        path = tmp_path / "log"
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        try:
            found = logs.read(path)
            logs.write(tmp_path / "out.jsonl", logs.to_vectors(path, found))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", logs.LogWarning)
                memslots.load(path).close()
        except LogError:
            return
        vectors.read(tmp_path / "out.jsonl")

    check()


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_no_bytes_break_the_import(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(b"ioctl(\n" + data)
    with pytest.raises(LogError):
        logs.read(path)


def test_long_lines_take_no_long_time():
    """Expressions that backtrack would need hours for these."""
    parts = ("}", "/* ", " " * 50, "=> ", "_IOC(", " owner:", " KVM", "<", "1 ")
    for part in parts:
        text = part * (60_000 // len(part))
        for module in READERS.values():
            log = module.read(
                iter([(1, "7 ioctl(10, KVM_SET_USER_MEMORY_REGION, {" + text), (2, text[:4000])])
            )
            assert not log.changes
