// Denormal numbers cost a hundred cycles each and change no result that matters: kernels take and give zeros instead.
#pragma once

#include <immintrin.h>

namespace fastgen {
namespace {

// Flushes denormals to zero on the thread that makes it, for as long as it lives.
class DenormalsAreZero {
 public:
  DenormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~DenormalsAreZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
};

}  // namespace
}  // namespace fastgen
