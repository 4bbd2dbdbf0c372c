# SPDX-License-Identifier: MIT
"""This machine's kernel through /dev/kvm; `import memslots` leaves this package out.

vm       KvmVM, with the calls of `memslots.VM`
ioctls   numbers and layouts of the calls
"""

from .vm import MAX_BUILT_PAGES, KvmVM, NotCompared, available

__all__ = ["MAX_BUILT_PAGES", "KvmVM", "NotCompared", "available"]
