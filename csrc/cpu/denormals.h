// Denormal results of exponentials, which no sum needs.
#pragma once

#include <immintrin.h>

namespace fastgen {
namespace {

// Results below the normal numbers are zero inside its scope: they take a hundred cycles each and change no sum.
class DenormalsAreZero {
 public:
  DenormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~DenormalsAreZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
};

}  // namespace
}  // namespace fastgen
