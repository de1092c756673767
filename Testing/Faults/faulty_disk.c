/* A disk that fails, is slow, or keeps a diary: loaded before the C library, by LD_PRELOAD.

   Only regular files and folders below FAULTY_DISK_BELOW are concerned. Everything is read from the environment at each
   call, so that a forked process can have a disk of its own:

   FAULTY_DISK_ERRNO  the error, as a number, with which a call fails
   FAULTY_DISK_CALL   which: "write" once FAULTY_DISK_AFTER bytes have been written, "fsync", or "rename"
   FAULTY_DISK_DELAY  milliseconds that every write, fsync and rename takes longer
   FAULTY_DISK_LOG    file that every call is written to, in order
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static long long written;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_below(const char *path) {
    const char *below = getenv("FAULTY_DISK_BELOW");
    size_t length = below ? strlen(below) : 0;
    return length && strncmp(path, below, length) == 0 && (path[length] == 0 || path[length] == '/');
}

/* The path of an open file or folder below the folder; 0 for every other one. */
static int path_of(int fd, char *path) {
    char link[64];
    ssize_t length;
    if (!getenv("FAULTY_DISK_BELOW")) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

static void note(const char *call, long long number, const char *path, const char *other) {
    const char *log = getenv("FAULTY_DISK_LOG");
    char line[2 * PATH_MAX + 64];
    int fd, length;
    if (!log || !*log) return;
    length = snprintf(line, sizeof line, "%s\t%lld\t%s\t%s\n", call, number, path, other);
    fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return;
    syscall(SYS_write, fd, line, (size_t)length);
    syscall(SYS_close, fd);
}

static void wait_as_told(void) {
    const char *delay = getenv("FAULTY_DISK_DELAY");
    long ms = delay ? atol(delay) : 0;
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    if (ms > 0) nanosleep(&time, NULL);
}

/* Whether a call shall fail; errno is set then. */
static int fails(const char *call) {
    const char *number = getenv("FAULTY_DISK_ERRNO"), *which = getenv("FAULTY_DISK_CALL");
    if (!number || !*number || !which || strcmp(which, call) != 0) return 0;
    errno = atoi(number);
    return 1;
}

/* How many of `count` bytes may be written; -1, with errno, where none may. */
static ssize_t granted(int fd, size_t count) {
    char path[PATH_MAX];
    const char *after = getenv("FAULTY_DISK_AFTER");
    long long left = (after ? atoll(after) : 0) - written;
    if (!path_of(fd, path)) return (ssize_t)count;
    wait_as_told();
    if (fails("write") && count > 0) {
        if (left <= 0) return -1;
        if (left < (long long)count) count = (size_t)left;
    }
    written += (long long)count;
    note("write", (long long)count, path, "");
    return (ssize_t)count;
}

ssize_t write(int fd, const void *data, size_t count) {
    ssize_t allowed = granted(fd, count);
    return allowed < 0 ? -1 : REAL(write)(fd, data, (size_t)allowed);
}

ssize_t pwrite64(int fd, const void *data, size_t count, off64_t at) {
    ssize_t allowed = granted(fd, count);
    return allowed < 0 ? -1 : REAL(pwrite64)(fd, data, (size_t)allowed, at);
}

ssize_t pwrite(int fd, const void *data, size_t count, off_t at) { return pwrite64(fd, data, count, at); }

ssize_t writev(int fd, const struct iovec *parts, int number) {
    size_t total = 0;
    ssize_t allowed;
    for (int i = 0; i < number; i++) total += parts[i].iov_len;
    allowed = granted(fd, total);
    if (allowed < 0) return -1;
    if ((size_t)allowed == total) return REAL(writev)(fd, parts, number);
    return REAL(write)(fd, parts[0].iov_base, (size_t)allowed < parts[0].iov_len ? (size_t)allowed : parts[0].iov_len);
}

/* The C library's own streams do not come by way of write(). */
size_t fwrite(const void *data, size_t size, size_t count, FILE *stream) {
    ssize_t allowed = granted(fileno(stream), size * count);
    size_t whole = allowed < 0 || size == 0 ? 0 : (size_t)allowed / size;
    return REAL(fwrite)(data, size, whole, stream);
}

static int sync_with(int (*call)(int), int fd) {
    char path[PATH_MAX];
    if (path_of(fd, path)) {
        wait_as_told();
        if (fails("fsync")) return -1;
        note("fsync", 0, path, "");
    }
    return call(fd);
}

int fsync(int fd) { return sync_with(REAL(fsync), fd); }

int fdatasync(int fd) { return sync_with(REAL(fdatasync), fd); }

static int before_rename(const char *from, const char *to) {
    if (!is_below(to)) return 0;
    wait_as_told();
    if (fails("rename")) return -1;
    note("rename", 0, from, to);
    return 0;
}

int rename(const char *from, const char *to) { return before_rename(from, to) ? -1 : REAL(rename)(from, to); }

int renameat(int a, const char *from, int b, const char *to) {
    return before_rename(from, to) ? -1 : REAL(renameat)(a, from, b, to);
}

static int opened(int fd, int flags) {
    char path[PATH_MAX], number[16];
    int before = errno;
    if (fd >= 0 && (flags & O_ACCMODE) != O_RDONLY && path_of(fd, path)) {
        snprintf(number, sizeof number, "%d", fd);
        note("open", flags, path, number);
    }
    errno = before;
    return fd;
}

#define OPEN(name, ...)                                      \
    {                                                        \
        va_list rest;                                        \
        mode_t mode = 0;                                     \
        va_start(rest, flags);                               \
        if (flags & (O_CREAT | __O_TMPFILE)) mode = va_arg(rest, mode_t); \
        va_end(rest);                                        \
        return opened(REAL(name)(__VA_ARGS__, mode), flags); \
    }

int open(const char *path, int flags, ...) OPEN(open, path, flags)
int open64(const char *path, int flags, ...) OPEN(open64, path, flags)
int openat(int at, const char *path, int flags, ...) OPEN(openat, at, path, flags)
int openat64(int at, const char *path, int flags, ...) OPEN(openat64, at, path, flags)

int close(int fd) {
    char path[PATH_MAX];
    int before = errno;
    if (path_of(fd, path)) note("close", fd, path, "");
    errno = before;
    return REAL(close)(fd);
}
