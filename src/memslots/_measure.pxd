# SPDX-License-Identifier: MIT
# The declarations of private/measure.h of the core.  The header is not installed: only the binding can use it.
from libc.stdint cimport int32_t, uint32_t, uint64_t

from .libmemslots cimport ms_userspace_memory_region, ms_vcpu, ms_vm


cdef extern from "measure.h" nogil:
    void ms_time_gfn_to_hva(ms_vm *vm, uint32_t as_id, const uint64_t *gfns, size_t n, size_t group, uint64_t *hvas,
                            uint64_t *ns)
    void ms_time_vcpu_gfn_to_hva(ms_vcpu *vcpu, const uint64_t *gfns, size_t n, size_t group, uint64_t *hvas,
                                 uint64_t *ns)
    void ms_time_id_to_memslot(ms_vm *vm, uint32_t as_id, const uint64_t *ids, size_t n, size_t group,
                               uint64_t *addrs, uint64_t *ns)
    void ms_time_hva_range(ms_vm *vm, uint32_t as_id, const uint64_t *starts, const uint64_t *lasts, size_t n,
                           size_t group, uint64_t *counts, uint64_t *ns)
    void ms_time_changes(ms_vm *vm, const ms_userspace_memory_region *regions, size_t n, size_t group,
                         int32_t *results, uint64_t *ns)
    void ms_time_nothing(size_t n, uint64_t *ns)
    uint64_t ms_time_chase(const uint32_t *chain, size_t size, size_t steps, uint32_t *at)
    void ms_design_costs(size_t i, int *costs)
