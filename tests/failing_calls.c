/* Calls of the C library that fail once: preloaded into a process (LD_PRELOAD) by failing_calls.py.

   Whoever makes a call (Python, NumPy, zlib, HDF5 ...) comes through here. Calls are counted by
   kind; from faults_arm() on, the nth of one kind fails, or all from the nth on. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, READ, WRITE, SYNC, RENAME, UNLINK, MKDIR, MAP, EXTEND, STAT, LIST, MEMORY, THREAD,
       ACCESS, KINDS };

#define LARGE 32768   /* bytes: smaller pieces of memory are Python's own */
#define SHORT -1      /* instead of an error: half of the bytes */

static int counting, wanted = -1, error_number, lasting, told = -1;
static long counts[KINDS], nth;

static void tell(const char *name, const char *path)
{
    char line[600];
    int length = snprintf(line, sizeof line, "%s %s\n", name, path ? path : "");
    if (told >= 0)
        syscall(SYS_write, told, line, length < (int)sizeof line ? length : (int)sizeof line - 1);
}

/* Whether this call is to fail. */
static int fails(int kind, const char *name, const char *path)
{
    if (!counting)
        return 0;
    long number = __atomic_add_fetch(&counts[kind], 1, __ATOMIC_SEQ_CST);
    if (kind != wanted || number < nth || (number > nth && !lasting))
        return 0;
    if (number == nth)
        tell(name, path);
    return 1;
}

static int fails_on(int kind, const char *name, int descriptor)
{
    char link[40], path[500] = "";
    if (!counting || (descriptor >= 0 && descriptor <= 2))
        return 0;
    if (kind == wanted && counts[kind] + 1 >= nth) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
        long length = syscall(SYS_readlink, link, path, sizeof path - 1);
        path[length > 0 ? length : 0] = 0;
    }
    return fails(kind, name, path);
}

void faults_arm(int kind, long first, int number, int from_then_on, int descriptor)
{
    memset(counts, 0, sizeof counts);
    wanted = kind, nth = first, error_number = number, lasting = from_then_on, told = descriptor;
    counting = 1;
}

void faults_disarm(void) { counting = 0; }

long faults_count(int kind) { return counts[kind]; }

#define FAIL(value) do { errno = error_number; return value; } while (0)
#define REAL(name) ({ static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); real; })

#define MODE(flags, last) mode_t mode = 0; if ((flags) & (O_CREAT | __O_TMPFILE)) { \
    va_list more; va_start(more, last); mode = va_arg(more, mode_t); va_end(more); }
#define OPENS(name) int name(const char *path, int flags, ...) { MODE(flags, flags) \
    if (fails(OPEN, #name, path)) FAIL(-1); return REAL(name)(path, flags, mode); }
#define OPENS_AT(name) int name(int at, const char *path, int flags, ...) { MODE(flags, flags) \
    if (fails(OPEN, #name, path)) FAIL(-1); return REAL(name)(at, path, flags, mode); }
OPENS(open) OPENS(open64) OPENS_AT(openat) OPENS_AT(openat64)
FILE *fopen(const char *path, const char *how)
{ if (fails(OPEN, "fopen", path)) FAIL(NULL); return REAL(fopen)(path, how); }
FILE *fopen64(const char *path, const char *how)
{ if (fails(OPEN, "fopen64", path)) FAIL(NULL); return REAL(fopen64)(path, how); }

#define MOVES(kind, name, parameters, arguments, size) ssize_t name parameters { \
    if (fails_on(kind, #name, descriptor)) { \
        if (error_number != SHORT) FAIL(-1); \
        size = size > 1 ? size / 2 : size; } \
    return REAL(name) arguments; }
MOVES(READ, read, (int descriptor, void *data, size_t size), (descriptor, data, size), size)
MOVES(READ, pread, (int descriptor, void *data, size_t size, off_t at), (descriptor, data, size, at), size)
MOVES(READ, pread64, (int descriptor, void *data, size_t size, off64_t at), (descriptor, data, size, at), size)
MOVES(READ, readv, (int descriptor, const struct iovec *parts, int count), (descriptor, parts, count), count)
MOVES(WRITE, write, (int descriptor, const void *data, size_t size), (descriptor, data, size), size)
MOVES(WRITE, pwrite, (int descriptor, const void *data, size_t size, off_t at), (descriptor, data, size, at), size)
MOVES(WRITE, pwrite64, (int descriptor, const void *data, size_t size, off64_t at), (descriptor, data, size, at), size)
MOVES(WRITE, writev, (int descriptor, const struct iovec *parts, int count), (descriptor, parts, count), count)
/* the C library reads and writes the files of NumPy's fromfile and tofile by itself */
size_t fread(void *data, size_t size, size_t count, FILE *file)
{
    if (fails_on(READ, "fread", fileno(file))) {
        errno = error_number == SHORT ? EIO : error_number;
        return 0;
    }
    return REAL(fread)(data, size, count, file);
}
size_t fwrite(const void *data, size_t size, size_t count, FILE *file)
{
    if (fails_on(WRITE, "fwrite", fileno(file))) {
        errno = error_number == SHORT ? ENOSPC : error_number;
        return 0;
    }
    return REAL(fwrite)(data, size, count, file);
}

/* nothing has to reach the disk in a test */
int fsync(int descriptor) { if (fails_on(SYNC, "fsync", descriptor)) FAIL(-1); return 0; }
int fdatasync(int descriptor) { if (fails_on(SYNC, "fdatasync", descriptor)) FAIL(-1); return 0; }

#define CALL(kind, name, parameters, arguments, path) int name parameters { \
    if (fails(kind, #name, path)) FAIL(-1); return REAL(name) arguments; }
CALL(RENAME, rename, (const char *one, const char *other), (one, other), one)
CALL(RENAME, renameat, (int at, const char *one, int to, const char *other), (at, one, to, other), one)
CALL(RENAME, renameat2, (int at, const char *one, int to, const char *other, unsigned flags), (at, one, to, other, flags), one)
CALL(RENAME, link, (const char *one, const char *other), (one, other), one)
CALL(RENAME, linkat, (int at, const char *one, int to, const char *other, int flags), (at, one, to, other, flags), one)
CALL(UNLINK, unlink, (const char *path), (path), path)
CALL(UNLINK, unlinkat, (int at, const char *path, int flags), (at, path, flags), path)
CALL(UNLINK, rmdir, (const char *path), (path), path)
CALL(MKDIR, mkdir, (const char *path, mode_t mode), (path, mode), path)
CALL(MKDIR, mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), path)
CALL(STAT, stat, (const char *restrict path, struct stat *restrict into), (path, into), path)
CALL(STAT, stat64, (const char *restrict path, struct stat64 *restrict into), (path, into), path)
CALL(STAT, lstat, (const char *restrict path, struct stat *restrict into), (path, into), path)
CALL(STAT, lstat64, (const char *restrict path, struct stat64 *restrict into), (path, into), path)
CALL(STAT, fstatat, (int at, const char *restrict path, struct stat *restrict into, int flags), (at, path, into, flags), path)
CALL(STAT, fstatat64, (int at, const char *restrict path, struct stat64 *restrict into, int flags), (at, path, into, flags), path)
int __xstat(int version, const char *path, struct stat *into);
int __xstat64(int version, const char *path, struct stat64 *into);
int __lxstat(int version, const char *path, struct stat *into);
int __lxstat64(int version, const char *path, struct stat64 *into);
CALL(STAT, __xstat, (int version, const char *path, struct stat *into), (version, path, into), path)
CALL(STAT, __xstat64, (int version, const char *path, struct stat64 *into), (version, path, into), path)
CALL(STAT, __lxstat, (int version, const char *path, struct stat *into), (version, path, into), path)
CALL(STAT, __lxstat64, (int version, const char *path, struct stat64 *into), (version, path, into), path)
CALL(ACCESS, chmod, (const char *path, mode_t mode), (path, mode), path)
CALL(ACCESS, chown, (const char *path, uid_t user, gid_t group), (path, user, group), path)
CALL(ACCESS, fchownat, (int at, const char *path, uid_t user, gid_t group, int flags), (at, path, user, group, flags), path)

#define CALL_ON(kind, name, parameters, arguments) int name parameters { \
    if (fails_on(kind, #name, descriptor)) FAIL(-1); return REAL(name) arguments; }
CALL_ON(STAT, fstat, (int descriptor, struct stat *into), (descriptor, into))
CALL_ON(STAT, fstat64, (int descriptor, struct stat64 *into), (descriptor, into))
CALL_ON(EXTEND, ftruncate, (int descriptor, off_t size), (descriptor, size))
CALL_ON(EXTEND, ftruncate64, (int descriptor, off64_t size), (descriptor, size))
CALL_ON(EXTEND, fallocate, (int descriptor, int mode, off_t at, off_t size), (descriptor, mode, at, size))
CALL_ON(ACCESS, fchmod, (int descriptor, mode_t mode), (descriptor, mode))
int flock(int descriptor, int operation);
CALL_ON(ACCESS, flock, (int descriptor, int operation), (descriptor, operation))
/* these return the error */
int posix_fallocate(int descriptor, off_t at, off_t size)
{
    if (fails_on(EXTEND, "posix_fallocate", descriptor)) return error_number;
    return REAL(posix_fallocate)(descriptor, at, size);
}
int posix_fallocate64(int descriptor, off64_t at, off64_t size)
{
    if (fails_on(EXTEND, "posix_fallocate64", descriptor)) return error_number;
    return REAL(posix_fallocate64)(descriptor, at, size);
}
int posix_fadvise(int descriptor, off_t at, off_t size, int advice)
{
    if (fails_on(ACCESS, "posix_fadvise", descriptor)) return error_number;
    return REAL(posix_fadvise)(descriptor, at, size, advice);
}
int posix_fadvise64(int descriptor, off64_t at, off64_t size, int advice)
{
    if (fails_on(ACCESS, "posix_fadvise64", descriptor)) return error_number;
    return REAL(posix_fadvise64)(descriptor, at, size, advice);
}

struct __dirstream;
struct __dirstream *opendir(const char *path);
struct __dirstream *fdopendir(int descriptor);
struct __dirstream *opendir(const char *path)
{ if (fails(LIST, "opendir", path)) FAIL(NULL); return REAL(opendir)(path); }
struct __dirstream *fdopendir(int descriptor)
{ if (fails_on(LIST, "fdopendir", descriptor)) FAIL(NULL); return REAL(fdopendir)(descriptor); }

static void *map(void *at, size_t size, int rights, int flags, int descriptor, long offset, const char *name)
{
    if (!(flags & MAP_ANONYMOUS) ? fails_on(MAP, name, descriptor)
        : size >= LARGE && !(flags & (MAP_STACK | MAP_FIXED)) && fails(MEMORY, name, ""))
        FAIL(MAP_FAILED);
    return (void *)syscall(SYS_mmap, at, size, rights, flags, descriptor, offset);
}
void *mmap(void *at, size_t size, int rights, int flags, int descriptor, off_t offset)
{ return map(at, size, rights, flags, descriptor, offset, "mmap"); }
void *mmap64(void *at, size_t size, int rights, int flags, int descriptor, off64_t offset)
{ return map(at, size, rights, flags, descriptor, offset, "mmap64"); }

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);
void *malloc(size_t size)
{ if (size >= LARGE && fails(MEMORY, "malloc", "")) FAIL(NULL); return __libc_malloc(size); }
void *calloc(size_t count, size_t size)
{
    if (count && size && count * size >= LARGE && fails(MEMORY, "calloc", "")) FAIL(NULL);
    return __libc_calloc(count, size);
}
void *realloc(void *old, size_t size)
{ if (size >= LARGE && fails(MEMORY, "realloc", "")) FAIL(NULL); return __libc_realloc(old, size); }
void *aligned_alloc(size_t alignment, size_t size)
{
    if (size >= LARGE && fails(MEMORY, "aligned_alloc", "")) FAIL(NULL);
    return __libc_memalign(alignment, size);
}
int posix_memalign(void **into, size_t alignment, size_t size)
{
    if (size >= LARGE && fails(MEMORY, "posix_memalign", "")) return ENOMEM;
    void *found = __libc_memalign(alignment, size);
    if (!found) return ENOMEM;
    *into = found;
    return 0;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *with)
{
    if (fails(THREAD, "pthread_create", "")) return error_number;
    return REAL(pthread_create)(thread, how, run, with);
}
