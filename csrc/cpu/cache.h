// When a result should be written past the caches.
#pragma once

#include <stdint.h>

namespace fastgen {

// Whether a result of so many bytes leaves the caches before anyone reads it: written past them, what it overwrites
// need not be read first. A result that fits is better kept. A quarter of 32 MiB is what a few cores can count on; a
// last level that is reported larger is shared by more of them, or by the neighbours of a virtual machine.
inline bool exceeds_caches(int64_t bytes) { return bytes > int64_t(8) << 20; }

}  // namespace fastgen
