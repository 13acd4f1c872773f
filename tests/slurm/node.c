/* Lets a node's clock differ, and shows it an old state of a shared folder. Loaded with LD_PRELOAD.

   NODE_CLOCK_SEC     by how many seconds the clock is ahead
   NODE_STALE_FOLDER  below it, what was created within the last NODE_STALE_SEC seconds is missing:
   NODE_STALE_SEC     files, folders, and their names in listings */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ({ static __typeof__(&name) f; if (!f) f = dlsym(RTLD_NEXT, #name); f; })

static const char *folder;
static long ahead_sec, stale_sec;

__attribute__((constructor)) static void read_environment(void) {
    const char *ahead = getenv("NODE_CLOCK_SEC"), *stale = getenv("NODE_STALE_SEC");
    ahead_sec = ahead ? atol(ahead) : 0;
    stale_sec = stale ? atol(stale) : 0;
    folder = getenv("NODE_STALE_FOLDER");
}

/* ------------------------------------------------------------------------------------ the clock */

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = REAL(clock_gettime)(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead_sec;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int failed = REAL(gettimeofday)(now, zone);
    now->tv_sec += ahead_sec;
    return failed;
}

time_t time(time_t *out) {
    time_t now = REAL(time)(NULL) + ahead_sec;
    if (out) *out = now;
    return now;
}

/* The kernel waits by its own clock. Deadlines of the monotonic clock are small numbers. */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict deadline) {
    static __typeof__(&pthread_cond_timedwait) wait;
    if (!wait) wait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2"); /* not the oldest */
    if (!wait) wait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    struct timespec until = *deadline;
    if (until.tv_sec > 1000000000) until.tv_sec -= ahead_sec;
    return wait(condition, mutex, &until);
}

/* ----------------------------------------------------------------------------------- the folder */

static int is_hidden(int dir, const char *path) {
    if (!folder || !path) return 0;
    char full[PATH_MAX], place[64];
    ssize_t length = 0;
    if (path[0] != '/') {
        snprintf(place, sizeof place, dir == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dir);
        length = readlink(place, full, PATH_MAX - 1);
        if (length < 0) return 0;
        full[length++] = '/';
    }
    snprintf(full + length, PATH_MAX - length, "%s", path);
    size_t size = strlen(folder);
    if (strncmp(full, folder, size) || full[size] != '/') return 0;
    struct statx found;
    struct timespec now;
    if (REAL(statx)(AT_FDCWD, full, AT_SYMLINK_NOFOLLOW, STATX_BTIME, &found)) return 0;
    REAL(clock_gettime)(CLOCK_REALTIME, &now);
    return now.tv_sec - found.stx_btime.tv_sec < stale_sec;
}

#define MISSING(dir, path) if (is_hidden(dir, path)) { errno = ENOENT; return -1; }
#define OPENED(dir, path, call) \
    mode_t mode = 0; \
    if (flags & O_CREAT) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
    else MISSING(dir, path) \
    return call;

int open(const char *path, int flags, ...) { OPENED(AT_FDCWD, path, REAL(open)(path, flags, mode)) }
int open64(const char *path, int flags, ...) { OPENED(AT_FDCWD, path, REAL(open64)(path, flags, mode)) }
int openat(int dir, const char *path, int flags, ...) { OPENED(dir, path, REAL(openat)(dir, path, flags, mode)) }
int openat64(int dir, const char *path, int flags, ...) { OPENED(dir, path, REAL(openat64)(dir, path, flags, mode)) }

int stat(const char *restrict path, struct stat *restrict out) { MISSING(AT_FDCWD, path) return REAL(stat)(path, out); }
int stat64(const char *restrict path, struct stat64 *restrict out) { MISSING(AT_FDCWD, path) return REAL(stat64)(path, out); }
int lstat(const char *restrict path, struct stat *restrict out) { MISSING(AT_FDCWD, path) return REAL(lstat)(path, out); }
int lstat64(const char *restrict path, struct stat64 *restrict out) { MISSING(AT_FDCWD, path) return REAL(lstat64)(path, out); }
int fstatat(int dir, const char *restrict path, struct stat *restrict out, int flags) { MISSING(dir, path) return REAL(fstatat)(dir, path, out, flags); }
int fstatat64(int dir, const char *restrict path, struct stat64 *restrict out, int flags) { MISSING(dir, path) return REAL(fstatat64)(dir, path, out, flags); }
int statx(int dir, const char *restrict path, int flags, unsigned mask, struct statx *restrict out) { MISSING(dir, path) return REAL(statx)(dir, path, flags, mask, out); }
int access(const char *path, int mode) { MISSING(AT_FDCWD, path) return REAL(access)(path, mode); }

struct dirent *readdir(DIR *listing) {
    struct dirent *entry;
    while ((entry = REAL(readdir)(listing)) && is_hidden(dirfd(listing), entry->d_name)) {}
    return entry;
}

struct dirent64 *readdir64(DIR *listing) {
    struct dirent64 *entry;
    while ((entry = REAL(readdir64)(listing)) && is_hidden(dirfd(listing), entry->d_name)) {}
    return entry;
}
