/*
 * The forms of requests and answers, between the kernel's records and Python's objects.
 *
 * parse() makes of a request what its handler is called with: the caller, and numbers, names and
 * data. answer() makes of what the handler returns what the kernel expects.
 */

#include "_native.h"

#define NAME_BYTES 255 /* longest name of an entry */

PyTypeObject *caller_type;

static struct {
	PyObject *type, *mode, *uid, *gid, *atime_ns, *mtime_ns, *ctime_ns, *nlink, *length, *rdev;
} names;

/* ---- what a request says ------------------------------------------------------------------ */

PyObject *number(uint64_t value)
{
	return PyLong_FromUnsignedLongLong(value);
}

static PyObject *caller_of(const struct fuse_in_header *in, uint32_t umask, bool changes)
{
	PyObject *caller = caller_type->tp_alloc(caller_type, 5);
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

PyObject *parse(const struct fuse_in_header *in, size_t received, bool changes)
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
	case FUSE_GETXATTR: {
		PART(fuse_getxattr_in, it);
		return together(4, CALLER, number(in->nodeid), name(&rest), number(it->size));
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

static int send_parts(uint64_t unique, int error, const void *fixed, size_t size,
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

int answer(uint64_t unique, enum form form, PyObject *said)
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
		int done = send_parts(unique, 0, NULL, 0, &data);
		PyBuffer_Release(&data);
		return done;
	}
	if (fill(&fixed, form, said) < 0)
		return -1;
	return send_parts(unique, 0, &fixed, sizes[form], NULL);
}

int answer_error(uint64_t unique, int error)
{
	return send_parts(unique, error, NULL, 0, NULL);
}

int forms_init(PyObject *module)
{
	static const struct {
		const char *name;
		enum form form;
	} all[] = { { "NOTHING", NOTHING }, { "ENTRY", ENTRY }, { "ATTR", ATTR },
		    { "OPENED", OPENED }, { "CREATED", CREATED }, { "COUNT", COUNT },
		    { "DATA", DATA } };
	static const struct {
		PyObject **to;
		const char *text;
	} words[] = {
		{ &names.type, "type" }, { &names.mode, "mode" }, { &names.uid, "uid" },
		{ &names.gid, "gid" }, { &names.atime_ns, "atime_ns" },
		{ &names.mtime_ns, "mtime_ns" }, { &names.ctime_ns, "ctime_ns" },
		{ &names.nlink, "nlink" }, { &names.length, "length" }, { &names.rdev, "rdev" },
	};

	for (size_t i = 0; i < FORMS; i++)
		if (PyModule_AddIntConstant(module, all[i].name, all[i].form) < 0)
			return -1;
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if ((*words[i].to = PyUnicode_InternFromString(words[i].text)) == NULL)
			return -1;
	return 0;
}
