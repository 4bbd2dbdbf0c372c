# SPDX-License-Identifier: MIT
"""Reads the output of `strace -f -e trace=ioctl`.

strace prints KVM_SET_USER_MEMORY_REGION field by field.  Only versions that know the second ioctl print its fields; the
others print `_IOC(_IOC_WRITE, 0xae, 0x49, 0xa0)` and a pointer, and such a change is lost.  A call during which another
thread makes a call has two lines, `<unfinished ...>` and `resumed`.  They are joined by pid, and the call counts at its
end.  The order of the ends is the order of the kernel's changes, except where two calls overlap in time.
"""

import errno
import re
from typing import Any, NamedTuple

from .changes import LONGEST_CALL, Change, FieldError, Lines, Log, number_of, parse, region_op

NAME = "strace"
SIGNATURE = re.compile(r"\bioctl\(|<\.\.\. ioctl resumed>")

_PID = r"(?:\[pid\s+(?P<bracket>\d+)(?:<[^>]*>)?\]\s*|(?P<plain>\d+)(?:<[^>]*>)?\s+)?"
_TIMES = r"(?:(?:\d+:\d+:\d+(?:\.\d+)?|\d+\.\d+|\(\+\s*\d+\.\d+\)|\[[\s0-9a-f?]+\])\s+)*"  # -t, -r, -n, -i
_LINE = re.compile(rf"\s*{_PID}{_TIMES}(?P<rest>\S.*)")
_UNFINISHED = "<unfinished ...>"
_RESUMED = re.compile(r"<\.\.\. (?P<call>\w+) resumed>(?P<tail>.*)")
_NOISE = re.compile(r"--- .* ---|\+\+\+ .* \+\+\+|strace: .*|> .*")  # signals, exits, messages, -k
_IOCTL = re.compile(
    r"ioctl\((?P<fd>-?\d+)(?:<.*?>+)?,\s*(?P<request>_IOC\([^)]*\)|[^,)]+?)\s*(?:,\s*(?P<rest>.*)|\).*)"
)
_RAW_REQUEST = re.compile(r"_IOC\(\s*\w[^,]*,\s*0xae,\s*(0x[0-9a-f]+),\s*(0x[0-9a-f]+)\s*\)")
_ARGUMENT = re.compile(
    r"(?P<argument>\{.*\}|NULL|\w+)(?:\s*=> .*?)?(?:\s*/\* .*? \*/)?\)\s*=\s*(?P<result>.*)"
)
_RESULT = re.compile(
    r"(?P<value>-?\d+|0x[0-9a-f]+)(?:<.*?>+)?(?:\s+(?P<errno>E[A-Z0-9]+)\b[^()]*(?:\([^()]*\))?)?(?P<more>.*)"
)
_RAW = re.compile(r"_IOC\([^)]{0,80}\)|0x[0-9a-f]{8}\b")
_FIELD = re.compile(r"(\w+)=((?:/\*.*?\*/|[^,{}\[\]])+)")

_REGION, _REGION2 = "KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2"
_CREATE_VM, _CREATE_GMEM = "KVM_CREATE_VM", "KVM_CREATE_GUEST_MEMFD"
_BY_NUMBER = {
    0x4020AE46: _REGION,
    0x40A0AE49: _REGION2,
    0xAE01: _CREATE_VM,
    0xC040AED4: _CREATE_GMEM,
}
_BY_NR = {
    (0x46, 0x20): _REGION,
    (0x49, 0xA0): _REGION2,
    (0x01, 0): _CREATE_VM,
    (0xD4, 0x40): _CREATE_GMEM,
}
_FIELDS = {
    "slot": "slot",
    "flags": "flags",
    "gpa": "guest_phys_addr",
    "size": "memory_size",
    "hva": "userspace_addr",
}
_GUEST_MEMFD = 4


class _Call(NamedTuple):
    """A complete ioctl of KVM: its line, the descriptor, the request's name, its argument, the text of its result."""

    line: int
    fd: int
    request: str
    argument: str
    result: str
    text: str


def read(lines: Lines) -> Log:
    return _Reader().read(lines)


class _Reader:
    def __init__(self) -> None:
        self.log = Log(NAME)
        # By pid: the line and the text before <unfinished ...>.
        self.pending: dict[str, tuple[int, str]] = {}
        # By the descriptor of the VM: its changes, and the descriptors of its guest_memfds.
        self.changes: dict[int, list[Change]] = {}
        self.gmems: dict[int, list[int]] = {}

    def read(self, lines: Lines) -> Log:
        for number, text in lines:
            if len(text) > LONGEST_CALL:
                self.long(number, text)
            elif text.strip():
                self.line(number, text)
        for number, text in self.pending.values():
            self.cut(number, text)
        self.log.changes = [change for made in self.changes.values() for change in made]
        return self.log

    def long(self, number: int, text: str) -> None:
        if _may_be_change(text):
            self.log.miss(number, f"a line of more than {LONGEST_CALL} characters", text)
        else:
            self.log.leave_out("other system calls")

    def line(self, number: int, text: str) -> None:
        parts = _LINE.fullmatch(text)
        rest = parts["rest"] if parts else text
        pid = (parts and (parts["bracket"] or parts["plain"])) or ""
        if _NOISE.fullmatch(rest):
            self.log.leave_out("signals, exits and messages of strace")
        elif rest.endswith(_UNFINISHED):
            if pid in self.pending:
                self.cut(*self.pending[pid])
            self.pending[pid] = (number, rest.removesuffix(_UNFINISHED).rstrip())
        elif found := _RESUMED.fullmatch(rest):
            self.resumed(number, pid, found["call"], found["tail"], text)
        else:
            self.call(number, rest)

    def resumed(self, number: int, pid: str, call: str, tail: str, text: str) -> None:
        """Joins the two lines of a call."""
        begin = self.pending.get(pid)
        if begin and begin[1].startswith(f"{call}("):
            del self.pending[pid]
            self.log.leave_out("first halves of calls in two lines")
            self.call(number, begin[1] + tail)
        elif call == "ioctl":
            self.log.miss(number, "the beginning of this call is missing", text)
        else:
            self.log.leave_out("other system calls")

    def cut(self, number: int, text: str) -> None:
        """Counts a call whose end is missing."""
        if _may_be_change(text):
            self.log.miss(number, "the end of this call is missing", text)
        else:
            self.log.leave_out("calls without an end")

    def call(self, number: int, text: str) -> None:
        found = _IOCTL.fullmatch(text)
        if not found:
            self.other(number, text)
            return
        request = _request(found["request"])
        if request not in (_REGION, _REGION2, _CREATE_VM, _CREATE_GMEM):
            self.log.leave_out("ioctls that change no slot")
            return
        tail = _ARGUMENT.fullmatch(found["rest"] or "")
        if not tail:
            self.log.miss(number, "the line is cut or damaged", text)
            return
        call = _Call(number, int(found["fd"]), request, tail["argument"], tail["result"], text)
        try:
            self.kvm(call)
        except FieldError as e:
            self.log.miss(number, str(e), text)

    def other(self, number: int, text: str) -> None:
        """Counts a line that is no complete ioctl."""
        if _may_be_change(text):
            self.log.miss(number, "the line is cut or damaged", text)
        elif re.match(r"ioctl\(", text):
            self.log.leave_out("calls without an end")
        elif re.fullmatch(r"\w+\(.*", text):
            self.log.leave_out("other system calls")
        else:
            self.log.miss(number, "no line of strace", text)

    # ---- the ioctls of KVM ----

    def kvm(self, call: _Call) -> None:
        """Converts an ioctl.  FieldError: it cannot be converted."""
        result, value = _result(call.result)
        if call.request == _CREATE_VM:
            self.new_vm(call, result, value)
        elif call.request == _CREATE_GMEM:
            self.new_gmem(call, result, value)
        elif call.argument.startswith("{"):
            self.region(call, result)
        elif result == "EFAULT":
            # The kernel could not read the structure, and neither could strace.
            second = {"v2": True} if call.request == _REGION2 else {}
            self.change(call, {"op": "set_fault", "ret": result} | second)
        else:
            raise FieldError(f"{call.request} without its fields, which a newer strace prints")

    def new_vm(self, call: _Call, result: str | int, fd: int) -> None:
        self.log.leave_out("ioctls that change no slot")
        if result != 0:
            return
        self.gmems.pop(fd, None)
        if earlier := self.changes.pop(fd, []):
            reason = "changes of an earlier VM that had the same file descriptor"
            self.log.left_out[reason] += len(earlier)

    def change(self, call: _Call, op: dict[str, Any]) -> None:
        self.changes.setdefault(call.fd, []).append(Change(call.line, call.fd, op))

    def new_gmem(self, call: _Call, result: str | int, fd: int) -> None:
        fields = _fields(call.argument)
        if not fields:
            raise FieldError(f"{call.request} without its fields, which a newer strace prints")
        op = {"op": "create_gmem", "size": f"{number_of(fields, 'size', 64):#x}", "ret": result}
        if "flags" in fields:
            op["flags"] = f"{parse(fields['flags'], 'flags', 64):#x}"
        if result == 0:
            self.gmems.setdefault(call.fd, []).append(fd)
        self.change(call, op)

    def region(self, call: _Call, result: str | int) -> None:
        fields = _fields(call.argument)
        kind = "set2" if call.request == _REGION2 else "set"
        op = region_op(fields, _FIELDS, kind)
        if kind == "set2" and op["flags"] & _GUEST_MEMFD and op["size"] != "0x0":
            op |= self.gmem(call, fields)
        self.change(call, op | {"ret": result})

    def gmem(self, call: _Call, fields: dict[str, str]) -> dict[str, Any]:
        fd = number_of(fields, "guest_memfd", 32)
        known = self.gmems.get(call.fd, [])
        if fd not in known:
            raise FieldError(f"guest_memfd {fd}: the log does not have its creation")
        last = len(known) - 1 - known[::-1].index(fd)  # a closed descriptor may be used again
        return {"gmem": last, "gmem_off": f"{number_of(fields, 'guest_memfd_offset', 64):#x}"}


def _may_be_change(text: str) -> bool:
    """Whether a call that cannot be read may have changed a slot."""
    return any(name in text for name in (_REGION, _CREATE_GMEM)) or any(
        _request(raw) in (_REGION, _REGION2) for raw in _RAW.findall(text)
    )


def _request(text: str) -> str:
    """The name of an ioctl, which strace prints as a name, as a number, or as _IOC(...)."""
    text = re.sub(r"\s*/\*.*?\*/", "", text).strip()
    if raw := _RAW_REQUEST.fullmatch(text):
        return _BY_NR.get((int(raw[1], 16), int(raw[2], 16)), text)
    if re.fullmatch(r"0x[0-9a-f]{1,16}", text):
        return _BY_NUMBER.get(int(text, 16), text)
    return next((name for name in text.split(" or ") if name in _BY_NUMBER.values()), text)


def _fields(argument: str) -> dict[str, str]:
    return dict(_FIELD.findall(argument))


def _result(text: str) -> tuple[str | int, int]:
    """The `ret` of an operation, and the number that the call returned.  FieldError: the result is not known."""
    found = _RESULT.fullmatch(text.strip())
    if not found:
        raise FieldError(f"the result is {text.strip()[:40]!r}")
    if "INJECTED" in found["more"]:
        raise FieldError("strace injected the result; the kernel did not get the call")
    value = int(found["value"], 16 if found["value"].startswith("0x") else 10)
    if value >= 0 and not found["errno"]:
        return 0, value
    if not isinstance(getattr(errno, found["errno"] or "", None), int):
        raise FieldError(f"the result is {text.strip()[:40]!r}")
    return found["errno"], value
