# SPDX-License-Identifier: MIT
"""/dev/kvm: the system ioctls."""

import errno
import os
import sys
from typing import SupportsIndex

from ..errors import NotSupportedError
from . import ioctls
from .handle import Handle, extension_number
from .machine import Vm


def open() -> "Device":
    """Opens /dev/kvm.

    NotSupportedError: there is no /dev/kvm here, this process may not use it, or it speaks another version of the API.
    """
    if sys.byteorder != "little":
        raise NotSupportedError(errno.ENOSYS, "memslots.kvm needs a little-endian machine")
    try:
        device = Device(ioctls.open_device())
    except OSError as e:
        number = e.errno or errno.ENOSYS
        name = errno.errorcode.get(number, "no errno")
        message = f"{ioctls.DEVICE} does not open: {name}, {os.strerror(number)}"
        raise NotSupportedError(number, message) from None
    try:
        device._check_version()
    except BaseException:
        device.close()
        raise
    return device


class Device(Handle):
    """/dev/kvm.  `memslots.kvm.open()` makes it.  Its VMs live on when it is closed."""

    def __del__(self) -> None:
        self._release()

    def check_extension(self, extension: str | SupportsIndex) -> int:
        """KVM_CHECK_EXTENSION: 0 if the kernel lacks the extension, otherwise 1 or a number that it defines.

        extension: a number, or a name of `memslots.kvm.ioctls.EXTENSIONS` such as "nr_memslots"."""
        number = extension_number(extension)
        return self._ioctl(ioctls.KVM_CHECK_EXTENSION, number, f"KVM_CHECK_EXTENSION {extension}")

    @property
    def capabilities(self) -> dict[str, int]:
        """The result of KVM_CHECK_EXTENSION for each name of `memslots.kvm.ioctls.EXTENSIONS`."""
        return {name: self.check_extension(name) for name in ioctls.EXTENSIONS}

    def create_vm(self, type: SupportsIndex = 0) -> Vm:
        """KVM_CREATE_VM.  The VM has no memory and no vCPU."""
        size = self._ioctl(ioctls.KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE")
        return Vm(self._ioctl(ioctls.KVM_CREATE_VM, type, "KVM_CREATE_VM"), size)

    def _check_version(self) -> None:
        try:
            version = self._ioctl(ioctls.KVM_GET_API_VERSION, 0, "KVM_GET_API_VERSION")
        except OSError as e:
            number = e.errno or errno.ENOSYS
            raise NotSupportedError(number, f"{ioctls.DEVICE} is no KVM device: {e}") from None
        if version != ioctls.API_VERSION:
            raise NotSupportedError(
                errno.ENOSYS,
                f"{ioctls.DEVICE} speaks version {version} of the KVM API, not {ioctls.API_VERSION}",
            )
