# SPDX-License-Identifier: MIT
from ._memslots cimport VCPU, VM
