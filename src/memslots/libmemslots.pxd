# SPDX-License-Identifier: MIT
# memslots.h, name for name.
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, uint32_t, uint64_t


cdef extern from "<stdbool.h>" nogil:
    ctypedef unsigned char c_bool "bool"


cdef extern from "memslots.h" nogil:
    const char *MS_VERSION
    uint64_t MS_HVA_ERR_BAD
    uint64_t MS_HVA_ERR_RO_BAD
    uint64_t MS_HVA_ERR_MIN
    uint64_t MS_GEN_UPDATE_IN_PROGRESS

    struct ms_vm:
        pass
    struct ms_vcpu:
        pass
    struct ms_update:
        pass
    struct ms_slot:
        pass

    struct ms_memslot:
        uint64_t base_gfn
        uint64_t npages
        uint64_t userspace_addr
        uint32_t id
        uint32_t as_id
        uint32_t flags

    enum ms_rule:
        MS_RULE_NONE
        MS_RULE_SLOT_ID
        MS_RULE_FLAGS
        MS_RULE_SIZE_ALIGN
        MS_RULE_GPA_ALIGN
        MS_RULE_HVA_ALIGN
        MS_RULE_HVA_RANGE
        MS_RULE_GMEM_OFFSET
        MS_RULE_AS_ID
        MS_RULE_GPA_WRAP
        MS_RULE_NPAGES
        MS_RULE_NO_SUCH_SLOT
        MS_RULE_TOTAL_PAGES
        MS_RULE_GMEM_EXISTING
        MS_RULE_HVA_CHANGE
        MS_RULE_SIZE_CHANGE
        MS_RULE_FLAGS_TOGGLE
        MS_RULE_OVERLAP
        MS_RULE_GMEM_FD
        MS_RULE_GPA_LIMIT
        MS_RULE_NO_MEMORY
        MS_RULE_LISTENER
        MS_RULE_NO_DIRTY_LOG
        MS_RULE_FIRST_PAGE
        MS_RULE_CLEAR_RANGE
        MS_RULE_BITMAP_SIZE
        MS_RULE_NULL_BUFFER
        MS_RULE_DUPLICATE_ID
        MS_RULE_MANUAL_PROTECT
        MS_RULE_READ_SECTION
        MS_RULE_HOOK
        MS_RULE_UPDATE
        MS_RULE_FORKED
        MS_RULE_CLOSED
        MS_RULE_HANDLE
        MS_RULE_SETS_DIFFER
        MS_RULE_BACKEND
        MS_RULE_INTERRUPTED
        MS_RULE_NR

    struct ms_error:
        ms_rule rule
        uint32_t index
        uint64_t limit
        ms_memslot other

    struct ms_stall:
        uint32_t thread_id
        uint32_t report
        uint64_t waited_ns
    ctypedef void ms_stall_fn(void *opaque, const ms_stall *stall) noexcept

    struct ms_config:
        uint32_t address_spaces
        uint32_t user_mem_slots
        uint32_t gpa_bits
        uint64_t hva_end_max
        const char *backend
        ms_stall_fn *report_stall
        void *stall_opaque

    void ms_config_init(ms_config *config)
    int ms_vm_create(const ms_config *config, ms_vm **out)
    int ms_vm_close(ms_vm *vm, ms_error *err)
    ctypedef int ms_poll_fn() noexcept
    void ms_set_poll(ms_poll_fn *poll)
    void ms_vm_destroy(ms_vm *vm)

    uint32_t MS_STALL_AFTER_MS_DEFAULT
    int ms_set_stall_report(ms_vm *vm, uint32_t after_ms, ms_stall_fn *report, void *opaque, ms_error *err)

    const ms_config *ms_vm_config(const ms_vm *vm)
    const char *ms_backend_name(size_t i)

    struct ms_userspace_memory_region:
        uint32_t slot
        uint32_t as_id
        uint32_t flags
        int32_t guest_memfd
        uint64_t guest_phys_addr
        uint64_t memory_size
        uint64_t userspace_addr
        uint64_t guest_memfd_offset

    int ms_set_user_memory_region(ms_vm *vm, const ms_userspace_memory_region *region, ms_error *err)
    int ms_load_memslots(ms_vm *vm, uint32_t as_id, const ms_memslot *slots, size_t n, ms_error *err)

    enum ms_change_kind:
        MS_CREATE
        MS_DELETE
        MS_MOVE
        MS_FLAGS_ONLY

    struct ms_change:
        ms_change_kind kind
        ms_memslot old_slot
        ms_memslot new_slot

    struct ms_listener:
        void *opaque
        int (*prepare)(void *opaque, const ms_change *change) noexcept
        void (*abort)(void *opaque, const ms_change *change) noexcept
        void (*flush)(void *opaque, const ms_memslot *active, const ms_memslot *old) noexcept
        void (*commit)(void *opaque, const ms_change *change) noexcept

    int ms_add_listener(ms_vm *vm, const ms_listener *listener, ms_error *err)
    int ms_remove_listener(ms_vm *vm, const ms_listener *listener, ms_error *err)

    int ms_read_lock(ms_vm *vm)
    void ms_read_unlock(ms_vm *vm)
    uint64_t ms_thread_number()
    int ms_gfn_to_memslot(ms_vm *vm, uint32_t as_id, uint64_t gfn, ms_memslot *out)
    int ms_id_to_memslot(ms_vm *vm, uint32_t as_id, uint32_t id, ms_memslot *out)
    uint64_t ms_gfn_to_hva(ms_vm *vm, uint32_t as_id, uint64_t gfn)
    uint64_t ms_gfn_to_hva_prot(ms_vm *vm, uint32_t as_id, uint64_t gfn, c_bool *writable)
    bint ms_is_visible_gfn(ms_vm *vm, uint32_t as_id, uint64_t gfn)

    struct ms_batch:
        const void *in_ "in"
        ptrdiff_t in_stride
        void *out
        ptrdiff_t out_stride
        size_t n
        int (*poll)(void *opaque) noexcept
        void *opaque

    size_t MS_BATCH_BRIEF
    size_t MS_BATCH_POLL
    size_t MS_BATCH_PIECE
    int ms_gfn_to_hva_many(ms_vm *vm, uint32_t as_id, const ms_batch *batch, bint write)
    int ms_gpa_to_hva_many(ms_vm *vm, uint32_t as_id, const ms_batch *batch, bint write)
    int ms_gfn_to_slot_id_many(ms_vm *vm, uint32_t as_id, const ms_batch *batch)

    enum ms_index_policy:
        MS_INDEX_AUTO
        MS_INDEX_OFF
        MS_INDEX_EAGER
        MS_INDEX_WALK

    void ms_set_index_policy(ms_vm *vm, ms_index_policy policy)
    ms_index_policy get_index_policy "ms_index_policy"(const ms_vm *vm)
    size_t ms_memslots_in_gfn_range(ms_vm *vm, uint32_t as_id, uint64_t start, uint64_t end, ms_memslot *out,
                                    size_t room)
    size_t ms_memslots_in_hva_range(ms_vm *vm, uint32_t as_id, uint64_t start, uint64_t last, ms_memslot *out,
                                    size_t room)
    size_t ms_memslots(ms_vm *vm, uint32_t as_id, ms_memslot *out, size_t room)

    struct ms_hva_hit:
        ms_memslot slot
        uint64_t gfn

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

    void ms_mark_page_dirty(ms_vm *vm, uint32_t as_id, uint64_t gfn)
    int ms_mark_page_dirty_many(ms_vm *vm, uint32_t as_id, const ms_batch *batch)
    int ms_get_dirty_log(ms_vm *vm, uint32_t as_id, uint32_t slot, uint64_t *bitmap, size_t room, size_t *nwords,
                         ms_error *err)
    int ms_clear_dirty_log(ms_vm *vm, uint32_t as_id, uint32_t slot, uint64_t first_page, uint32_t num_pages,
                           const uint64_t *bitmap, size_t nwords, ms_error *err)
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

    struct ms_violation:
        char invariant[8]
        char text[184]

    int ms_check(ms_vm *vm, ms_violation *violation, ms_error *err)

    struct ms_stats:
        uint64_t hits_last_used
        uint64_t hits_search
        uint64_t indexed
        uint64_t misses
        uint64_t vcpu_bypasses
        uint64_t creates
        uint64_t deletes
        uint64_t moves
        uint64_t flag_changes
        uint64_t noops
        uint64_t refused
        uint64_t swaps
        uint64_t grace_waits
        uint64_t stalls
        uint64_t hash_grows
        uint64_t index_builds
        uint64_t index_patches
        uint64_t bytes
        uint64_t blocks

    void ms_get_stats(ms_vm *vm, ms_stats *out)
    const char *ms_build_info()
    const char *ms_simd()
    const char *ms_simd_name(size_t i)
    int ms_set_simd(const char *name)
