# SPDX-License-Identifier: MIT
"""Forks at every point of a call, sub-interpreters, and the end of the process.

test_threads.py covers the calls of a child.  Here the fork comes inside a hook, a wait, a step of an update or a signal
handler, twenty times each; an alarm ends a child that hangs.
"""

from __future__ import annotations

import os
import sys

import pytest
from scene import runs

# ---- forks -------------------------------------------------------------------------------------------------------

FORK = """
vm, other = VM(), VM()
for id in range(20):
    put(vm, id, id * 10, 5, 1)
put(other, 0, 0, 5)
children, inside, leave = [], threading.Event(), threading.Event()

def looks_up():
    assert vm.gfn_to_hva(11) == (1 << 30) + 4096
    assert vm.gfn_to_hva_many(np.arange(300, dtype=np.uint64))[11] == (1 << 30) + 4096
    assert len(vm.memslots()) in (19, 20, 21)
    assert other.gfn_to_hva(3) == 3 * 4096

def refuses():
    for call in (lambda: put(vm, 0, 0, 0), vm.check, vm.close, vm.create_vcpu, lambda: vm.get_dirty_log(1),
                 vm.harvest_dirty, lambda: vm.merge_dirty_log(1, np.zeros(1, np.uint64)),
                 lambda: vm.begin_update().__enter__(), lambda: put(other, 1, 50, 1), other.close):
        assert refused(ForkedError, call).errno == errno.EIO

def own():
    with VM() as mine:
        put(mine, 0, 0, 5)
        threads = [threading.Thread(target=put, args=(mine, n, 10 * n, 5)) for n in range(1, 4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        put(mine, 0, 500, 5)
        mine.check()

def child(*calls):
    status = 1
    try:
        for call in calls: call()
        status = 0
    except BaseException:
        import traceback; traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)

def fork(*calls):
    pid = os.fork()
    if not pid:
        signal.alarm({alarm})     # SIGALRM ends a child that hangs
        if calls: child(*calls)
        return True               # the child continues at the point of the fork
    children.append(pid)
    return False

def reap():
    for pid in children:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, f"a child ended with {{status}}" + " (it hung)" * (status == -signal.SIGALRM)
    assert len(children) >= 20, len(children)

def reader():
    with vm.read():
        inside.set(); leave.wait()

def start_and_wait(work):
    inside.clear(); leave.clear()
    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    return thread

class Forks(Listener):
    def __init__(self, hook, *calls):
        setattr(self, hook, lambda *what: self.fork())
        self.calls, self.is_child = calls, False
    def fork(self):
        if not self.is_child:
            self.is_child = fork(*self.calls)
            if leave_in_hook: leave.set()
leave_in_hook = False
"""
HOOKS = ("prepare", "flush", "commit", "abort")
IN_HOOK = """
class Refuses(Listener):
    def prepare(self, change): raise ZeroDivisionError

forking_listener = Forks("{hook}", looks_up, refuses, own)
vm.add_listener(forking_listener)
if "{hook}" == "abort": vm.add_listener(Refuses())
for n in range(20):
    try:
        put(vm, 5, 1000 + n % 2 * 10, 5, 1)
    except ZeroDivisionError:
        pass
"""
# The child returns from the hook and completes its copy of the change, although a reader thread of the parent is in a
# section.
OUT_OF_HOOK = """
leave_in_hook = True
for n in range(20):
    thread = start_and_wait(reader)
    forking_listener = Forks("{hook}")
    vm.add_listener(forking_listener)
    put(vm, 5, 1000 + n % 2 * 10, 5, 1)
    if forking_listener.is_child:
        child(looks_up, refuses, own, lambda: vm.gfn_to_hva(1000 + n % 2 * 10))
    vm.remove_listener(forking_listener)
    thread.join()
"""
WHERE = {
    **{f"in {hook}": IN_HOOK.format(hook=hook) for hook in HOOKS},
    "out of prepare": OUT_OF_HOOK.format(hook="prepare").replace(
        "put(vm, 5, 1000 + n % 2 * 10, 5, 1)\n", "put(vm, 100 + n, 1000 + n % 2 * 10, 5, 1)\n", 1
    )
    + "    put(vm, 100 + n, 0, 0)\n",
    "in a section": """
for _ in range(20):
    with vm.read(), other.read():
        fork(looks_up, lambda: refused(ReentrantChangeError, own))
""",
    "out of a section": """
for n in range(20):
    with vm.read(), other.read():
        is_child = fork()
        looks_up()
    if is_child:
        child(looks_up, refuses, own)
""",
    "while another thread reads": """
thread = start_and_wait(reader)
for _ in range(20): fork(looks_up, refuses, own)
leave.set(); thread.join()
""",
    "while a writer waits for a reader": """
thread = start_and_wait(reader)
writer = threading.Thread(target=put, args=(vm, 5, 1000, 5, 1))
writer.start()
time.sleep(0.05)
for _ in range(20): fork(looks_up, refuses, own)
leave.set(); thread.join(); writer.join()
""",
    "while a writer is in its hook": """
class Slow(Listener):
    def prepare(self, change): inside.set(); leave.wait()
vm.add_listener(Slow())
thread = start_and_wait(lambda: put(vm, 5, 1000, 5, 1))
for _ in range(20): fork(looks_up, refuses, own)
leave.set(); thread.join()
""",
    "while an update is half done": """
def steps():
    with vm.begin_update() as u:
        old = u.find(5)
        inv = u.invalidate(old)
        inside.set(); leave.wait()
        u.replace(old, None)
        u.activate(inv, None)
thread = start_and_wait(steps)
for _ in range(20): fork(looks_up, refuses, own)
leave.set(); thread.join()
""",
    "in an update": """
for _ in range(20):
    with vm.begin_update() as u:
        old = u.find(5)
        if fork():
            refused(ForkedError, u.swap)
            child(looks_up, refuses, own)
""",
    "in a signal handler, in a wait for the lock": """
def hold():
    with vm.begin_update(): inside.set(); leave.wait()
def handler(number, frame):
    if not fork(looks_up, refuses, own) and len(children) >= 20: leave.set()
signal.signal(signal.SIGUSR1, handler)
thread = start_and_wait(hold)
def signals():
    for n in range(20):
        os.kill(os.getpid(), signal.SIGUSR1)
        while len(children) <= n: time.sleep(0.005)     # one handler at a time
sender = threading.Thread(target=signals)
sender.start()
put(vm, 5, 1000, 5, 1)
sender.join(); thread.join()
""",
    "while threads look up, change and create": """
stop = []
def look():
    while not stop: vm.gfn_to_hva(11); vm.memslots(); vm.gfn_to_hva_many(np.arange(500, dtype=np.uint64))
def change():
    n = 0
    while not stop: n += 1; put(vm, 5, 1000 + n % 2 * 10, 5, 1)
def make():
    while not stop: VM().create_vcpu().gfn_to_memslot(0)
threads = [threading.Thread(target=work) for work in (look, look, change, make)]
for thread in threads: thread.start()
for _ in range(20): fork(looks_up, refuses, own, gc.collect)
stop.append(1)
for thread in threads: thread.join()
""",
    "from a thread": """
def work():
    for _ in range(20): fork(looks_up, refuses, own)
thread = threading.Thread(target=work)
thread.start(); thread.join()
""",
    "everything dropped in the child": """
def drop():
    global vm, other, u, s, vcpu
    del u, s, vcpu, vm, other
    gc.collect()
vcpu = vm.create_vcpu()
for _ in range(20):
    u, s = other.begin_update().__enter__(), vm.read()
    u.invalidate(u.find(0))
    s.__enter__()
    fork(drop, own)
    s.__exit__(None, None, None)
    u.__exit__(ValueError, None, None)
""",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("where", WHERE)
def test_child_forked_anywhere_never_hangs(where: str) -> None:
    """The child looks up, raises ForkedError for changes of the parent's VMs, and makes and changes a VM of its own.
    The parent continues normally."""
    after = "\nreap()\nlooks_up()\nvm.check()\nother.check()\n"
    script = FORK.format(alarm=100) + WHERE[where] + after + "print('well')"
    runs(script)


# ---- interpreters ------------------------------------------------------------------------------------------------

INTERPRETERS = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

def run(id, code):
    try:
        failed = interpreters.run_string(id, code)
    except Exception as error:
        return str(error)
    return f"{failed.type.__name__}: {failed.msg}" if failed is not None else ""
"""
TRY = """
id = interpreters.create()
words = run(id, "import memslots")
assert "ImportError" in words and "sub-interpreter" in words and "main" in words, words
for module in ("memslots._memslots", "memslots.commands"):
    assert "ImportError" in run(id, f"import {module}")
assert run(id, "import json; json.loads('1')") == ""       # the sub-interpreter still works
interpreters.destroy(id)
"""


def has_interpreters() -> bool:
    names = ("_interpreters", "_xxsubinterpreters")
    return any(name in sys.builtin_module_names or find(name) for name in names)


def find(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


@pytest.mark.skipif(not has_interpreters(), reason="this Python makes no sub-interpreters")
@pytest.mark.parametrize("first", ["main", "sub"])
def test_import_in_a_sub_interpreter_raises_importerror(first: str) -> None:
    """The message gives the reason.  The main interpreter can import the package before or after the failure."""
    loads = "from memslots import VM, backends\nVM().check()\nassert backends()\n"
    order = loads + TRY if first == "main" else TRY + loads
    runs(INTERPRETERS + order + TRY + 'print("well")', imports=first == "main")


# ---- the end of the process --------------------------------------------------------------------------------------

EXIT = """
vm = VM()
put(vm, 0, 0, 64, 1)

class Closes:
    def __init__(self, *calls): self.calls = calls
    def __del__(self, write=os.write):
        for call in self.calls: call()
        write(1, b"late")

class Waits(Listener):
    def prepare(self, change): time.sleep(100)

def daemon(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    time.sleep(0.05)

def forever(work):
    def run():
        while True: work()
    return run

def in_section():
    with vm.read(): time.sleep(100)

def in_update():
    with vm.begin_update() as u:
        u.invalidate(u.find(0))
        time.sleep(100)

def changes():
    try:
        for n in range(10**9): put(vm, 1, 100 + n % 2, 1)
    except ClosedError: pass     # the process may close the VM at its end

"""
EXITS = {
    "a daemon in a hook": "vm.add_listener(Waits())\ndaemon(changes)",
    "a daemon that waits for the lock": "u = vm.begin_update().__enter__()\ndaemon(changes)",
    "a daemon that waits for the main thread's section": "s = vm.read(); s.__enter__()\ndaemon(changes)",
    "a daemon in a batch": "daemon(forever(lambda: vm.gfn_to_hva_many(np.arange(10**6, dtype=np.uint64))))",
    "a daemon in an update": "daemon(in_update)",
    "a daemon in a hook of a VM that is closed late": (
        "vm.add_listener(Waits())\ndaemon(changes)\nsys.keeper = Closes(vm.close)"
    ),
    "a daemon in a section of a VM that is closed late": "daemon(in_section)\nsys.keeper = Closes(vm.close, vm.close)",
    "a daemon that changes a VM that is closed late": "daemon(changes)\nsys.keeper = Closes(vm.close)",
    "a daemon in an update of a VM that is checked late": (
        "daemon(in_update)\ndef attempt(vm=vm):\n    try: vm.check()\n    except: pass\nsys.keeper = Closes(attempt)"
    ),
    "a section that is open": "s = vm.read(); s.__enter__(); s.__enter__()",
    "an update that runs": "u = vm.begin_update().__enter__(); u.invalidate(u.find(0))",
    "a ring with everything": (
        "class L(Listener): pass\nl = L(); l.vm, l.u, l.s, l.c = vm, vm.begin_update(), vm.read(), vm.create_vcpu()\n"
        "vm.add_listener(l); l.l = l"
    ),
    "atexit": "import atexit\natexit.register(vm.close)\natexit.register(put, vm, 3, 300, 1)\ndaemon(changes)",
    "an exception in a thread's section": (
        "def work():\n    with vm.read(): raise SystemExit\nt = threading.Thread(target=work); t.start(); t.join()\n"
        "put(vm, 1, 100, 1)"
    ),
}


@pytest.mark.parametrize("kind", EXITS)
def test_process_exits_silently_in_every_state(kind: str) -> None:
    """The process prints nothing, and does not wait for threads that never run again."""
    late = "Closes(" in EXITS[kind]
    runs(
        EXIT + EXITS[kind] + '\nprint("well", flush=True)', prints="well\nlate" if late else "well"
    )
