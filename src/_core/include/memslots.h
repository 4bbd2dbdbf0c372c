/* SPDX-License-Identifier: MIT */
/*
 * memslots.h - KVM's memory slots in user space: the whole public C surface.
 *
 * A memslot maps guest frames [base_gfn, base_gfn + npages) to host addresses from userspace_addr on.  A VM has one
 * or more address spaces, each with its own slots, which one writer at a time changes while readers look up.
 *
 * Conventions
 *   - Calls that can fail return 0 or a negative errno; what can be said beyond the errno goes to *err, which may
 *     be NULL.  A call that fails leaves slots, bitmaps and totals as they were.
 *   - A gfn counts pages of 4096 bytes; gpa, hva and memory_size are bytes.  `end` is one past, `last` is inside.
 *   - What a call returns is a value: no pointer into the engine ever leaves it (struct ms_slot below is a handle
 *     that only lives between ms_update_begin() and ms_update_end()).
 *   - Every call may be made from any thread.  Lookups never wait.  Calls marked [lock] take the VM's slots_lock and
 *     may wait; inside a read section of any VM or inside a hook of the same VM they fail with -EDEADLK at once,
 *     inside a hook of another VM with -EBUSY if the lock is taken, in a forked child with -EIO.
 */
#ifndef MEMSLOTS_H
#define MEMSLOTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MS_VERSION "0.1.0"

#define MS_PAGE_SHIFT 12
#define MS_PAGE_SIZE ((uint64_t)1 << MS_PAGE_SHIFT)

/* Flags of a slot; the low 16 bits are the user's, as in struct kvm_userspace_memory_region. */
#define MS_MEM_LOG_DIRTY_PAGES ((uint32_t)1 << 0)
#define MS_MEM_READONLY ((uint32_t)1 << 1)
#define MS_MEM_GUEST_MEMFD ((uint32_t)1 << 2)
#define MS_MEMSLOT_INVALID ((uint32_t)1 << 16) /* being deleted or moved */

#define MS_MEM_MAX_NR_PAGES (((uint64_t)1 << 31) - 1)
#define MS_USER_MEM_SLOTS_DEFAULT 32764u
#define MS_USER_MEM_SLOTS_MAX 0x7ffffff0u /* ids fit int32_t, so that -1 can mean a hole */
#define MS_INTERNAL_MEM_SLOTS 3u
#define MS_ADDRESS_SPACES_MAX 64u /* the active sets of a VM are one 64-bit word */
#define MS_GPA_BITS_DEFAULT 52u
#define MS_HVA_END_MAX_DEFAULT 0x7ffffffff000u /* TASK_SIZE_MAX of x86-64 with 4-level paging */

/* Host addresses that are none: every address from MS_HVA_ERR_MIN on is an error. */
#define MS_HVA_ERR_BAD (~(uint64_t)0 - 8191)    /* 2^64 - 8192: a hole or an INVALID slot */
#define MS_HVA_ERR_RO_BAD (~(uint64_t)0 - 4095) /* 2^64 - 4096: a write to a READONLY slot */
#define MS_HVA_ERR_MIN MS_HVA_ERR_BAD

/* KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 */
#define MS_DIRTY_LOG_MANUAL_PROTECT_ENABLE ((uint64_t)1 << 0)
#define MS_DIRTY_LOG_INITIALLY_SET ((uint64_t)1 << 1)

/* A generation with this bit belongs to a change that is in flight: do not cache what you derive from it. */
#define MS_GEN_UPDATE_IN_PROGRESS ((uint64_t)1 << 63)

struct ms_vm;
struct ms_vcpu;
struct ms_update;
struct ms_slot; /* a slot of the engine, see ms_update_begin() */

/* One slot, by value. */
struct ms_memslot {
	uint64_t base_gfn;
	uint64_t npages;
	uint64_t userspace_addr;
	uint32_t id;
	uint32_t as_id;
	uint32_t flags;
	uint32_t reserved; /* 0 */
};

/* Which rule refused a call; ms_error.other and .limit hold what the comment names. */
enum ms_rule {
	MS_RULE_NONE = 0,
	MS_RULE_SLOT_ID,        /* slot >= limit = user_mem_slots */
	MS_RULE_FLAGS,          /* limit = the flags that are allowed here */
	MS_RULE_SIZE_ALIGN,
	MS_RULE_GPA_ALIGN,
	MS_RULE_HVA_ALIGN,
	MS_RULE_HVA_RANGE,      /* userspace_addr + memory_size > limit = hva_end_max, or wraps */
	MS_RULE_GMEM_OFFSET,    /* guest_memfd_offset unaligned, or wraps with memory_size */
	MS_RULE_AS_ID,          /* as_id >= limit = address_spaces */
	MS_RULE_GPA_WRAP,       /* guest_phys_addr + memory_size >= 2^64 */
	MS_RULE_NPAGES,         /* more than limit pages */
	MS_RULE_NO_SUCH_SLOT,   /* nothing to delete, or no such slot */
	MS_RULE_TOTAL_PAGES,    /* the VM's pages would wrap 64 bits */
	MS_RULE_GMEM_EXISTING,  /* GUEST_MEMFD on a slot that exists = other */
	MS_RULE_HVA_CHANGE,     /* other = the slot as it is */
	MS_RULE_SIZE_CHANGE,    /* other = the slot as it is */
	MS_RULE_FLAGS_TOGGLE,   /* READONLY or GUEST_MEMFD cannot change; other = the slot as it is */
	MS_RULE_OVERLAP,        /* other = the slot in the way */
	MS_RULE_GMEM_FD,        /* no guest_memfd stands behind the number */
	MS_RULE_GPA_LIMIT,      /* guest_phys_addr + memory_size > limit = 2^gpa_bits */
	MS_RULE_NO_MEMORY,
	MS_RULE_LISTENER,       /* a listener's prepare refused */
	MS_RULE_NO_DIRTY_LOG,   /* the slot = other does not log */
	MS_RULE_FIRST_PAGE,     /* first_page is no multiple of 64 */
	MS_RULE_CLEAR_RANGE,    /* [first_page, first_page + num_pages) against limit = npages */
	MS_RULE_BITMAP_SIZE,    /* bitmap must have limit words */
	MS_RULE_NULL_BUFFER,
	MS_RULE_DUPLICATE_ID,   /* other = the entry of the same list with this id */
	MS_RULE_MANUAL_PROTECT, /* not one of 0, 1, 3 */
	MS_RULE_READ_SECTION,   /* EDEADLK: the thread is inside a read section */
	MS_RULE_HOOK,           /* EDEADLK: inside a hook of this VM; EBUSY: inside a hook of another */
	MS_RULE_UPDATE,         /* EDEADLK: inside ms_update_begin() of this VM */
	MS_RULE_FORKED,         /* EIO: the VM belongs to the parent process */
	MS_RULE_CLOSED,         /* EBADF: ms_vm_close() has been here */
	MS_RULE_HANDLE,         /* a handle that is not in the set that the step edits, or is no draft */
	MS_RULE_SETS_DIFFER,    /* ms_update_end() found the sets different and rolled back */
	MS_RULE_BACKEND,        /* the design does not offer this */
	MS_RULE_INTERRUPTED,    /* EINTR: ms_set_poll()'s function ended the wait for slots_lock */
	MS_RULE_NR
};

struct ms_error {
	enum ms_rule rule;
	uint32_t index; /* ms_load_memslots(): which entry */
	uint64_t limit;
	struct ms_memslot other;
};

/* ---- VM ---------------------------------------------------------------------------------------------------- */

/* A change that waits for a read section longer than expected says so, again and again, and goes on waiting. */
struct ms_stall {
	uint32_t thread_id; /* of the reader, as gettid() gives it; 0: unknown, it had no memory for a record */
	uint32_t report;    /* 1, 2, 3 ... in this wait; each comes when the wait has about doubled */
	uint64_t waited_ns; /* by now; the section is at least as old */
};

/*
 * Called by the thread that waits, under slots_lock, in any call marked [lock].  It may look up, in sections that it
 * closes again; it must not wait for the reader; a change of the same VM from it is -EDEADLK, and what a hook of a
 * change may not do, it may not either.
 */
typedef void ms_stall_fn(void *opaque, const struct ms_stall *stall);

struct ms_config {
	uint32_t address_spaces; /* 1 to MS_ADDRESS_SPACES_MAX */
	uint32_t user_mem_slots; /* ids are below this; 1 to MS_USER_MEM_SLOTS_MAX */
	uint32_t gpa_bits;       /* a slot ends at or below 2^gpa_bits; 13 to 64 */
	uint64_t hva_end_max;    /* userspace_addr + memory_size is at most this; one page at least */
	const char *backend;     /* "tree", or another design by name */
	ms_stall_fn *report_stall; /* NULL writes a line to stderr; ms_set_stall_report() sets another one */
	void *stall_opaque;
};

/* KVM's values on x86-64: one address space, 32,764 slots, 52 bits, tree; stalls go to stderr. */
void ms_config_init(struct ms_config *config);

/* -EINVAL for a limit out of range, -ENOSYS for a backend that is not there, -ENOMEM. */
int ms_vm_create(const struct ms_config *config, struct ms_vm **out);

/* [lock] Deletes every slot without hooks, after the readers that may see one have left.  Later lookups find
 * holes, later changes get -EBADF.  Idempotent. */
int ms_vm_close(struct ms_vm *vm, struct ms_error *err);

/* Asked by every thread that waits for a slots_lock, between naps of ten milliseconds and when a signal came; not
 * zero ends the wait: the call returns -EINTR and has changed nothing.  A change that has the lock is not asked: it
 * ends.  The function may make any call but holds nothing that the lock's owner may need.  One for the process, set
 * before others wait; NULL: nobody is asked. */
typedef int ms_poll_fn(void);
void ms_set_poll(ms_poll_fn *poll);

/* Frees the VM.  No other call may be under way; vCPUs must be gone. */
void ms_vm_destroy(struct ms_vm *vm);

/* [lock] Reports from after_ms on, 0: never; a new VM has MS_STALL_AFTER_MS_DEFAULT.  NULL writes a line to stderr. */
#define MS_STALL_AFTER_MS_DEFAULT 1000u
int ms_set_stall_report(struct ms_vm *vm, uint32_t after_ms, ms_stall_fn *report, void *opaque, struct ms_error *err);

const struct ms_config *ms_vm_config(const struct ms_vm *vm);
const char *ms_backend_name(size_t i); /* the i-th design of this build, NULL beyond the last */

/* ---- changes (region.c, load.c) -------------------------------------------------------------------------------- */

/* struct kvm_userspace_memory_region2, with id and address space apart. */
struct ms_userspace_memory_region {
	uint32_t slot;
	uint32_t as_id;
	uint32_t flags;
	int32_t guest_memfd;
	uint64_t guest_phys_addr;
	uint64_t memory_size;
	uint64_t userspace_addr;
	uint64_t guest_memfd_offset;
};

/* [lock] KVM_SET_USER_MEMORY_REGION2: create, delete (memory_size 0), move, change flags.  O(log n). */
int ms_set_user_memory_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region,
			      struct ms_error *err);

/* [lock] The same for the MS_INTERNAL_MEM_SLOTS ids from user_mem_slots on, which are not visible; flags must be 0. */
int ms_set_internal_memory_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region,
				  struct ms_error *err);

/* [lock] Creates n slots in one change: validated together, one swap, all or none.  O((m + n) log (m + n)). */
int ms_load_memslots(struct ms_vm *vm, uint32_t as_id, const struct ms_memslot *slots, size_t n,
		     struct ms_error *err);

enum ms_change_kind { MS_CREATE, MS_DELETE, MS_MOVE, MS_FLAGS_ONLY };

/* What a listener is told.  old has npages 0 in a CREATE, new in a DELETE. */
struct ms_change {
	enum ms_change_kind kind;
	struct ms_memslot old_slot;
	struct ms_memslot new_slot;
};

/*
 * Called where KVM calls its architecture, by the thread that makes the change, under slots_lock.  Every member
 * may be NULL.  prepare refuses with a negative errno; listeners that had prepared are then told abort, in reverse
 * order.  flush comes after the swap that publishes the INVALID copy of a slot that is deleted or moved: `active`
 * is that copy, which readers see from now on, `old` is the slot as it was.
 */
struct ms_listener {
	void *opaque;
	int (*prepare)(void *opaque, const struct ms_change *change);
	void (*abort)(void *opaque, const struct ms_change *change);
	void (*flush)(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old);
	void (*commit)(void *opaque, const struct ms_change *change);
};

/* [lock] Listeners are called in the order of their addition; each is told apart by its address, which must stay
 * valid until ms_remove_listener() has returned (-ENOENT if it was not there). */
int ms_add_listener(struct ms_vm *vm, const struct ms_listener *listener, struct ms_error *err);
int ms_remove_listener(struct ms_vm *vm, const struct ms_listener *listener, struct ms_error *err);

/* ---- lookups (lookup.c) ------------------------------------------------------------------------------------ */

/* One read section: everything up to the unlock answers from one published state, in all address spaces.  Sections
 * nest and belong to the thread that opened them.  -ENOMEM when the thread's first record cannot be had. */
int ms_read_lock(struct ms_vm *vm);
void ms_read_unlock(struct ms_vm *vm);

/* Of the calling thread, and of no other one before or after it, which a pthread_t or gettid() may be. */
uint64_t ms_thread_number(void);

/* An as_id that the VM has not is a hole everywhere below.  0, or -ENOENT.  INVALID slots are returned, as in KVM. */
int ms_gfn_to_memslot(struct ms_vm *vm, uint32_t as_id, uint64_t gfn, struct ms_memslot *out);
int ms_id_to_memslot(struct ms_vm *vm, uint32_t as_id, uint32_t id, struct ms_memslot *out);

/* gfn_to_hva(): for writing.  MS_HVA_ERR_BAD in holes and INVALID slots, MS_HVA_ERR_RO_BAD in READONLY ones. */
uint64_t ms_gfn_to_hva(struct ms_vm *vm, uint32_t as_id, uint64_t gfn);

/* gfn_to_hva_prot(): for reading; *writable is set when the address is one. */
uint64_t ms_gfn_to_hva_prot(struct ms_vm *vm, uint32_t as_id, uint64_t gfn, bool *writable);

/* kvm_is_visible_gfn(): a user's slot that is not INVALID. */
bool ms_is_visible_gfn(struct ms_vm *vm, uint32_t as_id, uint64_t gfn);

/* Batches read n values of 8 bytes, in_stride bytes apart, and write n results, out_stride bytes apart.  out may be in,
 * with one stride; else they do not overlap. */
struct ms_batch {
	const void *in;
	ptrdiff_t in_stride;
	void *out;
	ptrdiff_t out_stride;
	size_t n;
	/* Or NULL: asked every MS_BATCH_POLL values or sooner, outside of the call's own sections; not 0 ends it. */
	int (*poll)(void *opaque);
	void *opaque;
};

#define MS_BATCH_POLL ((size_t)1 << 16)

/* A batch of so few values is over in microseconds, and makes no index that takes longer: of 4,096 slots at most. */
#define MS_BATCH_BRIEF ((size_t)64)

/*
 * All answers of one call come from one published state.  0, or -EINTR: poll said so, and what was answered before it
 * stands in out; behind it may stand what the call had answered before it started again (see below).
 *
 * A writer waits for no batch: where the set has an index, or is worth one, the batch holds that and no read section;
 * else it is answered in pieces of MS_BATCH_PIECE values, a section each.  When the state moves between two pieces it
 * starts again on an index of its own.  So a change waits for one piece at most, with these exceptions, all bounded
 * by the slots or by the batch: a batch that was overtaken by changes three times walks all slots in one section; one
 * that must not have an index (policy, no memory) and was overtaken goes through in one, and is not polled.  Where it is
 * walked and its out is its in, it reads from a copy; without memory for that it goes through in one section too.
 */
#define MS_BATCH_PIECE 4096
int ms_gfn_to_hva_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, bool write);
int ms_gpa_to_hva_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, bool write);
int ms_gfn_to_slot_id_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch); /* int32_t, -1: none */

/*
 * An index holds the slots of one set as values, answers batches several times as fast as the trees, and single
 * lookups of addresses that their hint does not answer, where a walk would be slower.  It is made by lookups that it
 * pays for, never by a change.  Of design "tree" only.
 */
enum ms_index_policy {
	MS_INDEX_AUTO,  /* when the lookups since the last change pay for it */
	MS_INDEX_OFF,   /* never: batches walk the tree, many lookups side by side */
	MS_INDEX_EAGER, /* at the first batch */
	MS_INDEX_WALK   /* never, and one lookup after the other: what the others are measured against */
};
void ms_set_index_policy(struct ms_vm *vm, enum ms_index_policy policy); /* from the next lookup on */
enum ms_index_policy ms_index_policy(const struct ms_vm *vm);

/* These write up to `room` slots in ascending order and return how many there are in all; when that is more than
 * `room`, ask again: which ones were written depends on the design. */
size_t ms_memslots_in_gfn_range(struct ms_vm *vm, uint32_t as_id, uint64_t start, uint64_t end,
				struct ms_memslot *out, size_t room);
size_t ms_memslots_in_hva_range(struct ms_vm *vm, uint32_t as_id, uint64_t start, uint64_t last,
				struct ms_memslot *out, size_t room);
size_t ms_memslots(struct ms_vm *vm, uint32_t as_id, struct ms_memslot *out, size_t room);

struct ms_hva_hit {
	struct ms_memslot slot;
	uint64_t gfn;
};

/* Every (slot, gfn) of every address space that the byte at hva backs, by (as_id, userspace_addr, base_gfn). */
size_t ms_hva_to_gfns(struct ms_vm *vm, uint64_t hva, struct ms_hva_hit *out, size_t room);

/* The generation of the active set, with MS_GEN_UPDATE_IN_PROGRESS while a swap waits for readers. */
uint64_t ms_generation(struct ms_vm *vm, uint32_t as_id);
uint64_t ms_nr_memslots(const struct ms_vm *vm);      /* in all address spaces */
uint64_t ms_nr_memslot_pages(const struct ms_vm *vm); /* in all address spaces */

/* A vCPU has a last_used_slot of its own, dropped when the generation moved.  It is meant for one thread at a time;
 * a second one that comes meanwhile gets right answers without the hint.  Create is [lock]; destroy never waits, and
 * may be called anywhere up to ms_vm_destroy(). */
int ms_vcpu_create(struct ms_vm *vm, struct ms_vcpu **out, struct ms_error *err);
void ms_vcpu_destroy(struct ms_vcpu *vcpu);
int ms_vcpu_set_as_id(struct ms_vcpu *vcpu, uint32_t as_id); /* as when entering SMM; -EINVAL */
uint32_t ms_vcpu_as_id(const struct ms_vcpu *vcpu);
int ms_vcpu_gfn_to_memslot(struct ms_vcpu *vcpu, uint64_t gfn, struct ms_memslot *out);
uint64_t ms_vcpu_gfn_to_hva(struct ms_vcpu *vcpu, uint64_t gfn);

/* ---- dirty log (writer.c and lookup.c; the bits live in dirty_log.c) ------------------------------------------- */

/* mark_page_dirty(): nothing in a hole or where logging is off; READONLY is ignored.  Many are as many single marks:
 * each finds the state of its own moment.  -EINTR as above; `out` of the batch is not looked at. */
void ms_mark_page_dirty(struct ms_vm *vm, uint32_t as_id, uint64_t gfn);
int ms_mark_page_dirty_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch);

/*
 * [lock] KVM_GET_DIRTY_LOG: ceil(npages / 64) words, bit i of word j is page 64 j + i.  *nwords is how many; when
 * room is smaller nothing is harvested and -ENOBUFS returned.  A NULL bitmap harvests, loses the bits and is -EFAULT.
 */
int ms_get_dirty_log(struct ms_vm *vm, uint32_t as_id, uint32_t slot, uint64_t *bitmap, size_t room, size_t *nwords,
		     struct ms_error *err);

/* [lock] KVM_CLEAR_DIRTY_LOG.  bitmap has nwords words; their number is looked at after all of KVM's own rules. */
int ms_clear_dirty_log(struct ms_vm *vm, uint32_t as_id, uint32_t slot, uint64_t first_page, uint32_t num_pages,
		       const uint64_t *bitmap, size_t nwords, struct ms_error *err);

/* [lock] KVM_ENABLE_CAP of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: 0, ENABLE, or ENABLE | INITIALLY_SET. */
int ms_set_manual_dirty_log_protect(struct ms_vm *vm, uint64_t value, struct ms_error *err);
uint64_t ms_manual_dirty_log_protect(const struct ms_vm *vm);

/* ---- the dual-set steps one by one (update.c, update_steps.c) -------------------------------------------------- */

/*
 * [lock] For the study of the two sets.  From begin to end the caller holds slots_lock; a begin inside a hook of
 * another VM is -EBUSY.  An update belongs to the thread that began it: from another one every call but abandon is
 * -EBUSY, MS_RULE_UPDATE.  A thread that ends inside an update (but for its end) gives it up; the pointer may still be used
 * until somebody abandons it, or the VM goes, and is nobody's: -EBUSY.  Handles are slots of either set or drafts;
 * each step checks that they are where they must be (-EINVAL, MS_RULE_HANDLE).  Design "tree" only (-ENOSYS).
 * end: 0 when both sets hold the same slots, none INVALID; else both are brought back to what they were at begin, by
 * another swap where one was made, and the answer is -EINVAL with MS_RULE_SETS_DIFFER.
 */
int ms_update_begin(struct ms_vm *vm, uint32_t as_id, struct ms_update **out, struct ms_error *err);
int ms_update_end(struct ms_update *update, bool keep, struct ms_error *err); /* keep false: roll back, return 0 */

/* The last call for this update.  Rolls back from any thread and anywhere, but not beside a step of another one, and
 * without waiting: readers see at once what they saw at begin (inside a read section or a hook: later), and what has to
 * wait for them, the next call that takes the VM's lock does. */
void ms_update_abandon(struct ms_update *update);

/* A draft with the values of *slot; its id, as_id and dirty log come from `old` (NULL: a slot of its own). */
int ms_update_copy(struct ms_update *update, struct ms_slot *old, const struct ms_memslot *slot, struct ms_slot **out,
		   struct ms_error *err);
int ms_update_replace(struct ms_update *update, struct ms_slot *old, struct ms_slot *new_slot, struct ms_error *err);
int ms_update_invalidate(struct ms_update *update, struct ms_slot *slot, struct ms_slot **out, struct ms_error *err);
int ms_update_swap(struct ms_update *update, struct ms_error *err);
int ms_update_activate(struct ms_update *update, struct ms_slot *old, struct ms_slot *new_slot, struct ms_error *err);

/* The slots of the active or the inactive set by ascending gfn; up to `room`, returns how many there are.  To another
 * thread than the update's there are none. */
size_t ms_update_slots(struct ms_update *update, bool active, struct ms_slot **out, size_t room);
struct ms_slot *ms_update_find(struct ms_update *update, bool active, uint32_t id); /* or NULL */

/* -EINVAL for NULL; -EBUSY from another thread. */
int ms_update_value(struct ms_update *update, const struct ms_slot *slot, struct ms_memslot *out);

/* ---- check and counters (check.c, stats.c) --------------------------------------------------------------------- */

struct ms_violation {
	char invariant[8]; /* its number in the headers: "R2", "T1", "M3", ... */
	char text[184];
};

/* [lock] Walks every invariant of both sets of every address space.  0, -EUCLEAN with *violation, or a lock error. */
int ms_check(struct ms_vm *vm, struct ms_violation *violation, struct ms_error *err);

struct ms_stats {
	uint64_t hits_last_used; /* lookups by gfn that a last_used_slot answered */
	uint64_t hits_search;    /* ... that a search of the design answered */
	uint64_t indexed;        /* ... that an index answered, holes too */
	uint64_t misses;         /* ... that found a hole */
	uint64_t vcpu_bypasses;  /* lookups on a vCPU that another thread was using */
	uint64_t creates, deletes, moves, flag_changes, noops, refused;
	uint64_t swaps;          /* grace periods asked for */
	uint64_t grace_waits;    /* ... that had to wait for a reader */
	uint64_t stalls;         /* readers that were waited for long enough to be reported */
	uint64_t hash_grows;
	uint64_t index_builds;   /* indexes made by walking the set */
	uint64_t index_patches;  /* ... by changing an older one */
	uint64_t bytes;          /* memory held now, without struct ms_vm itself */
	uint64_t blocks;         /* allocations held now, a slot for one; bytes are also those to spare for more */
};

void ms_get_stats(struct ms_vm *vm, struct ms_stats *out);

/* ---- the build ------------------------------------------------------------------------------------------------- */

const char *ms_build_info(void); /* compiler, flags, sanitizers: "key=value; ..." */

/* What batches are answered with: "portable", "avx2" or "avx512"; the best that the CPU has, unless the environment
 * variable MEMSLOTS_SIMD or ms_set_simd() names another one that it has too (-ENOSYS).  All give the same answers. */
const char *ms_simd(void);
const char *ms_simd_name(size_t i); /* the i-th that this CPU has, NULL beyond the last; 0 is "portable" */
int ms_set_simd(const char *name);

#ifdef __cplusplus
}
#endif
#endif
