// Preloaded, it lets the n-th write, fsync, rename or read below a folder fail, or kills the process there.
// SATEN_FAULT=KIND:N:ERRNO:FOLDER sets it at the start, fault_set later; an ERRNO of 0 is SIGKILL.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char kind[16], folder[4096];
static int nth, code;
static atomic_int seen;

void fault_set(const char *new_kind, int new_nth, int new_code, const char *new_folder) {
  snprintf(kind, sizeof kind, "%s", new_kind);
  snprintf(folder, sizeof folder, "%s", new_folder);
  nth = new_nth, code = new_code, seen = 0;
}

int fault_seen(void) { return seen; }

__attribute__((constructor)) static void from_environment(void) {
  const char *said = getenv("SATEN_FAULT");
  if (said) sscanf(said, "%15[^:]:%d:%d:%4095s", kind, &nth, &code, folder);
}

static int fails(const char *what, const char *path) {
  if (!nth || strcmp(what, kind) || strncmp(path, folder, strlen(folder)) || ++seen != nth) return 0;
  if (!code) kill(getpid(), SIGKILL);
  errno = code;
  return 1;
}

static int fails_at(const char *what, int handle) {
  char name[64], path[4096];
  if (!nth || strcmp(what, kind)) return 0;
  snprintf(name, sizeof name, "/proc/self/fd/%d", handle);
  ssize_t size = readlink(name, path, sizeof path - 1);
  path[size < 0 ? 0 : size] = 0;
  return fails(what, path);
}

#define REAL(function) ((__typeof__(&function))dlsym(RTLD_NEXT, #function))
#define WRAP(what, type, function, parameters, arguments, handle) \
  type function parameters { return fails_at(what, handle) ? -1 : REAL(function) arguments; }

WRAP("write", ssize_t, write, (int f, const void *b, size_t n), (f, b, n), f)
WRAP("write", ssize_t, writev, (int f, const struct iovec *v, int n), (f, v, n), f)
WRAP("write", ssize_t, pwrite, (int f, const void *b, size_t n, off_t o), (f, b, n, o), f)
WRAP("write", ssize_t, pwrite64, (int f, const void *b, size_t n, off64_t o), (f, b, n, o), f)
WRAP("write", int, ftruncate64, (int f, off64_t n), (f, n), f)
WRAP("read", ssize_t, read, (int f, void *b, size_t n), (f, b, n), f)
WRAP("read", ssize_t, pread64, (int f, void *b, size_t n, off64_t o), (f, b, n, o), f)
WRAP("fsync", int, fsync, (int f), (f), f)
WRAP("fsync", int, fdatasync, (int f), (f), f)

int rename(const char *from, const char *to) { return fails("rename", to) ? -1 : REAL(rename)(from, to); }

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  return fails("rename", to) ? -1 : REAL(renameat2)(a, from, b, to, flags);
}
