// A sampling session: a compiled plan, the arenas in which it runs, and the threads that share it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "plan.h"

namespace fastgen {
namespace sampling {

// The kernels of an instruction set ("avx2", "avx512"). Throws std::invalid_argument if they were not built.
const SamplingKernels& kernels_named(const std::string& isa);

struct SessionOptions {
  int batch;
  int threads;
  int team_size;  // threads that share an image, at least 1
  std::string isa;
};

template <class T>
class Session {
 public:
  Session(std::shared_ptr<const Program> program, const Draw& draw, const SessionOptions& options);

  // Draws whole images into `levels` [batch, channels, height, width], which holds the given levels where `mask` (the
  // same shape, or null) is not zero. Returns kDone, or the first step without a distribution to draw from.
  int64_t run(const double* noise, int64_t* levels, const uint8_t* mask);
  // The outputs [steps, batch, output channels] for a known image.
  void teacher_force(const T* values, T* outputs);
  // The outputs [batch, output channels] of one step; the values of all earlier steps must have been fed.
  void evaluate(int64_t step, T* outputs);
  // Makes `values` [batch, channels drawn] known at a step.
  void feed(int64_t step, const T* values);
  // Forgets everything but the constants: all rings hold NaN, so that a value read before it was written shows.
  void reset();
  // Replaces a constant, `data` [1 or batch, ring rows, ring cols, channels].
  void set_constant(int node, const double* data, int64_t batch);

  const Program& program() const { return *program_; }
  int batch() const { return options_.batch; }
  const Draw& draw() const { return compiled_.plan().draw; }
  int64_t ring_bytes() const;
  int64_t weight_bytes() const { return compiled_.weight_elements() * static_cast<int64_t>(sizeof(T)); }

 private:
  // One share of the batch: arenas, scratch and a worker for each member of its team.
  struct Share {
    Team<T> team{};
    std::vector<AlignedBuffer<T>> arenas;
    std::vector<Worker<T>> workers;
  };
  struct WorkerMemory {
    std::vector<const T*> addresses;
    std::vector<const T* const*> operands;
    std::vector<Stream<T>> streams;
    AlignedBuffer<T> probabilities;
  };

  int num_shares() const { return static_cast<int>(shares_.size()); }
  Scratch<T> new_scratch();
  void fill_arena(T* arena);
  int64_t run(const Job<T>& job, int team_size);
  int64_t run_kernel(const Worker<T>& worker, const Job<T>& job) const;

  std::shared_ptr<const Program> program_;
  SessionOptions options_;
  const SamplingKernels& kernels_;
  CompiledPlan<T> compiled_;
  std::vector<std::unique_ptr<Share>> shares_;
  std::vector<std::unique_ptr<WorkerMemory>> scratch_;
};

extern template class Session<float>;
extern template class Session<double>;

}  // namespace sampling
}  // namespace fastgen
