# SPDX-License-Identifier: MIT
# The types and constants of memslots.h.  A module that cimports them links with no library.  It calls the engine by
# the methods of VM in _memslots.pxd.  The functions of _calls.pxd have no symbols outside of the extension.
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, uint32_t, uint64_t


cdef extern from "memslots.h" nogil:
    const char *MS_VERSION
    uint64_t MS_HVA_ERR_BAD
    uint64_t MS_HVA_ERR_RO_BAD
    uint64_t MS_HVA_ERR_MIN
    uint64_t MS_GEN_UPDATE_IN_PROGRESS
    uint32_t MS_ADDRESS_SPACES_MAX
    uint32_t MS_USER_MEM_SLOTS_MAX
    uint32_t MS_MEM_LOG_DIRTY_PAGES
    uint32_t MS_MEM_READONLY
    uint32_t MS_SLOT_ANY
    uint32_t MS_BACKING_READONLY

    struct ms_vm:
        pass
    struct ms_vcpu:
        pass
    struct ms_update:
        pass
    struct ms_slot:
        pass
    struct ms_backing:
        pass
    struct ms_memslot:
        uint64_t base_gfn
        uint64_t npages
        uint64_t userspace_addr
        uint32_t id
        uint32_t as_id
        uint32_t flags

    enum ms_rule:  # the rules that the binding names; MS_RULES in memslots.h lists all
        MS_RULE_NONE
        MS_RULE_SLOT_ID
        MS_RULE_NO_MEMORY
        MS_RULE_LISTENER_REFUSED
        MS_RULE_NO_SUCH_SLOT
        MS_RULE_DUPLICATE_ID
        MS_RULE_READ_SECTION
        MS_RULE_HOOK
        MS_RULE_HOOK_BUSY
        MS_RULE_UPDATE
        MS_RULE_UPDATE_OWNER
        MS_RULE_FORKED
        MS_RULE_CLOSED
        MS_RULE_HANDLE
        MS_RULE_INTERRUPTED
        MS_RULE_NR

    struct ms_error:
        ms_rule rule
        uint32_t index
        uint64_t limit
        ms_memslot other
        uint64_t gpa
        uint64_t done

    struct ms_stall:
        uint32_t thread_id
        uint32_t report
        uint64_t waited_ns

    ctypedef void ms_stall_fn(void *opaque, const ms_stall *stall) noexcept

    struct ms_config:
        uint32_t address_spaces
        uint32_t user_mem_slots
        uint32_t gpa_bits
        bint dereference_raw_addresses
        uint64_t hva_end_max
        const char *backend
        ms_stall_fn *report_stall
        void *stall_opaque

    ctypedef int ms_poll_fn() noexcept
    uint32_t MS_STALL_AFTER_MS_DEFAULT

    struct ms_userspace_memory_region:
        uint32_t slot
        uint32_t as_id
        uint32_t flags
        int32_t guest_memfd
        uint64_t guest_phys_addr
        uint64_t memory_size
        uint64_t userspace_addr
        uint64_t guest_memfd_offset

    ctypedef void ms_release_fn(void *opaque) noexcept

    enum ms_change_kind:
        MS_CREATE
        MS_DELETE
        MS_MOVE
        MS_FLAGS_ONLY
        MS_RESIZE

    struct ms_change:
        ms_change_kind kind
        ms_memslot old_slot
        ms_memslot new_slot
        const uint64_t *dirty
        size_t nr_dirty_words

    enum ms_step_kind:
        MS_STEP_CREATE
        MS_STEP_DELETE
        MS_STEP_MOVE
        MS_STEP_SET_FLAGS
        MS_STEP_RESIZE
        MS_STEP_SPLIT
        MS_STEP_MERGE
        MS_STEP_PUNCH
        MS_STEP_CHANGE_FLAGS

    struct ms_step:
        uint32_t kind
        uint32_t slot
        uint32_t other
        uint32_t flags
        uint64_t guest_phys_addr
        uint64_t memory_size
        uint64_t userspace_addr
        ms_backing *backing

    struct ms_listener:
        size_t size
        void *opaque
        int (*prepare)(void *opaque, const ms_change *change) noexcept
        void (*abort)(void *opaque, const ms_change *change) noexcept
        void (*flush)(void *opaque, const ms_memslot *active, const ms_memslot *old) noexcept
        void (*commit)(void *opaque, const ms_change *change) noexcept
        int (*prepare_many)(void *opaque, const ms_change *changes, size_t n) noexcept
        void (*closed)(void *opaque) noexcept

    struct ms_gfn_range:
        uint64_t gfn
        uint64_t npages

    uint64_t MS_GFN_END
    uint64_t MS_MEM_MAX_NR_PAGES

    struct ms_batch:
        const void *in_ "in"
        ptrdiff_t in_stride
        void *out
        ptrdiff_t out_stride
        size_t n
        int (*poll)(void *opaque) noexcept
        void *opaque

    size_t MS_GUEST_SHORT
    size_t MS_BATCH_BRIEF
    size_t MS_BATCH_POLL
    size_t MS_BATCH_PIECE

    enum ms_index_policy:
        MS_INDEX_AUTO
        MS_INDEX_OFF
        MS_INDEX_EAGER
        MS_INDEX_WALK

    struct ms_host_range:
        uint64_t hva
        uint64_t length

    struct ms_hva_hit:
        ms_memslot slot
        uint64_t gfn

    struct ms_violation:
        char invariant[8]
        char text[184]

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
