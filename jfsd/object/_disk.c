/*
 * Files of objects written, read, synced and removed by threads that never hold the
 * interpreter's lock, so that a system call which waits for the disk costs the others nothing.
 *
 * A job is made by the event loop, done by a thread, and given back by `collect`, which the loop
 * calls when the pool's eventfd says so: several jobs that end together cost one wake-up. Only
 * the straight way is here. What is in the way of a write, jfsd/object/tree.py deals with.
 *
 * Large blocks go past the page cache (O_DIRECT) while the disk is fast; see `struct gauge`.
 */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define STACK_BYTES (256 << 10)
#define MAX_THREADS 256

#define DIRECT_MIN_BYTES (1 << 20)
#define DIRECT_ALIGNMENT 4096
#define DIRECT_BYTES_PER_S (200LL << 20)
#define DIRECT_PIECE_BYTES (1 << 20)
#define DIRECT_WINDOW_BYTES (64LL << 20)
#define DIRECT_WINDOW_NS 500000000LL
#define DIRECT_PROBE_NS 5000000000LL

#define OPENAT2 437             /* on every architecture, syscalls(2) */
#define CACHED 0x20             /* RESOLVE_CACHED of Linux 5.12, openat2(2) */

enum kind { PUT, READ, SETTLE, DELETE };

typedef struct job {
	PyObject_HEAD
	struct job *next;
	PyObject *pool, *future;        /* until it is collected */
	PyObject *path, *directory;     /* bytes */
	PyObject *data;                 /* of a read: bytes, as long as what was read */
	Py_buffer body;                 /* of a put */
	enum kind kind;
	atomic_bool abandoned;
	bool whole, keep;               /* of a read */
	int fd;                         /* read from, or left open by a read */
	int error;
	long long offset, size;
	Py_ssize_t room;                /* for `data` */
	Py_ssize_t done;                /* bytes read or written */
} Job;

/*
 * Whether large blocks go past the page cache. They do while that is faster than what a page
 * cache of cold memory takes; a slower disk must not make programs wait where memory would have
 * taken a burst. At first, and DIRECT_PROBE_NS after it was slow, a single block is tried. The
 * rate is that of all direct writes together, over the time in which there was one.
 */
struct gauge {
	bool refused;                   /* by the file system, for good */
	double least;                   /* bytes a second that are fast */
	bool fast, probing;
	int running;
	int64_t since_ns, busy_ns, bytes, probe_ns;
	long long direct, buffered;     /* large blocks written so, for tests and curiosity */
};

struct thread {
	struct pool *pool;
	pthread_t id;
	pthread_cond_t wanted;
	struct job *job;                /* given to it while it was idle */
	struct thread *next;            /* idle for longer */
};

typedef struct pool {
	PyObject_HEAD
	pthread_mutex_t lock;
	struct job *first, *last;       /* to be done, while no thread is idle */
	struct job *done, *done_last;   /* to be collected */
	struct thread threads[MAX_THREADS];
	struct thread *idle;            /* the one that was busy last, whose stack is warm, first */
	int running, most;
	int event;
	pid_t pid;
	bool closed;
	struct gauge gauge;
} Pool;

static PyTypeObject job_type;

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* A place at which a test may kill the process: jfsd/failpoint.py, for threads without Python. */
static char failpoint[32];
static atomic_int failpoint_left;

static void arm(void)
{
	const char *wanted = getenv("JFSD_FAILPOINT");
	int count = 1;

	if (wanted != NULL)
		sscanf(wanted, "%31[^:]:%d", failpoint, &count);
	failpoint_left = count;
}

static void reach(const char *name)
{
	if (strcmp(name, failpoint) == 0 && atomic_fetch_sub(&failpoint_left, 1) == 1)
		kill(getpid(), SIGKILL);
}

/* ---- past the page cache ------------------------------------------------------------------- */

static bool begin_direct(Pool *pool, const Py_buffer *body)
{
	struct gauge *g = &pool->gauge;

	if (body->len < DIRECT_MIN_BYTES || body->len % DIRECT_ALIGNMENT != 0)
		return false;
	bool wanted = false;
	pthread_mutex_lock(&pool->lock);
	if ((uintptr_t)body->buf % DIRECT_ALIGNMENT == 0 && !g->refused) {
		if (g->fast) {
			wanted = true;
		} else if (!g->probing && now_ns() >= g->probe_ns) {
			g->probing = wanted = true;
			g->busy_ns = g->bytes = 0;
		}
	}
	if (wanted) {
		g->direct++;
		if (g->running++ == 0)
			g->since_ns = now_ns();
	} else {
		g->buffered++;
	}
	pthread_mutex_unlock(&pool->lock);
	return wanted;
}

static void end_direct(Pool *pool, Py_ssize_t bytes, bool refused)
{
	struct gauge *g = &pool->gauge;

	pthread_mutex_lock(&pool->lock);
	int64_t now = now_ns();
	g->busy_ns += now - g->since_ns;
	g->since_ns = now;
	g->running--;
	g->bytes += bytes;
	g->refused |= refused;
	bool known = g->bytes >= DIRECT_WINDOW_BYTES || g->busy_ns >= DIRECT_WINDOW_NS;
	if (known || (g->probing && bytes > 0)) {
		g->fast = (double)g->bytes * 1e9 >= g->least * (double)g->busy_ns;
		if (!g->fast)
			g->probe_ns = now + DIRECT_PROBE_NS;
		g->busy_ns = g->bytes = 0;
	}
	g->probing = false;
	pthread_mutex_unlock(&pool->lock);
}

/* ---- what threads do; no Python here ------------------------------------------------------- */

static bool unsupported(int error)
{
	return error == EINVAL || error == EOPNOTSUPP;
}

/*
 * Write all of the body; what a file system does not take directly it gets the other way.
 *
 * A process that is killed ends only after the direct writes it has begun, hence the pieces.
 */
static int copy(int fd, Job *job, bool *direct)
{
	while (job->done < job->body.len && !job->abandoned) {
		size_t rest = (size_t)(job->body.len - job->done);
		if (*direct && rest > DIRECT_PIECE_BYTES)
			rest = DIRECT_PIECE_BYTES;
		ssize_t n = write(fd, (const char *)job->body.buf + job->done, rest);
		if (n >= 0) {
			job->done += n;
		} else if (*direct && unsupported(errno)) {
			*direct = false;
			fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_DIRECT);
		} else if (errno != EINTR) {
			return errno;
		}
	}
	/* Past the check it is ours, whatever becomes of the buffer. */
	return job->abandoned ? ECANCELED : 0;
}

static int put(Pool *pool, Job *job)
{
	const char *directory = PyBytes_AS_STRING(job->directory);
	int flags = O_WRONLY | O_TMPFILE | O_CLOEXEC;
	bool tried = begin_direct(pool, &job->body), direct = tried;
	int fd = open(directory, flags | (direct ? O_DIRECT : 0), 0666);

	if (fd < 0 && direct && unsupported(errno)) {
		direct = false;
		fd = open(directory, flags, 0666);
	}
	int error = fd < 0 ? errno : copy(fd, job, &direct);
	if (tried)
		end_direct(pool, job->done, fd >= 0 && !direct);
	if (fd < 0)
		return error;
	if (error == 0) {
		char proc[40];
		snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
		reach("store.written");
		if (linkat(AT_FDCWD, proc, AT_FDCWD, PyBytes_AS_STRING(job->path),
			   AT_SYMLINK_FOLLOW) < 0)
			error = errno;
		reach("store.named");
	}
	close(fd);
	return error;
}

static int read_open(Job *job, int fd)
{
	struct stat status;

	if (fstat(fd, &status) < 0)
		return errno;
	if (!S_ISREG(status.st_mode))
		return ENOENT;
	job->size = status.st_size;
	long long rest = job->size > job->offset ? job->size - job->offset : 0;
	if (job->whole && rest > job->room)
		return EFBIG;
	long long wanted = rest < job->room ? rest : job->room;
	char *data = PyBytes_AS_STRING(job->data);
	while (job->done < wanted) {
		ssize_t n = pread(fd, data + job->done, (size_t)(wanted - job->done),
				  job->offset + job->done);
		if (n < 0 && errno != EINTR)
			return errno;
		if (n == 0)
			break;
		job->done += n > 0 ? n : 0;
	}
	return 0;
}

static int read_file(Job *job)
{
	int fd = job->fd;

	if (fd < 0)
		fd = open(PyBytes_AS_STRING(job->path), O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno;
	int error = read_open(job, fd);
	if ((job->keep && error == 0) || error == EFBIG) {
		job->fd = fd;
	} else {
		job->fd = -1;
		close(fd);
	}
	return error;
}

/* Sync files and directories; those that are gone are not. `path` has a NUL after each. */
static int settle(Pool *pool, Job *job)
{
	const char *path = PyBytes_AS_STRING(job->path), *end = path + PyBytes_GET_SIZE(job->path);

	for (; path < end; path += strlen(path) + 1) {
		if (job->abandoned || __atomic_load_n(&pool->closed, __ATOMIC_RELAXED))
			return ECANCELED;
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
			continue;
		if (fd < 0)
			return errno;
		int error = fsync(fd) < 0 ? errno : 0;
		close(fd);
		if (error)
			return error;
	}
	return 0;
}

static int delete(Job *job)
{
	bool failed = unlink(PyBytes_AS_STRING(job->path)) < 0;

	return failed && errno != ENOENT && errno != ENOTDIR ? errno : 0;
}

static int work_on(Pool *pool, Job *job)
{
	if (job->abandoned)
		return ECANCELED;
	switch (job->kind) {
	case PUT:
		return put(pool, job);
	case READ:
		return read_file(job);
	case SETTLE:
		return settle(pool, job);
	default:
		return delete(job);
	}
}

/* Return whether it is the only one that is to be collected; the lock is held. */
static bool hand_back(Pool *pool, Job *job)
{
	bool alone = pool->done == NULL;

	job->next = NULL;
	if (alone)
		pool->done = job;
	else
		pool->done_last->next = job;
	pool->done_last = job;
	return alone;
}

static void announce(Pool *pool)
{
	uint64_t one = 1;

	pthread_mutex_unlock(&pool->lock);
	while (write(pool->event, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	pthread_mutex_lock(&pool->lock);
}

/*
 * Return what the thread is to do next, or NULL at the end of all; the lock is held. What it
 * has done is announced when it is idle already, so that what follows finds it so.
 */
static Job *next_job(Pool *pool, struct thread *self, bool news)
{
	Job *job = pool->first;

	if (job != NULL) {
		pool->first = job->next;
	} else if (!pool->closed) {
		self->next = pool->idle;
		pool->idle = self;
	}
	if (news)
		announce(pool);
	if (job != NULL)
		return job;
	while (self->job == NULL && !pool->closed)
		pthread_cond_wait(&self->wanted, &pool->lock);
	job = self->job;
	self->job = NULL;
	return job;
}

static void *work(void *of)
{
	struct thread *self = of;
	Pool *pool = self->pool;
	bool news = false;
	Job *job;

	prctl(PR_SET_NAME, "object");
	pthread_mutex_lock(&pool->lock);
	while ((job = next_job(pool, self, news)) != NULL) {
		pthread_mutex_unlock(&pool->lock);
		job->error = work_on(pool, job);
		pthread_mutex_lock(&pool->lock);
		news = hand_back(pool, job);
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

/* ---- jobs ---------------------------------------------------------------------------------- */

static Job *new_job(Pool *pool, enum kind kind, PyObject *future)
{
	Job *job = PyObject_New(Job, &job_type);

	if (job == NULL)
		return NULL;
	memset((char *)job + sizeof(PyObject), 0, sizeof(*job) - sizeof(PyObject));
	job->pool = Py_NewRef((PyObject *)pool);
	job->future = Py_NewRef(future);
	job->kind = kind;
	job->fd = -1;
	return job;
}

static void close_file(Job *job)
{
	if (job->fd >= 0)
		close(job->fd);
	job->fd = -1;
}

static void job_dealloc(Job *job)
{
	close_file(job);
	if (job->body.obj != NULL)
		PyBuffer_Release(&job->body);
	Py_CLEAR(job->pool);
	Py_CLEAR(job->future);
	Py_CLEAR(job->path);
	Py_CLEAR(job->directory);
	Py_CLEAR(job->data);
	PyObject_Free(job);
}

static PyObject *abandon(Job *job, PyObject *unused)
{
	(void)unused;
	job->abandoned = true;
	if (job->future == NULL)
		close_file(job);
	Py_RETURN_NONE;
}

static PyObject *take_descriptor(Job *job, PyObject *unused)
{
	(void)unused;
	int fd = job->fd;
	job->fd = -1;
	return PyLong_FromLong(fd);
}

static PyMethodDef job_methods[] = {
	{ "abandon", (PyCFunction)abandon, METH_NOARGS,
	  "Not begun, it will not be; a put in whose body is still copied puts nothing in place." },
	{ "take_descriptor", (PyCFunction)take_descriptor, METH_NOARGS,
	  "Return the file that a read left open, which is the caller's from now on." },
	{ NULL, NULL, 0, NULL },
};

static PyMemberDef job_members[] = {
	{ "error", T_INT, offsetof(Job, error), READONLY, "0 or an errno." },
	{ "size", T_LONGLONG, offsetof(Job, size), READONLY, "Bytes of the file that was read." },
	{ "data", T_OBJECT, offsetof(Job, data), READONLY, "What was read, or None." },
	{ NULL, 0, 0, 0, NULL },
};

static PyTypeObject job_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "jfsd.object._disk.Job",
	.tp_doc = "Something that a thread does with a file.",
	.tp_basicsize = sizeof(Job),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.tp_dealloc = (destructor)job_dealloc,
	.tp_methods = job_methods,
	.tp_members = job_members,
};

/* ---- the pool ------------------------------------------------------------------------------ */

static int start_thread(Pool *pool)
{
	struct thread *thread = &pool->threads[pool->running];
	pthread_attr_t attributes;
	sigset_t all, before;

	thread->pool = pool;
	thread->job = NULL;
	pthread_cond_init(&thread->wanted, NULL);
	sigfillset(&all);               /* signals are the interpreter's */
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int error = pthread_create(&thread->id, &attributes, work, thread);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (error == 0)
		pool->running++;
	return error;
}

static void enqueue(Pool *pool, Job *job)
{
	job->next = NULL;
	if (pool->first == NULL)
		pool->first = job;
	else
		pool->last->next = job;
	pool->last = job;
}

/* Give the job to a thread, an idle one if there is one, a new one if there may be more. */
static int give(Pool *pool, Job *job)
{
	struct thread *idle;
	int error = 0;

	pthread_mutex_lock(&pool->lock);
	idle = pool->closed ? NULL : pool->idle;
	if (pool->closed) {
		error = ESHUTDOWN;
	} else if (idle != NULL) {
		pool->idle = idle->next;
		idle->job = job;
	} else {
		if (pool->running < pool->most)
			error = start_thread(pool);
		if (pool->running > 0) {
			error = 0;
			enqueue(pool, job);
		}
	}
	pthread_mutex_unlock(&pool->lock);
	if (idle != NULL)               /* after the lock, which it needs first of all */
		pthread_cond_signal(&idle->wanted);
	return error;
}

/* Have the job, which is given away, done; return a reference to it. */
static PyObject *submit(Pool *pool, Job *job)
{
	Py_INCREF(job);                 /* for the threads */
	int error = pool->pid != getpid() ? ECHILD : give(pool, job);

	if (error == 0)
		return (PyObject *)job;
	Py_DECREF(job);
	Py_DECREF(job);
	errno = error;
	if (error == ESHUTDOWN)
		PyErr_SetString(PyExc_RuntimeError, "the pool is closed");
	else if (error == ECHILD)
		PyErr_SetString(PyExc_RuntimeError, "the threads are those of another process");
	else
		PyErr_SetFromErrno(PyExc_OSError);
	return NULL;
}

static PyObject *pool_put(Pool *pool, PyObject *args)
{
	PyObject *future, *directory, *path, *body;

	if (!PyArg_ParseTuple(args, "OSSO", &future, &directory, &path, &body))
		return NULL;
	Job *job = new_job(pool, PUT, future);
	if (job == NULL)
		return NULL;
	job->directory = Py_NewRef(directory);
	job->path = Py_NewRef(path);
	if (PyObject_GetBuffer(body, &job->body, PyBUF_SIMPLE) < 0) {
		Py_DECREF(job);
		return NULL;
	}
	return submit(pool, job);
}

static PyObject *pool_read(Pool *pool, PyObject *args)
{
	PyObject *future, *path;
	int fd, whole, keep;
	long long offset;
	Py_ssize_t room;

	if (!PyArg_ParseTuple(args, "OSiLnpp", &future, &path, &fd, &offset, &room, &whole, &keep))
		return NULL;
	if (offset < 0 || room < 0) {
		PyErr_SetString(PyExc_ValueError, "offset and room are not negative");
		return NULL;
	}
	Job *job = new_job(pool, READ, future);
	if (job == NULL)
		return NULL;
	job->fd = fd;
	job->path = Py_NewRef(path);
	job->offset = offset;
	job->room = room;
	job->whole = whole;
	job->keep = keep;
	job->data = PyBytes_FromStringAndSize(NULL, room);
	if (job->data == NULL) {
		Py_DECREF(job);
		return NULL;
	}
	return submit(pool, job);
}

static PyObject *paths_job(Pool *pool, PyObject *args, enum kind kind)
{
	PyObject *future, *path;

	if (!PyArg_ParseTuple(args, "OS", &future, &path))
		return NULL;
	Job *job = new_job(pool, kind, future);
	if (job == NULL)
		return NULL;
	job->path = Py_NewRef(path);
	return submit(pool, job);
}

static PyObject *pool_settle(Pool *pool, PyObject *args)
{
	return paths_job(pool, args, SETTLE);
}

static PyObject *pool_delete(Pool *pool, PyObject *args)
{
	return paths_job(pool, args, DELETE);
}

/* Let go of what the job needed; return (future, job), or NULL. */
static PyObject *given_back(Job *job)
{
	PyObject *future = job->future;

	job->future = NULL;
	Py_CLEAR(job->pool);
	if (job->body.obj != NULL)
		PyBuffer_Release(&job->body);
	if (job->abandoned)
		close_file(job);
	if (job->data != NULL && job->error)
		Py_CLEAR(job->data);
	if (job->data != NULL && job->done < job->room && _PyBytes_Resize(&job->data, job->done)) {
		PyErr_Clear();
		job->error = ENOMEM;
	}
	return Py_BuildValue("(NN)", future, job);
}

static PyObject *collect(Pool *pool, PyObject *unused)
{
	(void)unused;
	PyObject *found = PyList_New(0);
	uint64_t count;

	if (found == NULL)
		return NULL;
	if (pool->event >= 0 && read(pool->event, &count, sizeof(count)) < 0 && errno != EAGAIN) {
		Py_DECREF(found);
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	Py_INCREF(pool);                /* the jobs may hold the last references */
	pthread_mutex_lock(&pool->lock);
	Job *job = pool->done;
	pool->done = pool->done_last = NULL;
	pthread_mutex_unlock(&pool->lock);
	while (job != NULL) {
		Job *next = job->next;
		PyObject *pair = given_back(job);
		if (pair != NULL && found != NULL && PyList_Append(found, pair) < 0)
			Py_CLEAR(found);
		if (pair == NULL)
			Py_CLEAR(found);
		Py_XDECREF(pair);
		job = next;
	}
	Py_DECREF(pool);
	return found;
}

static void finish(Pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	__atomic_store_n(&pool->closed, true, __ATOMIC_RELAXED);
	for (struct thread *idle = pool->idle; idle != NULL; idle = idle->next)
		pthread_cond_signal(&idle->wanted);
	pthread_mutex_unlock(&pool->lock);
	for (int i = 0; i < pool->running; i++)
		pthread_join(pool->threads[i].id, NULL);
	pool->running = 0;
}

static PyObject *join(Pool *pool, PyObject *unused)
{
	(void)unused;
	if (pool->pid == getpid()) {
		Py_BEGIN_ALLOW_THREADS
		finish(pool);
		Py_END_ALLOW_THREADS
	}
	Py_RETURN_NONE;
}

static PyObject *fileno_of(Pool *pool, PyObject *unused)
{
	(void)unused;
	return PyLong_FromLong(pool->event);
}

static PyObject *counts(Pool *pool, PyObject *unused)
{
	(void)unused;
	return Py_BuildValue("(iLL)", pool->running, pool->gauge.direct, pool->gauge.buffered);
}

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *words)
{
	static char *names[] = { "threads", "direct_rate", NULL };
	double least = DIRECT_BYTES_PER_S;
	int threads;

	if (!PyArg_ParseTupleAndKeywords(args, words, "i|d", names, &threads, &least))
		return NULL;
	if (threads < 1) {
		PyErr_SetString(PyExc_ValueError, "at least one thread");
		return NULL;
	}
	int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (event < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	Pool *pool = (Pool *)type->tp_alloc(type, 0);
	if (pool == NULL) {
		close(event);
		return NULL;
	}
	pthread_mutex_init(&pool->lock, NULL);
	pool->gauge.least = least;
	pool->event = event;
	pool->most = threads < MAX_THREADS ? threads : MAX_THREADS;
	pool->pid = getpid();
	return (PyObject *)pool;
}

/* No job is left: each holds a reference. */
static void pool_dealloc(Pool *pool)
{
	if (pool->pid == getpid())
		finish(pool);
	close(pool->event);
	Py_TYPE(pool)->tp_free((PyObject *)pool);
}

static PyMethodDef pool_methods[] = {
	{ "put", (PyCFunction)pool_put, METH_VARARGS,
	  "Queue writing a new file: (future, directory, path, body)." },
	{ "read", (PyCFunction)pool_read, METH_VARARGS,
	  "Queue reading: (future, path, descriptor or -1, offset, room, whole, keep)." },
	{ "settle", (PyCFunction)pool_settle, METH_VARARGS,
	  "Queue syncing files and directories: (future, paths, each with a NUL behind it)." },
	{ "delete", (PyCFunction)pool_delete, METH_VARARGS,
	  "Queue removing a file: (future, path)." },
	{ "collect", (PyCFunction)collect, METH_NOARGS,
	  "Return the pairs (future, job) of what has ended since the last call." },
	{ "join", (PyCFunction)join, METH_NOARGS,
	  "Return when all that was queued is done, with no thread left; no job may follow." },
	{ "fileno", (PyCFunction)fileno_of, METH_NOARGS,
	  "Return the descriptor that is readable when there is something to collect." },
	{ "counts", (PyCFunction)counts, METH_NOARGS,
	  "Return the threads and the large blocks written directly and through the page cache." },
	{ NULL, NULL, 0, NULL },
};

static PyTypeObject pool_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "jfsd.object._disk.Pool",
	.tp_doc = "Threads, started when they are needed, and their jobs.",
	.tp_basicsize = sizeof(Pool),
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_new = pool_new,
	.tp_dealloc = (destructor)pool_dealloc,
	.tp_methods = pool_methods,
};

/* ---- what needs no thread ------------------------------------------------------------------ */

/* Read without waiting; a new reference to bytes, or NULL with or without an exception. */
static PyObject *cached(int fd, long long offset, Py_ssize_t length)
{
	PyObject *data = PyBytes_FromStringAndSize(NULL, length);

	if (data == NULL || length == 0)
		return data;
	struct iovec part = { PyBytes_AS_STRING(data), (size_t)length };
	if (preadv2(fd, &part, 1, offset, RWF_NOWAIT) != length)
		Py_CLEAR(data);
	return data;
}

static PyObject *read_now(PyObject *module, PyObject *args)
{
	int fd;
	long long offset;
	Py_ssize_t length;

	(void)module;
	if (!PyArg_ParseTuple(args, "iLn", &fd, &offset, &length))
		return NULL;
	PyObject *data = cached(fd, offset, length > 0 ? length : 0);
	if (data == NULL && !PyErr_Occurred())
		Py_RETURN_NONE;
	return data;
}

static PyObject *read_file_now(PyObject *module, PyObject *args)
{
	uint64_t how[3] = { O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0, CACHED };
	PyObject *path;
	Py_ssize_t most;
	struct stat status;

	(void)module;
	if (!PyArg_ParseTuple(args, "Sn", &path, &most))
		return NULL;
	int fd = (int)syscall(OPENAT2, AT_FDCWD, PyBytes_AS_STRING(path), how, sizeof(how));
	if (fd < 0)
		Py_RETURN_NONE;
	if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode)) {
		close(fd);
		Py_RETURN_NONE;
	}
	if (status.st_size <= most) {
		PyObject *data = cached(fd, 0, status.st_size);
		if (data != NULL || PyErr_Occurred()) {
			close(fd);
			return data;
		}
	}
	return Py_BuildValue("(iL)", fd, (long long)status.st_size);
}

static PyMethodDef methods[] = {
	{ "read_now", read_now, METH_VARARGS,
	  "Return bytes of an open file (descriptor, offset, length) if memory has them all." },
	{ "read_file_now", read_file_now, METH_VARARGS,
	  "Return the content of a file of up to `most` bytes if memory has it, None if not even\n"
	  "its path, else an open descriptor, which is the caller's, and the file's size." },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = {
	.m_base = PyModuleDef_HEAD_INIT,
	.m_name = "jfsd.object._disk",
	.m_doc = "Threads for the files of a directory store.",
	.m_size = -1,
	.m_methods = methods,
};

PyMODINIT_FUNC PyInit__disk(void)
{
	PyObject *created = PyModule_Create(&module);

	arm();
	if (created != NULL && (PyModule_AddType(created, &pool_type) < 0 ||
				PyModule_AddType(created, &job_type) < 0))
		Py_CLEAR(created);
	return created;
}
