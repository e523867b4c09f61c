/* Fails the Nth call of a kind on files below a folder, in a process that loads this with LD_PRELOAD.

fault_arm(kind, nth, error, below) begins counting; nth = 0 only counts. fault_count() tells how many calls there were,
fault_path() the file of the one that failed, "" before. Kinds: open read stat list mmap close unlink write sync rename.
*/
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char armed[16], folder[4096], failed[4096];
static long wanted, counted;
static int code;

void fault_arm(const char *kind, long nth, int error, const char *below) {
    counted = 0, wanted = nth, code = error, failed[0] = 0;
    snprintf(folder, sizeof folder, "%s", below);
    snprintf(armed, sizeof armed, "%s", kind);
}
long fault_count(void) { return counted; }
const char *fault_path(void) { return failed; }

/* Whether this call fails; the name is that of a file, relative ones are none of ours. */
static int fails(const char *kind, const char *name) {
    if (!armed[0] || !name || strcmp(kind, armed) || strncmp(name, folder, strlen(folder))) return 0;
    if (__atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST) != wanted) return 0;
    snprintf(failed, sizeof failed, "%s", name);
    errno = code;
    return 1;
}
/* The file `path` of the folder that is open as `fd`; what is open as `fd` itself where the path is "". */
static int fails_at(const char *kind, int fd, const char *path) {
    char link[64], name[4096];
    if (!armed[0] || strcmp(kind, armed)) return 0;
    if (path[0] == '/' || fd == AT_FDCWD) return fails(kind, path);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long size = syscall(SYS_readlink, link, name, sizeof name - 1);
    if (size <= 0) return 0;
    name[size] = 0;
    if (path[0]) snprintf(name + size, sizeof name - size, "/%s", path);
    return fails(kind, name);
}
static int fails_fd(const char *kind, int fd) { return fails_at(kind, fd, ""); }

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, #name)
#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
#define BY_NAME(kind, type, bad, name, declared, given, path) \
    type name declared { REAL(name); return fails(kind, path) ? bad : real given; }
#define BY_AT(kind, type, bad, name, declared, given) \
    type name declared { REAL(name); return fails_at(kind, at, path) ? bad : real given; }
#define BY_FD(kind, type, bad, name, declared, given) \
    type name declared { REAL(name); return fails_fd(kind, fd) ? bad : real given; }

int open(const char *path, int flags, ...) { MODE REAL(open); return fails("open", path) ? -1 : real(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE REAL(open64); return fails("open", path) ? -1 : real(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE REAL(openat); return fails_at("open", at, path) ? -1 : real(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE REAL(openat64); return fails_at("open", at, path) ? -1 : real(at, path, flags, mode); }
BY_FD("read", ssize_t, -1, read, (int fd, void *to, size_t n), (fd, to, n))
BY_FD("read", ssize_t, -1, pread64, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at))
BY_FD("read", ssize_t, -1, readv, (int fd, const struct iovec *v, int n), (fd, v, n))
BY_FD("read", ssize_t, -1, preadv64, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at))
BY_NAME("stat", int, -1, stat, (const char *path, struct stat *to), (path, to), path)
BY_NAME("stat", int, -1, stat64, (const char *path, struct stat64 *to), (path, to), path)
BY_NAME("stat", int, -1, lstat, (const char *path, struct stat *to), (path, to), path)
BY_NAME("stat", int, -1, lstat64, (const char *path, struct stat64 *to), (path, to), path)
BY_FD("stat", int, -1, fstat, (int fd, struct stat *to), (fd, to))
BY_FD("stat", int, -1, fstat64, (int fd, struct stat64 *to), (fd, to))
BY_AT("stat", int, -1, fstatat64, (int at, const char *path, struct stat64 *to, int flags), (at, path, to, flags))
BY_NAME("list", DIR *, NULL, opendir, (const char *path), (path), path)
BY_FD("list", DIR *, NULL, fdopendir, (int fd), (fd))
struct dirent64 *readdir64(DIR *dir) { REAL(readdir64); return fails_fd("list", dirfd(dir)) ? NULL : real(dir); }
BY_FD("mmap", void *, MAP_FAILED, mmap, (void *to, size_t n, int may, int how, int fd, off_t at), (to, n, may, how, fd, at))
BY_FD("mmap", void *, MAP_FAILED, mmap64, (void *to, size_t n, int may, int how, int fd, off64_t at), (to, n, may, how, fd, at))
int close(int fd) { REAL(close); int bad = fails_fd("close", fd), error = errno, done = real(fd); return bad ? (errno = error, -1) : done; }
BY_NAME("unlink", int, -1, unlink, (const char *path), (path), path)
BY_AT("unlink", int, -1, unlinkat, (int at, const char *path, int flags), (at, path, flags))
BY_NAME("unlink", int, -1, rmdir, (const char *path), (path), path)
BY_FD("write", ssize_t, -1, write, (int fd, const void *from, size_t n), (fd, from, n))
BY_FD("write", ssize_t, -1, pwrite64, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at))
BY_FD("write", int, -1, ftruncate64, (int fd, off64_t n), (fd, n))
BY_NAME("write", int, -1, mkdir, (const char *path, mode_t mode), (path, mode), path)
BY_FD("sync", int, -1, fsync, (int fd), (fd))
BY_FD("sync", int, -1, fdatasync, (int fd), (fd))
BY_NAME("rename", int, -1, rename, (const char *old, const char *new), (old, new), new)
BY_NAME("rename", int, -1, renameat2, (int a, const char *old, int b, const char *new, unsigned flags), (a, old, b, new, flags), new)
