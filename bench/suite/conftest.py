# SPDX-License-Identifier: MIT
"""What the benchmarks share: sizes, backends, streams of gfns, and VMs that hold seeded layouts.

`make bench-compare` runs these files on an older package too, so they import only names that names.json lists.

A row of the table that pytest-benchmark prints is one backend; a table is one operation at one number of slots, so
that what belongs together stands together.  Every benchmark checks the answer that it timed.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import memslots
from memslots import MEMSLOT_DTYPE, VM

CHECKOUT = Path(__file__).resolve().parents[2]

SIZES = (8, 64, 509, 4096, 32764)
ROOM = SIZES[-1] + 1  # one id is always free
LOOKUPS = 1000  # a round; the plainest design walks 32,764 slots for each

#: The designs are measured without an index.  The tree with one is measured where lookups by gfn are.
BACKENDS = getattr(memslots, "backends", lambda: ("tree",))()
INDEXED = "tree+index"
GFN_BACKENDS = (*BACKENDS, INDEXED) if hasattr(VM, "index_policy") else BACKENDS

#: Seconds a benchmark, in place of pytest-benchmark's 1: with hundreds of them the suite takes a minute or two.
MAX_TIME = 0.1
DEFAULT_MAX_TIME = 1.0


def _layouts() -> ModuleType:
    """memslots.lab.layouts of this checkout, whichever version is measured: two commits get the same work."""
    path = CHECKOUT / "src" / "memslots" / "lab" / "layouts.py"
    spec = importlib.util.spec_from_file_location("memslots.lab.layouts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layouts = _layouts()


def pytest_configure(config: pytest.Config) -> None:
    if float(getattr(config.option, "benchmark_max_time", 0)) == DEFAULT_MAX_TIME:
        config.option.benchmark_max_time = MAX_TIME


# ---- parameters ---------------------------------------------------------------------------------


@pytest.fixture(params=SIZES, ids="{}-slots".format)
def n_slots(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=list(layouts.STREAMS))
def pattern(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _a_table_for_each_operation(request: pytest.FixtureRequest) -> None:
    """The group is the mark's and every parameter but the backend."""
    if "benchmark" not in request.fixturenames:
        return
    params = getattr(request.node, "callspec", None)
    values = [f"{k}={v}" for k, v in (params.params if params else {}).items() if k != "backend"]
    fixture = request.getfixturevalue("benchmark")
    fixture.group = ", ".join([fixture.group or request.node.name, *values])


# ---- VMs ----------------------------------------------------------------------------------------

MakeVM = Callable[..., VM]


@pytest.fixture(scope="session")
def filled_vm() -> Iterator[MakeVM]:
    """filled_vm(backend, n_slots, flags=0): made once.  Whoever changes its slots puts them back."""
    made: dict[tuple[str, int, int], VM] = {}
    with ExitStack() as stack:

        def make(backend: str, n_slots: int, flags: int = 0) -> VM:
            key = (backend, n_slots, flags)
            if key not in made:
                made[key] = stack.enter_context(new_vm(backend))
                made[key].load_memslots(with_flags(n_slots, flags))
                if backend == INDEXED:
                    make_index(made[key])
            return made[key]

        yield make


def new_vm(backend: str) -> VM:
    if backend == INDEXED:
        vm = VM(backend="tree", user_mem_slots=ROOM)
        vm.index_policy = "eager"
        return vm
    vm = VM(backend=backend, user_mem_slots=ROOM)
    if hasattr(VM, "index_policy"):  # an older version has none
        vm.index_policy = "off"
    return vm


def make_index(vm: VM) -> None:
    """Single lookups use one that is there, but make none of many slots."""
    vm.gfn_to_hva_many(np.zeros(65, dtype=np.uint64))
    assert vm.stats()["index_builds"] == 1


def with_flags(n_slots: int, flags: int) -> np.ndarray:
    slots = layouts.uniform(n_slots).copy()
    slots["flags"] = flags
    return slots


@pytest.fixture
def slots(n_slots: int) -> np.ndarray:
    return layouts.uniform(n_slots)


@pytest.fixture
def vm(filled_vm: MakeVM, backend: str, n_slots: int) -> VM:
    return filled_vm(backend, n_slots)


@pytest.fixture
def gfns(slots: np.ndarray, pattern: str) -> np.ndarray:
    return layouts.STREAMS[pattern](slots, LOOKUPS, layouts.SEED)


@pytest.fixture
def hvas(slots: np.ndarray, gfns: np.ndarray) -> np.ndarray:
    """The right answers, by numpy."""
    return layouts.expected_hvas(slots, gfns)


@pytest.fixture
def assert_slots() -> Callable[[VM, np.ndarray], None]:
    def check(vm: VM, slots: np.ndarray) -> None:
        """The VM holds exactly these slots, and every invariant."""
        expected = np.sort(slots, order="base_gfn")
        found = vm.memslots_array()
        for name in MEMSLOT_DTYPE.names or ():
            np.testing.assert_array_equal(found[name], expected[name], name)
        vm.check()

    return check
