/*
 * The requests that programs make most, without pyfuse3 between the kernel and their handler.
 *
 * take() reads a request. If its opcode has a handler here, the header, numbers and names are
 * parsed, the handler is called with (caller, arguments …), and the coroutine that it returns is
 * stepped at once: most need not wait, and are answered before take() returns. One that waits is
 * stepped again when the future that it waits for is done, without a turn of the event loop more
 * than a task would take; its last step answers. Everything else is left for pyfuse3.
 *
 * A request is to asyncio what a task is (`struct request`): the current task while it is
 * stepped, and able to be cancelled. So whatever a handler awaits works as in a task.
 *
 * Errors are as everywhere: OSError is its errno, any other exception is a bug, reported and
 * answered with EIO; one that is no Exception, such as a cancellation, answers nothing.
 */

#include "_native.h"

#define OPCODES 64
#define BOUNDS_MAX 64
#define UNWAITED 16   /* requests without a waiter that are taken as one */
#define NAME_BYTES 255 /* longest name of an entry */

enum form { NOTHING, ENTRY, ATTR, OPENED, CREATED, COUNT, DATA, FORMS };

struct method {
	PyObject *handler;         /* NULL: pyfuse3 has it */
	enum form form;
	bool changes;              /* its number is watched, and given to the handler */
	PyObject *histogram;       /* of how long it took */
};

struct request {
	PyObject_HEAD
	struct fuse_in_header in;
	PyObject *args;            /* the caller, and what the handler was told */
	PyObject *work;            /* the handler's coroutine; NULL once it has ended */
	PyObject *waits_for;       /* the future; NULL while it is stepped */
	PyObject *weakrefs;
	int cancels;               /* as asyncio.Task.cancelling() has it */
	bool must_cancel;          /* the next step gets a CancelledError */
	double began_s;
	struct request *next, *before; /* of those that wait; each is owned by the list */
};

static PyTypeObject request_type;

static struct {
	bool on;
	struct method methods[OPCODES];
	double bounds_s[BOUNDS_MAX];
	Py_ssize_t bounds;
	PyTypeObject *caller;      /* named tuple (uid, gid, pid, umask, op) */
	PyObject *loop, *enter, *leave; /* asyncio's _enter_task and _leave_task */
	PyObject *relieved;        /* called when a request that waited is answered */
	PyObject *cancelled;       /* asyncio.CancelledError */
	PyObject *bug;             /* (opcode, arguments, exception) */
	PyObject *access;          /* who has `listeners`, told by `tell` if there are any */
	PyObject *tell;            /* (header, arguments, result, errno, seconds) */
	PyObject *errors;          /* counts by errno */
	PyObject *poisoned;        /* set of numbers */
	PyObject *refuse;          /* (number, arguments): says that one of them came */
	uint64_t unheard;          /* node whose requests are neither counted nor told */
	struct request waiting;    /* head of the list */
	size_t count;
} direct;

static struct {
	PyObject *type, *mode, *uid, *gid, *atime_ns, *mtime_ns, *ctime_ns, *nlink, *length, *rdev;
	PyObject *counts, *sum, *listeners, *errno_, *cancel, *throw, *wake, *call_soon,
		*add_done_callback, *blocking;
} names;

/* ---- what a request says ------------------------------------------------------------------ */

static PyObject *number(uint64_t value)
{
	return PyLong_FromUnsignedLongLong(value);
}

static PyObject *caller_of(const struct fuse_in_header *in, uint32_t umask, bool changes)
{
	PyObject *caller = direct.caller->tp_alloc(direct.caller, 5);
	PyObject *op = number(changes ? in->unique & ~RESENT : 0);

	if (caller == NULL || op == NULL || (changes && PySet_Add(state.watched, op) < 0)) {
		Py_XDECREF(caller);
		Py_XDECREF(op);
		return NULL;
	}
	PyTuple_SET_ITEM(caller, 0, number(in->uid));
	PyTuple_SET_ITEM(caller, 1, number(in->gid));
	PyTuple_SET_ITEM(caller, 2, number(in->pid));
	PyTuple_SET_ITEM(caller, 3, number(umask));
	PyTuple_SET_ITEM(caller, 4, op);
	return caller;
}

/* Return a tuple of `count` objects, which it takes over; NULL if there is a NULL among them. */
static PyObject *together(int count, ...)
{
	PyObject *all = PyTuple_New(count);
	bool whole = all != NULL;
	va_list items;

	va_start(items, count);
	for (int i = 0; i < count; i++) {
		PyObject *item = va_arg(items, PyObject *);
		whole = whole && item != NULL;
		if (all != NULL)
			PyTuple_SET_ITEM(all, i, item);
		else
			Py_XDECREF(item);
	}
	va_end(items);
	if (!whole)
		Py_CLEAR(all);
	return all;
}

struct rest {
	const char *at;
	size_t left;
};

/* Return the next fixed part of a request; NULL with an exception if it ends before. */
static const void *part(struct rest *rest, size_t size)
{
	const char *at = rest->at;

	if (rest->left < size) {
		PyErr_SetString(PyExc_ValueError, "the kernel's request is too short");
		return NULL;
	}
	rest->at += size;
	rest->left -= size;
	return at;
}

/* Return the next name; the kernel lets names of up to 1024 bytes through. */
static PyObject *name(struct rest *rest)
{
	size_t len = strnlen(rest->at, rest->left);
	const char *at = part(rest, len + 1);

	if (len > NAME_BYTES) {
		errno = ENAMETOOLONG;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	return at == NULL ? NULL : PyBytes_FromStringAndSize(at, (Py_ssize_t)len);
}

#define PART(type, variable) \
	const struct type *variable = part(&rest, sizeof(*variable)); \
	if (variable == NULL) \
		return NULL

static PyObject *parse(const struct fuse_in_header *in, size_t received, bool changes)
{
	struct rest rest = { (const char *)(in + 1), received - sizeof(*in) };

#define CALLER caller_of(in, 0, changes)
	switch (in->opcode) {
	case FUSE_LOOKUP:
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		return together(3, CALLER, number(in->nodeid), name(&rest));
	case FUSE_GETATTR:
		return together(2, CALLER, number(in->nodeid));
	case FUSE_MKDIR: {
		PART(fuse_mkdir_in, it);
		return together(4, caller_of(in, it->umask, changes), number(in->nodeid),
				name(&rest), number(it->mode));
	}
	case FUSE_RENAME: {
		PART(fuse_rename_in, it);
		PyObject *from = name(&rest);
		return together(6, CALLER, number(in->nodeid), from, number(it->newdir),
				name(&rest), number(0));
	}
	case FUSE_RENAME2: {
		PART(fuse_rename2_in, it);
		PyObject *from = name(&rest);
		return together(6, CALLER, number(in->nodeid), from, number(it->newdir),
				name(&rest), number(it->flags));
	}
	case FUSE_OPEN: {
		PART(fuse_open_in, it);
		return together(3, CALLER, number(in->nodeid), number(it->flags));
	}
	case FUSE_CREATE:
	case FUSE_TMPFILE: {
		PART(fuse_create_in, it);
		return together(5, caller_of(in, it->umask, changes), number(in->nodeid),
				name(&rest), number(it->mode), number(it->flags));
	}
	case FUSE_READ: {
		PART(fuse_read_in, it);
		return together(4, CALLER, number(it->fh), number(it->offset), number(it->size));
	}
	case FUSE_WRITE: {
		PART(fuse_write_in, it);
		const char *data = part(&rest, it->size);
		if (data == NULL)
			return NULL;
		bool drops = it->write_flags & FUSE_WRITE_KILL_SUIDGID;
		return together(5, CALLER, number(it->fh), number(it->offset),
				lend(data, it->size), PyBool_FromLong(drops));
	}
	case FUSE_FLUSH: {
		PART(fuse_flush_in, it);
		return together(3, CALLER, number(it->fh), number(it->lock_owner));
	}
	case FUSE_RELEASE: {
		PART(fuse_release_in, it);
		bool locked = it->release_flags & FUSE_RELEASE_FLOCK_UNLOCK;
		return together(3, CALLER, number(it->fh),
				locked ? number(it->lock_owner) : Py_NewRef(Py_None));
	}
	}
#undef CALLER
	PyErr_SetString(PyExc_ValueError, "a request without a form");
	return NULL;
}

/* ---- answers ------------------------------------------------------------------------------ */

static int whole_number(PyObject *object, PyObject *attribute, long long *value)
{
	PyObject *found = PyObject_GetAttr(object, attribute);

	if (found == NULL)
		return -1;
	*value = PyLong_AsLongLong(found);
	Py_DECREF(found);
	return *value == -1 && PyErr_Occurred() ? -1 : 0;
}

static int fill_time(PyObject *object, PyObject *attribute, uint64_t *seconds, uint32_t *rest)
{
	long long ns;

	if (whole_number(object, attribute, &ns) < 0)
		return -1;
	long long whole = ns / 1000000000, left = ns % 1000000000;
	if (left < 0) {
		whole--;
		left += 1000000000;
	}
	*seconds = (uint64_t)whole;
	*rest = (uint32_t)left;
	return 0;
}

/* Fill the kernel's attributes in from those of jfsd.types.Attr. */
static int fill_attr(struct fuse_attr *out, uint64_t ino, PyObject *attr)
{
	long long type, mode, uid, gid, nlink, length, rdev;

	if (whole_number(attr, names.type, &type) < 0 || whole_number(attr, names.mode, &mode) < 0 ||
	    whole_number(attr, names.uid, &uid) < 0 || whole_number(attr, names.gid, &gid) < 0 ||
	    whole_number(attr, names.nlink, &nlink) < 0 ||
	    whole_number(attr, names.length, &length) < 0 ||
	    whole_number(attr, names.rdev, &rdev) < 0 ||
	    fill_time(attr, names.atime_ns, &out->atime, &out->atimensec) < 0 ||
	    fill_time(attr, names.mtime_ns, &out->mtime, &out->mtimensec) < 0 ||
	    fill_time(attr, names.ctime_ns, &out->ctime, &out->ctimensec) < 0)
		return -1;
	out->ino = ino;
	out->mode = kind_of((unsigned int)type) << 12 | (uint32_t)mode;
	out->nlink = (uint32_t)nlink;
	out->uid = (uint32_t)uid;
	out->gid = (uint32_t)gid;
	out->size = type <= 3 ? (uint64_t)length : 0; /* file, directory, symlink */
	out->rdev = type == 5 || type == 6 ? (uint32_t)rdev : 0; /* devices */
	out->blocks = (out->size + 511) / 512;
	out->blksize = BLOCK_BYTES;
	return 0;
}

static int fill_entry(struct fuse_entry_out *out, PyObject *said)
{
	unsigned long long ino;
	PyObject *attr;
	double attr_s, entry_s;

	if (!PyArg_ParseTuple(said, "KOdd", &ino, &attr, &attr_s, &entry_s))
		return -1;
	out->nodeid = ino;
	out->generation = 1;
	set_valid(attr_s, &out->attr_valid, &out->attr_valid_nsec);
	set_valid(entry_s, &out->entry_valid, &out->entry_valid_nsec);
	return fill_attr(&out->attr, ino, attr);
}

static int fill_attr_out(struct fuse_attr_out *out, PyObject *said)
{
	unsigned long long ino;
	PyObject *attr;
	double attr_s;

	if (!PyArg_ParseTuple(said, "KOd", &ino, &attr, &attr_s))
		return -1;
	set_valid(attr_s, &out->attr_valid, &out->attr_valid_nsec);
	return PyBytes_Check(attr) ? fill_record(&out->attr, ino, 0, attr)
				   : fill_attr(&out->attr, ino, attr);
}

static int fill_opened(struct fuse_open_out *out, PyObject *said)
{
	unsigned long long fh;
	int keep_cache, direct_io;

	if (!PyArg_ParseTuple(said, "Kpp", &fh, &keep_cache, &direct_io))
		return -1;
	out->fh = fh;
	out->open_flags = (keep_cache ? FOPEN_KEEP_CACHE : 0) | (direct_io ? FOPEN_DIRECT_IO : 0);
	return 0;
}

static int fill_created(struct fuse_entry_out *entry, struct fuse_open_out *opened, PyObject *said)
{
	PyObject *handle, *node;

	if (!PyArg_ParseTuple(said, "O!O!", &PyTuple_Type, &handle, &PyTuple_Type, &node))
		return -1;
	return fill_opened(opened, handle) < 0 ? -1 : fill_entry(entry, node);
}

static int fill_count(struct fuse_write_out *out, PyObject *said)
{
	unsigned long count = PyLong_AsUnsignedLong(said);

	out->size = (uint32_t)count;
	return PyErr_Occurred() ? -1 : 0;
}

/* The fixed parts of all answers. */
union fixed {
	struct fuse_attr_out attr;
	struct fuse_open_out opened;
	struct fuse_write_out count;
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out opened;
	} created; /* begins like that to a lookup */
};

/* Bring what the handler said into the kernel's form; -1 with an exception. */
static int fill(union fixed *out, enum form form, PyObject *said)
{
	memset(out, 0, sizeof(*out));
	switch (form) {
	case ENTRY:
		return fill_entry(&out->created.entry, said);
	case ATTR:
		return fill_attr_out(&out->attr, said);
	case OPENED:
		return fill_opened(&out->opened, said);
	case CREATED:
		return fill_created(&out->created.entry, &out->created.opened, said);
	case COUNT:
		return fill_count(&out->count, said);
	default:
		return 0;
	}
}

static int send_answer(uint64_t unique, int error, const void *fixed, size_t size,
		       const Py_buffer *data)
{
	struct fuse_out_header out = { .error = -error, .unique = unique };
	struct iovec iov[3] = { { &out, sizeof(out) }, { (void *)fixed, size } };
	int parts = size ? 2 : 1;

	if (data != NULL && data->len > 0)
		iov[parts++] = (struct iovec){ data->buf, (size_t)data->len };
	for (int i = 0; i < parts; i++)
		out.len += (uint32_t)iov[i].iov_len;
	if (write_answer(state.want.fd, iov, parts, NULL) >= 0 || errno == ENODEV)
		return 0; /* gone with its mount */
	PyErr_SetFromErrno(PyExc_OSError);
	return -1;
}

/* Answer with what the handler said; -1 with an exception. */
static int answer(uint64_t unique, enum form form, PyObject *said)
{
	static const size_t sizes[FORMS] = {
		[ENTRY] = sizeof(struct fuse_entry_out),
		[ATTR] = sizeof(struct fuse_attr_out),
		[OPENED] = sizeof(struct fuse_open_out),
		[CREATED] = sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out),
		[COUNT] = sizeof(struct fuse_write_out),
	};
	union fixed fixed;
	Py_buffer data;

	if (form == DATA) {
		if (PyObject_GetBuffer(said, &data, PyBUF_SIMPLE) < 0)
			return -1;
		int done = send_answer(unique, 0, NULL, 0, &data);
		PyBuffer_Release(&data);
		return done;
	}
	if (fill(&fixed, form, said) < 0)
		return -1;
	return send_answer(unique, 0, &fixed, sizes[form], NULL);
}

/* ---- counting and telling ----------------------------------------------------------------- */

/* Add to a jfsd.metrics.Histogram, whose bounds are ours. */
static int observe(PyObject *histogram, double took_s)
{
	PyObject *counts = PyObject_GetAttr(histogram, names.counts);
	PyObject *sum = counts == NULL ? NULL : PyObject_GetAttr(histogram, names.sum);
	Py_ssize_t first = 0, end = direct.bounds;
	int done = -1;

	while (first < end) {
		Py_ssize_t middle = (first + end) / 2;
		if (direct.bounds_s[middle] < took_s)
			first = middle + 1;
		else
			end = middle;
	}
	if (sum != NULL && PyList_Check(counts) && PyList_GET_SIZE(counts) > first) {
		long long before = PyLong_AsLongLong(PyList_GET_ITEM(counts, first));
		PyObject *total = PyFloat_FromDouble(PyFloat_AsDouble(sum) + took_s);
		if (total != NULL && !PyErr_Occurred() &&
		    PyList_SetItem(counts, first, PyLong_FromLongLong(before + 1)) == 0)
			done = PyObject_SetAttr(histogram, names.sum, total);
		Py_XDECREF(total);
	}
	Py_XDECREF(sum);
	Py_XDECREF(counts);
	return done;
}

static int count_error(int failure)
{
	PyObject *key = PyLong_FromLong(failure);
	PyObject *before = key == NULL ? NULL : PyObject_GetItem(direct.errors, key);
	PyObject *one = PyLong_FromLong(1);
	PyObject *after = before == NULL || one == NULL ? NULL : PyNumber_Add(before, one);
	int done = after == NULL ? -1 : PyObject_SetItem(direct.errors, key, after);

	Py_XDECREF(after);
	Py_XDECREF(one);
	Py_XDECREF(before);
	Py_XDECREF(key);
	return done;
}

static int tell(const struct request *request, PyObject *result, int failure, double took_s)
{
	const struct fuse_in_header *in = &request->in;
	PyObject *listeners = PyObject_GetAttr(direct.access, names.listeners);
	Py_ssize_t count = listeners == NULL ? -1 : PyObject_Size(listeners);

	Py_XDECREF(listeners);
	if (count <= 0)
		return (int)count;
	PyObject *told = PyObject_CallFunction(
		direct.tell, "(KIKIII)OOid", (unsigned long long)(in->unique & ~RESENT), in->opcode,
		(unsigned long long)in->nodeid, in->uid, in->gid, in->pid, request->args,
		result == NULL ? Py_None : result, failure, took_s);
	Py_XDECREF(told);
	return told == NULL ? -1 : 0;
}

static void report(const struct request *request);

static void account(const struct request *request, PyObject *result, int failure)
{
	double took_s = now_s() - request->began_s;

	if (request->in.nodeid == direct.unheard)
		return;
	if (observe(direct.methods[request->in.opcode].histogram, took_s) < 0 ||
	    (failure && count_error(failure) < 0) || tell(request, result, failure, took_s) < 0)
		report(request);
}

/* Take the exception that is set. */
static PyObject *caught(void)
{
#if PY_VERSION_HEX >= 0x030c0000
	return PyErr_GetRaisedException();
#else
	PyObject *type, *error, *traceback;

	PyErr_Fetch(&type, &error, &traceback);
	PyErr_NormalizeException(&type, &error, &traceback);
	if (traceback != NULL)
		PyException_SetTraceback(error, traceback);
	Py_XDECREF(type);
	Py_XDECREF(traceback);
	return error;
#endif
}

/* Report the exception that is set as a bug of ours. */
static void report(const struct request *request)
{
	PyObject *error = caught();
	PyObject *done = PyObject_CallFunction(direct.bug, "IOO", request->in.opcode,
					       request->args == NULL ? Py_None : request->args,
					       error);

	if (done == NULL)
		PyErr_WriteUnraisable(direct.bug);
	Py_XDECREF(done);
	Py_XDECREF(error);
}

/* Turn the exception that is set into an errno; 0 leaves it set: it answers nothing. */
static int failure_of(const struct request *request)
{
	if (!PyErr_ExceptionMatches(PyExc_Exception))
		return 0;
	if (!PyErr_ExceptionMatches(PyExc_OSError)) {
		report(request);
		return EIO;
	}
	PyObject *error = caught();
	PyObject *code = PyObject_GetAttr(error, names.errno_);
	long failure = code == NULL || code == Py_None ? EIO : PyLong_AsLong(code);

	PyErr_Clear();
	Py_XDECREF(code);
	Py_DECREF(error);
	return failure > 0 && failure < 512 ? (int)failure : EIO; /* what the kernel takes */
}

/* ---- requests ----------------------------------------------------------------------------- */

/* Answer a request with the result, or if that is NULL with the exception that is set, which
 * stays if it answers nothing. Return whether none is left. */
static bool finish(struct request *request, PyObject *result)
{
	struct method *method = &direct.methods[request->in.opcode];
	uint64_t unique = request->in.unique;
	int failure = 0;

	if (result != NULL && answer(unique, method->form, result) < 0) {
		report(request);
		failure = EIO;
	} else if (result == NULL) {
		failure = failure_of(request);
	}
	bool silent = result == NULL && failure == 0;
	PyObject *type = NULL, *error = NULL, *traceback = NULL;
	if (silent)
		PyErr_Fetch(&type, &error, &traceback);
	if (failure && send_answer(unique, failure, NULL, 0, NULL) < 0)
		report(request);
	account(request, result, failure);
	if (silent)
		PyErr_Restore(type, error, traceback);
	Py_CLEAR(request->work);
	Py_CLEAR(request->args);
	return !silent;
}

static PyObject *tell_asyncio(PyObject *what, struct request *request)
{
	PyObject *args[] = { direct.loop, (PyObject *)request };

	return PyObject_Vectorcall(what, args, 2, NULL);
}

/* Step the coroutine, or if there is none yet call the handler; throw `error` unless NULL. */
static PySendResult bare_step(struct request *request, PyObject *error, PyObject **result)
{
	if (request->work == NULL) {
		PyObject *handler = direct.methods[request->in.opcode].handler;
		*result = PyObject_Call(handler, request->args, NULL);
		if (*result == NULL || !PyCoro_CheckExact(*result))
			return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
		request->work = *result;
	}
	if (error == NULL)
		return PyIter_Send(request->work, Py_None, result);
	*result = PyObject_CallMethodOneArg(request->work, names.throw, error);
	if (*result != NULL)
		return PYGEN_NEXT;
	if (!PyErr_ExceptionMatches(PyExc_StopIteration))
		return PYGEN_ERROR;
	PyObject *end = caught();
	*result = PyObject_GetAttrString(end, "value");
	Py_DECREF(end);
	return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

/* The same as asyncio's current task, and as the request whose handler runs. */
static PySendResult marked_step(struct request *request, PyObject *error, PyObject **result)
{
	PyObject *entered = tell_asyncio(direct.enter, request);

	*result = NULL;
	if (entered == NULL)
		return PYGEN_ERROR;
	Py_DECREF(entered);
	running(request->in.unique & ~RESENT);
	PySendResult how = bare_step(request, error, result);
	running(0);
	PyObject *type, *value, *traceback;
	PyErr_Fetch(&type, &value, &traceback);
	PyObject *left = tell_asyncio(direct.leave, request);
	if (left == NULL)
		PyErr_WriteUnraisable((PyObject *)request);
	Py_XDECREF(left);
	PyErr_Restore(type, value, traceback);
	return how;
}

/* Cancel what is waited for; if that can be, its end is the cancellation. */
static void cancel_wait(struct request *request)
{
	PyObject *done = PyObject_CallMethodNoArgs(request->waits_for, names.cancel);

	if (done == NULL)
		PyErr_WriteUnraisable(request->waits_for);
	else if (PyObject_IsTrue(done) == 1)
		request->must_cancel = false;
	Py_XDECREF(done);
}

static void begin_waiting(struct request *request)
{
	if (request->next != NULL)
		return;
	Py_INCREF(request);
	request->next = &direct.waiting;
	request->before = direct.waiting.before;
	request->before->next = direct.waiting.before = request;
	direct.count++;
}

static void end_waiting(struct request *request)
{
	if (request->next == NULL)
		return;
	request->before->next = request->next;
	request->next->before = request->before;
	request->next = request->before = NULL;
	direct.count--;
	PyObject *said = PyObject_CallNoArgs(direct.relieved);
	if (said == NULL)
		PyErr_WriteUnraisable(direct.relieved);
	Py_XDECREF(said);
	Py_DECREF(request);
}

/* Let the request be woken when what its coroutine has yielded is done; false with an exception
 * if that is nothing to wait for. */
static bool wait_for(struct request *request, PyObject *yielded)
{
	PyObject *wake = PyObject_GetAttr((PyObject *)request, names.wake), *done = NULL;

	if (wake != NULL && yielded == Py_None) {
		done = PyObject_CallMethodObjArgs(direct.loop, names.call_soon, wake, Py_None, NULL);
	} else if (wake != NULL && PyObject_SetAttr(yielded, names.blocking, Py_False) == 0) {
		done = PyObject_CallMethodOneArg(yielded, names.add_done_callback, wake);
		if (done != NULL)
			request->waits_for = Py_NewRef(yielded);
	}
	Py_XDECREF(wake);
	Py_XDECREF(done);
	return done != NULL;
}

/* Step the request until it waits or is answered. */
static void step(struct request *request, PyObject *error)
{
	PyObject *result;

	Py_INCREF(request);
	Py_XINCREF(error);
	PySendResult how = marked_step(request, error, &result);
	while (how == PYGEN_NEXT && !wait_for(request, result)) {
		Py_XSETREF(error, caught());
		Py_DECREF(result);
		how = marked_step(request, error, &result);
	}
	if (how == PYGEN_NEXT) {
		begin_waiting(request);
		if (request->must_cancel && request->waits_for != NULL)
			cancel_wait(request);
	} else {
		if (!finish(request, how == PYGEN_RETURN ? result : NULL)) {
			if (!PyErr_ExceptionMatches(direct.cancelled))
				PyErr_WriteUnraisable((PyObject *)request);
			PyErr_Clear();
		}
		end_waiting(request);
	}
	Py_XDECREF(result);
	Py_XDECREF(error);
	Py_DECREF(request);
}

static struct request *new_request(const struct fuse_in_header *in)
{
	struct request *request = PyObject_New(struct request, &request_type);

	if (request == NULL)
		return NULL;
	request->in = *in;
	request->args = request->work = request->waits_for = request->weakrefs = NULL;
	request->next = request->before = NULL;
	request->cancels = 0;
	request->must_cancel = false;
	request->began_s = now_s();
	return request;
}

static bool is_poisoned(const struct request *request)
{
	if (PyObject_Size(direct.poisoned) == 0)
		return false;
	PyObject *op = number(request->in.unique & ~RESENT);
	bool known = op != NULL && PySequence_Contains(direct.poisoned, op) == 1;
	PyObject *said = !known ? NULL : PyObject_CallFunctionObjArgs(direct.refuse, op,
								     request->args, NULL);

	if (known && said == NULL)
		report(request);
	Py_XDECREF(said);
	Py_XDECREF(op);
	return known;
}

static void carry_out(const struct fuse_in_header *in, size_t received)
{
	struct request *request = new_request(in);

	if (request == NULL) {
		PyErr_Clear();
		if (send_answer(in->unique, ENOMEM, NULL, 0, NULL) < 0)
			PyErr_Clear();
		return;
	}
	request->args = parse(in, received, direct.methods[in->opcode].changes);
	if (request->args == NULL) {
		finish(request, NULL);
	} else if (is_poisoned(request)) {
		errno = EIO;
		PyErr_SetFromErrno(PyExc_OSError);
		finish(request, NULL);
	} else {
		step(request, NULL);
	}
	Py_DECREF(request);
}

/* ---- a request as a task -------------------------------------------------------------------- */

static PyObject *wake(PyObject *self, PyObject *future)
{
	struct request *request = (struct request *)self;
	PyObject *error = NULL;

	(void)future;
	Py_CLEAR(request->waits_for);
	if (request->must_cancel) {
		request->must_cancel = false;
		error = PyObject_CallNoArgs(direct.cancelled);
		if (error == NULL)
			return NULL;
	}
	step(request, error);
	Py_XDECREF(error);
	Py_RETURN_NONE;
}

static PyObject *cancel(PyObject *self, PyObject *none)
{
	struct request *request = (struct request *)self;

	(void)none;
	if (request->args == NULL) /* answered */
		Py_RETURN_FALSE;
	request->cancels++;
	request->must_cancel = true;
	if (request->waits_for != NULL)
		cancel_wait(request);
	Py_RETURN_TRUE;
}

static PyObject *done(PyObject *self, PyObject *none)
{
	(void)none;
	return PyBool_FromLong(((struct request *)self)->args == NULL);
}

static PyObject *cancelling(PyObject *self, PyObject *none)
{
	(void)none;
	return PyLong_FromLong(((struct request *)self)->cancels);
}

static PyObject *uncancel(PyObject *self, PyObject *none)
{
	struct request *request = (struct request *)self;

	(void)none;
	request->cancels -= request->cancels > 0;
	return PyLong_FromLong(request->cancels);
}

static void request_dealloc(PyObject *self)
{
	struct request *request = (struct request *)self;

	Py_XDECREF(request->args);
	Py_XDECREF(request->work);
	Py_XDECREF(request->waits_for);
	if (request->weakrefs != NULL)
		PyObject_ClearWeakRefs(self);
	PyObject_Free(self);
}

static PyObject *request_repr(PyObject *self)
{
	struct request *request = (struct request *)self;

	return PyUnicode_FromFormat("<Request %llu of opcode %u>",
				    (unsigned long long)(request->in.unique & ~RESENT),
				    request->in.opcode);
}

static PyObject *request_name(PyObject *self, PyObject *none)
{
	(void)none;
	return PyObject_Repr(self);
}

static PyMethodDef request_methods[] = {
	{ "wake", wake, METH_O, "Go on; called by what the request has waited for." },
	{ "cancel", cancel, METH_NOARGS, "Let the handler have a CancelledError where it waits." },
	{ "done", done, METH_NOARGS, "Return whether it is answered, or given up." },
	{ "get_name", request_name, METH_NOARGS, "Return what it is." },
	{ "cancelling", cancelling, METH_NOARGS, "Return how often it was cancelled." },
	{ "uncancel", uncancel, METH_NOARGS, "Take a cancellation back; return how many are left." },
	{ NULL, NULL, 0, NULL },
};

static PyTypeObject request_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "jfsd.fuse._native.Request",
	.tp_doc = "A request that is carried out; to asyncio it is a task.",
	.tp_basicsize = sizeof(struct request),
	.tp_dealloc = request_dealloc,
	.tp_repr = request_repr,
	.tp_methods = request_methods,
	.tp_weaklistoffset = offsetof(struct request, weakrefs),
	.tp_flags = Py_TPFLAGS_DEFAULT,
};

/* ---- taking requests ------------------------------------------------------------------------ */

static bool waits(uint64_t unique)
{
	for (struct request *each = direct.waiting.next; each != &direct.waiting; each = each->next)
		if ((each->in.unique & ~RESENT) == (unique & ~RESENT))
			return true;
	return false;
}

/* Node ids are inode numbers: there is nothing to forget. Of an interrupted request only a
 * waiting lock takes note, and that is none of ours. */
static bool is_idle(const struct fuse_in_header *in)
{
	const struct fuse_interrupt_in *interrupt = (const struct fuse_interrupt_in *)(in + 1);

	return in->opcode == FUSE_FORGET || in->opcode == FUSE_BATCH_FORGET ||
	       (in->opcode == FUSE_INTERRUPT &&
		state.received >= sizeof(*in) + sizeof(*interrupt) && waits(interrupt->unique));
}

/* What comes next is often here already when nobody waits for the answer. */
static bool is_unwaited(const struct fuse_in_header *in)
{
	return in->opcode == FUSE_RELEASE || in->opcode == FUSE_FORGET ||
	       in->opcode == FUSE_BATCH_FORGET;
}

/* Begin the request in the room; return whether the next one is to be fetched, too. */
static bool begin(size_t received)
{
	const struct fuse_in_header *in = (const void *)PyBytes_AS_STRING(state.room);
	size_t waiting_before = direct.count;

	if (direct.on && in->opcode < OPCODES && direct.methods[in->opcode].handler != NULL)
		carry_out(in, received);
	else
		state.left = !direct.on || !is_idle(in);
	return !state.left && direct.count == waiting_before && is_unwaited(in);
}

bool take(void)
{
	for (int fetched = 0; !state.left && fetched < UNWAITED; fetched++) {
		ssize_t got = fetch();
		if (got == -EAGAIN)
			return fetched > 0;
		state.failed = got <= 0;
		if (state.failed) {
			state.failure = got;
			state.left = true;
		} else if (!begin((size_t)got)) {
			break;
		}
	}
	return true;
}

static PyObject *take_(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	if (!take())
		Py_RETURN_NONE;
	return PyBool_FromLong(state.left);
}

/* Each answers nothing: the next process is asked again. */
static PyObject *cancel_waiting(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	for (struct request *each = direct.waiting.next; each != &direct.waiting; each = each->next)
		Py_XDECREF(cancel((PyObject *)each, NULL));
	Py_RETURN_NONE;
}

static PyObject *waiting(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	return PyLong_FromSize_t(direct.count);
}

/* ---- the Python side ------------------------------------------------------------------------ */

static int use_bounds(PyObject *bounds)
{
	direct.bounds = PyTuple_Size(bounds);
	if (direct.bounds < 0 || direct.bounds > BOUNDS_MAX) {
		PyErr_SetString(PyExc_ValueError, "too many bounds");
		return -1;
	}
	for (Py_ssize_t i = 0; i < direct.bounds; i++)
		direct.bounds_s[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(bounds, i));
	return PyErr_Occurred() ? -1 : 0;
}

static int use_methods(PyObject *methods)
{
	PyObject *key, *value;
	Py_ssize_t at = 0;

	for (int i = 0; i < OPCODES; i++) {
		Py_CLEAR(direct.methods[i].handler);
		Py_CLEAR(direct.methods[i].histogram);
	}
	while (PyDict_Next(methods, &at, &key, &value)) {
		unsigned long opcode = PyLong_AsUnsignedLong(key);
		PyObject *handler, *histogram;
		int form, changes;
		if (PyErr_Occurred() ||
		    !PyArg_ParseTuple(value, "OipO", &handler, &form, &changes, &histogram))
			return -1;
		if (opcode >= OPCODES || form < 0 || form >= FORMS) {
			PyErr_SetString(PyExc_ValueError, "there is no such method");
			return -1;
		}
		direct.methods[opcode] = (struct method){ Py_NewRef(handler), (enum form)form,
							  changes, Py_NewRef(histogram) };
	}
	return 0;
}

PyDoc_STRVAR(dispatch_doc,
"dispatch(*, methods, bounds, caller, loop, enter, leave, cancelled, relieved, bug, access,\n"
"         tell, errors, poisoned, refuse, unheard)\n--\n\n"
"From now on take() carries out requests whose opcode is in `methods`: (handler, form of the\n"
"answer, whether it changes something, histogram).");

static PyObject *dispatch(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *words[] = { "methods", "bounds", "caller", "loop", "enter", "leave",
				 "cancelled", "relieved", "bug", "access", "tell", "errors", "poisoned", "refuse",
				 "unheard", NULL };
	PyObject *methods, *bounds, *caller, *loop, *enter, *leave, *cancelled, *relieved, *bug,
		*access, *telling, *errors, *poisoned, *refuse;
	unsigned long long unheard;

	(void)self;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$O!O!O!OOOOOOOOOOOK", words, &PyDict_Type,
					 &methods, &PyTuple_Type, &bounds, &PyType_Type, &caller,
					 &loop, &enter, &leave, &cancelled, &relieved, &bug, &access,
					 &telling, &errors, &poisoned, &refuse, &unheard))
		return NULL;
	if (use_bounds(bounds) < 0 || use_methods(methods) < 0)
		return NULL;
	Py_XSETREF(direct.caller, (PyTypeObject *)Py_NewRef(caller));
	Py_XSETREF(direct.loop, Py_NewRef(loop));
	Py_XSETREF(direct.enter, Py_NewRef(enter));
	Py_XSETREF(direct.leave, Py_NewRef(leave));
	Py_XSETREF(direct.cancelled, Py_NewRef(cancelled));
	Py_XSETREF(direct.relieved, Py_NewRef(relieved));
	Py_XSETREF(direct.bug, Py_NewRef(bug));
	Py_XSETREF(direct.access, Py_NewRef(access));
	Py_XSETREF(direct.tell, Py_NewRef(telling));
	Py_XSETREF(direct.errors, Py_NewRef(errors));
	Py_XSETREF(direct.poisoned, Py_NewRef(poisoned));
	Py_XSETREF(direct.refuse, Py_NewRef(refuse));
	direct.unheard = unheard;
	direct.on = true;
	Py_RETURN_NONE;
}

PyMethodDef dispatch_methods[] = {
	{ "dispatch", (PyCFunction)(void (*)(void))dispatch, METH_VARARGS | METH_KEYWORDS,
	  dispatch_doc },
	{ "take", take_, METH_NOARGS,
	  "Read a request and begin it; return True if pyfuse3 is to go on with it, None if there\n"
	  "is none now." },
	{ "cancel_waiting", cancel_waiting, METH_NOARGS,
	  "Cancel the requests that wait; they stay with the kernel." },
	{ "waiting", waiting, METH_NOARGS,
	  "Return how many requests that take() began are not answered." },
	{ NULL, NULL, 0, NULL },
};

static int intern_names(void)
{
	static const struct {
		PyObject **to;
		const char *text;
	} all[] = {
		{ &names.type, "type" }, { &names.mode, "mode" }, { &names.uid, "uid" },
		{ &names.gid, "gid" }, { &names.atime_ns, "atime_ns" },
		{ &names.mtime_ns, "mtime_ns" }, { &names.ctime_ns, "ctime_ns" },
		{ &names.nlink, "nlink" }, { &names.length, "length" }, { &names.rdev, "rdev" },
		{ &names.counts, "counts" }, { &names.sum, "sum" },
		{ &names.listeners, "listeners" }, { &names.errno_, "errno" },
		{ &names.cancel, "cancel" }, { &names.throw, "throw" }, { &names.wake, "wake" },
		{ &names.call_soon, "call_soon" },
		{ &names.add_done_callback, "add_done_callback" },
		{ &names.blocking, "_asyncio_future_blocking" },
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if ((*all[i].to = PyUnicode_InternFromString(all[i].text)) == NULL)
			return -1;
	return 0;
}

int dispatch_init(PyObject *module)
{
	static const struct {
		const char *name;
		enum form form;
	} forms[] = { { "NOTHING", NOTHING }, { "ENTRY", ENTRY }, { "ATTR", ATTR },
		      { "OPENED", OPENED }, { "CREATED", CREATED }, { "COUNT", COUNT },
		      { "DATA", DATA } };

	direct.waiting.next = direct.waiting.before = &direct.waiting;
	for (size_t i = 0; i < FORMS; i++)
		if (PyModule_AddIntConstant(module, forms[i].name, forms[i].form) < 0)
			return -1;
	if (intern_names() < 0 || PyType_Ready(&request_type) < 0)
		return -1;
	return PyModule_AddObjectRef(module, "Request", (PyObject *)&request_type);
}
