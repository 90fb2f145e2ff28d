/* Writes down what a process does to the files below $MTOR_DISK_ROOT, so that a test can tell what a power loss may
 * leave of them. Loaded with LD_PRELOAD; the record goes to the file $MTOR_DISK_RECORD.
 *
 * Rule: a call is recorded after it was done, in the order in which it was done. A sync is recorded when it begins and
 * again when it has ended: what was recorded before its beginning is then on the disk. A process that is killed between
 * a call and its record leaves a record of slightly less, which is a power loss slightly earlier.
 *
 * Record: operation u8, number u64, offset u64, first length u32, second length u32 (little-endian), both byte strings.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_DESCRIPTORS 65536

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned char watched[MAX_DESCRIPTORS];
static int record_descriptor = -1;
static char root[PATH_MAX];
static size_t root_length;

static int (*real_open)(const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_rename)(const char *, const char *);
static int (*real_unlink)(const char *);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_mkdir)(const char *, mode_t);
static int (*real_ftruncate)(int, off_t);

__attribute__((constructor)) static void start(void) {
    real_open = dlsym(RTLD_NEXT, "open");
    real_close = dlsym(RTLD_NEXT, "close");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_rename = dlsym(RTLD_NEXT, "rename");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    real_unlinkat = dlsym(RTLD_NEXT, "unlinkat");
    real_mkdir = dlsym(RTLD_NEXT, "mkdir");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
    const char *folder = getenv("MTOR_DISK_ROOT"), *record = getenv("MTOR_DISK_RECORD");
    if (!folder || !record || strlen(folder) >= sizeof root) return;
    strcpy(root, folder);
    root_length = strlen(root);
    record_descriptor = real_open(record, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (record_descriptor < 0) {
        fprintf(stderr, "disk_recorder: %s cannot be written\n", record);
        _exit(97);
    }
}

static int below_root(const char *path) {
    return record_descriptor >= 0 && path && !strncmp(path, root, root_length) &&
           (path[root_length] == '/' || path[root_length] == 0);
}

static int is_watched(int descriptor) {
    return descriptor >= 0 && descriptor < MAX_DESCRIPTORS && watched[descriptor];
}

static void record(uint8_t operation, uint64_t number, uint64_t offset, const void *first, uint32_t first_length,
                   const void *second, uint32_t second_length) {
    unsigned char head[25];
    int kept = errno;
    head[0] = operation;
    memcpy(head + 1, &number, 8);
    memcpy(head + 9, &offset, 8);
    memcpy(head + 17, &first_length, 4);
    memcpy(head + 21, &second_length, 4);
    struct iovec parts[3] = {{head, sizeof head}, {(void *)first, first_length}, {(void *)second, second_length}};
    ssize_t wanted = (ssize_t)(sizeof head + first_length + second_length);
    if (writev(record_descriptor, parts, 3) != wanted) {
        fprintf(stderr, "disk_recorder: the record cannot be written\n");
        _exit(97);
    }
    errno = kept;
}

static uint64_t inode(int descriptor) {
    struct stat status;
    return fstat(descriptor, &status) ? 0 : status.st_ino;
}

static int opened(const char *path, int flags, mode_t mode) {
    if (!below_root(path)) return real_open(path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat before;
    int existed = !stat(path, &before);
    int descriptor = real_open(path, flags, mode);
    if (descriptor >= 0 && descriptor < MAX_DESCRIPTORS) {
        watched[descriptor] = 1;
        if (!existed) record('C', inode(descriptor), 0, path, strlen(path), NULL, 0);
        else if (flags & O_TRUNC) record('T', inode(descriptor), 0, NULL, 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return descriptor;
}

static mode_t mode_of(int flags, va_list arguments) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0; }

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return opened(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return opened(path, flags, mode);
}

int close(int descriptor) {
    if (descriptor >= 0 && descriptor < MAX_DESCRIPTORS) watched[descriptor] = 0;
    return real_close(descriptor);
}

ssize_t write(int descriptor, const void *data, size_t length) {
    if (!is_watched(descriptor)) return real_write(descriptor, data, length);
    pthread_mutex_lock(&lock);
    ssize_t done = real_write(descriptor, data, length);
    if (done > 0) record('W', inode(descriptor), (uint64_t)(lseek(descriptor, 0, SEEK_CUR) - done), data, done, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t pwrite(int descriptor, const void *data, size_t length, off_t offset) {
    if (!is_watched(descriptor)) return real_pwrite(descriptor, data, length, offset);
    pthread_mutex_lock(&lock);
    ssize_t done = real_pwrite(descriptor, data, length, offset);
    if (done > 0) record('W', inode(descriptor), (uint64_t)offset, data, done, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t pwrite64(int descriptor, const void *data, size_t length, off_t offset) {
    return pwrite(descriptor, data, length, offset);
}

static int synced(int descriptor, int (*sync)(int)) {
    if (!is_watched(descriptor)) return sync(descriptor);
    uint64_t number = inode(descriptor), thread = (uint64_t)syscall(SYS_gettid);
    pthread_mutex_lock(&lock);
    record('B', number, thread, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    int result = sync(descriptor);
    pthread_mutex_lock(&lock);
    if (!result) record('S', number, thread, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int fsync(int descriptor) { return synced(descriptor, real_fsync); }

int fdatasync(int descriptor) { return synced(descriptor, real_fdatasync); }

int rename(const char *from, const char *to) {
    if (!below_root(from) && !below_root(to)) return real_rename(from, to);
    pthread_mutex_lock(&lock);
    int result = real_rename(from, to);
    if (!result) record('R', 0, 0, from, strlen(from), to, strlen(to));
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *path) {
    if (!below_root(path)) return real_unlink(path);
    pthread_mutex_lock(&lock);
    int result = real_unlink(path);
    if (!result) record('U', 0, 0, path, strlen(path), NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

static int gone_at(int folder, const char *name, int flags) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = folder == AT_FDCWD || name[0] == '/' ? 0 : readlink(link, path, sizeof path - 1);
    if (length < 0) return real_unlinkat(folder, name, flags);
    path[length] = 0;
    size_t room = sizeof path - (size_t)length;
    int added = snprintf(path + length, room, "%s%s", length ? "/" : "", name);
    if (added < 0 || (size_t)added >= room || !below_root(path)) return real_unlinkat(folder, name, flags);
    pthread_mutex_lock(&lock);
    int result = real_unlinkat(folder, name, flags);
    if (!result) record('U', 0, 0, path, strlen(path), NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int unlinkat(int folder, const char *name, int flags) { return gone_at(folder, name, flags); }

int rmdir(const char *path) { return gone_at(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdir(const char *path, mode_t mode) {
    if (!below_root(path)) return real_mkdir(path, mode);
    pthread_mutex_lock(&lock);
    int result = real_mkdir(path, mode);
    struct stat status;
    if (!result && !stat(path, &status)) record('M', status.st_ino, 0, path, strlen(path), NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate(int descriptor, off_t length) {
    if (!is_watched(descriptor)) return real_ftruncate(descriptor, length);
    pthread_mutex_lock(&lock);
    int result = real_ftruncate(descriptor, length);
    if (!result) record('T', inode(descriptor), (uint64_t)length, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate64(int descriptor, off_t length) { return ftruncate(descriptor, length); }
