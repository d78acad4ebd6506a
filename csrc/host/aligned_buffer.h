// Memory for weights and rings: aligned to cache lines, and on huge pages where it is large enough to gain from them.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace fastgen {

template <class T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;

  explicit AlignedBuffer(size_t size) : size_(size) {
    const size_t alignment = size * sizeof(T) >= kHugePage ? kHugePage : kCacheLine;
    const size_t bytes = (size * sizeof(T) + alignment) / alignment * alignment;
    data_.reset(static_cast<T*>(std::aligned_alloc(alignment, bytes)));
    if (!data_) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (alignment == kHugePage) madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
  }

  T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_.get()[i]; }

 private:
  static constexpr size_t kCacheLine = 64, kHugePage = size_t{1} << 21;

  struct Free {
    void operator()(T* p) const { std::free(p); }
  };

  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

// Hands out aligned pieces of a few large buffers, one after another, and keeps them as long as it lives.
template <class T>
class Pool {
 public:
  T* take(size_t size) {
    const size_t aligned = (size + kAlignment - 1) / kAlignment * kAlignment;
    if (buffers_.empty() || used_ + aligned > buffers_.back().size()) {
      buffers_.emplace_back(aligned < kBufferSize ? kBufferSize : aligned);
      used_ = 0;
    }
    T* piece = buffers_.back().data() + used_;
    used_ += aligned;
    taken_ += aligned;
    return piece;
  }

  size_t taken() const { return taken_; }

 private:
  static constexpr size_t kAlignment = 64 / sizeof(T), kBufferSize = (size_t{1} << 22) / sizeof(T);

  std::vector<AlignedBuffer<T>> buffers_;
  size_t used_ = 0, taken_ = 0;
};

}  // namespace fastgen
