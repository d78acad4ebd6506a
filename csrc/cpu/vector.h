// Vectors of the instruction set that a file is compiled for, by GCC's vector extension: enough where products are
// summed. Where lanes are compared and chosen, lanes.h makes better code.
#pragma once

#include <stdint.h>

namespace fastgen {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#else
constexpr int kVectorBytes = 32;
#endif

// Aligned to an element only: a run of elements may begin anywhere.
template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <class T>
inline Vector<T> load_vector(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}

template <class T>
inline void store_vector(T* p, Vector<T> v) {
  *reinterpret_cast<Vector<T>*>(p) = v;
}

}  // namespace
}  // namespace fastgen
