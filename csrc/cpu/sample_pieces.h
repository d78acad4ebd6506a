// A flat batch [samples, size] is shared among threads in pieces of a fixed length, whatever the samples' size, so that
// a piece stays in the first cache and sums do not depend on the number of threads.
#pragma once

#include <cstring>

#include "philox_normal.h"
#include "registration.h"

namespace fastgen {

constexpr int64_t kPiece = 32 * kNormalBlock;

// Calls body(first, count) for every piece of `total` elements, from several threads.
template <class Body>
void for_each_piece(int64_t total, const Body& body) {
  parallel_for(0, ratio_up(total, kPiece), kGrain / kPiece, [&](int64_t begin, int64_t end) {
    DenormalsAreZero guard;
    for (int64_t piece = begin; piece < end; ++piece) {
      int64_t first = piece * kPiece;
      body(first, std::min(kPiece, total - first));
    }
  });
}

// Calls body(sample, at, count) for the part of each sample in the elements [first, first + count); `at` counts from
// the first.
template <class Body>
void for_each_sample_in(int64_t first, int64_t count, int64_t size, const Body& body) {
  for (int64_t at = 0; at < count;) {
    int64_t sample = (first + at) / size, here = std::min(count, (sample + 1) * size - first) - at;
    body(sample, at, here);
    at += here;
  }
}

// Gives every element of a piece the number of its sample.
template <class T>
void spread_out(const T* of_samples, int64_t first, int64_t count, int64_t size, T* out) {
  for_each_sample_in(first, count, size, [&](int64_t sample, int64_t at, int64_t here) {
    // A few by hand, the rest by copies that double: these files are compiled for any CPU, where a loop stores one
    // number at a time and memcpy is as wide as the CPU there is.
    constexpr int64_t kFew = 16;
    int64_t done = std::min(here, kFew);
    for (int64_t i = 0; i < done; ++i) out[at + i] = of_samples[sample];
    for (; done < here; done += std::min(done, here - done)) {
      std::memcpy(out + at + done, out + at, size_t(std::min(done, here - done)) * sizeof(T));
    }
  });
}

// The seed of an op that draws: a number, or one that lies in a tensor.
inline uint64_t seed_of(int64_t seed, const OptionalTensor& seed_tensor) {
  if (!seed_tensor) return static_cast<uint64_t>(seed);
  STD_TORCH_CHECK(is_run(*seed_tensor, 1, ScalarType::Long), "the seed must be one int64");
  return static_cast<uint64_t>(*data<int64_t>(seed_tensor));
}

// The normal numbers of a piece.
inline void draw_normals(float* out, int64_t first, int64_t count, uint64_t seed, uint64_t offset) {
  FASTGEN_PICK(philox_normal).fill(out, first / kNormalBlock, ratio_up(count, kNormalBlock), seed, offset);
}

// The sum of each sample, added up from the parts that pieces have of it.
class SampleSums {
 public:
  SampleSums(int64_t samples, int64_t size) : samples_(samples), size_(size) {
    parts_.resize(samples + ratio_up(samples * size, kPiece));
  }

  // May be called by several threads; `first` is the piece's first element.
  void add(int64_t sample, int64_t first, double part) { parts_[sample + first / kPiece] += part; }

  // out[i] = factor times the sum of sample i, plus a constant.
  template <class T>
  void write(T* out, double factor, double constant) const {
    for (int64_t i = 0; i < samples_; ++i) {
      double sum = 0;
      // The index of a part grows by one with each sample and with each piece, so that no two parts share one.
      if (size_ > 0) {
        int64_t from = i * size_ / kPiece, to = ((i + 1) * size_ - 1) / kPiece;
        for (int64_t piece = from; piece <= to; ++piece) sum += parts_[i + piece];
      }
      out[i] = T(factor * sum + constant);
    }
  }

 private:
  int64_t samples_, size_;
  std::vector<double> parts_;
};

}  // namespace fastgen
