/* SPDX-License-Identifier: MIT */
/*
 * script.h - threads that stop at named points of the engine and go on when the script lets them.
 *
 *	struct actor reader;
 *
 *	act_until(&reader, look_up, POINT_READER_VIEW_LOADED);   starts it and waits until it has stopped there
 *	... change ...
 *	go_until(&reader, POINT_READER_LEAVES);                  lets it go on to the next stop
 *	finish(&reader);                                         lets it go on to its end
 *
 * The script itself and threads without an actor pass every point.  Nothing here depends on time: the watchdog ends a
 * script that waits for something that never comes, and prints its name and where each actor is.
 */
#ifndef MS_SCRIPT_H
#define MS_SCRIPT_H

#include "fixture.h"

#include "points.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#define NO_STOP NR_POINTS
#define ACTORS_MAX 4
#define SCRIPT_SECONDS 60 /* far from tight, under every sanitizer, on a slow machine */

struct actor {
	pthread_t thread;
	void (*run)(struct actor *me);
	sem_t arrived, may_go;
	_Atomic uint32_t stop;  /* the point to stop at next, or NO_STOP */
	_Atomic uint32_t where; /* the point at which it is stopped, or NO_STOP */
	_Atomic uint32_t ended;
	_Atomic uint32_t os_id;
	/* Its results: the script reads them when the actor has ended or stopped. */
	uint64_t hva;
	struct ms_memslot slot[8];
	size_t nr;
	int r;
};

static const char *const point_names[] = {
#define POINT(name) #name,
	POINTS(POINT)
#undef POINT
		"no point",
};

static const char *script_name = "";
static struct actor *actors[ACTORS_MAX];
static unsigned nr_actors;
static uint64_t scripts; /* that have ended */
static _Thread_local struct actor *this_actor;

static inline void script_hangs(int signal_number)
{
	(void)signal_number;
	fprintf(stderr, "the watchdog ended script \"%s\" of design %s\n", script_name, design_name);
	for (unsigned i = 0; i < nr_actors; i++)
		fprintf(stderr, "  actor %u: %s, at %s, is to stop at %s\n", i,
			atomic_load(&actors[i]->ended) ? "has ended" : "is running",
			point_names[atomic_load(&actors[i]->where)], point_names[atomic_load(&actors[i]->stop)]);
	_exit(2);
}

static inline void stop_here(struct actor *me, enum point point)
{
	atomic_store(&me->stop, NO_STOP);
	atomic_store(&me->where, (uint32_t)point);
	sem_post(&me->arrived);
	while (sem_wait(&me->may_go))
		;
	atomic_store(&me->where, NO_STOP);
}

static inline void at_point(enum point point)
{
	if (this_actor && atomic_load(&this_actor->stop) == (uint32_t)point)
		stop_here(this_actor, point);
}

static inline void *actor_main(void *argument)
{
	struct actor *me = argument;

	this_actor = me;
	atomic_store(&me->os_id, thread_os_id());
	me->run(me);
	atomic_store(&me->ended, 1);
	sem_post(&me->arrived);
	return NULL;
}

/* Starts the thread; it stops at the point when it first reaches it. */
static inline void act(struct actor *actor, void (*run)(struct actor *me), uint32_t stop)
{
	*actor = (struct actor){ .run = run, .stop = stop, .where = NO_STOP };
	CHECK_EQ(sem_init(&actor->arrived, 0, 0) | sem_init(&actor->may_go, 0, 0), 0);
	CHECK(nr_actors < ACTORS_MAX);
	actors[nr_actors++] = actor;
	CHECK_EQ(pthread_create(&actor->thread, NULL, actor_main, actor), 0);
}

static inline void await_arrival(struct actor *actor)
{
	while (sem_wait(&actor->arrived))
		;
}

/* Waits until the actor has stopped; it must not end before. */
static inline void await_stop(struct actor *actor)
{
	await_arrival(actor);
	CHECK_EQ(atomic_load(&actor->ended), 0);
}

/* Starts the actor and waits until it has stopped. */
static inline void act_until(struct actor *actor, void (*run)(struct actor *me), uint32_t stop)
{
	act(actor, run, stop);
	await_stop(actor);
}

static inline void go(struct actor *actor, uint32_t stop)
{
	atomic_store(&actor->stop, stop);
	sem_post(&actor->may_go);
}

static inline void go_until(struct actor *actor, uint32_t stop)
{
	go(actor, stop);
	await_stop(actor);
}

/* Waits until the actor has ended without a further stop. */
static inline void await_end(struct actor *actor)
{
	await_arrival(actor);
	CHECK_EQ(atomic_load(&actor->ended), 1);
	CHECK_EQ(pthread_join(actor->thread, NULL), 0);
	sem_destroy(&actor->arrived);
	sem_destroy(&actor->may_go);
}

static inline void finish(struct actor *actor)
{
	go(actor, NO_STOP);
	await_end(actor);
}

/* Waits until the writer sleeps because of a reader; it must not end before. */
static inline void check_waits(struct actor *writer, struct ms_vm *vm)
{
	while (!atomic_load(&vm->srcu.waiting) && !atomic_load(&writer->ended))
		sched_yield();
	CHECK_EQ(atomic_load(&writer->ended), 0);
}

/* Starts the writer and waits until it sleeps because of a reader. */
static inline void act_until_waits(struct actor *writer, void (*run)(struct actor *me), struct ms_vm *vm)
{
	act(writer, run, NO_STOP);
	check_waits(writer, vm);
}

/* Lets the reader go on to its end; then the writer ends too. */
static inline void finish_both(struct actor *reader, struct actor *writer)
{
	finish(reader);
	await_end(writer);
}

static inline void script_begin(const char *name)
{
	script_name = name;
	nr_actors = 0;
	point_set_hook(at_point);
	signal(SIGALRM, script_hangs);
	alarm(SCRIPT_SECONDS);
}

static inline void script_end(void)
{
	alarm(0);
	point_set_hook(NULL);
	nr_actors = 0;
	scripts++;
}

static inline void script_end_vm(struct ms_vm *vm)
{
	if (!vm->closed)
		check_sound(vm);
	end_vm(vm);
	CHECK_EQ(thread_self.sections + thread_self.hooks, 0);
	script_end();
}

#endif
