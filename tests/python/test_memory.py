# SPDX-License-Identifier: MIT
"""Memory for slots: alloc(), the calls of a Memory, its errors, and its content in a forked child."""

from __future__ import annotations

import copy
import gc
import io
import mmap
import os
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scene import PAGE, runs

from memslots import VM, Memory, OutOfMemoryError, alloc

KINDS = pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])


@KINDS
def test_new_memory_is_zero_writable_and_begins_at_a_page(shared: bool) -> None:
    memory = alloc(3 * PAGE, shared=shared, name="ram")
    array = np.frombuffer(memory, np.uint64)
    assert array.ctypes.data % PAGE == 0
    assert memory.address == array.ctypes.data
    assert (len(memory), memory.size(), array.nbytes) == (3 * PAGE,) * 3
    assert not array.any()
    array[-1] = 0x0102
    assert memory[-8:] == b"\x02\x01" + bytes(6)
    assert (memory.shared, memory.name) == (shared, "ram")
    assert "ram" in repr(memory)
    assert hex(3 * PAGE) in repr(memory)


def test_memory_is_an_mmap_and_a_memoryview_of_bytes() -> None:
    memory = alloc(PAGE)
    assert isinstance(memory, mmap.mmap)
    with memoryview(memory) as view:
        assert (view.format, view.ndim, view.nbytes, view.readonly) == ("B", 1, PAGE, False)


@KINDS
def test_index_types_give_a_size(shared: bool) -> None:
    assert len(alloc(np.uint32(2 * PAGE), shared=shared)) == 2 * PAGE


@KINDS
def test_memory_larger_than_what_is_free_can_be_reserved(shared: bool) -> None:
    memory = alloc(2**40, shared=shared)
    memory[2**40 - 1] = 7
    assert memory[2**40 - 1] == 7


@KINDS
@pytest.mark.parametrize(
    ("size", "error", "words"),
    [
        (0, ValueError, "use 0x1000"),
        (1, ValueError, "0x1 .* use 0x1000"),
        (PAGE + 1, ValueError, "0x1001 .* use 0x2000"),
        (-PAGE, OverflowError, "-4096"),
        pytest.param(
            -(2**20000), OverflowError, "negative, but is a number of 20001 bits", id="long"
        ),
        (2**62, OutOfMemoryError, hex(2**62)),
        (2**64, OutOfMemoryError, hex(2**64)),
        (True, TypeError, "size must be an int, not bool"),
        (4096.0, TypeError, "size must be an int, not float"),
        (None, TypeError, "size must be an int, not NoneType"),
    ],
)
def test_bad_size_raises_an_error_that_names_it(
    size: Any, error: type[Exception], words: str, shared: bool
) -> None:
    files = os.listdir("/proc/self/fd")
    with pytest.raises(error, match=words):
        alloc(size, shared=shared)
    assert os.listdir("/proc/self/fd") == files


@KINDS
@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("a\0b", ValueError, "NUL"),
        ("ä" * 125, ValueError, "250 bytes .* at most 249"),
        (b"ram", TypeError, "name must be a str, not bytes"),
        (None, TypeError, "name must be a str, not NoneType"),
    ],
)
def test_bad_name_raises(name: Any, error: type[Exception], words: str, shared: bool) -> None:
    with pytest.raises(error, match=words):
        alloc(PAGE, shared=shared, name=name)


def test_longest_name_of_a_shared_memory_shows_in_the_maps_of_the_process() -> None:
    memory = alloc(PAGE, shared=True, name="n" * 249)
    with open("/proc/self/maps") as maps:
        line = next(line for line in maps if line.startswith(f"{memory.address:x}-"))
    assert "n" * 249 in line


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copy_and_pickle_raise_typeerror_with_the_way_out(duplicate: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"bytes\(memory\)"):
        duplicate(alloc(PAGE))


def test_fileno_is_only_for_open_shared_memory() -> None:
    private, shared = alloc(PAGE), alloc(PAGE, shared=True)
    with pytest.raises(io.UnsupportedOperation, match="shared=True"):
        private.fileno()
    with mmap.mmap(shared.fileno(), PAGE) as other:
        other[5] = 9
        assert shared[5] == 9
    shared.close()
    with pytest.raises(ValueError, match="closed"):
        shared.fileno()


def test_no_process_can_truncate_shared_memory() -> None:
    memory = alloc(2 * PAGE, shared=True)
    for size in (0, PAGE, 3 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fileno(), size)


# ---- the end --------------------------------------------------------------------------------------------------------


@KINDS
def test_close_frees_memory_and_file_once(shared: bool) -> None:
    files = os.listdir("/proc/self/fd")
    with alloc(PAGE, shared=shared) as memory:
        address = memory.address
    memory.close()
    assert memory.closed
    assert "closed" in repr(memory)
    assert os.listdir("/proc/self/fd") == files
    with open("/proc/self/maps") as maps:
        assert f"{address:x}-" not in maps.read()
    with pytest.raises(ValueError, match="closed"):
        memory[0]


@KINDS
def test_last_reference_frees_memory_and_file(shared: bool) -> None:
    files = os.listdir("/proc/self/fd")
    memory = alloc(PAGE, shared=shared)
    reference = weakref.ref(memory)
    del memory
    assert reference() is None
    assert os.listdir("/proc/self/fd") == files


@KINDS
def test_close_of_memory_in_use_raises_and_changes_nothing(shared: bool) -> None:
    memory = alloc(PAGE, shared=shared)
    with VM() as vm:
        vm.map_buffer(0, memory)
        for close in (memory.close, lambda: memory.__exit__(None, None, None)):
            with pytest.raises(BufferError, match=r"pinned_by\(memory\)"):
                close()
        assert not memory.closed
        if shared:
            assert memory.fileno() >= 0
    memory.close()


def test_subclass_can_form_a_cycle_that_is_collected() -> None:
    class Own(Memory):
        pass

    memory = Own(PAGE, name="own")
    memory.me = memory
    reference = weakref.ref(memory)
    del memory
    gc.collect()
    assert reference() is None


def test_memory_that_a_finalizer_keeps_can_be_used() -> None:
    kept: list[Memory] = []

    class Kept(Memory):
        def __del__(self) -> None:
            kept.append(self)

    files = os.listdir("/proc/self/fd")
    Kept(PAGE, shared=True)
    assert len(kept) == 1
    for memory in kept:
        assert os.fstat(memory.fileno()).st_size == PAGE
        memory[0] = 1
        memory.close()
        with pytest.raises(ValueError, match="closed"):
            memory.fileno()
    assert os.listdir("/proc/self/fd") == files


def test_memory_without_its_new_is_private_and_closes() -> None:
    memory = mmap.mmap.__new__(Memory, -1, PAGE)
    assert (memory.name, memory.shared, repr(memory)) == (
        "",
        False,
        "<Memory: private, 0x1000 bytes>",
    )
    with pytest.raises(io.UnsupportedOperation):
        memory.fileno()
    memory.close()


def test_lack_of_file_descriptors_raises_its_own_errno_and_leaks_none() -> None:
    """A shared memory needs two: the one of fileno(), and the one that mmap keeps."""
    runs(
        """
        import resource
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = len(os.listdir("/proc/self/fd")) - 1
        for more in 0, 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, limits[1]))
            error = refused(MemslotsError, lambda: alloc(PAGE, shared=True))
            assert type(error) is MemslotsError and error.errno == errno.EMFILE, (more, repr(error))
            assert "two file descriptors" in str(error), error
            del error  # its traceback has the frame with the file
            alloc(PAGE).close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert len(os.listdir("/proc/self/fd")) - 1 == used
        print("well")
        """
    )


# ---- fork -----------------------------------------------------------------------------------------------------------


def test_child_of_fork_shares_shared_memory_and_has_a_copy_of_private_memory() -> None:
    runs(
        """
        private, shared = alloc(PAGE), alloc(PAGE, shared=True)
        private[0] = shared[0] = 1
        if not (child := os.fork()):
            private[0], shared[0] = 2, 3
            private.close(), shared.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert (private[0], shared[0]) == (1, 3)
        print("well")
        """
    )
