// How a kernel file, compiled once per instruction set, hands its functions to the code that is compiled once.
//
// A family's header says what its functions are, `GatedActivationFunctions<S>` for the stored type S, and declares the
// tables of both instruction sets; its kernel file defines the one that it is compiled for, gated_activation_avx2 or
// gated_activation_avx512; and FASTGEN_PICK(gated_activation) is the table for this machine. Everything else in such a
// file is static and uses no STL, so that no inline function compiled for AVX-512 can be picked by the linker for a
// machine without it.
#pragma once

#include <stdint.h>

#include "../math/storage.h"

#define FASTGEN_CONCAT_(a, b) a##_##b
#define FASTGEN_CONCAT(a, b) FASTGEN_CONCAT_(a, b)
#define FASTGEN_TABLE(name) FASTGEN_CONCAT(name, FASTGEN_ISA)

#define FASTGEN_DECLARE_TABLES(Table, name) extern "C" const Table name##_avx2, name##_avx512
// In namespace fastgen: the functions for float, double and, in a HalfTable, BFloat16.
#define FASTGEN_DEFINE_TABLE(name, ...) \
  extern "C" const decltype(FASTGEN_TABLE(name)) FASTGEN_TABLE(name) = {__VA_ARGS__}
#define FASTGEN_PICK(name) (::fastgen::cpu_level() >= 2 ? name##_avx512 : name##_avx2)

namespace fastgen {

// A value that is known when a kernel is compiled, as an argument: its type says which.
template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};

// 1: AVX2, 2: AVX-512.
int64_t cpu_level();

template <template <class...> class Functions>
struct Table {
  static constexpr bool kHasBFloat16 = false;
  Functions<float> f32;
  Functions<double> f64;

  template <class S>
  const Functions<S>& of() const {
    if constexpr (sizeof(S) == 8) {
      return f64;
    } else {
      return f32;
    }
  }
};

template <template <class...> class Functions>
struct HalfTable {
  static constexpr bool kHasBFloat16 = true;
  Functions<float> f32;
  Functions<double> f64;
  Functions<BFloat16> bf16;

  template <class S>
  const Functions<S>& of() const {
    if constexpr (sizeof(S) == 8) {
      return f64;
    } else if constexpr (sizeof(S) == 4) {
      return f32;
    } else {
      return bf16;
    }
  }
};

}  // namespace fastgen
