/* What the parts of the native module share: _native.c completes pyfuse3, _dispatch.c carries
 * out beside it what programs ask for most, in the forms of _forms.c. */

#ifndef JFSD_NATIVE_H
#define JFSD_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
#include <linux/fuse.h>

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

#define RESENT (1ULL << 63)      /* FUSE_UNIQUE_RESEND */
#define BODY_MAX 128             /* longest fixed part of a request that Python asks for */
#define MAX_WRITE (1u << 20)     /* payload of the longest request */
#define ROOM (MAX_WRITE + 4096)  /* the kernel wants payload and headers in one read */
#define ROOMS 4                  /* receive buffers kept warm */
#define COPY_MAX (256u << 10)    /* longer payloads are lent with their room, not copied */
#define ANSWERED_MAX (1 << 17)   /* more than two seconds bring */

/* The journal of requests in flight, for kernels that do not send them again (before 6.9): memory
 * that outlives the process. A request is read into `staged` and, as soon as it is known, noted in
 * a slot until it is answered; `noted` is the number of the last one for which that is done. A
 * slot holds the whole request if it is short, as all are but those with data or long names. */
#define NOTE_RAW 240
#define NOTES (1u << 13)

struct note {
	uint64_t unique;           /* 0: free; written last */
	uint32_t len;              /* of the request; more than NOTE_RAW: not kept */
	uint32_t reserved;
	char raw[NOTE_RAW];
};

struct journal {
	uint64_t noted;
	char pad[4096 - sizeof(uint64_t)];
	char staged[ROOM];
	struct note notes[NOTES];
};

struct settings {
	int fd;
	int adopted;              /* the kernel has its INIT answer already */
	unsigned long long set;   /* flags to add to the INIT answer, if the kernel offers them */
	unsigned long long clear; /* flags to take from it */
	unsigned int max_readahead;
	unsigned int max_background;
};

/* One mount per process, as in pyfuse3. */
struct native {
	struct settings want;
	PyObject *init_in;         /* bytes; owned */
	PyObject *init_out;        /* bytes once answered; owned */
	bool init_unread, init_unanswered, attached, ended;
	bool caught_up;            /* a request has come that no earlier process had read */
	double first_answer_s;     /* when the first request was answered; 0 before it */
	struct fuse_lowlevel_ops theirs;

	struct fuse_in_header in;  /* request being dispatched, unique without RESENT */
	PyObject *room;            /* its buffer; borrowed from `rooms` */
	size_t received;
	unsigned long resent;      /* requests that an earlier process had read */
	bool left;                 /* it is in `room` and waits for pyfuse3 */
	bool failed;               /* instead of it there is a failure to read: */
	ssize_t failure;

	PyObject *rooms[ROOMS];    /* bytes; owned */
	PyObject *watched;         /* set of uniques whose answer is of interest; owned */
	PyObject *answered;        /* list of those answered since take_answered(); owned */
	PyObject *replay;          /* list of requests to be read before the kernel's; owned or NULL */
	bool replaying;            /* the request being dispatched is one of them */
	Py_buffer memory;          /* of the journal; .obj is NULL without one */
	struct journal *journal;
	unsigned int lost;         /* noted requests that a next process could not repeat */
	PyObject *on_interrupt;    /* called with the unique of an interrupted lock; owned or NULL */
};

extern struct native state;

/* Read the next request into `room`; the number of its bytes, 0 at the end of the connection, or
 * -errno: EAGAIN if there is none now. */
ssize_t fetch(void);

/* Fetch a request and do what can be done without pyfuse3; `left` tells whether the rest is its.
 * Return whether there was anything. No exception is left behind. */
bool take(void);

/* Write an answer as libfuse does; -1 with errno, if somebody waits for it and cannot get it. */
ssize_t write_answer(int fd, struct iovec *iov, int count, void *userdata);

/* The bytes of the fetched request from `at` on: a copy, or a view that keeps the room if long. */
PyObject *lend(const char *at, size_t len);

/* Fill the kernel's attributes in from a record; of None only the type is known. */
int fill_record(struct fuse_attr *attr, uint64_t ino, unsigned int type, PyObject *record);

void set_valid(double timeout, uint64_t *seconds, uint32_t *nanoseconds);
uint32_t kind_of(unsigned int type);
double now_s(void);

/* Note that the handler of a request runs, where note_running() has told; 0 that none does. */
void running(uint64_t unique);

#define BLOCK_BYTES 65536 /* st_blksize */

/* What a handler returns, and so what the kernel gets; what each is a tuple of, _forms.c says. */
enum form { NOTHING, ENTRY, ATTR, OPENED, CREATED, COUNT, DATA, FORMS };

extern PyTypeObject *caller_type; /* named tuple (uid, gid, pid, umask, op) */
PyObject *number(uint64_t value);

/* Return what the handler is called with; the caller has its number, and that is watched, if the
 * request `changes` something. NULL with an exception. */
PyObject *parse(const struct fuse_in_header *in, size_t received, bool changes);

/* Answer with what the handler said, or an errno; -1 with an exception. */
int answer(uint64_t unique, enum form form, PyObject *said);
int answer_error(uint64_t unique, int error);
int forms_init(PyObject *module);

extern PyMethodDef dispatch_methods[];
int dispatch_init(PyObject *module);

#endif
