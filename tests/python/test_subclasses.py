# SPDX-License-Identifier: MIT
"""Subclasses of VM: which limits apply, and how a VM behaves before super().__init__() has run."""

from __future__ import annotations

import abc
import dataclasses
import gc
import itertools
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from scene import put, runs

from memslots import MEMSLOT_DTYPE, VCPU, VM, ClosedError, Listener, NotSupportedError, Update

LIMITS: dict[str, tuple[Any, Any]] = {
    "address_spaces": (2, 3),
    "user_mem_slots": (8, 9),
    "gpa_bits": (40, 41),
    "hva_end_max": (2**40, 2**41),
    "backend": ("array", "list"),
}
FIRST = {name: values[0] for name, values in LIMITS.items()}
DEFAULTS = {name: getattr(VM(), name) for name in LIMITS}


def limits_of(vm: VM) -> dict[str, Any]:
    return {name: getattr(vm, name) for name in LIMITS}


class Machine(VM):
    """Takes its own arguments, and passes limits to super().__init__()."""

    def __init__(self, name: str = "m", *extra: object, **limits: Any) -> None:
        self.name = name
        super().__init__(**limits)


# ---- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIMITS)
def test_limit_passed_to_super_init_applies(name: str) -> None:
    """The other limits keep their defaults."""
    with Machine("a", 1, 2, **{name: FIRST[name]}) as vm:
        assert limits_of(vm) == DEFAULTS | {name: FIRST[name]}
        put(vm, 1, 5, 2)
        assert (vm.name, vm.gfn_to_hva(5), len(vm)) == ("a", 2**30, 1)
        vm.check()


def test_arguments_of_the_subclass_are_not_limits() -> None:
    """Only super().__init__() sets limits, even if arguments of the subclass have the names of limits."""

    class Own(VM):
        def __init__(self, address_spaces: str, user_mem_slots: list[int]) -> None:
            super().__init__(address_spaces=len(address_spaces), user_mem_slots=user_mem_slots[0])

    assert limits_of(Own("abc", [7])) == DEFAULTS | {"address_spaces": 3, "user_mem_slots": 7}

    class Plain(VM):
        def __init__(self, address_spaces: int) -> None:
            super().__init__()

    assert limits_of(Plain(5)) == limits_of(Plain(address_spaces=5)) == DEFAULTS


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"user_mem_slots": -8}, OverflowError),
        ({"nonsense": 3}, TypeError),
        ({"address_spaces": 0}, ValueError),
        ({"gpa_bits": "52"}, TypeError),
        ({"backend": "none"}, NotSupportedError),
        ({"backend": None}, TypeError),
    ],
)
def test_bad_limits_raise_as_in_vm(limits: dict[str, Any], error: type[Exception]) -> None:
    """The message is that of VM().  The subclass may call super().__init__() again with valid limits."""

    class Again(VM):
        def __init__(self) -> None:
            with pytest.raises(error) as caught:
                super().__init__(**limits)
            self.refused = caught.value
            assert self.closed
            super().__init__(**FIRST)

    with pytest.raises(error) as plain:
        VM(**limits)
    with pytest.raises(error) as caught:
        Machine(**limits)
    again = Again()
    assert str(caught.value) == str(plain.value) == str(again.refused)
    assert limits_of(again) == FIRST


def test_positional_limit_raises_typeerror() -> None:
    class Positional(VM):
        def __init__(self) -> None:
            super().__init__(2)  # type: ignore[misc]

    with pytest.raises(TypeError, match=r"keyword arguments only \(address_spaces, "):
        Positional()


@pytest.mark.parametrize("name", LIMITS)
def test_second_init_never_changes_limits(name: str) -> None:
    """A second __init__() does nothing with the same limits, and raises TypeError with others."""

    class Diamond(Machine):
        def __init__(self, **limits: Any) -> None:
            super().__init__(**limits)
            VM.__init__(self)  # cooperating classes may do this

    for vm in (
        VM(**FIRST),
        Machine(**FIRST),
        Diamond(**FIRST),
        Inheriting(**FIRST),
        Named("n", **FIRST),
    ):
        put(vm, 1, 5, 2)
        for _ in range(2):
            VM.__init__(vm)
            VM.__init__(vm, **FIRST)
            VM.__init__(vm, **{name: FIRST[name]})
            with pytest.raises(TypeError, match=f"made already, with {name}={FIRST[name]!r}"):
                VM.__init__(vm, **{name: LIMITS[name][1]})
            with pytest.raises(TypeError, match="keyword"):
                VM.__init__(vm, 2)  # type: ignore[misc]
            with pytest.raises(TypeError, match="nonsense"):
                VM.__init__(vm, nonsense=2)  # type: ignore[call-arg]
        assert limits_of(vm) == FIRST
        assert (len(vm), vm.gfn_to_hva(5)) == (1, 2**30)
        vm.close()
        with pytest.raises(TypeError, match="made already"):
            VM.__init__(vm, **{name: LIMITS[name][1]})
        assert vm.closed


def test_new_creates_the_vm_of_a_class_without_init() -> None:
    """If no subclass defines __init__(), __new__() makes the VM with its limits."""
    vm = VM.__new__(VM)
    assert limits_of(vm) == DEFAULTS
    with pytest.raises(TypeError, match="address_spaces=1"):
        vm.__init__(address_spaces=2)  # type: ignore[misc]
    made = VM.__new__(VM, **FIRST)
    made.__init__(**FIRST)  # type: ignore[misc]
    assert limits_of(made) == FIRST


class Inheriting(VM):
    """Defines neither __init__() nor __new__()."""

    name = "i"


class Named(VM):
    """Sets itself up in __new__(), as subclasses of numpy arrays do."""

    def __new__(cls, name: str, **limits: Any) -> Named:
        vm = super().__new__(cls, **limits)
        vm.name = name
        put(vm, 3, 9, 1)
        vm.set_user_memory_region(3, guest_phys_addr=0, memory_size=0)
        return vm


def test_subclass_may_define_new() -> None:
    assert limits_of(Inheriting(**FIRST)) == limits_of(Named("n", **FIRST)) == FIRST

    class More(VM):
        """__new__() passes other arguments to super().__new__()."""

        def __new__(cls, address_spaces: int) -> More:
            return super().__new__(cls, address_spaces=address_spaces + 1)

    assert More(2).address_spaces == More(address_spaces=2).address_spaces == 3


def test_limits_of_init_override_limits_of_new() -> None:
    """Limits passed to super().__new__() apply unless super().__init__() passes them, too."""

    class Both(VM):
        def __new__(cls, *args: object) -> Both:
            return super().__new__(cls, address_spaces=2, gpa_bits=40)

        def __init__(self, *args: object) -> None:
            super().__init__(gpa_bits=41, user_mem_slots=8)

    want = DEFAULTS | {"address_spaces": 2, "gpa_bits": 41, "user_mem_slots": 8}
    assert limits_of(Both()) == limits_of(Both(1, 2)) == want

    class Through(VM):
        """__new__() passes all arguments on, as a mixin does: VM ignores the arguments of the subclass."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Through:
            return super().__new__(cls, *args, **kwargs)

        def __init__(self, name: str, **options: Any) -> None:
            super().__init__(address_spaces=4)

    assert limits_of(Through("a", color=1)) == DEFAULTS | {"address_spaces": 4}


def test_multiple_inheritance_creates_the_vm_through_super_init() -> None:
    """If VM is not the first base, the __init__() of the first base must call super().__init__()."""

    class Mixin:
        def __init__(self, *, tag: str, **rest: Any) -> None:
            super().__init__(**rest)
            self.tag = tag

    class Before(Mixin, VM): ...

    class After(VM, Mixin): ...

    class Abstract(VM, abc.ABC):
        @abc.abstractmethod
        def run(self) -> None: ...

    class Concrete(Abstract):
        def run(self) -> None: ...

    before = Before(tag="t", **FIRST)
    assert (before.tag, limits_of(before)) == ("t", FIRST)
    assert limits_of(After(**FIRST)) == limits_of(Concrete(**FIRST)) == FIRST
    with pytest.raises(TypeError, match="abstract"):
        Abstract()


def test_init_added_to_or_removed_from_a_class_takes_effect() -> None:

    class Late(VM): ...

    def init(self: VM, name: str) -> None:
        VM.__init__(self, address_spaces=2)

    Late.__init__ = init  # type: ignore[assignment]
    assert Late("x").address_spaces == 2  # type: ignore[misc]
    del Late.__init__
    assert Late(address_spaces=3).address_spaces == 3


# ---- before super().__init__() -------------------------------------------------------------------


class Forgetful(VM):
    """Its __init__() does not call super().__init__()."""

    def __init__(self, *args: object) -> None: ...


@dataclasses.dataclass(eq=False)
class Data(VM):
    name: str = "d"


def uses() -> dict[str, Callable[[VM], object]]:
    """Every kind of use that needs an open VM."""
    gfns = np.zeros(3, np.uint64)
    return {
        **{
            name: lambda vm, name=name: getattr(vm, name)
            for name in (
                "address_spaces",
                "user_mem_slots",
                "gpa_bits",
                "hva_end_max",
                "backend",
                "index_policy",
            )
        },
        **{
            name: lambda vm, name=name: getattr(vm, name)()
            for name in (
                "memslots",
                "memslots_array",
                "snapshot",
                "create_vcpu",
                "read",
                "generation",
                "check",
                "stats",
                "begin_update",
                "__enter__",
            )
        },
        **{
            name: lambda vm, name=name: getattr(vm, name)(0)
            for name in (
                "gfn_to_memslot",
                "id_to_memslot",
                "gfn_to_hva",
                "gpa_to_hva",
                "gfn_to_hva_prot",
                "is_visible_gfn",
                "hva_to_gfns",
                "mark_page_dirty",
                "get_dirty_log",
            )
        },
        **{
            name: lambda vm, name=name: getattr(vm, name)(gfns)
            for name in (
                "gfn_to_hva_many",
                "gpa_to_hva_many",
                "gfn_to_slot_id_many",
                "mark_page_dirty_many",
            )
        },
        "iter": list,
        "in": lambda vm: 0 in vm,
        "range": lambda vm: vm.memslots_in_gfn_range(0, 9),
        "hva range": lambda vm: vm.memslots_in_hva_range(0, 9),
        "put": lambda vm: put(vm, 0, 0, 1),
        "load": lambda vm: vm.load_memslots(np.zeros(1, MEMSLOT_DTYPE)),
        "clear": lambda vm: vm.clear_dirty_log(0, 0, 64, [0]),
        "harvest": lambda vm: vm.harvest_dirty(),
        "merge": lambda vm: vm.merge_dirty_log(0, [0]),
        "listener": lambda vm: vm.add_listener(Listener()),
        "no listener": lambda vm: vm.remove_listener(Listener()),
        "VCPU": VCPU,
        "Update": Update,
        "policy": lambda vm: setattr(vm, "index_policy", "off"),
        "protect": lambda vm: setattr(vm, "manual_dirty_log_protect", 1),
        "stalls": lambda vm: setattr(vm, "stall_warning_ms", 1),
    }


def half_made() -> dict[str, VM]:
    return {
        "forgetful": Forgetful(1, 2),
        "data": Data("x"),
        "new": Machine.__new__(Machine),
        "new with limits": Machine.__new__(Machine, address_spaces=2),
        "new with others": Machine.__new__(Machine, "a", b=3),
    }


@pytest.mark.parametrize("use", uses())
@pytest.mark.parametrize("kind", half_made())
def test_use_before_init_raises_closederror(kind: str, use: str) -> None:
    """The message names the class and the missing call."""
    vm = half_made()[kind]
    with pytest.raises(
        ClosedError,
        match=rf"{type(vm).__name__}\.__init__\(\) has not called super\(\)\.__init__\(\)",
    ):
        uses()[use](vm)


@pytest.mark.parametrize("kind", half_made())
def test_vm_before_init_answers_like_a_closed_vm(kind: str) -> None:
    """__init__() can still make the VM afterwards."""
    vm = half_made()[kind]
    assert (vm.closed, len(vm), bool(vm), vm.nr_memslot_pages) == (True, 0, True, 0)
    assert (vm.manual_dirty_log_protect, vm.stall_warning_ms) == (0, 0)
    assert "not made" in VM.__repr__(vm)
    vm.close()
    VM.__init__(vm, **FIRST)
    assert limits_of(vm) == FIRST
    assert not vm.closed
    put(vm, 0, 0, 1)
    vm.check()


def test_attributes_may_be_set_before_init() -> None:
    """A subclass may also make references to itself before it calls super().__init__()."""

    class Owner(VM):
        def __init__(self) -> None:
            self.parts: list[Any] = [weakref.ref(self), self.gfn_to_hva]
            super().__init__()
            self.parts.append(self.create_vcpu())

    owner = Owner()
    put(owner, 0, 5, 1)
    assert owner.parts[0]() is owner
    assert owner.parts[1](5) == owner.parts[2].gfn_to_hva(5) == 0


def test_init_called_from_an_argument_creates_the_vm_once() -> None:
    """The inner __init__() makes the VM; the outer one raises TypeError."""

    class CallsInit:
        def __init__(self, vm: VM) -> None:
            self.vm = vm

        def __index__(self) -> int:
            VM.__init__(self.vm, address_spaces=3)
            return 2

    vm = Forgetful()
    with pytest.raises(TypeError, match="made by another"):
        VM.__init__(vm, address_spaces=CallsInit(vm))
    assert vm.address_spaces == 3


def test_concurrent_init_creates_the_vm_once() -> None:
    """One of four threads makes the VM; the others raise TypeError, because their limits differ."""
    for _ in range(50):
        vm = Forgetful()
        made: list[int] = []
        start = threading.Barrier(4)

        def init(
            n: int, vm: VM = vm, start: threading.Barrier = start, made: list[int] = made
        ) -> None:
            start.wait()
            with suppress(TypeError):
                VM.__init__(vm, address_spaces=n)
                made.append(n)

        threads = [threading.Thread(target=init, args=(n,)) for n in (1, 2, 3, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made == [vm.address_spaces]
        vm.check()


EVERY_STATE = """
class Fails(VM):
    def __init__(self, at, *args, **limits):
        self.at = at
        if at == 0: raise ZeroDivisionError
        super().__init__(**limits)
        if at == 1: raise ZeroDivisionError
        self.me = self
        put(self, 0, 0, 1)
        if at == 2: raise ZeroDivisionError
    def __del__(self):
        seen.append((self.at, self.closed, len(self)))
        self.close()
        refused(ClosedError, self.memslots)
        VM.__init__(self)  # does nothing on a closed VM
        if self.at == 0: VM.__init__(self)

class Refused(VM):
    def __new__(cls, *args):
        raise ZeroDivisionError

class Swapped(VM):
    def __new__(cls, other):
        return other          # Python then calls __init__ on an existing VM, or not at all
    def __init__(self, other):
        super().__init__()

seen = []
for at in (0, 1, 2, 3):
    for n in range(20):
        try:
            Fails(at)
        except ZeroDivisionError:
            pass
    gc.collect()
assert {s[0] for s in seen} == {0, 1, 2, 3} and len(seen) == 80, len(seen)
assert set(seen) == {(0, True, 0), (1, False, 0), (2, False, 1), (3, False, 1)}, set(seen)
for n in range(20):
    refused(ZeroDivisionError, Refused)
    vm = VM(address_spaces=2)
    assert Swapped(vm) is vm and vm.address_spaces == 2
    assert Swapped(3) == 3
    half = Swapped.__new__(Swapped, None)
    assert half is None
    object.__repr__(VM.__new__(Fails))
    try: VM.__new__(Fails).__del__()
    except AttributeError: pass
sys.unraisablehook = lambda u: None
gc.collect()
print("well")
"""


def test_del_works_after_an_exception_at_any_point_of_init() -> None:
    """The exception comes before, inside or after super().__init__(); __del__() then uses and closes the VM."""
    runs("sys.unraisablehook = lambda u: None\n" + EVERY_STATE)


def test_vm_keeps_no_reference_to_its_arguments() -> None:

    class Number:
        def __index__(self) -> int:
            return 2

    for make in (VM, Machine, Inheriting, lambda **limits: Named("n", **limits)):
        number = Number()
        gone = weakref.ref(number)
        vm = make(address_spaces=number)
        del number
        gc.collect()
        assert gone() is None
        assert vm.address_spaces == 2


def test_every_combination_of_limits_gives_the_limits_of_vm() -> None:
    """Each kind of subclass gets the limits that VM() gets from the same arguments."""
    names = list(LIMITS)
    for n in range(len(names) + 1):
        for some in itertools.combinations(names, n):
            given = {name: FIRST[name] for name in some}
            want = limits_of(VM(**given))
            assert limits_of(Machine(**given)) == limits_of(Named("n", **given)) == want
