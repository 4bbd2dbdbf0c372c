# SPDX-License-Identifier: MIT
"""The programs of examples/ run from any folder, and print these lines."""

import re
import subprocess
import sys

import guest
import pytest
from checkout import ROOT

EXAMPLES = ROOT / "examples"
TINY_VMM = """\
at first: the guest got ff; dirty pages of slot 0: 0b100 and 0b100
plugged: the guest got 42; dirty pages of slot 0: 0b100 and 0b100
moved: the guest got ff; dirty pages of slot 0: 0b100 and 0b100
moved back: the guest got 42; dirty pages of slot 0: 0b100 and 0b100
exchanged: the guest got 43; dirty pages of slot 0: 0b100 and 0b100
unplugged: the guest got ff; dirty pages of slot 0: 0b100 and 0b100
"""
OUTPUTS = {
    "tiny_vmm.py": TINY_VMM,
    "restore_memory.py": "1,000 runs: 1,937 pages copied back, not 16,000; memory as in the snapshot\n",
}

pytestmark = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="the tests were copied without the examples"
)


@pytest.mark.parametrize("name", OUTPUTS)
def test_example(name, tmp_path):
    guest.needs_kvm()
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (OUTPUTS[name], "", 0)


def programs_of_the_document() -> list[str]:
    text = (ROOT / "docs" / "kvm.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_guest_of_the_document_runs(capsys):
    guest.needs_kvm()
    exec(programs_of_the_document()[0], {})
    mmio, io = capsys.readouterr().out.splitlines()
    assert mmio == "Mmio(is_write=False, data=b'', gpa=36864, size=1)"
    assert io == "Io(is_write=True, data=b'*', port=16, size=1, count=1)"


def test_the_mirror_of_the_document_runs():
    guest.needs_kvm()
    _, program = programs_of_the_document()
    assert "kvm.mirror(" in program
    exec(program, {})


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        *OUTPUTS,
        "dask_translate.py",
    }  # test_dask_example.py


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_documents_show_the_output(name):
    documents = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert OUTPUTS[name].strip() in documents
