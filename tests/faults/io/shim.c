/* Makes the n-th file operation below a folder fail, or records all of them. Loaded with LD_PRELOAD.

   Python calls arm() in a process that is about to be disturbed, and count() afterwards. Only
   operations on paths below the folder count: open, read, write, sync, truncate, rename, remove and
   create. Other threads may run, but the commands under test work with files in one at a time. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { COUNT, FAIL_ONCE, FAIL_FROM, SHORT, KILL_BEFORE, KILL_INSIDE, RECORD };
enum { MAX_FD = 4096 };

static char folder[PATH_MAX];
static int kind = -1, error_number, trace = -1;
static long target, done;
static char *path_of[MAX_FD]; /* of descriptors below the folder */

#define REAL(name) ({ static __typeof__(&name) f; if (!f) f = dlsym(RTLD_NEXT, #name); f; })

void arm(const char *where, int how, long n, int error, int trace_fd) {
    snprintf(folder, sizeof folder, "%s", where);
    target = n, error_number = error, done = 0, trace = trace_fd, kind = how;
}

long count(void) {
    kind = -1;
    return done;
}

static int is_below(const char *path) {
    size_t length = strlen(folder);
    return kind >= 0 && path && !strncmp(path, folder, length) &&
           (path[length] == '/' || !path[length]);
}

static const char *below(int fd) {
    return kind >= 0 && fd >= 0 && fd < MAX_FD ? path_of[fd] : NULL;
}

static void join(char *out, int dir, const char *path) {
    if (path[0] != '/' && dir >= 0 && dir < MAX_FD && path_of[dir])
        snprintf(out, PATH_MAX, "%s/%s", path_of[dir], path);
    else
        snprintf(out, PATH_MAX, "%s", path);
}

/* Returns whether this operation fails; a write may be cut short or killed instead. */
static int fails(void) {
    done++;
    if (kind == KILL_BEFORE && done == target) raise(SIGKILL);
    if ((kind == FAIL_ONCE && done == target) || (kind == FAIL_FROM && done >= target)) {
        errno = error_number;
        return 1;
    }
    return 0;
}

static void after(void) {
    if (kind == KILL_INSIDE && done == target) raise(SIGKILL);
}

/* One record: operation, two lengths, two numbers, two byte strings. */
static void record(char op, const char *a, const void *b, size_t size, int64_t x, int64_t y) {
    if (kind != RECORD) return;
    struct { int64_t op, a, b, x, y; } head = {op, (int64_t)strlen(a), (int64_t)size, x, y};
    REAL(write)(trace, &head, sizeof head);
    REAL(write)(trace, a, head.a);
    if (size) REAL(write)(trace, b, size);
}

static int64_t inode(int fd) {
    struct stat status;
    return fstat(fd, &status) ? -1 : (int64_t)status.st_ino;
}

static int opened(int fd, const char *path, int flags) {
    if (fd >= 0 && fd < MAX_FD) {
        free(path_of[fd]);
        path_of[fd] = strdup(path);
        if (flags & (O_CREAT | O_TRUNC)) record('o', path, "", 0, inode(fd), flags & O_TRUNC);
        else record('p', path, "", 0, inode(fd), 0);
    }
    after();
    return fd;
}

static int open_any(int dir, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    join(full, dir, path);
    if (!is_below(full)) return REAL(openat)(dir, path, flags, mode);
    if (fails()) return -1;
    return opened(REAL(openat)(dir, path, flags, mode), full, flags);
}

#define MODE(flags) mode_t mode = 0; if ((flags) & O_CREAT) { va_list v; va_start(v, flags); mode = va_arg(v, mode_t); va_end(v); }

int open(const char *path, int flags, ...) { MODE(flags) return open_any(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_any(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE(flags) return open_any(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE(flags) return open_any(dir, path, flags, mode); }

int close(int fd) {
    if (fd >= 0 && fd < MAX_FD && path_of[fd]) {
        free(path_of[fd]);
        path_of[fd] = NULL;
    }
    return REAL(close)(fd);
}

ssize_t read(int fd, void *data, size_t size) {
    if (below(fd) && fails()) return -1;
    return REAL(read)(fd, data, size);
}

ssize_t pread64(int fd, void *data, size_t size, off64_t offset) {
    if (below(fd) && fails()) return -1;
    return REAL(pread64)(fd, data, size, offset);
}

static ssize_t write_any(int fd, const void *data, size_t size, int64_t offset) {
    int is_here = offset < 0, at = done + 1 == target;
    if (fails()) return -1;
    if (at && (kind == SHORT || kind == KILL_INSIDE) && size > 1) size /= 2;
    if (is_here) {
        offset = lseek(fd, 0, SEEK_CUR);
        if (fcntl(fd, F_GETFL) & O_APPEND) offset = lseek(fd, 0, SEEK_END);
    }
    ssize_t written = is_here ? REAL(write)(fd, data, size) : REAL(pwrite64)(fd, data, size, offset);
    if (written > 0) record('w', path_of[fd], data, written, inode(fd), offset);
    after();
    return written;
}

ssize_t write(int fd, const void *data, size_t size) {
    return below(fd) ? write_any(fd, data, size, -1) : REAL(write)(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    return below(fd) ? write_any(fd, data, size, offset) : REAL(pwrite64)(fd, data, size, offset);
}

int fsync(int fd) {
    if (!below(fd)) return REAL(fsync)(fd);
    if (fails()) return -1;
    record('s', path_of[fd], "", 0, inode(fd), 0); /* the disk itself need not be waited for */
    after();
    return 0;
}

int ftruncate64(int fd, off64_t size) {
    if (!below(fd)) return REAL(ftruncate64)(fd, size);
    if (fails()) return -1;
    int result = REAL(ftruncate64)(fd, size);
    if (!result) record('t', path_of[fd], "", 0, inode(fd), size);
    after();
    return result;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int change(char op, int dir, const char *path, int dir2, const char *path2, mode_t mode) {
    char a[PATH_MAX], b[PATH_MAX] = "";
    join(a, dir, path);
    if (path2) join(b, dir2, path2);
    int counts = is_below(a) || is_below(b);
    if (counts && fails()) return -1;
    int result = op == 'r' ? REAL(renameat)(dir, path, dir2, path2)
               : op == 'm' ? REAL(mkdirat)(dir, path, mode)
                           : REAL(unlinkat)(dir, path, op == 'd' ? AT_REMOVEDIR : 0);
    if (counts && !result) record(op, a, b, strlen(b), 0, 0);
    if (counts) after();
    return result;
}

int rename(const char *a, const char *b) { return change('r', AT_FDCWD, a, AT_FDCWD, b, 0); }
int renameat(int d, const char *a, int e, const char *b) { return change('r', d, a, e, b, 0); }
int mkdir(const char *a, mode_t mode) { return change('m', AT_FDCWD, a, 0, NULL, mode); }
int mkdirat(int d, const char *a, mode_t mode) { return change('m', d, a, 0, NULL, mode); }
int unlink(const char *a) { return change('u', AT_FDCWD, a, 0, NULL, 0); }
int unlinkat(int d, const char *a, int flags) { return change(flags & AT_REMOVEDIR ? 'd' : 'u', d, a, 0, NULL, 0); }
int rmdir(const char *a) { return change('d', AT_FDCWD, a, 0, NULL, 0); }
