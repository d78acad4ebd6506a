// Results written past the caches; cache.h says when.
#pragma once

#include <string.h>

#include "lanes.h"

namespace fastgen {
namespace {

// `bytes` is a multiple of 32, and so is the address. `stream_end` comes after the last.
FASTGEN_LANE void stream_bytes(void* to, const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 32) {
    _mm256_stream_si256((__m256i*)((char*)to + i), _mm256_loadu_si256((const __m256i*)((const char*)from + i)));
  }
}

// A run of results that were kept, to where they belong: past the caches where `stream` asks for it and they fit.
template <class S>
FASTGEN_LANE void put_run(S* to, const S* from, int64_t n, bool stream) {
  int64_t bytes = n * sizeof(S);
  if (stream && (reinterpret_cast<uintptr_t>(to) | bytes) % 32 == 0) return stream_bytes(to, from, bytes);
  memcpy(to, from, bytes);
}

}  // namespace
}  // namespace fastgen
