/*
 * Snapshots of directories: the entries at one moment, in the order of their cookies.
 *
 * Built to list directories of a million entries within the memory that a mount may use (some
 * 24 bytes and the name for each) and without stopping everybody else: entries lie in buckets
 * by the first bits of their cookies, and a bucket is put in order when a listing gets to it.
 * What the rules are, jfsd/vfs/dirs.py says.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BUCKET_BITS 9
#define BUCKETS (1 << BUCKET_BITS)
#define BUCKET_SHIFT (63 - BUCKET_BITS)
#define COOKIE_MASK ((1ULL << 63) - 1)
#define FIRST_COOKIE 3          /* 1 and 2 are those of the dots */
#define ENTRY_BYTES 9           /* type(1) inode(8), format.md 6.2 */
#define LAST_TYPE 7
#define NAME_MAX_BYTES 255

struct item {
	uint64_t cookie;
	uint64_t ino;
	uint32_t name;          /* offset in the bucket's names */
	uint8_t len;
	uint8_t type;
};

struct bucket {
	struct item *items;
	char *names;
	uint32_t count, room;           /* items */
	uint32_t bytes, names_room;     /* names */
	bool unordered;
};

typedef struct {
	PyObject_HEAD
	struct bucket buckets[BUCKETS];
	uint64_t mask;                  /* bits of cookies that are used; fewer only in tests */
	Py_ssize_t count;
} Snapshot;

/* ---- cookies ----------------------------------------------------------------------------- */

#define ROTATED(x, b) (((x) << (b)) | ((x) >> (64 - (b))))

static void stir(uint64_t v[4])
{
	v[0] += v[1], v[1] = ROTATED(v[1], 13), v[1] ^= v[0], v[0] = ROTATED(v[0], 32);
	v[2] += v[3], v[3] = ROTATED(v[3], 16), v[3] ^= v[2];
	v[0] += v[3], v[3] = ROTATED(v[3], 21), v[3] ^= v[0];
	v[2] += v[1], v[1] = ROTATED(v[1], 17), v[1] ^= v[2], v[2] = ROTATED(v[2], 32);
}

/* SipHash-2-4 under the key 0: the same in every process and version. */
static uint64_t hashed(const unsigned char *data, size_t len)
{
	uint64_t v[4] = { 0x736f6d6570736575ULL, 0x646f72616e646f6dULL, 0x6c7967656e657261ULL,
			  0x7465646279746573ULL };
	uint64_t word;
	size_t at = 0;

	for (; at + 8 <= len; at += 8) {
		word = 0;
		for (int i = 7; i >= 0; i--)
			word = word << 8 | data[at + i];
		v[3] ^= word;
		stir(v), stir(v);
		v[0] ^= word;
	}
	word = (uint64_t)len << 56;
	for (size_t i = 0; at + i < len; i++)
		word |= (uint64_t)data[at + i] << (8 * i);
	v[3] ^= word;
	stir(v), stir(v);
	v[0] ^= word;
	v[2] ^= 0xff;
	stir(v), stir(v), stir(v), stir(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static uint64_t cookie(const char *name, Py_ssize_t len)
{
	uint64_t number = hashed((const unsigned char *)name, (size_t)len) & COOKIE_MASK;

	return number < FIRST_COOKIE ? FIRST_COOKIE : number;
}

/* ---- buckets ----------------------------------------------------------------------------- */

static int grow(void **what, uint32_t *room, uint64_t wanted, size_t size)
{
	if (wanted <= *room)
		return 0;
	uint64_t more = wanted + wanted / 4 + 4;
	void *bigger = more > UINT32_MAX ? NULL : PyMem_Realloc(*what, more * size);
	if (bigger == NULL) {
		PyErr_NoMemory();
		return -1;
	}
	*what = bigger;
	*room = (uint32_t)more;
	return 0;
}

static int put(Snapshot *self, const char *name, Py_ssize_t len, uint8_t type, uint64_t ino,
	       uint64_t number)
{
	struct bucket *b = &self->buckets[number >> BUCKET_SHIFT];

	if (grow((void **)&b->items, &b->room, (uint64_t)b->count + 1, sizeof(*b->items)) < 0 ||
	    grow((void **)&b->names, &b->names_room, (uint64_t)b->bytes + (uint64_t)len, 1) < 0)
		return -1;
	b->items[b->count++] = (struct item){ .cookie = number, .ino = ino, .name = b->bytes,
					      .len = (uint8_t)len, .type = type };
	memcpy(b->names + b->bytes, name, (size_t)len);
	b->bytes += (uint32_t)len;
	b->unordered = true;
	self->count++;
	return 0;
}

static int compare(const void *left, const void *right, void *names)
{
	const struct item *a = left, *b = right;

	if (a->cookie != b->cookie)
		return a->cookie < b->cookie ? -1 : 1;
	int order = memcmp((char *)names + a->name, (char *)names + b->name,
			   a->len < b->len ? a->len : b->len);
	return order != 0 ? order : (int)a->len - (int)b->len;
}

/* Sort, drop names that came twice, and tell apart those that share a cookie. */
static void put_in_order(Snapshot *self, struct bucket *b)
{
	uint32_t kept = 0;
	uint64_t last = 0;

	qsort_r(b->items, b->count, sizeof(*b->items), compare, b->names);
	for (uint32_t i = 0; i < b->count; i++) {
		struct item *item = &b->items[i];
		if (kept > 0) {
			struct item *before = &b->items[kept - 1];
			if (before->len == item->len &&
			    memcmp(b->names + before->name, b->names + item->name, item->len) == 0)
				continue;
		}
		b->items[kept++] = *item;
	}
	for (uint32_t i = 0; i < kept; i++) {
		if (b->items[i].cookie <= last)
			b->items[i].cookie = last + 1;
		last = b->items[i].cookie;
	}
	self->count -= b->count - kept;
	b->count = kept;
	b->unordered = false;
}

static uint32_t first_after(const struct bucket *b, uint64_t number)
{
	uint32_t low = 0, high = b->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		if (b->items[middle].cookie > number)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

/* ---- the Python type --------------------------------------------------------------------- */

static PyObject *new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "mask", NULL };
	unsigned long long mask = COOKIE_MASK;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$K", names, &mask))
		return NULL;
	Snapshot *self = (Snapshot *)type->tp_alloc(type, 0); /* all zero: no entries */
	if (self != NULL)
		self->mask = mask;
	return (PyObject *)self;
}

static void dealloc(Snapshot *self)
{
	for (int i = 0; i < BUCKETS; i++) {
		PyMem_Free(self->buckets[i].items);
		PyMem_Free(self->buckets[i].names);
	}
	Py_TYPE(self)->tp_free((PyObject *)self);
}

static Py_ssize_t length(Snapshot *self)
{
	return self->count;
}

static int take(Snapshot *self, PyObject *name, PyObject *entry)
{
	if (!PyBytes_Check(name) || !PyBytes_Check(entry)) {
		PyErr_SetString(PyExc_TypeError, "names and entries are bytes");
		return -1;
	}
	Py_ssize_t len = PyBytes_GET_SIZE(name);
	const unsigned char *raw = (const unsigned char *)PyBytes_AS_STRING(entry);
	if (len == 0)
		return 0;
	if (len > NAME_MAX_BYTES || PyBytes_GET_SIZE(entry) != ENTRY_BYTES || raw[0] == 0 ||
	    raw[0] > LAST_TYPE) {
		PyErr_SetString(PyExc_ValueError, "not a directory entry");
		return -1;
	}
	uint64_t ino = 0;
	for (int i = 1; i < ENTRY_BYTES; i++)
		ino = ino << 8 | raw[i];
	uint64_t number = cookie(PyBytes_AS_STRING(name), len) & self->mask;
	return put(self, PyBytes_AS_STRING(name), len, raw[0], ino,
		   number < FIRST_COOKIE ? FIRST_COOKIE : number);
}

static PyObject *add(Snapshot *self, PyObject *pairs)
{
	PyObject *all = PySequence_Fast(pairs, "a sequence of names and entries");

	if (all == NULL)
		return NULL;
	Py_ssize_t count = PySequence_Fast_GET_SIZE(all);
	PyObject **items = PySequence_Fast_ITEMS(all);
	for (Py_ssize_t i = 0; i + 1 < count; i += 2) {
		if (take(self, items[i], items[i + 1]) < 0) {
			Py_DECREF(all);
			return NULL;
		}
	}
	Py_DECREF(all);
	Py_RETURN_NONE;
}

static int append(PyObject *list, PyObject *what)
{
	int status = what == NULL ? -1 : PyList_Append(list, what);

	Py_XDECREF(what);
	return status;
}

static PyObject *after(Snapshot *self, PyObject *args)
{
	unsigned long long number;
	Py_ssize_t limit;

	if (!PyArg_ParseTuple(args, "Kn", &number, &limit))
		return NULL;
	PyObject *cookies = PyList_New(0), *names = PyList_New(0), *inos = PyList_New(0);
	PyObject *types = limit < 0 ? NULL : PyBytes_FromStringAndSize(NULL, limit);
	Py_ssize_t found = 0;
	if (cookies == NULL || names == NULL || inos == NULL || types == NULL)
		goto failed;
	for (uint64_t i = number >> BUCKET_SHIFT; i < BUCKETS && found < limit; i++) {
		struct bucket *b = &self->buckets[i];
		if (b->unordered)
			put_in_order(self, b);
		for (uint32_t at = first_after(b, number); at < b->count && found < limit; at++) {
			const struct item *item = &b->items[at];
			if (append(cookies, PyLong_FromUnsignedLongLong(item->cookie)) < 0 ||
			    append(names, PyBytes_FromStringAndSize(b->names + item->name,
								    item->len)) < 0 ||
			    append(inos, PyLong_FromUnsignedLongLong(item->ino)) < 0)
				goto failed;
			PyBytes_AS_STRING(types)[found++] = (char)item->type;
		}
	}
	if (found < limit && _PyBytes_Resize(&types, found) < 0)
		goto failed;
	return Py_BuildValue("(NNNN)", cookies, names, inos, types);
failed:
	Py_XDECREF(cookies);
	Py_XDECREF(names);
	Py_XDECREF(inos);
	Py_XDECREF(types);
	if (!PyErr_Occurred())
		PyErr_SetString(PyExc_ValueError, "a limit is not negative");
	return NULL;
}

static PyMethodDef snapshot_methods[] = {
	{ "add", (PyCFunction)add, METH_O,
	  "Take in entries, a name and the nine bytes of its entry in turn, before `after`." },
	{ "after", (PyCFunction)after, METH_VARARGS,
	  "Return (cookies, names, inodes, types) of up to `limit` entries after a cookie." },
	{ NULL, NULL, 0, NULL },
};

static PySequenceMethods snapshot_sequence = { .sq_length = (lenfunc)length };

static PyTypeObject snapshot_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "jfsd.vfs._listing.Snapshot",
	.tp_doc = "The entries of a directory at one moment, in the order of their cookies.",
	.tp_basicsize = sizeof(Snapshot),
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_new = new,
	.tp_dealloc = (destructor)dealloc,
	.tp_as_sequence = &snapshot_sequence,
	.tp_methods = snapshot_methods,
};

static PyObject *cookie_of(PyObject *module, PyObject *name)
{
	(void)module;
	if (!PyBytes_Check(name)) {
		PyErr_SetString(PyExc_TypeError, "names are bytes");
		return NULL;
	}
	return PyLong_FromUnsignedLongLong(cookie(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)));
}

static PyMethodDef methods[] = {
	{ "cookie_of", cookie_of, METH_O,
	  "Return the cookie of a name: 63 bits, above those of the dots." },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = {
	.m_base = PyModuleDef_HEAD_INIT,
	.m_name = "jfsd.vfs._listing",
	.m_doc = "Snapshots of directories.",
	.m_size = -1,
	.m_methods = methods,
};

PyMODINIT_FUNC PyInit__listing(void)
{
	PyObject *created = PyModule_Create(&module);

	if (created != NULL && PyModule_AddType(created, &snapshot_type) < 0)
		Py_CLEAR(created);
	return created;
}
