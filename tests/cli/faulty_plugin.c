/* A PJRT plugin in front of another one, REAL_PLUGIN, whose execution number FAULT_AT (from 1 on)
 * fails. The test that compiles this file defines EXECUTE, the entry point's index in PJRT_Api. */
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  size_t struct_size;
  void *extensions;
  struct {
    size_t struct_size;
    void *extensions;
    int major, minor;
  } version;
  void *entry_points[512];
} Api;

typedef void *(*Execute)(void *arguments);

static Api api;
static Execute real_execute;
static atomic_int executions;

static void *execute(void *arguments) {
  if (atomic_fetch_add(&executions, 1) + 1 != atoi(getenv("FAULT_AT"))) {
    return real_execute(arguments);
  }
  /* Arguments of size 0 make the real plugin return an error, and do nothing. */
  static char nothing[1024];
  return real_execute(nothing);
}

const void *GetPjrtApi(void) {
  const Api *(*get)(void) =
      (const Api *(*)(void))dlsym(dlopen(getenv("REAL_PLUGIN"), RTLD_NOW), "GetPjrtApi");
  const Api *real = get();
  if (real->struct_size > sizeof api) abort();
  memcpy(&api, real, real->struct_size);
  real_execute = (Execute)api.entry_points[EXECUTE];
  api.entry_points[EXECUTE] = (void *)execute;
  return &api;
}
