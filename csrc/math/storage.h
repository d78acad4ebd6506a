// Storage types and the type their mathematics is done in: bfloat16 is stored in 16 bits and computed in float.
#pragma once

#include <stdint.h>

#include "host_device.h"

namespace fastgen {

struct BFloat16 {
  uint16_t bits;
};

FASTGEN_HD float load(const float* p) { return *p; }
FASTGEN_HD double load(const double* p) { return *p; }
FASTGEN_HD float load(const BFloat16* p) {
  union {
    uint32_t bits;
    float value;
  } wide;
  wide.bits = (uint32_t)p->bits << 16;
  return wide.value;
}

FASTGEN_HD void store(float* p, float value) { *p = value; }
FASTGEN_HD void store(double* p, double value) { *p = value; }
// Rounds to nearest, ties to even; a NaN keeps its quiet bit.
FASTGEN_HD void store(BFloat16* p, float value) {
  union {
    float value;
    uint32_t bits;
  } wide;
  wide.value = value;
  uint32_t rounded = (wide.bits + 0x7FFF + ((wide.bits >> 16) & 1)) >> 16;
  uint32_t quiet = (wide.bits >> 16) | 0x40;
  p->bits = (uint16_t)(value == value ? rounded : quiet);
}

template <class Stored>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

}  // namespace fastgen
