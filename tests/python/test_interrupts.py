# SPDX-License-Identifier: MIT
"""Ctrl-C and other exceptions of signal handlers: they end a wait for the VM's lock, but never interrupt a change."""

from __future__ import annotations

from scene import runs

CTRL_C = """
vm = VM()
put(vm, 0, 0, 64, 1)
holds, let_go = threading.Event(), threading.Event()
main = threading.main_thread().ident

def hold():
    {hold}

# Sends SIGINT from another thread as soon as seen() is true.
def interrupt(seen=lambda: True, then=lambda: None):
    def run():
        while not seen(): time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        then()
    thread = threading.Thread(target=run)
    thread.start()
    return thread

# Whether the main thread stays at one instruction: it is in a long call, or it gets no CPU.
def stays():
    def where():
        frame = sys._current_frames()[main]
        return id(frame), frame.f_lasti
    first = where()
    for _ in range(10):
        time.sleep(0.002)
        if where() != first: return False
    return True

# True: SIGINT ended the call before let_go was set.  False: it ended the call after that.  None: the call returned.
# SIGINT is sent only after the try has begun.
def interrupted(call, seen=stays, then=lambda: None):
    begun, thread = [], None
    try:
        thread = interrupt(lambda: begun and seen(), then)
        begun.append(1)
        call()
    except KeyboardInterrupt:
        return not let_go.is_set()
    finally:
        thread.join()

# Makes the call while another thread blocks the VM.
def during(call, **more):
    holder = threading.Thread(target=hold)
    holder.start()
    holds.wait()
    try:
        return interrupted(call, **more)
    finally:
        let_go.set()
        holder.join()
        holds.clear(); let_go.clear()
"""
IN_UPDATE = "with vm.begin_update():\n        holds.set(); let_go.wait()"
IN_SECTION = "with vm.read():\n        holds.set(); let_go.wait()"

WAITS = """
row = np.zeros(1, MEMSLOT_DTYPE)
row["id"], row["base_gfn"], row["npages"] = 7, 700, 1
from memslots._memslots import REGION_DTYPE, time_changes
regions = np.zeros(3, REGION_DTYPE)
regions["guest_memfd"], regions["memory_size"], regions["slot"] = -1, 4096, 9
regions["guest_phys_addr"] = 4096 * 900
listener = Listener()
vm.add_listener(listener)
before = vm.memslots(), vm.generation(), vm.stats()["bytes"]
calls = [lambda: put(vm, 1, 100, 1), lambda: put(vm, 0, 0, 0), lambda: put(vm, 0, 50, 64, 1), lambda: put(vm, 0, 0, 64),
         lambda: put(vm, 0, 0, 64, 1), lambda: vm.load_memslots(row), lambda: vm.get_dirty_log(0),
         lambda: vm.clear_dirty_log(0, 0, 64, np.ones(1, np.uint64)), vm.check, vm.create_vcpu,
         vm.harvest_dirty, lambda: vm.merge_dirty_log(0, np.ones(1, np.uint64)),
         lambda: setattr(vm, "manual_dirty_log_protect", 1), lambda: vm.add_listener(Listener()),
         lambda: vm.remove_listener(listener), lambda: vm.begin_update().__enter__(), vm.close,
         lambda: vm.__exit__(None, None, None)]
for n, call in enumerate(calls):
    assert during(call) is True, n
    assert (vm.memslots(), vm.generation()) == before[:2] and not vm.closed, n
assert not vm.manual_dirty_log_protect
vm.check()
vm.remove_listener(listener)          # the listener was added exactly once
refused(ListenerError, vm.remove_listener, listener)
assert during(lambda: time_changes(vm, regions)) is not None
put(vm, 1, 100, 1)
print("well")
"""


def test_ctrl_c_ends_a_wait_for_the_lock_and_changes_nothing() -> None:
    """Every call that takes the lock raises KeyboardInterrupt while the other thread still holds it."""
    runs(CTRL_C.format(hold=IN_UPDATE) + WAITS)


def test_ctrl_c_while_a_change_waits_for_a_reader_is_raised_after_the_change() -> None:
    """A published change cannot be abandoned: the call completes it, then raises."""
    runs(
        CTRL_C.format(hold=IN_SECTION)
        + """
def state():
    try:
        return vm.memslots(), vm.generation()
    except ClosedError:
        return None
# Sends SIGINT once other threads see the published change; then the reader leaves.
def during_section(call):
    before = state()
    return during(call, seen=lambda: state() != before, then=let_go.set)
assert during_section(lambda: put(vm, 1, 100, 1)) is False       # the reader had left
assert len(vm) == 2
assert during_section(lambda: put(vm, 0, 500, 64, 1)) is False
assert vm.gfn_to_hva(500) == 0
assert during_section(lambda: put(vm, 0, 0, 0)) is False and len(vm) == 1
vm.check()
assert during_section(vm.close) is False and vm.closed
print("well")
"""
    )


HANDLERS = """
class Own(Exception): pass
def handler(number, frame):
    seen.append(number)
    action()
    handled.set()
def raises(): raise Own
def looks(): assert vm.gfn_to_hva(0) == 0 and len(vm.memslots()) == 1
def changes_other():
    with VM() as other: put(other, 0, 0, 1)
def lets_go(): let_go.set()
def changes_itself():
    let_go.set()
    put(vm, 5, 5000, 1)               # waits for the same lock and gets it
def let_go_afterwards(): handled.wait(); let_go.set()
seen, handled = [], threading.Event()
signal.signal(signal.SIGINT, handler)
action = raises
refused(Own, lambda: during(lambda: put(vm, 1, 100, 1)))
assert len(vm) == 1
for action in (looks, changes_other):
    handled.clear()
    assert during(lambda: put(vm, 1, 100, 1), then=let_go_afterwards) is None  # it continued and completed
    assert len(vm) == 2
    put(vm, 1, 100, 0)
action = lets_go
assert during(lambda: put(vm, 1, 100, 1)) is None and len(vm) == 2
action = changes_itself
assert during(lambda: put(vm, 2, 200, 1)) is None and len(vm) == 4
assert len(seen) == 5, seen
vm.check()
print("well")
"""


def test_signal_handler_runs_during_a_wait_for_the_lock() -> None:
    """A handler that raises ends the wait; one that returns does not.  A handler may look up, change another VM, or
    change this VM."""
    runs(CTRL_C.format(hold=IN_UPDATE) + HANDLERS)


THREADS = """
def wait(id):
    put(vm, id, 100 * id, 1)
    done.append(id)
done = []
holder = threading.Thread(target=hold)
holder.start()
holds.wait()
waiters = [threading.Thread(target=wait, args=(id,)) for id in (1, 2, 3)]
for thread in waiters: thread.start()
try:
    interrupt()
    time.sleep(60)
except KeyboardInterrupt:
    pass
time.sleep(0.05)
assert done == []
let_go.set()
for thread in waiters: thread.join()
assert sorted(done) == [1, 2, 3] and len(vm) == 4
vm.check()
print("well")
"""


def test_ctrl_c_leaves_the_waits_of_other_threads_alone() -> None:
    runs(CTRL_C.format(hold=IN_UPDATE) + THREADS)


IN_HOOK = """
class Slow(Listener):
    def prepare(self, change):
        interrupt().join()
        time.sleep(60)
vm.add_listener(Slow())
try:
    put(vm, 1, 100, 1)
except KeyboardInterrupt as error:
    assert len(vm) == 1
else:
    raise AssertionError
vm.check()
print("well")
"""


def test_ctrl_c_inside_prepare_refuses_the_change() -> None:
    """The hook raises KeyboardInterrupt, and the call raises it, too."""
    runs(CTRL_C.format(hold=IN_UPDATE) + IN_HOOK)


STORM = """
sys.setswitchinterval(1e-4)
def change():
    n = 0
    while not let_go.is_set():
        n += 1
        put(vm, 1, 100 + n % 2, 1)
threads = [threading.Thread(target=change) for _ in range(2)]
for thread in threads: thread.start()
made = ended = given_up = 0
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
class Tick(Exception): pass
def tick(number, frame):
    global armed
    if armed:
        armed = False            # raise once: the next signal may come before the except clause ends
        raise Tick
armed = False
signal.signal(signal.SIGALRM, tick)
end = time.monotonic() + 1
while time.monotonic() < end or not given_up:
    before = ended
    try:
        armed = True
        put(vm, 2, 300 + ended % 2, 1)
        ended += 1
        armed = False
    except Tick:
        given_up += 1
    finally:
        armed = False
signal.setitimer(signal.ITIMER_REAL, 0)
let_go.set()
for thread in threads: thread.join()
vm.check()
put(vm, 3, 400, 1)
with vm.begin_update(): pass
print("well")
"""


def test_lock_survives_many_interrupted_waits() -> None:
    """Signals end waits at many different moments while other threads take and release the lock."""
    runs("vm, let_go = VM(), threading.Event()\n" + STORM)


BATCH = """
n = 2**34   # takes minutes without the interrupt
numbers = np.lib.stride_tricks.as_strided(np.array([3], np.uint64), (n,), (0,))
out = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint64), (n,), (0,))
ids = np.lib.stride_tricks.as_strided(np.zeros(1, np.int32), (n,), (0,))
for call in (lambda: vm.gfn_to_hva_many(numbers, out), lambda: vm.gpa_to_hva_many(numbers, out),
             lambda: vm.gfn_to_slot_id_many(numbers, ids)):
    assert interrupted(call) is True
    put(vm, 1, 100, 1)               # a section left open would raise EDEADLK
    put(vm, 1, 100, 0)
vm.check()
print("well")
"""


def test_ctrl_c_ends_a_long_batch_and_its_section() -> None:
    runs(CTRL_C.format(hold=IN_UPDATE) + BATCH)


PARTIAL = """
import itertools
n = 2**21
numbers = np.broadcast_to(np.array([3], np.uint64), (2, n)).T   # needs a copy, and `out` has another memory order
timer = signal.setitimer
armed = False
def tick(number, frame):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, tick)
vm.index_policy = "walk"     # one lookup at a time
for method, dtype, answer in (("gfn_to_hva_many", np.uint64, 3 * 4096), ("gpa_to_hva_many", np.uint64, 3),
                              ("gfn_to_slot_id_many", np.int32, 0)):
    for layout in ("transposed", "step", "contiguous")[:3 if method == "gfn_to_hva_many" else 1]:
        whole = np.full((2, n) if layout == "transposed" else (n, 4) if layout == "step" else (n, 2), 77, dtype)
        out = {"transposed": whole.T, "step": whole[:, ::2], "contiguous": whole}[layout]
        # If the alarm comes while the numbers are copied, there is no answer yet; if it comes late, all are there.
        for after in itertools.cycle(range(2, 50)):  # until the limit of runs()
            out[...] = 77
            try:
                armed = True
                timer(signal.ITIMER_REAL, after * 0.002)
                getattr(vm, method)(numbers, out)
                armed = False
            except KeyboardInterrupt:
                pass
            timer(signal.ITIMER_REAL, 0)
            flat = out.reshape(-1)
            done = int((flat == answer).sum())
            assert (flat[:done] == answer).all() and (flat[done:] == 77).all(), (method, layout, done)
            if 0 < done < flat.size:
                break
        if layout == "step":
            assert (whole[:, 1::2] == 77).all()
vm.check()
print("well")
"""


def test_interrupted_batch_keeps_the_answers_so_far() -> None:
    """The first elements of `out` hold the answers and the rest is unchanged, in any layout of `out`."""
    runs(CTRL_C.format(hold=IN_UPDATE) + PARTIAL)


SCAN = """
# Overlapping windows: 2**36 elements in four megabytes.
many = np.lib.stride_tricks.as_strided(np.zeros(2**19, np.int64), (2**18, 2**18), (8, 8))
ran = []
def read_meanwhile():
    while not let_go.is_set():
        ran.append(time.monotonic())
        time.sleep(0.001)
other = threading.Thread(target=read_meanwhile)
other.start()
# Whether the main thread is in the call while another thread runs: the call has released the GIL.
def goes_on():
    if not stays(): return False
    enough = len(ran) + 10
    while len(ran) < enough: time.sleep(0.001)
    return True
for call in (lambda: vm.gfn_to_hva_many(many), lambda: vm.mark_page_dirty_many(many),
             lambda: vm.snapshot().gfn_to_hva_many(many)):
    assert interrupted(call, seen=goes_on) is True
let_go.set()
other.join()
vm.mark_page_dirty_many(np.broadcast_to(np.int64(3), 2**17))
assert vm.get_dirty_log(0)[0] == 8
vm.check()
print("well")
"""


def test_ctrl_c_ends_the_scan_for_negative_numbers() -> None:
    """The scan precedes a batch of int64 and runs without the GIL.  Here it would take minutes."""
    runs(CTRL_C.format(hold=IN_UPDATE) + SCAN)


STALL = """
def hold():
    with vm.read():
        holds.set()
        while not (sent.is_set() and vm.stats()["stalls"]):
            time.sleep(0.001)
sent = threading.Event()
vm.stall_warning_ms = 300
holder = threading.Thread(target=hold, name="the slow reader")
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("default")
    holder.start()
    holds.wait()
    # Send SIGINT once the change is published, mostly before the warning about the reader.
    assert interrupted(lambda: put(vm, 1, 100, 1), seen=lambda: vm.gfn_to_memslot(100) is not None, then=sent.set)
    holder.join()
shown = [str(w.message) for w in seen if w.category is ReaderStallWarning]
assert len(shown) == 1 and "the slow reader" in shown[0], shown
assert len(vm) == 2
print("well")
"""


def test_ctrl_c_keeps_the_warning_about_a_reader() -> None:
    runs(CTRL_C.format(hold=IN_UPDATE) + STALL)
