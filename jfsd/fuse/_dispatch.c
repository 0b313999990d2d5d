/*
 * The requests that programs make most, without pyfuse3 between the kernel and their handler.
 *
 * take() reads a request. If its opcode has a handler here, the header, numbers and names are
 * parsed, the handler is called with (caller, arguments …), and the coroutine that it returns is
 * stepped at once: most need not wait, and are answered before take() returns. One that waits is
 * handed to Python as a coroutine that a task can drive (`struct request`); its last step
 * answers. Everything else is left for pyfuse3.
 *
 * While the first step runs there is no task yet. The request stands in for one: what asks for
 * the current task (asyncio.timeout) gets the request, which passes on to its task what it is
 * asked later.
 *
 * Errors are as everywhere: OSError is its errno, any other exception is a bug, reported and
 * answered with EIO; one that is no Exception, such as a cancellation, answers nothing.
 */

#include "_native.h"

#define OPCODES 64
#define BOUNDS_MAX 64

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
	PyObject *waits_for;       /* future of the first step, until the task is told */
	PyObject *task;            /* NULL before it waits, and once it is answered */
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
	PyObject *adopt;           /* makes a task of a request that waits, and returns it */
	PyObject *relieved;        /* called when one of those is answered */
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
	PyObject *counts, *sum, *listeners, *errno_, *cancel, *cancelling, *uncancel, *throw;
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

static PyObject *name(struct rest *rest)
{
	size_t len = strnlen(rest->at, rest->left);
	const char *at = part(rest, len + 1);

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
		return together(4, CALLER, number(it->fh), number(it->offset),
				lend(data, it->size));
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
	return fill_attr(&out->attr, ino, attr);
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
	struct fuse_write_out count;
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out opened;
	} __attribute__((packed)) created;
};

/* Bring what the handler said into the kernel's form; its size, -1 with an exception. */
static Py_ssize_t fill(union fixed *out, enum form form, PyObject *said)
{
	static const Py_ssize_t sizes[FORMS] = {
		[ENTRY] = sizeof(struct fuse_entry_out),
		[ATTR] = sizeof(struct fuse_attr_out),
		[OPENED] = sizeof(struct fuse_open_out),
		[CREATED] = sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out),
		[COUNT] = sizeof(struct fuse_write_out),
	};
	struct fuse_open_out opened = { 0 };
	struct fuse_entry_out entry;
	int done = 0;

	memset(out, 0, sizeof(*out));
	memset(&entry, 0, sizeof(entry));
	switch (form) {
	case ENTRY:
		done = fill_entry(&entry, said);
		break;
	case ATTR:
		done = fill_attr_out(&out->attr, said);
		break;
	case OPENED:
		done = fill_opened(&opened, said);
		memcpy(out, &opened, sizeof(opened));
		return done < 0 ? -1 : sizes[form];
	case CREATED:
		done = fill_created(&entry, &opened, said);
		out->created.opened = opened;
		break;
	case COUNT:
		done = fill_count(&out->count, said);
		break;
	default:
		break;
	}
	if (form == ENTRY || form == CREATED)
		out->created.entry = entry;
	return done < 0 ? -1 : sizes[form];
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
	union fixed fixed;
	Py_buffer data;

	if (form == DATA) {
		if (PyObject_GetBuffer(said, &data, PyBUF_SIMPLE) < 0)
			return -1;
		int done = send_answer(unique, 0, NULL, 0, &data);
		PyBuffer_Release(&data);
		return done;
	}
	Py_ssize_t size = fill(&fixed, form, said);
	return size < 0 ? -1 : send_answer(unique, 0, &fixed, (size_t)size, NULL);
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

/* Call the handler and step its coroutine until it waits, ends or fails. */
static PySendResult begin(struct request *request, PyObject **result)
{
	struct method *method = &direct.methods[request->in.opcode];
	PyObject *entered = tell_asyncio(direct.enter, request);
	PySendResult how = PYGEN_ERROR;

	*result = NULL;
	if (entered == NULL)
		return how;
	running(request->in.unique & ~RESENT);
	*result = PyObject_Call(method->handler, request->args, NULL);
	if (*result != NULL && !PyCoro_CheckExact(*result)) {
		how = PYGEN_RETURN;
	} else if (*result != NULL) {
		request->work = *result;
		how = PyIter_Send(request->work, Py_None, result);
	}
	running(0);
	PyObject *type, *error, *traceback;
	PyErr_Fetch(&type, &error, &traceback);
	PyObject *left = tell_asyncio(direct.leave, request);
	if (left == NULL)
		PyErr_WriteUnraisable((PyObject *)request);
	Py_XDECREF(left);
	Py_DECREF(entered);
	PyErr_Restore(type, error, traceback);
	return how;
}

static void unlink_request(struct request *request)
{
	request->before->next = request->next;
	request->next->before = request->before;
	request->next = request->before = NULL;
	direct.count--;
	Py_DECREF(request);
}

/* Let a task carry on a request that waits. */
static void adopt(struct request *request, PyObject *future)
{
	request->waits_for = future;
	request->task = PyObject_CallOneArg(direct.adopt, (PyObject *)request);
	if (request->task == NULL) {
		Py_CLEAR(request->waits_for);
		finish(request, NULL);
		PyErr_Clear();
		return;
	}
	Py_INCREF(request);
	request->next = &direct.waiting;
	request->before = direct.waiting.before;
	request->before->next = direct.waiting.before = request;
	direct.count++;
}

static struct request *new_request(const struct fuse_in_header *in)
{
	struct request *request = PyObject_New(struct request, &request_type);

	if (request == NULL)
		return NULL;
	request->in = *in;
	request->args = request->work = request->waits_for = request->task = NULL;
	request->next = request->before = NULL;
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
	PyObject *result = NULL;

	if (request == NULL) {
		send_answer(in->unique, ENOMEM, NULL, 0, NULL);
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
	} else if (begin(request, &result) == PYGEN_NEXT) {
		adopt(request, result);
		result = NULL;
	} else if (!finish(request, result)) {
		PyErr_WriteUnraisable((PyObject *)request); /* outside of a task nobody else hears */
	}
	Py_XDECREF(result);
	Py_DECREF(request);
}

/* ---- a request as the coroutine of a task --------------------------------------------------- */

/* Return what a step of the coroutine has led to, after answering if that is its end. */
static PySendResult stepped(struct request *request, PySendResult how, PyObject **result)
{
	if (how == PYGEN_NEXT)
		return how;
	bool ended_well = finish(request, how == PYGEN_RETURN ? *result : NULL);
	Py_CLEAR(*result);
	Py_CLEAR(request->task);
	unlink_request(request);
	if (!ended_well)
		return PYGEN_ERROR;
	*result = Py_NewRef(Py_None);
	return PYGEN_RETURN;
}

static void say_relieved(void)
{
	PyObject *type, *error, *traceback;

	PyErr_Fetch(&type, &error, &traceback);
	PyObject *said = PyObject_CallNoArgs(direct.relieved);
	if (said == NULL)
		PyErr_WriteUnraisable(direct.relieved);
	Py_XDECREF(said);
	PyErr_Restore(type, error, traceback);
}

static PySendResult request_send(PyObject *self, PyObject *value, PyObject **result)
{
	struct request *request = (struct request *)self;

	if (request->waits_for != NULL) {
		*result = request->waits_for;
		request->waits_for = NULL;
		return PYGEN_NEXT;
	}
	*result = NULL;
	if (request->work == NULL) {
		PyErr_SetString(PyExc_RuntimeError, "the request is answered");
		return PYGEN_ERROR;
	}
	Py_INCREF(self);
	running(request->in.unique & ~RESENT);
	PySendResult how = PyIter_Send(request->work, value, result);
	running(0);
	how = stepped(request, how, result);
	if (how != PYGEN_NEXT)
		say_relieved();
	Py_DECREF(self);
	return how;
}

/* As send() and throw() of Python have it. */
static PyObject *yielded(PySendResult how, PyObject *result)
{
	if (how != PYGEN_RETURN)
		return how == PYGEN_NEXT ? result : NULL;
	Py_DECREF(result);
	PyErr_SetNone(PyExc_StopIteration);
	return NULL;
}

static PyObject *send_(PyObject *self, PyObject *value)
{
	PyObject *result;
	PySendResult how = request_send(self, value, &result);

	return yielded(how, result);
}

static PyObject *throw_(PyObject *self, PyObject *args)
{
	struct request *request = (struct request *)self;
	PyObject *result = NULL;
	PySendResult how = PYGEN_NEXT;

	if (request->work == NULL) {
		PyErr_SetString(PyExc_RuntimeError, "the request is answered");
		return NULL;
	}
	if (request->waits_for != NULL) { /* cancelled before the task's first step */
		PyObject *done = PyObject_CallMethodNoArgs(request->waits_for, names.cancel);
		Py_CLEAR(request->waits_for);
		if (done == NULL)
			return NULL;
		Py_DECREF(done);
	}
	PyObject *throw = PyObject_GetAttr(request->work, names.throw);
	if (throw == NULL)
		return NULL;
	Py_INCREF(self);
	running(request->in.unique & ~RESENT);
	result = PyObject_Call(throw, args, NULL);
	running(0);
	Py_DECREF(throw);
	if (result == NULL) {
		how = PYGEN_ERROR;
		if (PyErr_ExceptionMatches(PyExc_StopIteration)) {
			PyObject *end = caught();
			result = PyObject_GetAttrString(end, "value");
			Py_DECREF(end);
			how = result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
		}
	}
	how = stepped(request, how, &result);
	if (how != PYGEN_NEXT)
		say_relieved();
	Py_DECREF(self);
	return yielded(how, result);
}

static PyObject *close_(PyObject *self, PyObject *none)
{
	struct request *request = (struct request *)self;

	(void)none;
	if (request->work == NULL)
		Py_RETURN_NONE;
	return PyObject_CallMethod(request->work, "close", NULL);
}

/* What a task is asked by asyncio.timeout that began in the first step. */
static PyObject *ask_task(PyObject *self, PyObject *what)
{
	struct request *request = (struct request *)self;

	if (request->task == NULL)
		return PyLong_FromLong(0);
	return PyObject_CallMethodNoArgs(request->task, what);
}

static PyObject *cancel_(PyObject *self, PyObject *none)
{
	(void)none;
	return ask_task(self, names.cancel);
}

static PyObject *cancelling_(PyObject *self, PyObject *none)
{
	(void)none;
	return ask_task(self, names.cancelling);
}

static PyObject *uncancel_(PyObject *self, PyObject *none)
{
	(void)none;
	return ask_task(self, names.uncancel);
}

static void request_dealloc(PyObject *self)
{
	struct request *request = (struct request *)self;

	Py_XDECREF(request->args);
	Py_XDECREF(request->work);
	Py_XDECREF(request->waits_for);
	Py_XDECREF(request->task);
	PyObject_Free(self);
}

static PyObject *request_repr(PyObject *self)
{
	struct request *request = (struct request *)self;

	return PyUnicode_FromFormat("<Request %llu of opcode %u>",
				    (unsigned long long)(request->in.unique & ~RESENT),
				    request->in.opcode);
}

static PyMethodDef request_methods[] = {
	{ "send", send_, METH_O, "Go on with a value." },
	{ "throw", throw_, METH_VARARGS, "Go on with an exception." },
	{ "close", close_, METH_NOARGS, "End the handler without an answer." },
	{ "cancel", cancel_, METH_NOARGS, "Cancel the task." },
	{ "cancelling", cancelling_, METH_NOARGS, "Return how often the task is cancelled." },
	{ "uncancel", uncancel_, METH_NOARGS, "Take a cancellation of the task back." },
	{ NULL, NULL, 0, NULL },
};

static PyAsyncMethods request_async = { .am_await = PyObject_SelfIter, .am_send = request_send };

static PyTypeObject request_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "jfsd.fuse._native.Request",
	.tp_doc = "A request that waits: the coroutine of its task.",
	.tp_basicsize = sizeof(struct request),
	.tp_dealloc = request_dealloc,
	.tp_repr = request_repr,
	.tp_as_async = &request_async,
	.tp_methods = request_methods,
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

ssize_t take(void)
{
	if (state.left)
		return 1;
	ssize_t got = fetch();
	if (got <= 0)
		return got;
	const struct fuse_in_header *in = (const void *)PyBytes_AS_STRING(state.room);
	bool ours = direct.on && in->opcode < OPCODES && direct.methods[in->opcode].handler != NULL;
	if (ours)
		carry_out(in, (size_t)got);
	else
		state.left = !direct.on || !is_idle(in);
	return 1;
}

static PyObject *take_(PyObject *self, PyObject *none)
{
	ssize_t got = take();

	(void)self, (void)none;
	if (got == -EAGAIN)
		Py_RETURN_NONE;
	return PyBool_FromLong(got <= 0 || state.left); /* pyfuse3 meets an error itself */
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
"dispatch(*, methods, bounds, caller, loop, enter, leave, adopt, relieved, bug, access, tell,\n"
"         errors, poisoned, refuse, unheard)\n--\n\n"
"From now on take() carries out requests whose opcode is in `methods`: (handler, form of the\n"
"answer, whether it changes something, histogram).");

static PyObject *dispatch(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *words[] = { "methods", "bounds", "caller", "loop", "enter", "leave", "adopt",
				 "relieved", "bug", "access", "tell", "errors", "poisoned", "refuse",
				 "unheard", NULL };
	PyObject *methods, *bounds, *caller, *loop, *enter, *leave, *adopting, *relieved, *bug,
		*access, *telling, *errors, *poisoned, *refuse;
	unsigned long long unheard;

	(void)self;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$O!O!O!OOOOOOOOOOOK", words, &PyDict_Type,
					 &methods, &PyTuple_Type, &bounds, &PyType_Type, &caller,
					 &loop, &enter, &leave, &adopting, &relieved, &bug, &access,
					 &telling, &errors, &poisoned, &refuse, &unheard))
		return NULL;
	if (use_bounds(bounds) < 0 || use_methods(methods) < 0)
		return NULL;
	Py_XSETREF(direct.caller, (PyTypeObject *)Py_NewRef(caller));
	Py_XSETREF(direct.loop, Py_NewRef(loop));
	Py_XSETREF(direct.enter, Py_NewRef(enter));
	Py_XSETREF(direct.leave, Py_NewRef(leave));
	Py_XSETREF(direct.adopt, Py_NewRef(adopting));
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
		{ &names.cancel, "cancel" }, { &names.cancelling, "cancelling" },
		{ &names.uncancel, "uncancel" }, { &names.throw, "throw" },
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
