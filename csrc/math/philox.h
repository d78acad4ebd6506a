// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four random words that depend on
// nothing but a counter and a key, so that every backend draws the same numbers in whatever order its threads run.
#pragma once

#include <stdint.h>

#include "host_device.h"

namespace fastgen {

struct Words {
  uint32_t w0, w1, w2, w3;
};

// The words of the counter (index, offset) under the key `seed`; the low halves come first.
FASTGEN_HD Words philox(uint64_t index, uint64_t offset, uint64_t seed) {
  Words c = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)offset, (uint32_t)(offset >> 32)};
  uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t product0 = (uint64_t)c.w0 * 0xD2511F53u, product1 = (uint64_t)c.w2 * 0xCD9E8D57u;
    c = {(uint32_t)(product1 >> 32) ^ c.w1 ^ key0, (uint32_t)product1, (uint32_t)(product0 >> 32) ^ c.w3 ^ key1,
         (uint32_t)product0};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// The middle of one of 2^32 equal parts of (0, 1), exact in double.
FASTGEN_HD double uniform(uint32_t word) { return ((double)word + 0.5) * 0x1p-32; }

}  // namespace fastgen
