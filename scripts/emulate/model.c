// Preloaded into Python by emulate.py: gives the emulator another processor than the one that it was built for, and, on systems
// older than the one that it was built on, the functions of the C library that it lacks. Functions with the emulator's own
// names are called in the place of its own.

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <link.h>

static int find(struct dl_phdr_info *info, size_t size, void *path) {
  (void)size;
  if (strstr(info->dlpi_name, "/_bochscpu.") == NULL) return 0;
  *(const char **)path = info->dlpi_name;
  return 1;
}

// An instruction in the emulator's table.
struct opcode {
  void *execute_memory, *execute_register;
  unsigned char sources[4];
  unsigned short flags;
};

// The emulator (3.0) takes VDPBF16PS's memory operand for a single dword and scales short displacements by 4, not by the
// vector's length.
static void correct_vdpbf16ps(void *emulator) {
  struct opcode *table = dlsym(emulator, "BxOpcodesTable");
  void *execute = dlsym(emulator, "_ZN8BX_CPU_C25VDPBF16PS_MASK_VpsHdqWdqREP15bxInstruction_c");
  const unsigned char scalar_dword = 0x44, full_vector = 0x04;
  for (int i = 0; i < 4000; i++) {
    if (table[i].execute_register == execute && table[i].sources[2] == scalar_dword) table[i].sources[2] = full_vector;
  }
}

static void *emulator(void) {
  const char *path = NULL;
  dl_iterate_phdr(find, &path);
  return dlopen(path, RTLD_NOLOAD | RTLD_LAZY);
}

// create_corei3_cnl_cpuid, the processor that it was built for.
void *_Z23create_corei3_cnl_cpuidP8BX_CPU_C(void *cpu) {
  correct_vdpbf16ps(emulator());
  void *(*create)(void *) = (void *(*)(void *))dlsym(emulator(), "_Z28create_sapphire_rapids_cpuidP8BX_CPU_C");
  return create(cpu);
}

// sapphire_rapids_t::get_cpuid_leaf, which leaves AMX out where the emulator was built without.
#define GET_CPUID_LEAF _ZNK17sapphire_rapids_t14get_cpuid_leafEjjP16cpuid_function_t
#define QUOTE(x) #x
#define NAME(x) QUOTE(x)
void GET_CPUID_LEAF(void *model, unsigned function, unsigned subfunction, unsigned leaf[4]) {
  void (*get)(void *, unsigned, unsigned, unsigned *) =
      (void (*)(void *, unsigned, unsigned, unsigned *))dlsym(emulator(), NAME(GET_CPUID_LEAF));
  get(model, function, subfunction, leaf);
  const unsigned amx_bf16 = 1 << 22, amx_tile = 1 << 24;
  if (function == 7 && subfunction == 0) leaf[3] |= amx_bf16 | amx_tile;
}

unsigned long long __isoc23_strtoull(const char *text, char **end, int base) { return strtoull(text, end, base); }

int __isoc23_sscanf(const char *text, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int read = vsscanf(text, format, arguments);
  va_end(arguments);
  return read;
}
