#pragma once

#include "kernel_table.h"

namespace fastgen {

// Normal numbers that depend only on (seed, offset) and on their index: element 64 b + 16 j + l is number j of
// the four that Philox's counter (16 b + l, offset) gives under the key `seed`. Fills `blocks` blocks of 64, the first
// of which is block `first_block`.
constexpr int64_t kNormalBlock = 64;

struct PhiloxNormalTable {
  void (*fill)(float* out, int64_t first_block, int64_t blocks, uint64_t seed, uint64_t offset);
};

}  // namespace fastgen

FASTGEN_DECLARE_TABLES(fastgen::PhiloxNormalTable, philox_normal);
