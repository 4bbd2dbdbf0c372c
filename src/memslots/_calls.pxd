# SPDX-License-Identifier: MIT
# The functions of memslots.h, for the extension only, because it is linked with the core.  This file is not installed:
# in another module each function would be an undefined symbol at import.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from .libmemslots cimport *


cdef extern from "<stdbool.h>" nogil:
    ctypedef unsigned char c_bool "bool"


cdef extern from "memslots.h" nogil:
    const char *ms_rule_name(ms_rule rule)
    int ms_config_init(ms_config *config)
    int ms_vm_create(const ms_config *config, ms_vm **out)
    int ms_vm_close(ms_vm *vm, ms_error *err)
    void ms_set_poll(ms_poll_fn *poll)
    void ms_vm_destroy(ms_vm *vm)
    int ms_set_stall_report(ms_vm *vm, uint32_t after_ms, ms_stall_fn *report, void *opaque, ms_error *err)
    const ms_config *ms_vm_config(const ms_vm *vm)
    const char *ms_backend_name(size_t i)
    int ms_set_user_memory_region(ms_vm *vm, const ms_userspace_memory_region *region, ms_error *err)
    int ms_load_memslots(ms_vm *vm, uint32_t as_id, const ms_memslot *slots, size_t n, ms_error *err)
    int ms_change_memslots(ms_vm *vm, uint32_t as_id, const ms_step *steps, size_t n, ms_error *err)
    int ms_delete_memslot(ms_vm *vm, uint32_t as_id, uint32_t slot, ms_error *err)
    int ms_move_memslot(ms_vm *vm, uint32_t as_id, uint32_t slot, uint64_t guest_phys_addr, ms_error *err)
    int ms_set_memslot_flags(ms_vm *vm, uint32_t as_id, uint32_t slot, uint32_t set, uint32_t clear, ms_error *err)
    int ms_free_slot_id(ms_vm *vm, uint32_t as_id, uint32_t *slot, ms_error *err)
    int ms_backing_create(void *start, size_t size, uint32_t flags, ms_release_fn *release, void *opaque,
                          ms_backing **out)
    ms_backing *ms_backing_get(ms_backing *backing)
    void ms_backing_put(ms_backing *backing)
    int ms_map_backing(ms_vm *vm, const ms_userspace_memory_region *region, ms_backing *backing, uint32_t *slot,
                       ms_error *err)
    int ms_unmap_backing(ms_vm *vm, uint32_t as_id, uint32_t slot, const ms_backing *backing, ms_error *err)
    int ms_move_backing(ms_vm *vm, uint32_t as_id, uint32_t slot, const ms_backing *backing, uint64_t guest_phys_addr,
                        ms_error *err)
    int ms_set_backing_flags(ms_vm *vm, uint32_t as_id, uint32_t slot, const ms_backing *backing, uint32_t set,
                             uint32_t clear, ms_error *err)
    int ms_id_to_backing(ms_vm *vm, uint32_t as_id, uint32_t id, ms_memslot *out, ms_backing **backing)
    void *ms_backing_opaque(const ms_backing *backing)
    bint ms_thread_may_change()
    int ms_add_listener(ms_vm *vm, const ms_listener *listener, ms_error *err)
    int ms_add_listener_last(ms_vm *vm, const ms_listener *listener, ms_error *err)
    int ms_remove_listener(ms_vm *vm, const ms_listener *listener, ms_error *err)
    void ms_forget_listeners(ms_vm *vm)
    int ms_read_lock(ms_vm *vm)
    int ms_read_unlock(ms_vm *vm)
    uint64_t ms_thread_number()
    int ms_gfn_to_memslot(ms_vm *vm, uint32_t as_id, uint64_t gfn, ms_memslot *out)
    int ms_id_to_memslot(ms_vm *vm, uint32_t as_id, uint32_t id, ms_memslot *out)
    uint64_t ms_gfn_to_hva(ms_vm *vm, uint32_t as_id, uint64_t gfn)
    uint64_t ms_gfn_to_hva_prot(ms_vm *vm, uint32_t as_id, uint64_t gfn, c_bool *writable)
    bint ms_is_visible_gfn(ms_vm *vm, uint32_t as_id, uint64_t gfn)
    int ms_gfn_to_hva_many(ms_vm *vm, uint32_t as_id, const ms_batch *batch, bint write)
    int ms_gpa_to_hva_many(ms_vm *vm, uint32_t as_id, const ms_batch *batch, bint write)
    int ms_gfn_to_slot_id_many(ms_vm *vm, uint32_t as_id, const ms_batch *batch)
    int ms_set_index_policy(ms_vm *vm, ms_index_policy policy)
    ms_index_policy get_index_policy "ms_index_policy"(const ms_vm *vm)
    size_t ms_memslots_in_gfn_range(ms_vm *vm, uint32_t as_id, uint64_t start, uint64_t end, ms_memslot *out,
                                    size_t room)
    size_t ms_memslots_in_hva_range(ms_vm *vm, uint32_t as_id, uint64_t start, uint64_t last, ms_memslot *out,
                                    size_t room)
    size_t ms_memslots(ms_vm *vm, uint32_t as_id, ms_memslot *out, size_t room)
    size_t ms_hva_to_gfns(ms_vm *vm, uint64_t hva, ms_hva_hit *out, size_t room)
    uint64_t ms_generation(ms_vm *vm, uint32_t as_id)
    uint64_t ms_nr_memslots(const ms_vm *vm)
    uint64_t ms_nr_memslot_pages(const ms_vm *vm)
    int ms_vcpu_create(ms_vm *vm, ms_vcpu **out, ms_error *err)
    void ms_vcpu_destroy(ms_vcpu *vcpu)
    int ms_vcpu_set_as_id(ms_vcpu *vcpu, uint32_t as_id)
    uint32_t ms_vcpu_as_id(const ms_vcpu *vcpu)
    int ms_vcpu_gfn_to_memslot(ms_vcpu *vcpu, uint64_t gfn, ms_memslot *out)
    uint64_t ms_vcpu_gfn_to_hva(ms_vcpu *vcpu, uint64_t gfn)
    int ms_read_guest(ms_vm *vm, uint32_t as_id, uint64_t gpa, void *out, size_t n, ms_error *err)
    int ms_write_guest(ms_vm *vm, uint32_t as_id, uint64_t gpa, const void *data, size_t n, ms_error *err)
    int ms_fill_guest(ms_vm *vm, uint32_t as_id, uint64_t gpa, size_t n, uint8_t byte, ms_error *err)
    int ms_copy_guest(ms_vm *vm, uint32_t as_id, uint64_t dst_gpa, uint64_t src_gpa, size_t n, ms_error *err)
    int ms_read_guest_u8(ms_vm *vm, uint32_t as_id, uint64_t gpa, uint8_t *value, ms_error *err)
    int ms_read_guest_u16(ms_vm *vm, uint32_t as_id, uint64_t gpa, uint16_t *value, ms_error *err)
    int ms_read_guest_u32(ms_vm *vm, uint32_t as_id, uint64_t gpa, uint32_t *value, ms_error *err)
    int ms_read_guest_u64(ms_vm *vm, uint32_t as_id, uint64_t gpa, uint64_t *value, ms_error *err)
    int ms_write_guest_u8(ms_vm *vm, uint32_t as_id, uint64_t gpa, uint8_t value, ms_error *err)
    int ms_write_guest_u16(ms_vm *vm, uint32_t as_id, uint64_t gpa, uint16_t value, ms_error *err)
    int ms_write_guest_u32(ms_vm *vm, uint32_t as_id, uint64_t gpa, uint32_t value, ms_error *err)
    int ms_write_guest_u64(ms_vm *vm, uint32_t as_id, uint64_t gpa, uint64_t value, ms_error *err)
    int ms_read_guest_u64_many(ms_vm *vm, uint32_t as_id, const ms_batch *batch, ms_error *err)
    int ms_write_guest_u64_many(ms_vm *vm, uint32_t as_id, const ms_batch *batch, ms_error *err)
    size_t ms_host_ranges(ms_vm *vm, uint32_t as_id, uint64_t gpa, uint64_t n, bint write, ms_host_range *out,
                          size_t room, uint64_t *hole)
    size_t ms_host_ranges_many(ms_vm *vm, uint32_t as_id, const uint64_t *gpas, const uint64_t *sizes, size_t n,
                               bint write, ms_host_range *out, size_t room, uint64_t *offsets, uint64_t *holes)
    size_t ms_memslots_in_gfn_range_many(ms_vm *vm, uint32_t as_id, const uint64_t *starts, const uint64_t *ends,
                                         size_t n, ms_memslot *out, size_t room, uint64_t *offsets)
    void ms_mark_page_dirty(ms_vm *vm, uint32_t as_id, uint64_t gfn)
    int ms_mark_page_dirty_many(ms_vm *vm, uint32_t as_id, const ms_batch *batch)
    int ms_get_dirty_log(ms_vm *vm, uint32_t as_id, uint32_t slot, uint64_t *bitmap, size_t room, size_t *nwords,
                         ms_error *err)
    int ms_clear_dirty_log(ms_vm *vm, uint32_t as_id, uint32_t slot, uint64_t first_page, uint32_t num_pages,
                           const uint64_t *bitmap, size_t nwords, ms_error *err)
    int ms_merge_dirty_log(ms_vm *vm, uint32_t as_id, uint32_t slot, const uint64_t *words, size_t nwords, ms_error *err)
    int ms_harvest_dirty(ms_vm *vm, uint32_t as_id, bint clear, uint64_t *gfn, ms_gfn_range *out, size_t room,
                         size_t *n, ms_error *err)
    int ms_set_manual_dirty_log_protect(ms_vm *vm, uint64_t value, ms_error *err)
    uint64_t ms_manual_dirty_log_protect(const ms_vm *vm)
    int ms_update_begin(ms_vm *vm, uint32_t as_id, ms_update **out, ms_error *err)
    int ms_update_end(ms_update *update, bint keep, ms_error *err)
    void ms_update_abandon(ms_update *update)
    int ms_update_copy(ms_update *update, ms_slot *old, const ms_memslot *slot, ms_slot **out, ms_error *err)
    int ms_update_replace(ms_update *update, ms_slot *old, ms_slot *new_slot, ms_error *err)
    int ms_update_invalidate(ms_update *update, ms_slot *slot, ms_slot **out, ms_error *err)
    int ms_update_swap(ms_update *update, ms_error *err)
    int ms_update_activate(ms_update *update, ms_slot *old, ms_slot *new_slot, ms_error *err)
    size_t ms_update_slots(ms_update *update, bint active, ms_slot **out, size_t room)
    ms_slot *ms_update_find(ms_update *update, bint active, uint32_t id)
    int ms_update_value(ms_update *update, const ms_slot *slot, ms_memslot *out)
    int ms_check(ms_vm *vm, ms_violation *violation, ms_error *err)
    int ms_get_stats(ms_vm *vm, ms_stats *out)
    const char *ms_build_info()
    const char *ms_simd()
    const char *ms_simd_name(size_t i)
    int ms_set_simd(const char *name)
