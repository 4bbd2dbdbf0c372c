# SPDX-License-Identifier: MIT
"""The memory slots of this machine's kernel, through /dev/kvm.  `import memslots` does not load this package.

vm       KvmVM, with the methods of `memslots.VM` for slots and dirty logs
ioctls   the numbers and the argument layouts of the ioctls
"""

from .vm import MAX_BUILT_PAGES, KvmVM, NotCompared, available

__all__ = ["MAX_BUILT_PAGES", "KvmVM", "NotCompared", "available"]
