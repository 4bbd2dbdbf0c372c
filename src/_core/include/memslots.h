/* SPDX-License-Identifier: MIT */
/*
 * memslots.h - KVM's memory slots in user space: the public C API.
 *
 * A memslot maps the guest frames [base_gfn, base_gfn + npages) to host memory that begins at userspace_addr.  A VM has
 * one or more address spaces.  Each address space has its own slots.  One writer at a time changes slots while readers
 * look them up.
 *
 * Conventions
 *   - A call that can fail returns 0 or a negative errno.  It writes details to *err; err may be NULL.  A call that
 *     fails leaves slots, dirty logs and totals as they were.  One exception: ms_get_dirty_log() without a bitmap.
 *   - A gfn counts pages of 4096 bytes.  gpa, hva and memory_size are bytes.  `end` is one past the last; `last` is
 *     inside.
 *   - Calls return values, never pointers into the engine.  The one exception is struct ms_slot: a handle that is
 *     valid between ms_update_begin() and ms_update_end().
 *   - struct ms_vm, ms_vcpu and ms_update are objects that the caller creates and ends, as FILE is in C: a call with
 *     NULL, or with an object that has ended, is undefined where no comment says otherwise.
 *   - The caller allocates struct ms_config, ms_stats and ms_listener.  Later versions may add members at the end.  So
 *     the first member is the size of the struct that the caller was compiled with.  A size less than that of the first
 *     version is -EINVAL.  If the size is larger than the library's, the library ignores the members that it does not
 *     have.
 *   - A NULL pointer to memory that the call must read or write: -EFAULT and MS_RULE_NULL_BUFFER.  Where the call has
 *     an answer without the memory, NULL is allowed and the comment says so.
 *   - Any thread may make any call, but a read section and an update belong to the thread that began them, and no call
 *     may run in parallel with ms_vm_destroy().  Lookups never wait.  A call marked [lock] takes the VM's slots_lock
 *     and may wait for it, and for readers.  It fails immediately
 *       with -EDEADLK inside a read section of any VM, or inside a hook of the same VM;
 *       with -EBUSY inside a hook of another VM, if the lock is taken;
 *       with -EIO in a forked child.
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

/* Flags of a slot.  The low 16 bits belong to the user, as in struct kvm_userspace_memory_region. */
#define MS_MEM_LOG_DIRTY_PAGES ((uint32_t)1 << 0)
#define MS_MEM_READONLY ((uint32_t)1 << 1)
#define MS_MEM_GUEST_MEMFD ((uint32_t)1 << 2)
#define MS_MEMSLOT_INVALID ((uint32_t)1 << 16) /* the slot is being deleted or moved */

#define MS_MEM_MAX_NR_PAGES (((uint64_t)1 << 31) - 1)
#define MS_USER_MEM_SLOTS_DEFAULT 32764u
#define MS_USER_MEM_SLOTS_MAX 0x7ffffff0u /* ids fit into int32_t, so that -1 can mean a hole */
#define MS_INTERNAL_MEM_SLOTS 3u
#define MS_SLOT_ANY 0xffffffffu /* ms_map_backing(): the lowest free id */
#define MS_ADDRESS_SPACES_MAX 64u /* one bit for each in a 64-bit word */
#define MS_GPA_BITS_DEFAULT 52u
#define MS_HVA_END_MAX_DEFAULT 0x7ffffffff000u /* TASK_SIZE_MAX of x86-64 with 4-level paging */

/* Error values in place of a host address: every value from MS_HVA_ERR_MIN on. */
#define MS_HVA_ERR_BAD (~(uint64_t)0 - 8191)    /* 2^64 - 8192: a hole or an INVALID slot */
#define MS_HVA_ERR_RO_BAD (~(uint64_t)0 - 4095) /* 2^64 - 4096: a write to a READONLY slot */
#define MS_HVA_ERR_MIN MS_HVA_ERR_BAD

/* KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 */
#define MS_DIRTY_LOG_MANUAL_PROTECT_ENABLE ((uint64_t)1 << 0)
#define MS_DIRTY_LOG_INITIALLY_SET ((uint64_t)1 << 1)

/* The generation has this bit while a swap waits for readers.  Do not cache a value that you derive under it. */
#define MS_GEN_UPDATE_IN_PROGRESS ((uint64_t)1 << 63)

struct ms_vm;
struct ms_vcpu;
struct ms_update;
struct ms_backing;
struct ms_slot; /* a handle, see ms_update_begin() */

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

/*
 * The rules that can refuse a call: RULE(name, text, errno, ...).  The text says what the rule means, and what
 * ms_error.limit and ms_error.other contain.  A refusal has one of the errnos; 0 stands for any.
 */
#define MS_RULES(RULE) \
	RULE(SLOT_ID, "slot >= limit, or, in a call for internal slots, slot < user_mem_slots", EINVAL) \
	RULE(FLAGS, "flags has a bit outside limit = the flags that are allowed", EINVAL) \
	RULE(SIZE_ALIGN, "memory_size is not a multiple of the page size", EINVAL) \
	RULE(GPA_ALIGN, "guest_phys_addr is not a multiple of the page size", EINVAL) \
	RULE(HVA_ALIGN, "userspace_addr is not a multiple of the page size", EINVAL) \
	RULE(HVA_RANGE, "userspace_addr + memory_size > limit = hva_end_max, or wraps", EINVAL) \
	RULE(GMEM_OFFSET, "guest_memfd_offset is not a multiple of the page size, or wraps with memory_size", EINVAL) \
	RULE(AS_ID, "as_id >= limit = address_spaces", EINVAL) \
	RULE(GPA_WRAP, "guest_phys_addr + memory_size >= 2^64", EINVAL) \
	RULE(NPAGES, "the slot has more than limit pages, or none in a load, an update or ms_map_backing()", EINVAL) \
	RULE(NO_SUCH_SLOT, "no slot has this id (ENOENT: in a call for its dirty log)", EINVAL, ENOENT) \
	RULE(TOTAL_PAGES, "the number of pages of the VM would exceed 64 bits", EINVAL) \
	RULE(GMEM_EXISTING, "GUEST_MEMFD for a slot that exists; other = that slot", EINVAL) \
	RULE(HVA_CHANGE, "userspace_addr of a slot cannot change; other = the present slot", EINVAL) \
	RULE(SIZE_CHANGE, "the size of a slot cannot change; other = the present slot", EINVAL) \
	RULE(FLAGS_TOGGLE, "READONLY and GUEST_MEMFD cannot change; other = the present slot", EINVAL) \
	RULE(OVERLAP, "other = the slot that has these frames", EEXIST) \
	RULE(GMEM_FD, "EBADF, limit = 0: guest_memfd is not open; EINVAL, limit = 1: it is no guest_memfd", EBADF, \
	     EINVAL) \
	RULE(GPA_LIMIT, "guest_phys_addr + memory_size > limit = 2^gpa_bits", EINVAL) \
	RULE(NO_MEMORY, "an allocation failed", ENOMEM) \
	RULE(LISTENER_REFUSED, "a listener's prepare refused the change, with its own errno", 0) \
	RULE(LISTENER_EXISTS, "the listener was added before", EEXIST) \
	RULE(NO_SUCH_LISTENER, "the listener was not added, or was removed", ENOENT) \
	RULE(NO_DIRTY_LOG, "the slot has no dirty log; other = the slot", ENOENT) \
	RULE(FIRST_PAGE, "first_page is not a multiple of limit = 64", EINVAL) \
	RULE(CLEAR_RANGE, "[first_page, first_page + num_pages) is not inside limit = npages, or not in units of 64", \
	     EINVAL) \
	RULE(BITMAP_SIZE, "the bitmap must have limit words (ENOBUFS: in ms_get_dirty_log())", EINVAL, ENOBUFS) \
	RULE(NULL_BUFFER, "a pointer is NULL", EFAULT) \
	RULE(DUPLICATE_ID, "another slot has this id: other, a slot of the VM or an entry of the same list", EEXIST) \
	RULE(MANUAL_PROTECT, "the value is not 0, 1 or 3", EINVAL) \
	RULE(READ_SECTION, "this thread is inside a read section", EDEADLK) \
	RULE(HOOK, "this thread is inside a hook of this VM, or, in a step of an update, inside any hook", EDEADLK) \
	RULE(HOOK_BUSY, "this thread is inside a hook of another VM and must not wait, nor begin an update", EBUSY) \
	RULE(UPDATE, "this thread has an open update of this VM", EDEADLK) \
	RULE(UPDATE_OWNER, "the update belongs to another thread", EBUSY) \
	RULE(FORKED, "the VM belongs to the parent process", EIO) \
	RULE(CLOSED, "the VM is closed", EBADF) \
	RULE(HANDLE, "no update, no handle of this update, or a slot that is not where it must be; other = the slot", \
	     EINVAL) \
	RULE(SETS_DIFFER, "the two sets differ at ms_update_end(), which has rolled back", EINVAL) \
	RULE(BACKEND, "the design does not support the call", ENOSYS) \
	RULE(INTERRUPTED, "the function of ms_set_poll() ended the wait for slots_lock", EINTR) \
	RULE(STRUCT_SIZE, "the size member of a struct of the caller is less than limit", EINVAL) \
	RULE(BACKING_RANGE, "the pages are not inside the backing, which ends at limit", EINVAL) \
	RULE(BACKING_READONLY, "a READONLY backing, and a slot without READONLY", EINVAL) \
	RULE(NO_FREE_SLOT, "all limit = user_mem_slots ids are in use", ENOSPC) \
	RULE(GUEST_HOLE, "no slot, or one that is being deleted or moved, has the byte at gpa", EFAULT) \
	RULE(GUEST_READONLY, "a write at gpa to a READONLY slot: other", EFAULT) \
	RULE(GUEST_RAW, "the slot at gpa has no backing, and the VM has not dereference_raw_addresses", EFAULT) \
	RULE(GUEST_FAULT, "the host memory at gpa, of the slot other, is truncated, unmapped or protected", EFAULT) \
	RULE(STEP_KIND, "the step has a kind above limit", EINVAL) \
	RULE(SPLIT, "guest_phys_addr is the first byte of the slot, or not inside it; other = the slot", EINVAL) \
	RULE(MERGE_PLACE, "the guest frames of the two slots are no neighbours; other = the second slot", EINVAL) \
	RULE(MERGE_HVA, "the host addresses of the two slots are no neighbours; other = the second slot", EINVAL) \
	RULE(MERGE_FLAGS, "the two slots have different flags; other = the second slot", EINVAL) \
	RULE(MERGE_BACKING, "the two slots have different backings; other = the second slot", EINVAL) \
	RULE(CACHE_RANGE, "the range of a gfn_to_hva_cache is empty or wraps, or an access ends beyond limit bytes", \
	     EINVAL) \
	RULE(LAST_LISTENER, "the VM has a listener that stays behind the others", EEXIST)

enum ms_rule {
	MS_RULE_NONE = 0,
#define MS_RULE_ENUM(name, ...) MS_RULE_##name,
	MS_RULES(MS_RULE_ENUM) MS_RULE_NR
#undef MS_RULE_ENUM
};

/* "OVERLAP", and the text above.  NULL for MS_RULE_NONE and for numbers that are no rule. */
const char *ms_rule_name(enum ms_rule rule);
const char *ms_rule_text(enum ms_rule rule);
/* Whether a refusal by this rule may have this errno, a positive number. */
bool ms_rule_has_errno(enum ms_rule rule, int code);

struct ms_error {
	enum ms_rule rule;
	/* ms_load_memslots(): the first entry that is refused.  ms_change_memslots(): the step that is refused.  Both:
	 * the entry or step of the change that a listener refuses; n, if it refuses the list as a whole, or if there is
	 * no memory for the list as a whole. */
	uint32_t index;
	uint64_t limit;
	struct ms_memslot other;
	uint64_t gpa;  /* guest memory: the first byte of the piece that is refused */
	uint64_t done; /* guest memory: the bytes of the call before this piece, which are complete */
};

/* ---- VM ---------------------------------------------------------------------------------------------------- */

/* One report of a writer that waits for a long read section.  The writer goes on waiting. */
struct ms_stall {
	uint32_t thread_id; /* gettid() of the reader; 0: unknown, because there was no memory for its record */
	uint32_t report;    /* 1, 2, 3, ... in this wait.  The wait about doubles from one report to the next. */
	uint64_t waited_ns; /* until now.  The read section is at least as old. */
};

/*
 * The waiting thread calls this under slots_lock, in any call marked [lock].  The function may look slots up, in read
 * sections that it closes again.  It must not wait for the reader.  The rules for a hook hold here too: a change of the
 * same VM is -EDEADLK.
 */
typedef void ms_stall_fn(void *opaque, const struct ms_stall *stall);

struct ms_config {
	size_t size;             /* of this struct; ms_config_init() sets it */
	uint32_t address_spaces; /* 1 to MS_ADDRESS_SPACES_MAX */
	uint32_t user_mem_slots; /* ids are below this; 1 to MS_USER_MEM_SLOTS_MAX */
	uint32_t gpa_bits;       /* a slot ends at or below 2^gpa_bits; 13 to 64 */
	bool dereference_raw_addresses; /* false: the memory of a slot without a backing is never read or written */
	uint64_t hva_end_max;    /* userspace_addr + memory_size is at most this; at least one page */
	const char *backend;     /* the name of a design, such as "tree" */
	ms_stall_fn *report_stall; /* NULL: a line to stderr.  See ms_set_stall_report(). */
	void *stall_opaque;
};

/* Sets KVM's values on x86-64: one address space, 32,764 slots, 52 bits; design "tree"; stalls to stderr.  The macro
 * returns 0. */
#define ms_config_init(config) ms_config_init_sized((config), sizeof(*(config)))
int ms_config_init_sized(struct ms_config *config, size_t size); /* -EINVAL: the size is too small.  -EFAULT: NULL */

/* -EINVAL: a limit or the size is out of range, or backend is NULL.  -ENOSYS: no such backend.  -ENOMEM.  -EAGAIN: the
 * process has no pthread key left (PTHREAD_KEYS_MAX); the library needs two. */
int ms_vm_create(const struct ms_config *config, struct ms_vm **out);

/* [lock] Deletes every slot, after the readers that may see one have left.  The only hook that it calls is `closed` of
 * struct ms_listener.  Later lookups find holes, and later changes fail with -EBADF.  A second call does nothing. */
int ms_vm_close(struct ms_vm *vm, struct ms_error *err);

/*
 * A thread that waits for a slots_lock calls this function every ten milliseconds, and when a signal has come.  A
 * result other than 0 ends the wait: the call fails with -EINTR and has changed nothing.  A change that has the lock
 * does not call it and completes.  The function may make any call.  It must not hold anything that the owner of the
 * lock may need.  There is one function for the process; set it before threads wait.  NULL: no function.
 */
typedef int ms_poll_fn(void);
void ms_set_poll(ms_poll_fn *poll);

/*
 * Frees the VM.  NULL: does nothing.  Any thread may call it; it never waits.
 * - If ms_vm_close() was not called, it calls the hook `closed` of each listener.
 * - No other call on the VM may be in progress.  In a hook or a stall report of the VM itself, ms_vm_destroy() does
 *   nothing: the VM remains.
 * - An open update is rolled back.  Open read sections of the VM end.  A section of another thread still counts for its
 *   thread: that thread gets -EDEADLK for changes of every VM until it ends.
 * - Pointers to the VM, its vCPUs, its updates and their handles are invalid afterwards.
 * - The release functions of backings (ms_release_fn) run when the VM is freed.
 */
void ms_vm_destroy(struct ms_vm *vm);

/* [lock] Reports waits of after_ms milliseconds or more; 0: never.  A new VM has MS_STALL_AFTER_MS_DEFAULT.  With a
 * NULL function, reports are lines on stderr. */
#define MS_STALL_AFTER_MS_DEFAULT 1000u
int ms_set_stall_report(struct ms_vm *vm, uint32_t after_ms, ms_stall_fn *report, void *opaque, struct ms_error *err);

const struct ms_config *ms_vm_config(const struct ms_vm *vm);
const char *ms_backend_name(size_t i); /* the i-th design of this build; NULL after the last */

/* ---- changes (region.c, load.c) -------------------------------------------------------------------------------- */

/* struct kvm_userspace_memory_region2, with the id and the address space in separate fields. */
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

/* [lock] KVM_SET_USER_MEMORY_REGION2: creates a slot, deletes it (memory_size 0), moves it or changes its flags.
 * O(log n). */
int ms_set_user_memory_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region, struct ms_error *err);

/* [lock] The same for internal slots: the MS_INTERNAL_MEM_SLOTS ids from user_mem_slots on.  They are not visible to
 * ms_is_visible_gfn().  flags must be 0. */
int ms_set_internal_memory_region(struct ms_vm *vm, const struct ms_userspace_memory_region *region,
				  struct ms_error *err);

/*
 * [lock] The same changes with fewer arguments.  The other values of the slot stay as they are.
 *   ms_set_memslot_flags()  clears the flags `clear`, then sets the flags `set`
 *   ms_free_slot_id()       *slot is the lowest id of a user's slot that is not in use.  -ENOSPC: there is none.
 */
int ms_delete_memslot(struct ms_vm *vm, uint32_t as_id, uint32_t slot, struct ms_error *err);
int ms_move_memslot(struct ms_vm *vm, uint32_t as_id, uint32_t slot, uint64_t guest_phys_addr, struct ms_error *err);
int ms_set_memslot_flags(struct ms_vm *vm, uint32_t as_id, uint32_t slot, uint32_t set, uint32_t clear,
			 struct ms_error *err);
int ms_free_slot_id(struct ms_vm *vm, uint32_t as_id, uint32_t *slot, struct ms_error *err);

/* [lock] Creates n slots in one change with one swap, or none of them.  With m present slots O(m + n), if the design is
 * "tree" and m is at most 8 n; otherwise O(n log (m + n)). */
int ms_load_memslots(struct ms_vm *vm, uint32_t as_id, const struct ms_memslot *slots, size_t n, struct ms_error *err);

/* ---- transactions (transaction.c, layout_steps.c) -------------------------------------------------------------- */

/* See ms_change_memslots().  A step uses the members that are named for it, and ignores the others. */
enum ms_step_kind {
	MS_STEP_CREATE,    /* slot or MS_SLOT_ANY, flags, guest_phys_addr, memory_size, userspace_addr, backing */
	MS_STEP_DELETE,    /* slot */
	MS_STEP_MOVE,      /* slot, guest_phys_addr */
	MS_STEP_SET_FLAGS, /* slot, flags: all of them */
	MS_STEP_RESIZE,    /* slot, memory_size: the slot gains or loses pages at its end */
	MS_STEP_SPLIT,     /* slot, guest_phys_addr: its pages from here on become the new slot `other` */
	MS_STEP_MERGE,     /* slot, other: two neighbours; slot gets the pages of `other`, which ends */
	MS_STEP_PUNCH,     /* guest_phys_addr, memory_size: the hole; other: the id of a second part */
	MS_STEP_CHANGE_FLAGS /* slot; flags: those to set, after those of `other` are cleared */
};

struct ms_step {
	uint32_t kind;  /* enum ms_step_kind */
	uint32_t slot;
	uint32_t other; /* SPLIT and PUNCH: or MS_SLOT_ANY */
	uint32_t flags;
	uint64_t guest_phys_addr;
	uint64_t memory_size;
	uint64_t userspace_addr;
	struct ms_backing *backing; /* NULL: a raw slot */
};

/*
 * [lock] A transaction: carries out n steps in one change with one swap, or none of them.  Readers see the state before
 * or the state after.  They see no INVALID slot, and no hole that neither state has.
 *
 * - The steps are applied in order to a model of the address space.  A step finds the slot that has its id after the
 *   steps before it.  The rules for the values of a slot are those of ms_set_user_memory_region(), with one exception:
 *   RESIZE, SPLIT, MERGE and PUNCH change the pages of a slot.
 * - Places are checked for the final state only.  So two slots may trade places, and a slot may take the place of one
 *   that another step deletes.
 * - A CREATE never takes an id that is in use (MS_RULE_DUPLICATE_ID).  After a DELETE of its id it makes a new slot,
 *   with a new dirty log.  MS_SLOT_ANY is the lowest id that is free after the steps before.
 * - A CREATE with a backing, and each step that changes pages: the pages lie inside the backing of the slot.
 * - SPLIT: guest_phys_addr is inside the slot, and not its first byte (MS_RULE_SPLIT).  The first part keeps the id.
 * - MERGE: the slots are neighbours in guest and in host memory, in the same order, with the same flags and the same
 *   backing (MS_RULE_MERGE_PLACE, MERGE_HVA, MERGE_FLAGS, MERGE_BACKING).
 * - PUNCH removes the pages from each slot that has some of them.  The part below the hole keeps the id; the part above
 *   the hole keeps it if there is none below.  If both exist, the upper part becomes the new slot `other`.
 * - Dirty bits follow their pages into every slot that has them afterwards, also the bits that readers set until the
 *   grace period is over.  The host address identifies a page; only slots that a SPLIT, MERGE or PUNCH has made from
 *   each other share bits.
 *
 * err->index is the refused step.  If two slots of the list overlap, it is the later one of the steps that gave them
 * their places, and err->other is the slot of the other step.  Any error restores everything: also the generation.
 * O(n log m) with m slots; a PUNCH adds O(n).  ms_vm_config()'s limits hold for the final state.
 */
int ms_change_memslots(struct ms_vm *vm, uint32_t as_id, const struct ms_step *steps, size_t n, struct ms_error *err);

/* ---- backing memory (backing.c, region.c) -------------------------------------------------------------------- */

/*
 * A backing is host memory that slots keep alive.  It is counted by reference, and may be mapped by many slots of many
 * VMs.  A slot holds a reference until the last reader that may see the slot has left.  A move and a change of flags
 * keep the backing.  A slot without a backing is raw: its userspace_addr is only a number for the engine.
 *
 * The call that drops the last reference calls release(opaque) once: ms_backing_put(), a change, ms_vm_close(),
 * ms_vm_destroy(), another call marked [lock], a long ms_read_guest(), ms_write_guest(), ms_fill_guest() or
 * ms_copy_guest(), or any ms_*_guest_u64_many(), during which the slot was deleted.  It does so in its own thread
 * before it returns, and after it has released slots_lock.  If the thread is then inside a read section, a hook, a
 * release or an update of any VM, release waits until a call of this thread leaves the last of them, or until the
 * thread ends.  The functions of several backings are called in any order.
 *
 * release may make any call, but it must return.  It must not destroy the VM of a call that is in progress, and must
 * not use a VM that ms_vm_destroy() has freed.
 *
 * A forked child has its own copies of the counts.  So ms_vm_destroy() and ms_backing_put() in the child call release
 * in the child, for the child's copy of the memory.  release should do only what is right in each process: unmap, close
 * or free.  References that other threads of the parent held are never dropped in the child.
 */
typedef void ms_release_fn(void *opaque);

#define MS_BACKING_READONLY ((uint32_t)1 << 0) /* the memory cannot be written */

/* Makes a backing of the bytes [start, start + size), with one reference for the caller.  -EINVAL: start or size is 0
 * or not a multiple of MS_PAGE_SIZE, or a flag is unknown.  -ENOMEM.  release may be NULL. */
int ms_backing_create(void *start, size_t size, uint32_t flags, ms_release_fn *release, void *opaque,
		      struct ms_backing **out);

/* Adds a reference, and returns backing.  Drops a reference.  Any thread may call them.  NULL: they do nothing. */
struct ms_backing *ms_backing_get(struct ms_backing *backing);
void ms_backing_put(struct ms_backing *backing);

/*
 * [lock] Creates a slot whose pages [userspace_addr, userspace_addr + memory_size) lie inside the backing.  The slot
 * takes a reference of its own.  region->slot may be MS_SLOT_ANY.  *slot gets the id after a success; slot may be NULL.
 * An id in use is -EEXIST and MS_RULE_DUPLICATE_ID: the call never changes or deletes a slot.  A READONLY backing needs
 * MS_MEM_READONLY.
 */
int ms_map_backing(struct ms_vm *vm, const struct ms_userspace_memory_region *region, struct ms_backing *backing,
		   uint32_t *slot, struct ms_error *err);

/* [lock] As ms_delete_memslot(), ms_move_memslot() and ms_set_memslot_flags(), but only if the slot has this backing.
 * Otherwise -EINVAL and MS_RULE_NO_SUCH_SLOT.  So they never change a slot that another thread has put in its place. */
int ms_unmap_backing(struct ms_vm *vm, uint32_t as_id, uint32_t slot, const struct ms_backing *backing,
		     struct ms_error *err);
int ms_move_backing(struct ms_vm *vm, uint32_t as_id, uint32_t slot, const struct ms_backing *backing,
		    uint64_t guest_phys_addr, struct ms_error *err);
int ms_set_backing_flags(struct ms_vm *vm, uint32_t as_id, uint32_t slot, const struct ms_backing *backing,
			 uint32_t set, uint32_t clear, struct ms_error *err);

/* As ms_id_to_memslot().  *backing is a new reference to the backing of the slot; NULL: a hole or a raw slot. */
int ms_id_to_backing(struct ms_vm *vm, uint32_t as_id, uint32_t id, struct ms_memslot *out,
		     struct ms_backing **backing);
void *ms_backing_opaque(const struct ms_backing *backing);

/* ---- listeners (listeners.c) ---------------------------------------------------------------------------------- */

/* A RESIZE has other pages: npages, and userspace_addr if pages were removed or added below the first one.  It may
 * change the place and the flags too, as a MOVE may change the flags.  Only ms_change_memslots() and
 * updates make these.  In an update a RESIZE may also have another userspace_addr or READONLY flag. */
enum ms_change_kind { MS_CREATE, MS_DELETE, MS_MOVE, MS_FLAGS_ONLY, MS_RESIZE };

/* The argument of the hooks.  old_slot has npages 0 in a CREATE, new_slot in a DELETE. */
struct ms_change {
	enum ms_change_kind kind;
	struct ms_memslot old_slot;
	struct ms_memslot new_slot;
	/* In commit, if the change ends the slot's dirty log (a DELETE, or LOG_DIRTY_PAGES is switched off): the last
	 * bits, as ms_get_dirty_log() gives them.  They are valid during the hook.  Otherwise NULL and 0.  If logs of
	 * new slots take pages of the old slot (ms_change_memslots()), these are the bits of the other pages, or NULL
	 * if none of those is dirty. */
	const uint64_t *dirty;
	size_t nr_dirty_words;
};

/*
 * A change calls the hooks where KVM calls its architecture code, in the thread that makes the change, under
 * slots_lock.  Every member may be NULL.  A hook returns, or its thread ends in it (pthread_exit(), cancellation).  In
 * the second case the next call that takes the lock finishes the change without hooks: it rolls the change back before
 * commit, and completes it in commit.  Leaving a hook by longjmp() or a C++ exception is undefined.  The same rules
 * hold for ms_stall_fn.
 *   prepare       may refuse the change with a negative errno.
 *   prepare_many  is called instead of prepare, with the whole list of changes: one for a single change, more for
 *                 ms_load_memslots() and ms_change_memslots().  The listener prepares all of them or, with a negative
 *                 errno, none.
 *   abort         follows in reverse order for each prepared change of each listener, when the list is refused.
 *   flush         follows the swap that publishes the INVALID copy of a slot that is deleted or moved.  `active` is
 *                 that copy, which readers see from then on; `old` is the former slot.  In ms_change_memslots() it
 *                 follows the only swap, for each slot that is deleted, moved or resized.  Then `active` is the new
 *                 slot, or the old one with MS_MEMSLOT_INVALID if it is deleted.
 *   commit        the change is complete. closed        the VM ends, by ms_vm_close() or by ms_vm_destroy() without it.
 *   Each listener of this moment gets the
 *                 call once, in order.  Every reader has left the slots and lookups find holes, but the slots still
 *                 hold their backings.  A forked child does not call the hook.
 * A list of changes reaches the listeners one after the other: each hook gets the whole list from the first listener,
 * then from the second.
 */
struct ms_listener {
	size_t size; /* of this struct */
	void *opaque;
	int (*prepare)(void *opaque, const struct ms_change *change);
	void (*abort)(void *opaque, const struct ms_change *change);
	void (*flush)(void *opaque, const struct ms_memslot *active, const struct ms_memslot *old);
	void (*commit)(void *opaque, const struct ms_change *change);
	int (*prepare_many)(void *opaque, const struct ms_change *changes, size_t n);
	void (*closed)(void *opaque);
};

/* [lock] Listeners are called in the order in which they were added.  The address identifies a listener.  It must stay
 * valid until ms_remove_listener() or ms_vm_destroy() has returned.  -EEXIST: added twice.  -ENOENT: not added to this
 * VM.  -EINVAL: its size is too small. ms_add_listener_last() adds a listener that stays behind all others, also behind
 * those that are added later: after its prepare no listener can refuse the change.  A VM has at most one such listener
 * (-EEXIST, MS_RULE_LAST_LISTENER). */
int ms_add_listener(struct ms_vm *vm, const struct ms_listener *listener, struct ms_error *err);
int ms_add_listener_last(struct ms_vm *vm, const struct ms_listener *listener, struct ms_error *err);
int ms_remove_listener(struct ms_vm *vm, const struct ms_listener *listener, struct ms_error *err);

/* Removes all listeners without a look at them.  It is for an owner whose listeners may be gone before it calls
 * ms_vm_destroy(), such as an object that a garbage collector has found.  No call of this VM may be in progress.  NULL
 * is fine. */
void ms_forget_listeners(struct ms_vm *vm);

/* ---- lookups (lookup.c, batch.c, vcpu.c, vm.c) ----------------------------------------------------------------- */

/* One read section: all answers until the unlock come from one published state, in all address spaces.  Sections nest.
 * A section belongs to the thread that opened it.  -ENOMEM: no memory for the thread's first reader record.
 * ms_read_unlock() without an open section of this thread in this VM does nothing and returns -EPERM. */
int ms_read_lock(struct ms_vm *vm);
int ms_read_unlock(struct ms_vm *vm);

/* A number that only the calling thread has.  It is never used again, unlike a pthread_t or the result of gettid(). */
uint64_t ms_thread_number(void);

/* Whether the calling thread is outside of all read sections, hooks and updates.  Otherwise a call marked [lock] may be
 * refused. */
bool ms_thread_may_change(void);

/* In all lookups an as_id out of range gives a hole.  0, or -ENOENT.  INVALID slots are returned, as in KVM.  out may
 * be NULL. */
int ms_gfn_to_memslot(struct ms_vm *vm, uint32_t as_id, uint64_t gfn, struct ms_memslot *out);
int ms_id_to_memslot(struct ms_vm *vm, uint32_t as_id, uint32_t id, struct ms_memslot *out);

/* gfn_to_hva(): the address for writing.  MS_HVA_ERR_BAD in holes and INVALID slots, MS_HVA_ERR_RO_BAD in READONLY
 * slots. */
uint64_t ms_gfn_to_hva(struct ms_vm *vm, uint32_t as_id, uint64_t gfn);

/* gfn_to_hva_prot(): the address for reading.  Sets *writable to whether the slot is writable, if the address is no
 * error value.  writable may be NULL. */
uint64_t ms_gfn_to_hva_prot(struct ms_vm *vm, uint32_t as_id, uint64_t gfn, bool *writable);

/* kvm_is_visible_gfn(): whether a slot of the user, not INVALID, maps the frame. */
bool ms_is_visible_gfn(struct ms_vm *vm, uint32_t as_id, uint64_t gfn);

/* A batch reads n values of 8 bytes, in_stride bytes apart, and writes n results, out_stride bytes apart.  Any
 * alignment and any stride will do, negative ones and 0 included.  out may be equal to in if the strides are equal.
 * Otherwise the two must not overlap, or the results are undefined.  -EFAULT: a NULL batch, in or out, unless n is 0.
 * -EINVAL: n is more than SIZE_MAX / 8. */
struct ms_batch {
	const void *in;
	ptrdiff_t in_stride;
	void *out;
	ptrdiff_t out_stride;
	size_t n;
	/* May be NULL.  Called at least every MS_BATCH_POLL values, outside the read sections of the call, except in a
	 * batch that has to run in one section (see below).  A result other than 0 ends the batch.  The function must
	 * return. */
	int (*poll)(void *opaque);
	void *opaque;
};

#define MS_BATCH_POLL ((size_t)1 << 16)

/* A batch of at most this many values takes microseconds.  If there are more than 4,096 slots, it does only a part of
 * the work of an index: that of 2,048 slots at most.  So does a single lookup, however many slots there are. */
#define MS_BATCH_BRIEF ((size_t)64)

/*
 * All answers of one call come from one published state.  The call returns 0, or -EINTR if poll ended it.  After -EINTR
 * out contains the answers so far; values after them may be left from an earlier attempt of the same call (see below).
 *
 * A writer does not wait for a whole long batch.  A batch of up to MS_BATCH_PIECE values, or of up to four times as
 * many that an index answers, is one read section.  A longer batch holds a reference to the index and no read section.
 * If there is no index and it does not pay, the batch walks in pieces of MS_BATCH_PIECE values with one read section
 * each. If the state changes between two pieces, the batch starts again with an index.  So a change waits for one piece
 * at most, with three exceptions:
 *   - An overtaken batch builds an index for itself in one read section if another thread is just building the shared
 *     one, or if a change that takes long is under way.
 *   - A batch that must not use an index (policy, no memory) and was overtaken runs in one read section without poll.
 *   - A batch that walks with out equal to in reads from a copy of in.  Without memory for the copy it runs in one
 *     section.
 */
#define MS_BATCH_PIECE 4096
int ms_gfn_to_hva_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, bool write);
int ms_gpa_to_hva_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, bool write);
int ms_gfn_to_slot_id_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch); /* int32_t; -1: hole */

/*
 * An index holds the slots as values in flat arrays.  It answers batches several times as fast as the tree.  It also
 * answers single lookups that miss their hint, where a walk would be slower.  After a change, lookups walk in the
 * frames of the slots that have changed, and use the index for all others.  Lookups build an index when it pays; a
 * change never builds one.  Design "tree" only.
 */
enum ms_index_policy {
	MS_INDEX_AUTO,  /* build an index when the lookups that had to walk pay for it */
	MS_INDEX_OFF,   /* no index; a batch walks the tree with many lookups in parallel */
	MS_INDEX_EAGER, /* build an index at the first batch, and a new one as soon as a batch has to walk */
	MS_INDEX_WALK   /* no index, one lookup after the other: the yardstick for measurements */
};

/* Holds from the next lookup on.  -EINVAL: no such policy. */
int ms_set_index_policy(struct ms_vm *vm, enum ms_index_policy policy);
enum ms_index_policy ms_index_policy(const struct ms_vm *vm);

/* These calls write up to `room` slots in ascending order and return the number of all matching slots.  If that is more
 * than `room`, call again with more room: which slots were written depends on the design.  A NULL out has no room. */
size_t ms_memslots_in_gfn_range(struct ms_vm *vm, uint32_t as_id, uint64_t start, uint64_t end, struct ms_memslot *out,
				size_t room);
size_t ms_memslots_in_hva_range(struct ms_vm *vm, uint32_t as_id, uint64_t start, uint64_t last, struct ms_memslot *out,
				size_t room);
size_t ms_memslots(struct ms_vm *vm, uint32_t as_id, struct ms_memslot *out, size_t room);

struct ms_hva_hit {
	struct ms_memslot slot;
	uint64_t gfn;
};

/* Every (slot, gfn) of all address spaces that the host byte at hva backs, ordered by (as_id, userspace_addr,
 * base_gfn). */
size_t ms_hva_to_gfns(struct ms_vm *vm, uint64_t hva, struct ms_hva_hit *out, size_t room);

/* The generation of the active set.  It includes MS_GEN_UPDATE_IN_PROGRESS while a swap waits for readers. */
uint64_t ms_generation(struct ms_vm *vm, uint32_t as_id);
uint64_t ms_nr_memslots(const struct ms_vm *vm);      /* in all address spaces */
uint64_t ms_nr_memslot_pages(const struct ms_vm *vm); /* in all address spaces */

/* A vCPU has a last_used_slot of its own, which is dropped when the generation changes.  Threads may share a vCPU,
 * but then they replace each other's last_used_slot.  ms_vcpu_create() is [lock].
 * ms_vcpu_destroy() never waits and may be called anywhere before ms_vm_destroy(), once.  NULL: it does nothing. */
int ms_vcpu_create(struct ms_vm *vm, struct ms_vcpu **out, struct ms_error *err);
void ms_vcpu_destroy(struct ms_vcpu *vcpu);
int ms_vcpu_set_as_id(struct ms_vcpu *vcpu, uint32_t as_id); /* as on entry to SMM; -EINVAL */
uint32_t ms_vcpu_as_id(const struct ms_vcpu *vcpu);
int ms_vcpu_gfn_to_memslot(struct ms_vcpu *vcpu, uint64_t gfn, struct ms_memslot *out);
uint64_t ms_vcpu_gfn_to_hva(struct ms_vcpu *vcpu, uint64_t gfn);

/* ---- guest memory (guest_*.c, hva_cache.c) --------------------------------------------------------------------- */

/*
 * These calls copy bytes from and to the memory of the slots at [gpa, gpa + n), by KVM's rules: the range is split into
 * pieces at page boundaries; a write marks the page of a piece dirty after the piece is written; the first piece that
 * is refused ends the call.  Pieces before it are complete: nothing is rolled back.  With n = 0 a call does nothing and
 * returns 0.
 *
 *   -EFAULT  MS_RULE_GUEST_HOLE      no slot, or an INVALID one; an as_id out of range is a hole everywhere
 *            MS_RULE_GUEST_READONLY  a write to a READONLY slot
 *            MS_RULE_GUEST_RAW       the slot has no backing; see dereference_raw_addresses in struct ms_config
 *            MS_RULE_GUEST_FAULT     the host memory is gone; the content of this piece is unspecified
 *            MS_RULE_NULL_BUFFER     the pointer is NULL, and n is not 0
 *   -EIO     MS_RULE_FORKED          a write to a slot with a dirty log, in a forked child: its mark would be lost
 *   -ENOMEM  MS_RULE_NO_MEMORY       more than MS_GUEST_SHORT bytes in more slots than the call has room for; nothing
 *                                    is copied
 * err->gpa is the piece that is refused, and err->done the number of bytes before it.
 *
 * All pieces of one call come from one published state.  Up to MS_GUEST_SHORT bytes the copy is one read section, so a
 * change of the slots waits for it.  A longer copy keeps the host memory and the dirty logs alive by references and
 * needs no section: no change waits for it.  It writes to the memory of the state in which it began, also after a slot
 * is moved or deleted.  If the state is another one by the time of the mark, it marks the pages in all logs of slots
 * that have the same host memory then.  If no slot has it then, a slot that is created later has no mark of this write.
 * At its end it may call a release function (ms_release_fn).  But with dereference_raw_addresses, a copy that touches a
 * slot without a backing is one section whatever its length: a change waits for it, so that the caller can free the
 * memory after a delete.
 *
 * A fault of host memory that was truncated, unmapped or protected does not end in a signal.  The first
 * ms_backing_create(), or ms_vm_create() with dereference_raw_addresses, installs a handler for SIGSEGV and SIGBUS.  It
 * passes every other fault to the handler that was there before.  The promise does not hold if somebody later installs
 * a handler that does not call its predecessor, or in a thread that blocks these signals.
 *
 * The content of memory that others write at the same time is a mixture of old and new bytes, except for naturally
 * aligned values of 1, 2, 4 and 8 bytes.  If `out` or `data` is itself the guest memory of the call, the content of
 * both is unspecified: use ms_copy_guest().  A write marks the page at which it fails too, because a part of it may
 * have changed.
 */
#define MS_GUEST_SHORT ((size_t)1 << 16)

int ms_read_guest(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, void *out, size_t n, struct ms_error *err);
int ms_write_guest(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, const void *data, size_t n, struct ms_error *err);
int ms_fill_guest(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, size_t n, uint8_t byte, struct ms_error *err);

/*
 * As memmove(): the ranges of guest addresses may overlap.  Pieces are split at the page boundaries of both ranges.
 * Only the bytes before the first hole, READONLY slot or raw slot are copied.  If a copy to a higher address that
 * overlaps its source ends by MS_RULE_GUEST_FAULT, err->done is 0, because it begins with the last bytes.
 */
int ms_copy_guest(struct ms_vm *vm, uint32_t as_id, uint64_t dst_gpa, uint64_t src_gpa, size_t n, struct ms_error *err);

/* Little-endian values at any gpa.  A naturally aligned value is one access: a load with acquire, a store with release.
 * A value that crosses a page boundary is two pieces. */
int ms_read_guest_u8(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, uint8_t *value, struct ms_error *err);
int ms_read_guest_u16(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, uint16_t *value, struct ms_error *err);
int ms_read_guest_u32(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, uint32_t *value, struct ms_error *err);
int ms_read_guest_u64(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, uint64_t *value, struct ms_error *err);
int ms_write_guest_u8(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, uint8_t value, struct ms_error *err);
int ms_write_guest_u16(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, uint16_t value, struct ms_error *err);
int ms_write_guest_u32(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, uint32_t value, struct ms_error *err);
int ms_write_guest_u64(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, uint64_t value, struct ms_error *err);

/*
 * Many values of 8 bytes: `in` has the gpas, and `out` gets the values or, for a write, has them.  The rules are those
 * of a series of single calls, in the order of the batch, but all values come from one published state.  After an error
 * err->index is the number of the value that is refused, and err->done 8 times this number, plus the bytes of the
 * value that are complete.  -EINTR: poll ended the call; the values before are complete.  -EINVAL: n is too large.
 * Neither names a value: *err is all 0.
 *
 * The values are translated in read sections and copied outside of them, so no change waits for a page fault of a
 * value.  Until the call has copied them, it holds the memory and the dirty logs of all slots of the VM.  At its end it
 * may call release functions (ms_release_fn), also those of slots that it has not used.  A read starts again if a
 * writer publishes another state meanwhile.  In this case, and for a write of more than MS_BATCH_PIECE values, it takes
 * references to all slots.  -ENOMEM: there is no memory for those of a write.
 *
 * Some calls are one read section, and a change waits for their copies: with dereference_raw_addresses those of an
 * address space that has a slot without a backing; without memory those of a thread that has no record yet, those of
 * more than 512 values to write, and those of a read that another state has overtaken.
 *
 * After MS_RULE_GUEST_FAULT err->other is all 0 if a writer has published another state since the translation.
 */
int ms_read_guest_u64_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, struct ms_error *err);
int ms_write_guest_u64_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch, struct ms_error *err);

struct ms_host_range {
	uint64_t hva, length; /* in bytes */
};

/*
 * The host memory of the guest bytes [gpa, gpa + n), up to the first byte that has no address for this use: in a hole,
 * an INVALID slot or, for a write, a READONLY slot.  *hole is this byte, or gpa + n; hole may be NULL.  Raw slots have
 * addresses too.  The call writes up to `room` ranges and returns the number of all.  Neighbours in host memory are one
 * range.
 */
size_t ms_host_ranges(struct ms_vm *vm, uint32_t as_id, uint64_t gpa, uint64_t n, bool write, struct ms_host_range *out,
		      size_t room, uint64_t *hole);

/*
 * The same for n guest ranges, from one published state.  The host ranges of guest range i are those from offsets[i] to
 * offsets[i + 1]; offsets has n + 1 elements, or is NULL.  holes has n elements, or is NULL.  If the result is more
 * than `room`, call again with more room.  NULL for the guest ranges: as with n = 0.
 */
size_t ms_host_ranges_many(struct ms_vm *vm, uint32_t as_id, const uint64_t *gpas, const uint64_t *sizes, size_t n,
			   bool write, struct ms_host_range *out, size_t room, uint64_t *offsets, uint64_t *holes);

/* The slots of n ranges of frames [starts[i], ends[i]), in the same form. */
size_t ms_memslots_in_gfn_range_many(struct ms_vm *vm, uint32_t as_id, const uint64_t *starts, const uint64_t *ends,
				     size_t n, struct ms_memslot *out, size_t room, uint64_t *offsets);

/*
 * KVM's gfn_to_hva_cache: the address of one range of guest memory, for repeated accesses.  It stays right through
 * changes, because an access compares the generation first.  One thread at a time may use a cache, with the VM of its
 * init.  The members belong to the library.
 */
struct ms_gfn_to_hva_cache {
	uint64_t generation;
	uint64_t gpa, hva, len;
	const void *slot; /* NULL: the range has several pages and is accessed as by ms_read_guest() */
	uint32_t as_id;
};

/* -EINVAL: [gpa, gpa + len) is empty at the beginning of a page, or wraps (MS_RULE_CACHE_RANGE); or no such as_id.
 * -EFAULT: a page is in a hole or READONLY, because the address is one for writing.  After an error the cache has the
 * new range, and its accesses fail until a change of the slots; without such an as_id it has an empty range. */
int ms_gfn_to_hva_cache_init(struct ms_vm *vm, uint32_t as_id, struct ms_gfn_to_hva_cache *cache, uint64_t gpa,
			     uint64_t len, struct ms_error *err);

/* The bytes [offset, offset + n) of the range.  -EINVAL: they end beyond it (MS_RULE_CACHE_RANGE).  Other errors as of
 * ms_read_guest() and ms_write_guest(), and -EFAULT for a read from a READONLY slot. */
int ms_read_guest_cached(struct ms_vm *vm, struct ms_gfn_to_hva_cache *cache, uint64_t offset, void *out, size_t n,
			 struct ms_error *err);
int ms_write_guest_cached(struct ms_vm *vm, struct ms_gfn_to_hva_cache *cache, uint64_t offset, const void *data,
			  size_t n, struct ms_error *err);

/* ---- dirty log (dirty_ioctl.c, dirty_harvest.c, lookup.c, batch.c; the bits are in dirty_log.c) ---------------- */

/* mark_page_dirty(): sets the bit of the page.  Does nothing in a hole or without logging.  READONLY does not matter.
 * The _many call is a series of single marks; each uses the state of its own moment.  -EINTR as above.  The call does
 * not use `out` of the batch. */
void ms_mark_page_dirty(struct ms_vm *vm, uint32_t as_id, uint64_t gfn);
int ms_mark_page_dirty_many(struct ms_vm *vm, uint32_t as_id, const struct ms_batch *batch);

/*
 * [lock] KVM_GET_DIRTY_LOG: ceil(npages / 64) words; bit i of word j is page 64 j + i.  *nwords receives the number of
 * words; nwords may be NULL.  If room is smaller, the call leaves the log unchanged and fails with -ENOBUFS.  With a
 * NULL bitmap the call clears the log, loses the bits and fails with -EFAULT, as KVM does.
 */
int ms_get_dirty_log(struct ms_vm *vm, uint32_t as_id, uint32_t slot, uint64_t *bitmap, size_t room, size_t *nwords,
		     struct ms_error *err);

/* [lock] KVM_CLEAR_DIRTY_LOG.  bitmap has nwords words.  The check of nwords follows KVM's own checks. */
int ms_clear_dirty_log(struct ms_vm *vm, uint32_t as_id, uint32_t slot, uint64_t first_page, uint32_t num_pages,
		       const uint64_t *bitmap, size_t nwords, struct ms_error *err);

/* [lock] Sets the bits of `words` in the log, for example those of the kernel's own log.  nwords must be
 * ceil(npages / 64).  Bits from npages on are ignored. */
int ms_merge_dirty_log(struct ms_vm *vm, uint32_t as_id, uint32_t slot, const uint64_t *words, size_t nwords,
		       struct ms_error *err);

struct ms_gfn_range {
	uint64_t gfn;
	uint64_t npages;
};

#define MS_GFN_END ((uint64_t)1 << (64 - MS_PAGE_SHIFT)) /* no slot has this frame or a later one */

/*
 * [lock] Writes the dirty pages of all logged slots of an address space, from *gfn on, as up to `room` ranges in
 * ascending order, and their number to *n.  Neighbours are joined, also across slots.  With `clear` the call clears the
 * bits that it reports; ms_manual_dirty_log_protect() does not matter.  Without `clear` the call changes nothing.
 * If the array is full, *gfn becomes the first dirty page that is not reported, otherwise MS_GFN_END.
 * The cost follows the number of dirty pages and of slots, not the size of the slots.  Without `clear` the pages stay
 * dirty, so each call costs as much as the first.
 */
int ms_harvest_dirty(struct ms_vm *vm, uint32_t as_id, bool clear, uint64_t *gfn, struct ms_gfn_range *out, size_t room,
		     size_t *n, struct ms_error *err);

/* [lock] KVM_ENABLE_CAP of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: 0, ENABLE, or ENABLE | INITIALLY_SET. */
int ms_set_manual_dirty_log_protect(struct ms_vm *vm, uint64_t value, struct ms_error *err);
uint64_t ms_manual_dirty_log_protect(const struct ms_vm *vm);

/* ---- the dual-set steps one by one (update.c, update_steps.c) -------------------------------------------------- */

/*
 * [lock] An update gives the writer's steps one by one, for the study of the two sets.  Design "tree" only (-ENOSYS).
 *
 * - The caller holds slots_lock from begin to end.  A begin inside a hook of another VM is -EBUSY.
 * - The update belongs to the thread that began it.  Calls from another thread, except abandon, fail with -EBUSY and
 *   MS_RULE_UPDATE_OWNER.
 * - If that thread ends, its update is rolled back.  The pointer stays valid until ms_update_abandon() or the end of
 *   the VM; every other call with it fails with -EBUSY.
 * - A handle is a slot of either set, a slot that a step has removed, or a draft.  Each step checks that its handles
 *   belong to this update and that their slots are where the step needs them (-EINVAL, MS_RULE_HANDLE).  A pointer from
 *   another VM or from an earlier update is refused, also when its memory is freed.  The check costs O(log n) for n
 *   slots of the VM.  It cannot tell two slots apart that had the same address one after the other.
 * - Without an update (NULL) a step is -EINVAL and MS_RULE_HANDLE.
 * - ms_update_end() returns 0 if both sets hold the same slots and none is INVALID.  Otherwise it restores both sets as
 *   they were at begin, with another swap if one was made, and fails with -EINVAL and MS_RULE_SETS_DIFFER.
 * - Then the listeners get the changes between begin and end as one list: the deletes, then the changes of slots that
 *   stay, then the creates.  Readers see the new slots already.  If a listener refuses, the end restores both sets in
 *   the same way and fails with the errno of that listener and MS_RULE_LISTENER_REFUSED.  Otherwise the flush hooks
 *   follow, for each slot that readers have seen and that is gone or translates in another way, unless
 *   ms_update_invalidate() has called them; then the commit hooks.  Two slots with one id are one change.  A slot with
 *   the values of the former one, but without its log or backing, is a DELETE and a CREATE.  An update that is rolled
 *   back or abandoned reaches no listener.
 */
int ms_update_begin(struct ms_vm *vm, uint32_t as_id, struct ms_update **out, struct ms_error *err);
int ms_update_end(struct ms_update *update, bool keep, struct ms_error *err); /* keep = false: roll back, return 0 */

/*
 * Rolls the update back.  NULL: does nothing.  This is the last call with the pointer.  It may come from any thread and
 * any place, but not in parallel with a step of another thread.  It does not wait: readers see the state of the begin
 * immediately (later, inside a read section or a hook).  The next call that takes the VM's lock does the rest, which
 * has to wait for readers.
 */
void ms_update_abandon(struct ms_update *update);

/* Makes a draft with the values of *slot.  Its id, as_id and dirty log come from `old`.  So does the
 * backing, if the pages of the draft lie inside it; otherwise the draft is raw.  old = NULL: a new slot. */
int ms_update_copy(struct ms_update *update, struct ms_slot *old, const struct ms_memslot *slot, struct ms_slot **out,
		   struct ms_error *err);
int ms_update_replace(struct ms_update *update, struct ms_slot *old, struct ms_slot *new_slot, struct ms_error *err);
int ms_update_invalidate(struct ms_update *update, struct ms_slot *slot, struct ms_slot **out, struct ms_error *err);
int ms_update_swap(struct ms_update *update, struct ms_error *err);
int ms_update_activate(struct ms_update *update, struct ms_slot *old, struct ms_slot *new_slot, struct ms_error *err);

/* Writes up to `room` slots of the active or the inactive set by ascending gfn, and returns the number of slots in the
 * set.  Returns 0 in another thread than the owner of the update, or without one.  A NULL out has no room. */
size_t ms_update_slots(struct ms_update *update, bool active, struct ms_slot **out, size_t room);
struct ms_slot *ms_update_find(struct ms_update *update, bool active, uint32_t id); /* or NULL */

/* -EINVAL: no update, or no handle of this one.  -EBUSY: another thread. */
int ms_update_value(struct ms_update *update, const struct ms_slot *slot, struct ms_memslot *out);

/* ---- check and counters (check.c, stats.c) --------------------------------------------------------------------- */

struct ms_violation {
	char invariant[8]; /* the number in the headers: "R2", "T1", "M3", ... */
	char text[184];
};

/* [lock] Checks every invariant of both sets of every address space.  0, -EUCLEAN with *violation, or an error of the
 * lock. */
int ms_check(struct ms_vm *vm, struct ms_violation *violation, struct ms_error *err);

struct ms_stats {
	size_t size; /* of the members that the library has written */
	uint64_t hits_last_used; /* lookups by gfn that a hint answered */
	uint64_t hits_search; /* lookups by gfn that a search answered */
	uint64_t indexed; /* lookups by gfn that an index answered, including holes */
	uint64_t misses; /* lookups by gfn that found a hole without an index */
	uint64_t vcpu_bypasses; /* searches for a vCPU whose last_used_slot another thread was storing */
	uint64_t creates, deletes, moves, flag_changes, noops, refused;
	uint64_t swaps; /* each has one grace period */
	uint64_t grace_waits; /* grace periods that waited for a reader */
	uint64_t stalls; /* read sections that were long enough for a report */
	uint64_t hash_grows;
	uint64_t index_builds; /* indexes built by walking the set */
	uint64_t index_patches; /* indexes built from an older index and the slots that have changed */
	uint64_t bytes; /* memory in use now, without struct ms_vm; includes memory that is reserved for more slots */
	uint64_t blocks; /* allocations in use now; each slot counts as one */
	uint64_t resizes; /* changes of the kind MS_RESIZE */
};

/* Returns 0. */
#define ms_get_stats(vm, out) ms_get_stats_sized((vm), (out), sizeof(*(out)))
int ms_get_stats_sized(struct ms_vm *vm, struct ms_stats *out, size_t size); /* -EINVAL: too small.  -EFAULT: NULL */

/* ---- the build ------------------------------------------------------------------------------------------------- */

const char *ms_build_info(void); /* compiler, asserts, sanitizer: "key=value; ..." */

/*
 * The vector instructions of batches: "portable", "avx2" or "avx512".  All levels give the same answers.  The default
 * is the best level of the CPU.  The environment variable MEMSLOTS_SIMD and ms_set_simd() choose another level that the
 * CPU has (-ENOSYS).  ms_set_simd(NULL) chooses the best one.
 */
const char *ms_simd(void);
const char *ms_simd_name(size_t i); /* the i-th level of this CPU; NULL after the last; 0 is "portable" */
int ms_set_simd(const char *name);

#ifdef __cplusplus
}
#endif
#endif
