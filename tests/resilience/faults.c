/* Makes file calls below one folder fail, at any place: for LD_PRELOAD.

   gcc -shared -fPIC -O1 -o faults.so faults.c -ldl

   A call counts if it names a path below the folder, or a descriptor that was
   opened there, and belongs to one of the chosen groups. Call number `position`
   fails with the error, or all from there on do, as on a disk that stays full.
   The caller sees what the kernel would have said; nothing is done then, but
   that a descriptor is closed all the same. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { FILLS = 1, REMOVES = 2, READS = 4 }; /* as in faults.py */
enum { FDS = 65536 };

static char root[4096];
static atomic_int armed, groups, code, forever;
static atomic_long position, count, fired;
static char first[4300];
static atomic_char below[FDS]; /* of a descriptor: the groups of its close */

void faults_arm(const char *folder, long at, int number, int which, int on) {
  snprintf(root, sizeof root, "%s", folder);
  position = at;
  code = number;
  groups = which;
  forever = on;
  count = 0;
  fired = 0;
  first[0] = 0;
  armed = 1;
}

/* The number of calls that counted. */
long faults_disarm(void) {
  armed = 0;
  return count;
}

long faults_fired(void) { return fired; }

/* The first call that failed, in words. */
const char *faults_first(void) { return first; }

static int fails(int group, const char *call, const char *path) {
  if (!armed || !(groups & group)) return 0;
  long number = ++count;
  if (number != position && !(forever && number > position)) return 0;
  if (fired++ == 0) snprintf(first, sizeof first, "%s %s", call, path);
  errno = code;
  return 1;
}

static int is_below(int folder, const char *path) {
  size_t n = strlen(root);
  if (!armed || path == NULL) return 0;
  if (path[0] != '/')
    return folder >= 0 && folder < FDS && below[folder];
  return strncmp(path, root, n) == 0 && (path[n] == '/' || path[n] == 0);
}

static int is_open(int fd) { return fd >= 0 && fd < FDS && below[fd]; }

static int group_of(int flags) {
  return flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC) ? FILLS : READS;
}

static int keep(int fd, int group) {
  if (fd >= 0 && fd < FDS) below[fd] = group;
  return fd;
}

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

/* Calls with a path, or with two of which one is below the folder. */
#define PATH(group, type, name, parameters, arguments, folder, path) \
  type name parameters {                                             \
    type(*next) parameters = real(#name);                            \
    if (is_below(folder, path) && fails(group, #name, path)) return -1; \
    return next arguments;                                           \
  }

/* Calls with a descriptor. */
#define FD(group, type, name, parameters, arguments) \
  type name parameters {                             \
    type(*next) parameters = real(#name);            \
    if (is_open(fd) && fails(group, #name, "")) return -1; \
    return next arguments;                           \
  }

#define OPEN(name, parameters, arguments, folder)                      \
  int name parameters {                                                \
    int(*next)() = (int (*)())real(#name);                             \
    va_list rest;                                                      \
    va_start(rest, flags);                                             \
    mode_t mode = va_arg(rest, mode_t);                                \
    va_end(rest);                                                      \
    if (!is_below(folder, path)) return keep(next arguments, 0);       \
    if (fails(group_of(flags), #name, path)) return -1;                \
    return keep(next arguments, group_of(flags));                      \
  }

OPEN(open, (const char *path, int flags, ...), (path, flags, mode), -1)
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), -1)
OPEN(openat, (int at, const char *path, int flags, ...),
     (at, path, flags, mode), at)
OPEN(openat64, (int at, const char *path, int flags, ...),
     (at, path, flags, mode), at)

int __openat_2(int at, const char *path, int flags) {
  return openat(at, path, flags, 0);
}

int creat(const char *path, mode_t mode) {
  return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode) { return creat(path, mode); }

FILE *fopen(const char *path, const char *mode) {
  FILE *(*next)(const char *, const char *) = real("fopen");
  int group = mode[0] == 'r' && !strchr(mode, '+') ? READS : FILLS;
  if (is_below(-1, path) && fails(group, "fopen", path)) return NULL;
  return next(path, mode);
}

FILE *fopen64(const char *path, const char *mode) { return fopen(path, mode); }

int close(int fd) {
  int (*next)(int) = real("close");
  int group = is_open(fd) ? below[fd] : 0;
  keep(fd, 0);
  int result = next(fd);
  return group == FILLS && fails(FILLS, "close", "") ? -1 : result;
}

FD(FILLS, ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n))
FD(FILLS, ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n))
FD(FILLS, ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at),
   (fd, data, n, at))
FD(FILLS, ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t at),
   (fd, data, n, at))
FD(FILLS, ssize_t, pwritev, (int fd, const struct iovec *v, int n, off_t at),
   (fd, v, n, at))
FD(FILLS, ssize_t, pwritev64,
   (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at))
FD(FILLS, int, fsync, (int fd), (fd))
FD(FILLS, int, fdatasync, (int fd), (fd))
FD(FILLS, int, ftruncate, (int fd, off_t size), (fd, size))
FD(FILLS, int, ftruncate64, (int fd, off64_t size), (fd, size))
FD(FILLS, int, fallocate, (int fd, int how, off_t at, off_t n),
   (fd, how, at, n))
FD(FILLS, int, fallocate64, (int fd, int how, off64_t at, off64_t n),
   (fd, how, at, n))
FD(READS, ssize_t, read, (int fd, void *data, size_t n), (fd, data, n))
FD(READS, ssize_t, readv, (int fd, const struct iovec *v, int n), (fd, v, n))
FD(READS, ssize_t, pread, (int fd, void *data, size_t n, off_t at),
   (fd, data, n, at))
FD(READS, ssize_t, pread64, (int fd, void *data, size_t n, off64_t at),
   (fd, data, n, at))
FD(READS, ssize_t, preadv, (int fd, const struct iovec *v, int n, off_t at),
   (fd, v, n, at))
FD(READS, int, fstat, (int fd, struct stat *s), (fd, s))
FD(READS, int, fstat64, (int fd, struct stat64 *s), (fd, s))
FD(READS, int, __fxstat, (int version, int fd, struct stat *s),
   (version, fd, s))

PATH(FILLS, int, mkdir, (const char *path, mode_t mode), (path, mode), -1, path)
PATH(FILLS, int, mkdirat, (int at, const char *path, mode_t mode),
     (at, path, mode), at, path)
PATH(FILLS, int, truncate, (const char *path, off_t size), (path, size), -1,
     path)
PATH(FILLS, int, rename, (const char *from, const char *path), (from, path), -1,
     path)
PATH(FILLS, int, renameat,
     (int from_at, const char *from, int at, const char *path),
     (from_at, from, at, path), at, path)
PATH(FILLS, int, renameat2,
     (int from_at, const char *from, int at, const char *path, unsigned how),
     (from_at, from, at, path, how), at, path)
PATH(FILLS, int, link, (const char *from, const char *path), (from, path), -1,
     path)
PATH(FILLS, int, linkat,
     (int from_at, const char *from, int at, const char *path, int how),
     (from_at, from, at, path, how), at, path)
PATH(FILLS, int, symlink, (const char *from, const char *path), (from, path),
     -1, path)
PATH(REMOVES, int, unlink, (const char *path), (path), -1, path)
PATH(REMOVES, int, unlinkat, (int at, const char *path, int how),
     (at, path, how), at, path)
PATH(REMOVES, int, rmdir, (const char *path), (path), -1, path)
PATH(READS, int, stat, (const char *path, struct stat *s), (path, s), -1, path)
PATH(READS, int, stat64, (const char *path, struct stat64 *s), (path, s), -1,
     path)
PATH(READS, int, lstat, (const char *path, struct stat *s), (path, s), -1, path)
PATH(READS, int, lstat64, (const char *path, struct stat64 *s), (path, s), -1,
     path)
PATH(READS, int, fstatat, (int at, const char *path, struct stat *s, int how),
     (at, path, s, how), at, path)
PATH(READS, int, fstatat64,
     (int at, const char *path, struct stat64 *s, int how), (at, path, s, how),
     at, path)
PATH(READS, int, __xstat, (int version, const char *path, struct stat *s),
     (version, path, s), -1, path)
PATH(READS, int, __lxstat, (int version, const char *path, struct stat *s),
     (version, path, s), -1, path)
PATH(READS, int, __fxstatat,
     (int version, int at, const char *path, struct stat *s, int how),
     (version, at, path, s, how), at, path)

DIR *opendir(const char *path) {
  DIR *(*next)(const char *) = real("opendir");
  if (is_below(-1, path) && fails(READS, "opendir", path)) return NULL;
  return next(path);
}
