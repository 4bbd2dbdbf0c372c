# SPDX-License-Identifier: MIT
"""Shared parts of the benchmarks: sizes, backends, streams of gfns, and VMs with seeded layouts.

`make bench-compare` runs these files on an older package too, so they import only names that names.json lists.

pytest-benchmark prints one table for each operation and number of slots, with one row for each backend.  Every
benchmark checks the answer that it timed.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from memslots import MEMSLOT_DTYPE, VM, backends

CHECKOUT = Path(__file__).resolve().parents[2]

SIZES = (8, 64, 509, 4096, 32764)
ROOM = SIZES[-1] + 1  # one id is always free
LOOKUPS = 1000  # in a round; the simplest design walks up to 32,764 slots for each lookup

#: The designs are measured without an index.  The tree with an index is measured only for lookups by gfn.
BACKENDS = backends()
INDEXED = "tree+index"
GFN_BACKENDS = (*BACKENDS, INDEXED)

#: Seconds for each benchmark.  The default of pytest-benchmark is 1.  The suite has hundreds of benchmarks and takes a
#: minute or two.
MAX_TIME = 0.1
DEFAULT_MAX_TIME = 1.0


def _layouts() -> ModuleType:
    """Load memslots.lab.layouts of this checkout for every measured version, so that two commits get the same work."""
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
def _one_table_for_each_operation(request: pytest.FixtureRequest) -> None:
    """Set the group to the group of the mark and all parameters except the backend."""
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
    """filled_vm(backend, n_slots, flags=0) creates a VM once.  A benchmark that changes its slots must restore them."""
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
    vm.index_policy = "off"
    return vm


def make_index(vm: VM) -> None:
    """Build the index by a batch.  Single lookups use an existing index, but do not build one for many slots."""
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
    """The right answers, computed by numpy."""
    return layouts.expected_hvas(slots, gfns)


@pytest.fixture
def assert_slots() -> Callable[[VM, np.ndarray], None]:
    def check(vm: VM, slots: np.ndarray) -> None:
        """Assert that the VM holds exactly these slots and that all invariants hold."""
        expected = np.sort(slots, order="base_gfn")
        found = vm.memslots_array()
        for name in MEMSLOT_DTYPE.names or ():
            np.testing.assert_array_equal(found[name], expected[name], name)
        vm.check()

    return check
