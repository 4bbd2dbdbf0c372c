/* SPDX-License-Identifier: MIT */
/*
 * test_stalls.c - a reader that delays a change is reported by its thread, repeatedly, and the change still completes.
 *
 * Only one check here depends on time: a wait that goes on gets longer.
 */
#include "script.h"

#include <fcntl.h>
#include <time.h>

#define ID 1u
#define GFN 0x104u
#define REPORTS 5u

static struct ms_vm *vm;
static struct actor reader, second, writer;

static struct {
	struct ms_stall stall[64];
	_Atomic uint32_t nr;
	int change, other, close, look;
	struct ms_error err;
	uint32_t thread_id;
} seen;
static struct ms_vm *other_vm;

static void look_up(struct actor *me)
{
	me->hva = ms_gfn_to_hva(vm, 0, GFN);
}

static void delete(struct actor *me)
{
	me->r = set(vm, 0, ID, 0, 0, 0);
}

static void create(struct actor *me)
{
	me->r = set(vm, 0, 7, 0x700, 1, 0);
}

static void close_vm(struct actor *me)
{
	me->r = ms_vm_close(vm, NULL);
}

static void on_stall(void *opaque, const struct ms_stall *stall)
{
	uint32_t nr = atomic_load(&seen.nr);

	CHECK(opaque == &seen);
	if (nr < ARRAY_SIZE(seen.stall))
		seen.stall[nr] = *stall;
	seen.thread_id = thread_os_id();
	seen.change = set(vm, 0, 8, 0x800, 1, 0);
	seen.close = ms_vm_close(vm, &seen.err);
	seen.look = ms_gfn_to_hva(vm, 0, 0x9000) == MS_HVA_ERR_BAD; /* in a section of the writer's own */
	if (other_vm)
		seen.other = set(other_vm, 0, 8, 0x800, 1, 0);
	atomic_fetch_add(&seen.nr, 1);
}

static void await_reports(uint32_t nr)
{
	while (atomic_load(&seen.nr) < nr)
		sched_yield();
}

static uint32_t first_report_of(uint32_t thread_id)
{
	uint32_t i = 0, nr;

	do {
		nr = atomic_load(&seen.nr);
		while (i < nr && seen.stall[i].thread_id != thread_id)
			i++;
	} while (i == nr && !sched_yield());
	return i;
}

static void begin(const char *name, uint32_t after_ms)
{
	script_begin(name);
	memset(&seen, 0, sizeof(seen));
	vm = new_vm(1);
	CHECK_EQ(set(vm, 0, ID, GFN - 4, 16, 0), 0);
	CHECK_EQ(ms_set_stall_report(vm, after_ms, on_stall, &seen, NULL), 0);
}

static void end(void)
{
	script_end_vm(vm);
}

/* The reports of one wait: numbered, with the thread's id, each after about twice the time of the one before. */
static void check_reports(uint32_t from, uint32_t nr, uint32_t thread_id, uint64_t after_ns)
{
	for (uint32_t i = 0; i < nr; i++) {
		const struct ms_stall *s = &seen.stall[from + i];

		CHECK_EQ(s->report, i + 1);
		CHECK_EQ(s->thread_id, thread_id);
		CHECK(s->waited_ns >= after_ns << i);
		CHECK(!i || s->waited_ns > s[-1].waited_ns);
	}
}

/* A create, a delete (whose first swap waits) and a close are reported in the same way. */
static void change_is_reported(void (*run)(struct actor *me))
{
	struct ms_config config = default_config(1);

	begin("a reader that delays a change is reported", 1);
	config.user_mem_slots = 10;
	config.hva_end_max = 1 << 30;
	CHECK_EQ(ms_vm_create(&config, &other_vm), 0);
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	act(&writer, run, NO_STOP);
	await_reports(REPORTS);
	check_waits(&writer, vm);
	CHECK_EQ(stats_of(vm).stalls, 1);
	finish_both(&reader, &writer);
	CHECK_EQ(writer.r, 0);
	check_reports(0, REPORTS, atomic_load(&reader.os_id), 1000000);
	CHECK_EQ(seen.thread_id, atomic_load(&writer.os_id));
	CHECK_EQ(seen.change, -EDEADLK);
	CHECK_EQ(seen.close, -EDEADLK);
	CHECK_EQ(seen.err.rule, MS_RULE_HOOK);
	CHECK_EQ(seen.look, 1);
	CHECK_EQ(seen.other, -EINVAL); /* it could lock that VM */
	CHECK_EQ(stats_of(vm).stalls, 1);
	ms_vm_destroy(other_vm);
	other_vm = NULL;
	end();
}

/* Two readers stay: each is reported, and the second one's time counts from when the writer began to wait. */
static void both_are_reported(void)
{
	uint32_t first;

	begin("two readers delay a change", 1);
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	act_until(&second, look_up, POINT_READER_VIEW_LOADED); /* a drain looks at its record first */
	act(&writer, delete, NO_STOP);
	await_reports(2);
	finish(&second);
	first = first_report_of(atomic_load(&reader.os_id));
	finish_both(&reader, &writer);
	CHECK_EQ(stats_of(vm).stalls, 2);
	check_reports(0, 2, atomic_load(&second.os_id), 1000000);
	CHECK_EQ(seen.stall[first].report, 1);
	CHECK(seen.stall[first].waited_ns >= seen.stall[first - 1].waited_ns);
	end();
}

/* A thread that gets the record of an ended thread is reported with its own id. */
static void id_of_the_next_owner(void)
{
	begin("a record that another thread gets", 1);
	act(&second, look_up, NO_STOP);
	await_end(&second);
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	CHECK_EQ(atomic_load(&vm->srcu.readers)->next, &vm->srcu.shared); /* both threads used one record */
	act(&writer, create, NO_STOP);
	await_reports(1);
	finish_both(&reader, &writer);
	check_reports(0, 1, atomic_load(&reader.os_id), 1000000);
	end();
}

static void without_a_record(void)
{
	begin("a reader without a record", 1);
	memory_fail(&vm->memory, 1, true);
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	memory_fail(&vm->memory, 0, false);
	act(&writer, create, NO_STOP);
	await_reports(1);
	finish_both(&reader, &writer);
	check_reports(0, 1, 0, 1000000);
	end();
}

/* With 0, or before the time has passed, nothing is reported, however often the writer wakes. */
static void is_not_reported(uint32_t after_ms)
{
	struct timespec nap = { .tv_nsec = 20 * 1000000 };

	begin("nothing to report", after_ms);
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	act_until_waits(&writer, delete, vm);
	nanosleep(&nap, NULL);
	CHECK_EQ(atomic_load(&writer.ended), 0);
	finish_both(&reader, &writer);
	CHECK_EQ(atomic_load(&seen.nr) + stats_of(vm).stalls, 0);
	end();
}

/* ---- a report that abandons the update ---- */

static struct ms_update *update;
static int copy_result, end_result;

static void abandon_in_report(void *opaque, const struct ms_stall *stall)
{
	struct ms_slot *draft;
	struct ms_memslot values = { 0x900, 1, hva_for(0, 9), 9, 0, 0, 0 };

	(void)opaque;
	if (stall->report > 1)
		return;
	copy_result = ms_update_copy(update, NULL, &values, &draft, NULL);
	end_result = ms_update_end(update, false, NULL);
	ms_update_abandon(update);
	atomic_fetch_add(&seen.nr, 1);
}

static void swap_and_abandon(struct actor *me)
{
	struct ms_slot *slot;

	CHECK_EQ(ms_update_begin(vm, 0, &update, NULL), 0);
	slot = ms_update_find(update, false, ID);
	CHECK_EQ(ms_update_replace(update, slot, NULL, NULL), 0);
	me->r = ms_update_swap(update, NULL);
}

static void update_abandoned(void)
{
	struct picture before, after;

	begin("a report abandons the update", 1);
	CHECK_EQ(ms_set_stall_report(vm, 1, abandon_in_report, NULL, NULL), 0);
	before = picture_of(vm);
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	act(&writer, swap_and_abandon, NO_STOP);
	await_reports(1);
	CHECK(!atomic_load(&vm->slots_lock.pending_end)); /* not deferred before the step is over */
	finish_both(&reader, &writer);
	CHECK_EQ(writer.r, 0);
	CHECK(copy_result == -EDEADLK && end_result == -EDEADLK);
	check_sound(vm); /* takes the lock and rolls the update back */
	after = picture_of(vm);
	CHECK(same_picture(&before, &after));
	end();
}

/* ---- a report that ends the section that a hook left open ---- */

static int enter(void *opaque, const struct ms_change *change)
{
	(void)opaque;
	(void)change;
	CHECK_EQ(ms_read_lock(vm), 0);
	return 0;
}

static void leave(void *opaque, const struct ms_stall *stall)
{
	(void)opaque;
	if (stall->report > 1)
		return;
	CHECK(ms_gfn_to_hva(vm, 0, GFN) < MS_HVA_ERR_MIN); /* in the set that the section saw first */
	ms_read_unlock(vm);
	CHECK_EQ(thread_self.sections, 0);
	atomic_fetch_add(&seen.nr, 1);
}

static const struct ms_listener enters = { LISTENER_SIZE, .prepare = enter };

/* The last change finds no reader inside, not even its own thread. */
static void create_and_change_again(struct actor *me)
{
	create(me);
	CHECK_EQ(ms_remove_listener(vm, &enters, NULL), 0);
	delete(me);
}

static void own_section_ended(void)
{
	begin("a report ends the section of the change's own hook", 1);
	CHECK_EQ(ms_set_stall_report(vm, 1, leave, NULL, NULL), 0);
	CHECK_EQ(ms_add_listener(vm, &enters, NULL), 0);
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	act(&writer, create_and_change_again, NO_STOP);
	await_reports(1);
	finish_both(&reader, &writer);
	CHECK_EQ(writer.r, 0);
	end();
}

/* ---- the default report ---- */

static void default_report(uint32_t after_ms, bool known)
{
	int ends[2], own = dup(STDERR_FILENO), length = 0;
	unsigned seconds, ms;
	uint64_t begin_ns, waited_ms, shown_ms;
	char text[256] = "", who[64] = "of a thread that is not known\n";

	begin("the default report on stderr", 0);
	CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
	CHECK_EQ(ms_set_stall_report(vm, after_ms, NULL, NULL, NULL), 0);
	memory_fail(&vm->memory, 1, !known);
	if (known)
		memory_fail(&vm->memory, 0, false);
	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);
	memory_fail(&vm->memory, 0, false);
	CHECK(own >= 0 && dup2(ends[1], STDERR_FILENO) == STDERR_FILENO);
	begin_ns = thread_clock_ns();
	act(&writer, delete, NO_STOP);
	while (!strchr(text, '\n')) /* blocks until the line is there */
		CHECK(read(ends[0], text + strlen(text), sizeof(text) - 1 - strlen(text)) > 0);
	waited_ms = (thread_clock_ns() - begin_ns) / 1000000;
	finish_both(&reader, &writer);
	CHECK(dup2(own, STDERR_FILENO) == STDERR_FILENO);
	close(own);
	close(ends[0]);
	close(ends[1]);
	if (known)
		snprintf(who, sizeof(who), "of thread %" PRIu32 "\n", atomic_load(&reader.os_id));
	CHECK(sscanf(text, "memslots: a change has waited for %u.%3u s for%n", &seconds, &ms, &length) == 2 && length);
	shown_ms = seconds * UINT64_C(1000) + ms;
	CHECK(shown_ms >= after_ms && shown_ms <= waited_ms); /* the unit is right: this thread has waited longer */
	CHECK(!strncmp(text + length, " the read section ", 18));
	CHECK(strstr(text, who));
	end();
}

static void refusals(void)
{
	struct ms_error err = { 0 };

	begin("setting the report", 1000);
	CHECK_EQ(vm->srcu.stall.after_ns, 1000000000u);
	CHECK_EQ(ms_read_lock(vm), 0);
	CHECK_EQ(ms_set_stall_report(vm, 5, NULL, NULL, &err), -EDEADLK);
	CHECK_EQ(err.rule, MS_RULE_READ_SECTION);
	ms_read_unlock(vm);
	CHECK_EQ(vm->srcu.stall.after_ns, 1000000000u);
	CHECK_EQ(ms_set_stall_report(vm, UINT32_MAX, NULL, NULL, NULL), 0);
	CHECK_EQ(vm->srcu.stall.after_ns, UINT32_MAX * UINT64_C(1000000));
	CHECK_EQ(ms_vm_close(vm, NULL), 0);
	CHECK_EQ(ms_set_stall_report(vm, 5, NULL, NULL, &err), -EBADF);
	end();
}

static void default_time(void)
{
	script_begin("a new VM has the default time");
	vm = new_vm(1);
	CHECK_EQ(vm->srcu.stall.after_ns, MS_STALL_AFTER_MS_DEFAULT * UINT64_C(1000000));
	end();
}

int main(int argc, char **argv)
{
	test_init(argc, argv, SCRIPT_SECONDS);
	for (size_t i = 0; (design_name = ms_backend_name(i)); i++) {
		change_is_reported(create);
		change_is_reported(delete);
		change_is_reported(close_vm);
		both_are_reported();
		id_of_the_next_owner();
		without_a_record();
		is_not_reported(0);
		is_not_reported(1000000);
		if (design_is("tree"))
			update_abandoned();
		own_section_ended();
		default_report(1, true);
		default_report(1, false);
		refusals();
		default_time();
	}
	return test_done("stalls", scripts, "scripts");
}
