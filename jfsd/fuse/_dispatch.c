/*
 * The requests that programs make most, without pyfuse3 between the kernel and their handler.
 *
 * take() reads a request. If its opcode has a handler here, it is parsed (_forms.c), the handler
 * is called with (caller, arguments …), and the coroutine that it returns is stepped at once: most
 * need not wait, and are answered before take() returns. One that waits is
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
	PyObject *counts, *sum, *listeners, *errno_, *cancel, *throw, *wake, *call_soon,
		*add_done_callback, *blocking;
} names;

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
	if (failure && answer_error(unique, failure) < 0)
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
		if (answer_error(in->unique, ENOMEM) < 0)
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
	Py_XSETREF(caller_type, (PyTypeObject *)Py_NewRef(caller));
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
	direct.waiting.next = direct.waiting.before = &direct.waiting;
	if (forms_init(module) < 0 || intern_names() < 0 || PyType_Ready(&request_type) < 0)
		return -1;
	return PyModule_AddObjectRef(module, "Request", (PyObject *)&request_type);
}
