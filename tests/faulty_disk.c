/* Makes calls of the C library fail as a disk would: preloaded into a process (LD_PRELOAD).
 *
 * The file that FAULTY_DISK_RULES names holds a rule a line: "call errno pattern". It is read again at every call, so a
 * rule works from the moment it is written until it is removed. A call fails if the path it works on matches (fnmatch);
 * with a negative number it succeeds, so many milliseconds later.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static char rules_path[PATH_MAX];

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTY_DISK_RULES");
    if (path != NULL) snprintf(rules_path, sizeof rules_path, "%s", path);
}

/* Return the error that a call on a path is to fail with, or 0. */
static int fault(const char *call, const char *path) {
    char rules[8192];
    int saved = errno, found = 0;
    long size, descriptor;
    if (rules_path[0] == 0) return 0;
    descriptor = syscall(SYS_openat, AT_FDCWD, rules_path, O_RDONLY | O_CLOEXEC);
    if (descriptor >= 0) {
        size = syscall(SYS_read, descriptor, rules, sizeof rules - 1);
        syscall(SYS_close, descriptor);
        rules[size > 0 ? size : 0] = 0;
        char *rest = NULL;
        for (char *line = strtok_r(rules, "\n", &rest); line != NULL && !found; line = strtok_r(NULL, "\n", &rest)) {
            char name[32], pattern[1024];
            int number;
            if (sscanf(line, "%31s %d %1023s", name, &number, pattern) == 3 && strcmp(name, call) == 0 &&
                fnmatch(pattern, path, 0) == 0)
                found = number;
        }
    }
    if (found < 0) {
        struct timespec wait = {-found / 1000, -found % 1000 * 1000000L};
        nanosleep(&wait, NULL);
        found = 0;
    }
    errno = saved;
    return found;
}

static int fault_of(const char *call, int descriptor) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long size = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (rules_path[0] == 0 || size <= 0) return 0;
    path[size] = 0;
    return fault(call, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL_IF(expression)            \
    do {                               \
        int error_ = (expression);     \
        if (error_) {                  \
            errno = error_;            \
            return -1;                 \
        }                              \
    } while (0)

ssize_t write(int descriptor, const void *bytes, size_t size) {
    FAIL_IF(fault_of("write", descriptor));
    return REAL(write)(descriptor, bytes, size);
}

ssize_t read(int descriptor, void *bytes, size_t size) {
    FAIL_IF(fault_of("read", descriptor));
    return REAL(read)(descriptor, bytes, size);
}

int fsync(int descriptor) {
    FAIL_IF(fault_of("fsync", descriptor));
    return REAL(fsync)(descriptor);
}

int rename(const char *from, const char *to) {
    FAIL_IF(fault("rename", from));
    return REAL(rename)(from, to);
}

int mkdir(const char *path, mode_t mode) {
    FAIL_IF(fault("mkdir", path));
    return REAL(mkdir)(path, mode);
}

static int open_with(const char *name, const char *path, int flags, mode_t mode) {
    if (flags & O_CREAT) FAIL_IF(fault("create", path));
    return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name))(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return open_with("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return open_with("open64", path, flags, mode);
}
