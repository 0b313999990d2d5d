/*
 * The native completion of pyfuse3.
 *
 * This module is loaded with RTLD_GLOBAL before pyfuse3. It defines four public functions of
 * libfuse under their own names, so that pyfuse3 calls ours; the real ones are found in
 * libfuse's own handle. What that gives:
 *
 *   fuse_session_new          the handlers that pyfuse3 does not register (locks, fallocate,
 *                             lseek, copy_file_range) are added, and answers are written by us
 *   fuse_session_receive_buf  the INIT request that was kept at mount time is read first, then
 *                             the descriptor; one buffer serves all tasks
 *                             before both, requests that an earlier process has not answered
 *   fuse_session_process_buf  the request being dispatched can be asked for: pyfuse3 starts the
 *                             handler's coroutine directly after this call, so a handler's
 *                             first statement sees its own request
 *
 * A handler that pyfuse3 lacks is one that it has, with the same kind of answer: a lock or
 * fallocate is answered like fsync (an errno), getlk, lseek and readdir like read (bytes), and
 * copy_file_range like write (a count). The Python side tells them apart by opcode and takes
 * the arguments from the body of the request. O_TMPFILE has the form of CREATE throughout.
 *
 * Everything runs with the GIL, except answers without a unique number (notifications), which
 * touch no Python object.
 */

#include "_native.h"

#include <dlfcn.h>
#include <signal.h>
#include <time.h>

#if FUSE_MAKE_VERSION(FUSE_MAJOR_VERSION, FUSE_MINOR_VERSION) >= FUSE_MAKE_VERSION(3, 17)
#define VERSIONED 1
#define SESSION_NEW "fuse_session_new_versioned"
#else
#define SESSION_NEW "fuse_session_new"
#endif

struct native state = { .want.fd = -1 };

static void *libfuse(const char *name)
{
	static void *handle;

	if (handle == NULL)
		handle = dlopen("libfuse3.so.3", RTLD_NOLOAD | RTLD_NOW);
	if (handle == NULL)
		handle = dlopen("libfuse3.so.4", RTLD_NOLOAD | RTLD_NOW);
	return handle == NULL ? NULL : dlsym(handle, name);
}

/* ---- handlers ---------------------------------------------------------------------------- */

static void interrupted(fuse_req_t req, void *unique)
{
	(void)req;
	if (state.on_interrupt == NULL)
		return;
	PyObject *result = PyObject_CallFunction(state.on_interrupt, "K",
						 (unsigned long long)(uintptr_t)unique);
	if (result == NULL)
		PyErr_WriteUnraisable(state.on_interrupt);
	Py_XDECREF(result);
}

static void answer_like_fsync(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	state.theirs.fsync(req, ino, 0, fi);
}

static void on_setlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi,
		     struct flock *lock, int sleep)
{
	(void)lock;
	if (sleep)
		fuse_req_interrupt_func(req, interrupted, (void *)(uintptr_t)state.in.unique);
	answer_like_fsync(req, ino, fi);
}

static void on_flock(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int op)
{
	(void)op;
	on_setlk(req, ino, fi, NULL, state.in.opcode == FUSE_SETLKW);
}

static void on_getlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi,
		     struct flock *lock)
{
	(void)lock;
	state.theirs.read(req, ino, 0, 0, fi);
}

static void on_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
			 struct fuse_file_info *fi)
{
	(void)mode, (void)off, (void)len;
	answer_like_fsync(req, ino, fi);
}

static void on_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
		     struct fuse_file_info *fi)
{
	(void)off, (void)whence;
	state.theirs.read(req, ino, 0, 0, fi);
}

/* Directories are packed by pack_entries(), in either form, and answered like read. */
static void on_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		       struct fuse_file_info *fi)
{
	(void)size, (void)off;
	state.theirs.read(req, ino, 0, 0, fi);
}

static void on_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
			       struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t off_out,
			       struct fuse_file_info *fi_out, size_t len, int flags)
{
	(void)off_in, (void)ino_out, (void)off_out, (void)fi_out, (void)len, (void)flags;
	state.theirs.write(req, ino_in, "", 0, 0, fi_in);
}

/* pyfuse3 turns the flags into a getxattr before the setxattr; Python reads them instead. */
static void on_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
			size_t size, int flags)
{
	(void)flags;
	state.theirs.setxattr(req, ino, name, value, size, 0);
}

/* Node ids are inode numbers: there is nothing to forget. */
static void on_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
	(void)ino, (void)nlookup;
	fuse_reply_none(req);
}

static void on_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	(void)count, (void)forgets;
	fuse_reply_none(req);
}

static void complete(struct fuse_lowlevel_ops *ops)
{
	state.theirs = *ops;
	ops->flock = on_flock;
	ops->getlk = on_getlk;
	ops->setlk = on_setlk;
	ops->fallocate = on_fallocate;
	ops->lseek = on_lseek;
	ops->copy_file_range = on_copy_file_range;
	ops->readdir = ops->readdirplus = on_readdir;
	ops->setxattr = on_setxattr;
	ops->write_buf = NULL;
	ops->forget = on_forget;
	ops->forget_multi = on_forget_multi;
}

/* ---- answers ----------------------------------------------------------------------------- */

/* Bring libfuse's INIT answer into the form we want. */
static void amend_init(struct fuse_init_out *out, size_t len)
{
	const char *request = PyBytes_AS_STRING(state.init_in) + sizeof(struct fuse_in_header);
	const struct fuse_init_in *in = (const struct fuse_init_in *)request;
	uint64_t offered = in->flags, flags = out->flags;

	if (len < sizeof(*out))
		return; /* a protocol before 7.23; libfuse knows best */
	if (in->flags & FUSE_INIT_EXT) {
		offered |= (uint64_t)in->flags2 << 32;
		flags |= (uint64_t)out->flags2 << 32;
	}
	flags = (flags | (state.want.set & offered)) & ~state.want.clear;
	out->flags = (uint32_t)flags;
	out->flags2 = (uint32_t)(flags >> 32);
	if (state.want.max_readahead)
		out->max_readahead = state.want.max_readahead;
	if (state.want.max_background) {
		out->max_background = (uint16_t)state.want.max_background;
		out->congestion_threshold = (uint16_t)(state.want.max_background * 3 / 4);
	}
	if (out->max_write > MAX_WRITE)
		out->max_write = MAX_WRITE;
	if (out->flags & FUSE_MAX_PAGES)
		out->max_pages = (uint16_t)((out->max_write - 1) / getpagesize() + 1);
}

static void keep_init(struct iovec *iov, int count)
{
	struct fuse_out_header *header = iov[0].iov_base;
	Py_ssize_t position = 0;

	if (header->error == 0 && count > 1)
		amend_init(iov[1].iov_base, iov[1].iov_len);
	Py_CLEAR(state.init_out);
	state.init_out = PyBytes_FromStringAndSize(NULL, header->len);
	if (state.init_out == NULL) {
		PyErr_Clear();
		return;
	}
	for (int i = 0; i < count; i++) {
		memcpy(PyBytes_AS_STRING(state.init_out) + position, iov[i].iov_base,
		       iov[i].iov_len);
		position += (Py_ssize_t)iov[i].iov_len;
	}
}

static struct note *find_note(uint64_t unique, uint64_t wanted)
{
	struct note *notes = state.journal->notes;

	for (uint64_t i = 0; i < NOTES; i++) {
		struct note *note = &notes[((unique >> 1) + i) & (NOTES - 1)];
		if (note->unique == wanted)
			return note;
	}
	return NULL;
}

static void note_request(const struct fuse_in_header *in)
{
	if (state.journal == NULL || in->opcode == FUSE_INIT)
		return;
	if (state.replaying && find_note(in->unique, in->unique) != NULL)
		return;
	if (in->opcode != FUSE_FORGET && in->opcode != FUSE_BATCH_FORGET &&
	    in->opcode != FUSE_INTERRUPT) {
		struct note *note = find_note(in->unique, 0);
		if (note != NULL) { /* as many as there are workers */
			note->len = in->len; /* a note is a note once it has its number */
			if (in->len <= NOTE_RAW)
				memcpy(note->raw, in, in->len);
			else
				state.lost++;
			__atomic_store_n(&note->unique, in->unique, __ATOMIC_RELEASE);
		}
	}
	__atomic_store_n(&state.journal->noted, in->unique, __ATOMIC_RELEASE);
}

static void forget_request(uint64_t unique)
{
	struct note *note = state.journal == NULL ? NULL : find_note(unique, unique);

	if (note != NULL) {
		state.lost -= note->len > NOTE_RAW && state.lost > 0;
		note->unique = 0;
	}
}

/* Who has recorded results asks for answered numbers every two seconds. If nobody has asked for
 * that long, nobody has recorded any, and the older half is of no use. */
static void note_answered(uint64_t unique)
{
	if (PyList_GET_SIZE(state.answered) >= ANSWERED_MAX &&
	    PyList_SetSlice(state.answered, 0, ANSWERED_MAX / 2, NULL) < 0)
		PyErr_WriteUnraisable(state.answered);
	if (PySet_GET_SIZE(state.watched) == 0)
		return;
	PyObject *number = PyLong_FromUnsignedLongLong(unique);
	if (number == NULL || (PySet_Discard(state.watched, number) == 1 &&
			       PyList_Append(state.answered, number) < 0))
		PyErr_WriteUnraisable(state.watched);
	Py_XDECREF(number);
}

/* libfuse hands every answer and notification to this. */
ssize_t write_answer(int fd, struct iovec *iov, int count, void *userdata)
{
	struct fuse_out_header *out = iov[0].iov_base;
	ssize_t len = out->len, done;

	(void)userdata;
	if (out->unique != 0 && state.init_unanswered) {
		state.init_unanswered = false;
		keep_init(iov, count);
		if (state.want.adopted)
			return len;
	} else if (out->unique != 0 && state.first_answer_s == 0) {
		state.first_answer_s = now_s();
	}
	do
		done = writev(fd, iov, count);
	while (done < 0 && errno == EINTR);
	int error = errno;
	/* ENOENT: nobody waits for this answer any more */
	if (out->unique != 0 && (done >= 0 || error == ENOENT)) {
		forget_request(out->unique & ~RESENT);
		note_answered(out->unique & ~RESENT);
	}
	if (done < 0 && error == ENOENT)
		return len;
	errno = error;
	return done;
}

static ssize_t never_read(int fd, void *buf, size_t len, void *userdata)
{
	(void)fd, (void)buf, (void)len, (void)userdata;
	errno = ENOSYS; /* fuse_session_receive_buf below reads */
	return -1;
}

/* ---- libfuse's functions, as pyfuse3 sees them ------------------------------------------- */

static const struct fuse_lowlevel_ops *completed(struct fuse_lowlevel_ops *ours,
						 const struct fuse_lowlevel_ops *theirs,
						 size_t size)
{
	memset(ours, 0, sizeof(*ours));
	memcpy(ours, theirs, size < sizeof(*ours) ? size : sizeof(*ours));
	complete(ours);
	return ours;
}

static struct fuse_session *attached(struct fuse_session *se)
{
	static const struct fuse_custom_io io = { .writev = write_answer, .read = never_read };

	if (se != NULL)
		state.attached = fuse_session_custom_io(se, &io, state.want.fd) == 0;
	return se;
}

#ifdef VERSIONED
EXPORT struct fuse_session *fuse_session_new_versioned(struct fuse_args *args,
						       const struct fuse_lowlevel_ops *op,
						       size_t op_size,
						       struct libfuse_version *version,
						       void *userdata)
{
	struct fuse_lowlevel_ops ops;
	typeof(fuse_session_new_versioned) *real = libfuse(SESSION_NEW);

	if (real == NULL)
		return NULL;
	return attached(real(args, completed(&ops, op, op_size), sizeof(ops), version, userdata));
}
#else
EXPORT struct fuse_session *fuse_session_new(struct fuse_args *args,
					     const struct fuse_lowlevel_ops *op, size_t op_size,
					     void *userdata)
{
	struct fuse_lowlevel_ops ops;
	typeof(fuse_session_new) *real = libfuse(SESSION_NEW);

	if (real == NULL)
		return NULL;
	return attached(real(args, completed(&ops, op, op_size), sizeof(ops), userdata));
}
#endif

/* Return a buffer of ROOM bytes that nobody looks at, borrowed; the first one that is free
 * is the warmest. A buffer whose payload is still in use is left to its user. */
static PyObject *free_room(void)
{
	for (int i = 0; i < ROOMS; i++) {
		if (state.rooms[i] == NULL)
			state.rooms[i] = PyBytes_FromStringAndSize(NULL, ROOM);
		if (state.rooms[i] == NULL || Py_REFCNT(state.rooms[i]) == 1)
			return state.rooms[i];
	}
	Py_SETREF(state.rooms[ROOMS - 1], PyBytes_FromStringAndSize(NULL, ROOM));
	return state.rooms[ROOMS - 1];
}

static ssize_t receive(int fd, char *mem)
{
	ssize_t got;

	if (state.init_unread) {
		state.init_unread = false;
		got = PyBytes_GET_SIZE(state.init_in);
		memcpy(mem, PyBytes_AS_STRING(state.init_in), (size_t)got);
		return got;
	}
	state.replaying = state.replay != NULL && PyList_GET_SIZE(state.replay) > 0;
	if (state.replaying) {
		PyObject *request = PyList_GET_ITEM(state.replay, 0);
		got = PyBytes_GET_SIZE(request);
		memcpy(mem, PyBytes_AS_STRING(request), (size_t)got);
		if (PyList_SetSlice(state.replay, 0, 1, NULL) < 0)
			PyErr_WriteUnraisable(state.replay);
		return got;
	}
	char *to = state.journal == NULL ? mem : state.journal->staged;
	do
		got = read(fd, to, ROOM);
	while (got < 0 && errno == ENOENT); /* the request was withdrawn meanwhile */
	if (got > 0 && to != mem)
		memcpy(mem, to, (size_t)got);
	return got;
}

static void arrived(const struct fuse_in_header *in)
{
	bool again = state.replaying || (in->unique & RESENT) != 0;

	note_request(in);
	state.resent += again;
	/* What was read before comes first, marked, but for these, which never come again. */
	if (!again && in->opcode != FUSE_INIT && in->opcode != FUSE_FORGET &&
	    in->opcode != FUSE_BATCH_FORGET && in->opcode != FUSE_INTERRUPT)
		state.caught_up = true;
}

ssize_t fetch(void)
{
	state.room = free_room();
	if (state.room == NULL) {
		PyErr_Clear();
		return -ENOMEM;
	}
	ssize_t got = receive(state.want.fd, PyBytes_AS_STRING(state.room));
	if (got < 0) {
		/* ECONNABORTED: the end came while a request was on its way to us */
		state.ended = errno == ENODEV || errno == ECONNABORTED;
		return state.ended ? 0 : -errno;
	}
	if ((size_t)got < sizeof(struct fuse_in_header))
		return -EIO;
	state.received = (size_t)got;
	arrived((const struct fuse_in_header *)PyBytes_AS_STRING(state.room));
	return got;
}

PyObject *lend(const char *at, size_t len)
{
	if (len <= COPY_MAX)
		return PyBytes_FromStringAndSize(at, (Py_ssize_t)len);
	Py_ssize_t start = at - PyBytes_AS_STRING(state.room);
	PyObject *whole = PyMemoryView_FromObject(state.room);
	PyObject *part = whole == NULL ? NULL : PySequence_GetSlice(whole, start,
								    start + (Py_ssize_t)len);
	Py_XDECREF(whole);
	return part;
}

/* Give pyfuse3 what take() has left to it; a negative errno, or 0 at the end, is a failure to
 * read. On EINTR it waits again. */
EXPORT int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buf)
{
	(void)se;
	buf->mem = NULL;
	if (state.init_unread)
		take();
	if (!state.left)
		return -EINTR;
	state.left = false;
	if (state.failed)
		return (int)state.failure;
	buf->mem = PyBytes_AS_STRING(state.room);
	buf->size = state.received;
	buf->flags = 0;
	return (int)buf->size;
}

EXPORT void fuse_session_process_buf(struct fuse_session *se, const struct fuse_buf *buf)
{
	static typeof(fuse_session_process_buf) *real;

	if (real == NULL)
		real = libfuse("fuse_session_process_buf");
	state.in = *(const struct fuse_in_header *)buf->mem;
	state.in.unique &= ~RESENT;
	real(se, buf);
	((struct fuse_buf *)buf)->mem = NULL; /* pyfuse3 would free it; it is ours */
}

/* ---- directories ------------------------------------------------------------------------- */

#define RECORD_MIN 63     /* an attribute record without parent, format.md 6.1 */
#define ROOM_MAX (1u << 20)

struct timeouts {
	double attr, entry, dir_entry;
};

struct page {
	PyObject *cookies, *names, *inos, *types, *records;
	Py_ssize_t count;
};

static uint64_t big_endian(const unsigned char *at, int bytes)
{
	uint64_t number = 0;

	for (int i = 0; i < bytes; i++)
		number = number << 8 | at[i];
	return number;
}

void set_valid(double timeout, uint64_t *seconds, uint32_t *nanoseconds)
{
	*seconds = (uint64_t)timeout;
	*nanoseconds = (uint32_t)((timeout - (double)*seconds) * 1e9);
}

/* DT_*, which is the upper half of st_mode, of a type of the format. */
uint32_t kind_of(unsigned int type)
{
	static const uint8_t kinds[8] = { 0, 8, 4, 10, 1, 6, 2, 12 };

	return kinds[type & 7];
}

int fill_record(struct fuse_attr *attr, uint64_t ino, unsigned int type, PyObject *record)
{
	memset(attr, 0, sizeof(*attr));
	attr->ino = ino;
	attr->mode = kind_of(type) << 12;
	attr->blksize = BLOCK_BYTES;
	if (record == Py_None)
		return 0;
	if (!PyBytes_Check(record) || PyBytes_GET_SIZE(record) < RECORD_MIN) {
		PyErr_SetString(PyExc_ValueError, "not an attribute record");
		return -1;
	}
	const unsigned char *raw = (const unsigned char *)PyBytes_AS_STRING(record);
	uint32_t mode = (uint32_t)big_endian(raw + 1, 2);
	type = mode >> 12;
	if (type == 0 || type > 7) {
		PyErr_SetString(PyExc_ValueError, "not a type of a node");
		return -1;
	}
	attr->mode = kind_of(type) << 12 | (mode & 0xfff);
	attr->uid = (uint32_t)big_endian(raw + 3, 4);
	attr->gid = (uint32_t)big_endian(raw + 7, 4);
	attr->atime = big_endian(raw + 11, 8);
	attr->atimensec = (uint32_t)big_endian(raw + 19, 4);
	attr->mtime = big_endian(raw + 23, 8);
	attr->mtimensec = (uint32_t)big_endian(raw + 31, 4);
	attr->ctime = big_endian(raw + 35, 8);
	attr->ctimensec = (uint32_t)big_endian(raw + 43, 4);
	attr->nlink = (uint32_t)big_endian(raw + 47, 4);
	if (type <= 3) /* file, directory, symlink */
		attr->size = big_endian(raw + 51, 8);
	attr->blocks = (attr->size + 511) / 512;
	if (type == 5 || type == 6) /* devices */
		attr->rdev = (uint32_t)big_endian(raw + 59, 4);
	return 0;
}

static int fill_entry(struct fuse_entry_out *out, uint64_t ino, unsigned int type,
		      PyObject *record, const struct timeouts *valid)
{
	memset(out, 0, sizeof(*out));
	if (fill_record(&out->attr, ino, type, record) < 0)
		return -1;
	out->nodeid = ino;
	out->generation = 1;
	set_valid(valid->attr, &out->attr_valid, &out->attr_valid_nsec);
	set_valid(out->attr.mode >> 12 == 4 ? valid->dir_entry : valid->entry,
		  &out->entry_valid, &out->entry_valid_nsec);
	return 0;
}

/* Return the bytes that entry `i` takes, 0 if there is no room, -1 with an exception. */
static Py_ssize_t pack_entry(char *to, size_t room, const struct page *page, Py_ssize_t i,
			     const struct timeouts *valid)
{
	PyObject *name = PyList_GET_ITEM(page->names, i);
	size_t head = page->records == NULL ? 0 : sizeof(struct fuse_entry_out);
	unsigned int type = (unsigned char)PyBytes_AS_STRING(page->types)[i];

	if (!PyBytes_Check(name)) {
		PyErr_SetString(PyExc_TypeError, "names are bytes");
		return -1;
	}
	size_t len = (size_t)PyBytes_GET_SIZE(name);
	size_t size = FUSE_DIRENT_ALIGN(head + FUSE_NAME_OFFSET + len);
	if (size > room)
		return 0;
	uint64_t ino = PyLong_AsUnsignedLongLong(PyList_GET_ITEM(page->inos, i));
	uint64_t cookie = PyLong_AsUnsignedLongLong(PyList_GET_ITEM(page->cookies, i));
	if (PyErr_Occurred())
		return -1;
	if (head != 0 && fill_entry((struct fuse_entry_out *)to, ino, type,
				    PyList_GET_ITEM(page->records, i), valid) < 0)
		return -1;
	struct fuse_dirent *entry = (struct fuse_dirent *)(to + head);
	entry->ino = ino;
	entry->off = cookie;
	entry->namelen = (uint32_t)len;
	entry->type = kind_of(type);
	memcpy(entry->name, PyBytes_AS_STRING(name), len);
	memset(entry->name + len, 0, size - head - FUSE_NAME_OFFSET - len);
	return (Py_ssize_t)size;
}

static PyObject *pack_entries(PyObject *self, PyObject *args)
{
	struct page page;
	struct timeouts valid;
	Py_ssize_t start, size, used = 0;

	(void)self;
	if (!PyArg_ParseTuple(args, "(O!O!O!SO)nn(ddd)", &PyList_Type, &page.cookies, &PyList_Type,
			      &page.names, &PyList_Type, &page.inos, &page.types, &page.records,
			      &start, &size, &valid.attr, &valid.entry, &valid.dir_entry))
		return NULL;
	page.count = PyBytes_GET_SIZE(page.types);
	if (page.records == Py_None)
		page.records = NULL;
	if (start < 0 || size < 0 || size > (Py_ssize_t)ROOM_MAX ||
	    PyList_GET_SIZE(page.cookies) != page.count ||
	    PyList_GET_SIZE(page.names) != page.count ||
	    PyList_GET_SIZE(page.inos) != page.count ||
	    (page.records != NULL && (!PyList_Check(page.records) ||
				      PyList_GET_SIZE(page.records) != page.count))) {
		PyErr_SetString(PyExc_ValueError, "not a page of entries");
		return NULL;
	}
	PyObject *packed = PyBytes_FromStringAndSize(NULL, size);
	if (packed == NULL)
		return NULL;
	for (Py_ssize_t i = start; i < page.count; i++) {
		Py_ssize_t done = pack_entry(PyBytes_AS_STRING(packed) + used,
					     (size_t)(size - used), &page, i, &valid);
		if (done < 0) {
			Py_DECREF(packed);
			return NULL;
		}
		if (done == 0)
			break;
		used += done;
	}
	_PyBytes_Resize(&packed, used);
	return packed;
}

/* ---- crashes ----------------------------------------------------------------------------- */

/* A word in memory that outlives the process: the signal that it brought upon itself. A SIGKILL
 * leaves none, so whatever was being done at that moment is not to blame. */
static volatile uint64_t *crash_word;
static Py_buffer crash_memory;
static struct sigaction before_crash[NSIG];

static void on_crash(int number)
{
	*crash_word = (uint64_t)number;
	sigaction(number, &before_crash[number], NULL); /* faulthandler's, or the end */
	raise(number);
}

static volatile struct {
	uint64_t unique;
	double since_s; /* monotonic */
} *running_word;
static Py_buffer running_memory;

double now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

void running(uint64_t unique)
{
	if (running_word == NULL)
		return;
	running_word->unique = unique;
	running_word->since_s = now_s();
}

static PyObject *running_(PyObject *self, PyObject *unique)
{
	uint64_t number = PyLong_AsUnsignedLongLong(unique);

	(void)self;
	if (PyErr_Occurred())
		return NULL;
	running(number);
	Py_RETURN_NONE;
}

/* Take 8-byte words at `at` of writable `memory` into use; NULL with an exception. */
static void *use_words(PyObject *memory, Py_ssize_t at, Py_ssize_t words, Py_buffer *buffer)
{
	if (PyObject_GetBuffer(memory, buffer, PyBUF_WRITABLE) < 0)
		return NULL;
	if (at < 0 || at % 8 || at + 8 * words > buffer->len) {
		PyBuffer_Release(buffer);
		PyErr_SetString(PyExc_ValueError, "there is no such word");
		return NULL;
	}
	return (char *)buffer->buf + at;
}

static PyObject *note_running(PyObject *self, PyObject *args)
{
	PyObject *memory;
	Py_ssize_t at;

	(void)self;
	if (!PyArg_ParseTuple(args, "On", &memory, &at))
		return NULL;
	if (running_word != NULL)
		PyBuffer_Release(&running_memory);
	running_word = use_words(memory, at, 2, &running_memory);
	if (running_word == NULL)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *note_crashes(PyObject *self, PyObject *args)
{
	static const int numbers[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT };
	struct sigaction action = { .sa_handler = on_crash, .sa_flags = SA_NODEFER | SA_ONSTACK };
	PyObject *memory;
	Py_ssize_t at;

	(void)self;
	if (!PyArg_ParseTuple(args, "On", &memory, &at))
		return NULL;
	if (crash_word != NULL) {
		PyErr_SetString(PyExc_RuntimeError, "crashes are noted already");
		return NULL;
	}
	crash_word = use_words(memory, at, 1, &crash_memory);
	if (crash_word == NULL)
		return NULL;
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		sigaction(numbers[i], &action, &before_crash[numbers[i]]);
	Py_RETURN_NONE;
}

/* ---- the Python module ------------------------------------------------------------------- */

PyDoc_STRVAR(prepare_doc,
"prepare(*, fd, init_in, adopted=False, set_flags=0, clear_flags=0, max_readahead=0,\n"
"        max_background=0, journal=None, replay=None)\n--\n\n"
"The next session of pyfuse3 serves `fd` and is told `init_in`, then the requests of the list\n"
"`replay`. Requests in flight are noted in `journal`, writable memory of JOURNAL_BYTES.");

static int use_journal(PyObject *memory)
{
	if (state.memory.obj != NULL)
		PyBuffer_Release(&state.memory);
	state.journal = NULL;
	state.lost = 0;
	if (memory == NULL || memory == Py_None)
		return 0;
	if (PyObject_GetBuffer(memory, &state.memory, PyBUF_WRITABLE) < 0)
		return -1;
	if (state.memory.len < (Py_ssize_t)sizeof(struct journal)) {
		PyBuffer_Release(&state.memory);
		PyErr_SetString(PyExc_ValueError, "the journal needs JOURNAL_BYTES");
		return -1;
	}
	state.journal = state.memory.buf;
	return 0;
}

static int use_replay(PyObject *list)
{
	Py_CLEAR(state.replay);
	state.replaying = false;
	if (list == NULL || list == Py_None)
		return 0;
	if (!PyList_Check(list)) {
		PyErr_SetString(PyExc_TypeError, "replay must be a list");
		return -1;
	}
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
		PyObject *request = PyList_GET_ITEM(list, i);
		if (!PyBytes_Check(request) || PyBytes_GET_SIZE(request) > (Py_ssize_t)ROOM ||
		    PyBytes_GET_SIZE(request) < (Py_ssize_t)sizeof(struct fuse_in_header)) {
			PyErr_SetString(PyExc_ValueError, "replay must hold whole requests");
			return -1;
		}
	}
	state.replay = PySequence_List(list);
	return state.replay == NULL ? -1 : 0;
}

static PyObject *prepare(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "fd", "init_in", "adopted", "set_flags", "clear_flags",
				 "max_readahead", "max_background", "journal", "replay", NULL };
	struct settings want = { .fd = -1 };
	PyObject *init_in = NULL, *journal = NULL, *replay = NULL;

	(void)self;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$iSpKKIIOO", names, &want.fd, &init_in,
					 &want.adopted, &want.set, &want.clear,
					 &want.max_readahead, &want.max_background,
					 &journal, &replay))
		return NULL;
	if (want.fd < 0 || init_in == NULL ||
	    PyBytes_GET_SIZE(init_in) <
		    (Py_ssize_t)(sizeof(struct fuse_in_header) + sizeof(struct fuse_init_in)) ||
	    PyBytes_GET_SIZE(init_in) > (Py_ssize_t)ROOM) {
		PyErr_SetString(PyExc_ValueError, "need a descriptor and an INIT request");
		return NULL;
	}
	if (use_journal(journal) < 0 || use_replay(replay) < 0)
		return NULL;
	state.want = want;
	Py_XSETREF(state.init_in, Py_NewRef(init_in));
	Py_CLEAR(state.init_out);
	state.init_unread = state.init_unanswered = true;
	state.attached = state.ended = state.caught_up = false;
	state.left = state.failed = false;
	state.first_answer_s = 0;
	state.room = NULL;
	state.resent = 0;
	if (PySet_Clear(state.watched) < 0 ||
	    PyList_SetSlice(state.answered, 0, PY_SSIZE_T_MAX, NULL) < 0)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *attached_(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	return PyBool_FromLong(state.attached);
}

static PyObject *ended(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	return PyBool_FromLong(state.ended);
}

static PyObject *resent(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	return PyLong_FromUnsignedLong(state.resent);
}

static PyObject *lost(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	return PyLong_FromUnsignedLong(state.lost);
}

static PyObject *caught_up(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	return PyBool_FromLong(state.caught_up);
}

static PyObject *first_answer_s(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	return PyFloat_FromDouble(state.first_answer_s);
}

static PyObject *unanswered(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	return PySet_New(state.watched);
}

static PyObject *init_out(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	if (state.init_out == NULL)
		return PyBytes_FromStringAndSize(NULL, 0);
	return Py_NewRef(state.init_out);
}

static PyObject *unique(PyObject *self, PyObject *none)
{
	PyObject *number = PyLong_FromUnsignedLongLong(state.in.unique);

	(void)self, (void)none;
	if (number != NULL && PySet_Add(state.watched, number) < 0)
		Py_CLEAR(number);
	return number;
}

static PyObject *opcode(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	return PyLong_FromUnsignedLong(state.in.opcode);
}

static PyObject *current(PyObject *self, PyObject *none)
{
	const struct fuse_in_header *in = &state.in;

	(void)self, (void)none;
	return Py_BuildValue("KIKIII", (unsigned long long)in->unique, in->opcode,
			     (unsigned long long)in->nodeid, in->uid, in->gid, in->pid);
}

static PyObject *body(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	if (state.room == NULL)
		return PyBytes_FromStringAndSize(NULL, 0);
	size_t len = state.received - sizeof(struct fuse_in_header);
	return PyBytes_FromStringAndSize(
		PyBytes_AS_STRING(state.room) + sizeof(struct fuse_in_header),
		(Py_ssize_t)(len < BODY_MAX ? len : BODY_MAX));
}

static PyObject *take_answered(PyObject *self, PyObject *none)
{
	PyObject *taken = state.answered, *fresh = PyList_New(0);

	(void)self, (void)none;
	if (fresh == NULL)
		return NULL;
	state.answered = fresh;
	return taken;
}

static PyObject *on_interrupt(PyObject *self, PyObject *callback)
{
	(void)self;
	Py_XSETREF(state.on_interrupt, callback == Py_None ? NULL : Py_NewRef(callback));
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{ "prepare", (PyCFunction)(void (*)(void))prepare, METH_VARARGS | METH_KEYWORDS,
	  prepare_doc },
	{ "attached", attached_, METH_NOARGS, "Return whether pyfuse3's session goes through us." },
	{ "ended", ended, METH_NOARGS, "Return whether the kernel has ended the connection." },
	{ "resent", resent, METH_NOARGS,
	  "Return how many requests came that an earlier process had read." },
	{ "lost", lost, METH_NOARGS,
	  "Return how many requests in flight a next process could not repeat from the journal." },
	{ "caught_up", caught_up, METH_NOARGS,
	  "Return whether a request was read that is no repeat of an earlier process's." },
	{ "first_answer_s", first_answer_s, METH_NOARGS,
	  "Return when the first request was answered, on the monotonic clock; 0.0 before it." },
	{ "unanswered", unanswered, METH_NOARGS, "Return the watched numbers not yet answered." },
	{ "init_out", init_out, METH_NOARGS, "Return our answer to INIT, b'' before it." },
	{ "unique", unique, METH_NOARGS,
	  "Return the current request's number; take_answered() will have it once answered." },
	{ "opcode", opcode, METH_NOARGS, "Return the current request's opcode." },
	{ "current", current, METH_NOARGS,
	  "Return (unique, opcode, nodeid, uid, gid, pid) of the current request." },
	{ "body", body, METH_NOARGS, "Return the first 128 bytes after the current header." },
	{ "pack_entries", pack_entries, METH_VARARGS,
	  "Return entries of (cookies, names, inodes, types, records) from an index on, as many\n"
	  "as fit into a size; with attributes and (attr, entry, directory entry) timeouts unless\n"
	  "the records are None." },
	{ "take_answered", take_answered, METH_NOARGS,
	  "Return the watched numbers that were answered since the last call." },
	{ "note_running", note_running, METH_VARARGS,
	  "note_running(memory, offset): the number of the request whose handler runs is written\n"
	  "there, as 64 bits, and since when, as a double." },
	{ "running", running_, METH_O,
	  "Note that the handler of this request runs, or with 0 that none does." },
	{ "note_crashes", note_crashes, METH_VARARGS,
	  "note_crashes(memory, offset): the number of a signal that ends us by our own fault is\n"
	  "written there, as 64 bits; once in a process." },
	{ "on_interrupt", on_interrupt, METH_O,
	  "Call this with the number of a blocking lock request that a signal interrupted." },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = {
	.m_base = PyModuleDef_HEAD_INIT,
	.m_name = "jfsd.fuse._native",
	.m_doc = "What pyfuse3 does not show of libfuse. Import it through jfsd.fuse.native.",
	.m_size = -1,
	.m_methods = methods,
};

PyMODINIT_FUNC PyInit__native(void)
{
	state.watched = PySet_New(NULL);
	state.answered = PyList_New(0);
	if (state.watched == NULL || state.answered == NULL)
		return NULL;
	if (libfuse(SESSION_NEW) == NULL || libfuse("fuse_session_process_buf") == NULL) {
		PyErr_SetString(PyExc_ImportError, "libfuse3 is not what this was built for");
		return NULL;
	}
	PyObject *created = PyModule_Create(&module);
	if (created != NULL && (PyModule_AddFunctions(created, dispatch_methods) < 0 ||
				dispatch_init(created) < 0 ||
				PyModule_AddIntConstant(created, "JOURNAL_BYTES",
							sizeof(struct journal)) < 0 ||
				PyModule_AddIntConstant(created, "JOURNAL_NOTES_AT",
							offsetof(struct journal, notes)) < 0 ||
				PyModule_AddIntConstant(created, "JOURNAL_STAGED_AT",
							offsetof(struct journal, staged)) < 0))
		Py_CLEAR(created);
	return created;
}
