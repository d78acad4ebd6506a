// How a kernel file, compiled once per instruction set, hands its functions to the code that is compiled once.
//
// Each file defines one table of function pointers per instruction set: `FASTGEN_TABLE(gated_activation)` names it
// gated_activation_avx2 or gated_activation_avx512. Everything else in such a file is static and uses no STL, so that
// no inline function compiled for AVX-512 can be picked by the linker for a machine without it.
#pragma once

#include <stdint.h>

#define FASTGEN_CONCAT_(a, b) a##_##b
#define FASTGEN_CONCAT(a, b) FASTGEN_CONCAT_(a, b)
#define FASTGEN_TABLE(name) FASTGEN_CONCAT(name, FASTGEN_ISA)

// Declares the tables of a family; FASTGEN_PICK returns the one for this machine.
#define FASTGEN_DECLARE_TABLES(Table, name) extern "C" const Table name##_avx2, name##_avx512
#define FASTGEN_PICK(name) (::fastgen::cpu_level() >= 2 ? name##_avx512 : name##_avx2)

namespace fastgen {
int64_t cpu_level();
}
