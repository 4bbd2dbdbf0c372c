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
at first: read of 0x8000 exits, the guest got ff, write to 0x7000 exits; dirty pages of slot 0: 0b100 and 0b100
plugged: the guest got 42, write to 0x7000 exits; dirty pages of slot 0: 0b100 and 0b100
moved: read of 0x8000 exits, the guest got ff, write to 0x7000 exits; dirty pages of slot 0: 0b100 and 0b100
moved back: the guest got 42, write to 0x7000 exits; dirty pages of slot 0: 0b100 and 0b100
unplugged: read of 0x8000 exits, the guest got ff, write to 0x7000 exits; dirty pages of slot 0: 0b100 and 0b100
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


def test_the_guest_of_the_document_runs(capsys):
    guest.needs_kvm()
    (source,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "kvm.md").read_text(), re.DOTALL
    )
    exec(source, {})
    mmio, io = capsys.readouterr().out.splitlines()
    assert mmio == "Mmio(is_write=False, data=b'', gpa=36864, size=1)"
    assert io == "Io(is_write=True, data=b'*', port=16, size=1, count=1)"


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        *OUTPUTS,
        "dask_translate.py",
    }  # test_dask_example.py


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_documents_show_the_output(name):
    documents = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert OUTPUTS[name].strip() in documents
