#include "session.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "../cpu/muster.h"

namespace fastgen {
namespace sampling {
namespace {

int shares_of(const SessionOptions& options) {
  return std::max(1, std::min(options.batch, options.threads / options.team_size));
}

const SessionOptions& checked(const SessionOptions& options) {
  if (options.batch < 1) throw std::invalid_argument("batch: expected at least 1");
  if (options.threads < 1) throw std::invalid_argument("threads: expected at least 1");
  if (options.team_size < 1 || options.team_size > std::min(kMaxTeam, options.threads)) {
    throw std::invalid_argument("team_size: expected 1 to the number of threads, and at most " +
                                std::to_string(kMaxTeam));
  }
  return options;
}

Draw checked(const Program& program, const Draw& draw) {
  program.check_complete();
  if (draw.distribution == Distribution::kNone) return draw;
  const int parameters = program.outputs()[0].channels, channels = program.channels_drawn();
  const int expected =
      draw.distribution == Distribution::kCategorical ? draw.levels : draw.mixtures * (channels == 3 ? 10 : 3);
  if (draw.levels < 1 || parameters != expected) {
    throw std::invalid_argument("draw: expects " + std::to_string(expected) + " parameters a step, the network makes " +
                                std::to_string(parameters));
  }
  if (draw.distribution == Distribution::kCategorical ? channels != 1 : channels != 1 && channels != 3) {
    throw std::invalid_argument("draw: cannot draw " + std::to_string(channels) + " values a step");
  }
  return draw;
}

}  // namespace

const SamplingKernels& kernels_named(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512") return sampling_avx512;
  if (isa == "avx2") return sampling_avx2;
#endif
  throw std::invalid_argument("isa: no kernels were built for '" + isa + "'");
}

template <class T>
Session<T>::Session(std::shared_ptr<const Program> program, const Draw& draw, const SessionOptions& options)
    : program_(std::move(program)),
      options_(checked(options)),
      kernels_(kernels_named(options.isa)),
      compiled_(*program_, checked(*program_, draw),
                {&kernels_, (options.batch + shares_of(options) - 1) / shares_of(options), options.team_size}) {
  const int num_shares = shares_of(options_);
  for (int s = 0; s < num_shares; ++s) {
    Share& share = *shares_.emplace_back(std::make_unique<Share>());
    const int first = static_cast<int>(int64_t{options_.batch} * s / num_shares);
    const int next = static_cast<int>(int64_t{options_.batch} * (s + 1) / num_shares);
    for (int rank = 0; rank < options_.team_size; ++rank) {
      T* arena = share.arenas.emplace_back(compiled_.arena_elements() + kArenaSlack).data();
      std::fill_n(arena, share.arenas.back().size(), T(0));
      share.team.arenas[rank] = arena;
      share.workers.push_back({&share.team, rank, 1, first, next - first, arena, new_scratch()});
    }
  }
  reset();
}

template <class T>
Scratch<T> Session<T>::new_scratch() {
  WorkerMemory& memory = *scratch_.emplace_back(std::make_unique<WorkerMemory>());
  memory.addresses.resize((compiled_.max_operands() + 1) * kMaxChunkRows);
  memory.operands.resize(compiled_.max_operands());
  memory.streams.resize(compiled_.max_operands());
  memory.probabilities = AlignedBuffer<T>(compiled_.plan().output_channels + kArenaSlack);
  return {memory.addresses.data(), memory.operands.data(), memory.streams.data(), memory.probabilities.data()};
}

template <class T>
void Session<T>::reset() {
  for (const auto& share : shares_) {
    for (const auto& arena : share->arenas) fill_arena(arena.data());
  }
}

template <class T>
void Session<T>::fill_arena(T* arena) {
  const int nodes = static_cast<int>(program_->nodes().size());
  for (int i = 0; i < nodes; ++i) {
    const NodeSpec& node = program_->nodes()[i];
    if (node.is_constant) continue;
    const auto& ring = compiled_.ring(i);
    const int64_t elements = ring.position_stride * node.ring_rows * node.ring_cols;
    std::fill_n(arena + ring.begin, elements, std::numeric_limits<T>::quiet_NaN());
  }
}

template <class T>
void Session<T>::set_constant(int index, const double* data, int64_t batch) {
  const NodeSpec& node = program_->nodes()[index];
  const auto& ring = compiled_.ring(index);
  const int64_t positions = int64_t{node.ring_rows} * node.ring_cols;
  for (const auto& share : shares_) {
    const Worker<T>& worker = share->workers[0];
    const int images = node.shared_by_images ? 1 : worker.images;
    for (int i = 0; i < images; ++i) {
      const double* source = data + (batch == 1 ? 0 : worker.first_image + i) * positions * node.channels;
      for (int64_t p = 0; p < positions; ++p, source += node.channels) {
        for (const auto& arena : share->arenas) {
          T* target = arena.data() + ring.begin + p * ring.position_stride + i * ring.image_stride;
          std::transform(source, source + node.channels, target, [](double value) { return static_cast<T>(value); });
        }
      }
    }
  }
}

template <class T>
int64_t Session<T>::run_kernel(const Worker<T>& worker, const Job<T>& job) const {
  if constexpr (sizeof(T) == sizeof(float)) {
    return kernels_.run_float(compiled_.plan(), worker, job);
  } else {
    return kernels_.run_double(compiled_.plan(), worker, job);
  }
}

template <class T>
int64_t Session<T>::run(const Job<T>& job, int team_size) {
  std::deque<Muster> musters;
  for (const auto& share : shares_) {
    musters.emplace_back(team_size);
    share->team.state = {};
  }
  std::atomic<int64_t> failed{std::numeric_limits<int64_t>::max()};
  // Slots of one team are neighbours, so that a thread which is given several has to do with few teams.
  const int64_t slots = int64_t{num_shares()} * team_size;
  torch::stable::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first = (first / team_size + 1) * team_size) {
      Share& share = *shares_[first / team_size];
      const Muster::Place place = musters[first / team_size].join();
      if (place.rank < 0) continue;
      Worker<T> worker = share.workers[place.rank];
      worker.team_size = place.size;
      const int64_t step = run_kernel(worker, job);
      if (step == kDone) continue;
      int64_t earliest = failed.load();
      while (step < earliest && !failed.compare_exchange_weak(earliest, step)) continue;
    }
  });
  return failed.load() == std::numeric_limits<int64_t>::max() ? kDone : failed.load();
}

template <class T>
int64_t Session<T>::run(const double* noise, int64_t* levels, const uint8_t* mask) {
  Job<T> job{};
  job.mode = Mode::kDraw;
  job.step_end = program_->steps();
  job.batch = options_.batch;
  job.noise = noise;
  job.levels = levels;
  job.mask = mask;
  return run(job, options_.team_size);
}

template <class T>
void Session<T>::teacher_force(const T* values, T* outputs) {
  reset();
  Job<T> job{};
  job.mode = Mode::kTeacherForce;
  job.step_end = program_->steps();
  job.batch = options_.batch;
  job.values = values;
  job.outputs = outputs;
  run(job, options_.team_size);
}

template <class T>
void Session<T>::evaluate(int64_t step, T* outputs) {
  Job<T> job{};
  job.mode = Mode::kEvaluate;
  job.step_begin = step;
  job.step_end = step + 1;
  job.batch = options_.batch;
  job.outputs = outputs;
  // Alone, so that the first member's arena holds the whole state from step to step.
  run(job, 1);
}

template <class T>
void Session<T>::feed(int64_t step, const T* values) {
  const int color = static_cast<int>(step % program_->colors());
  const int64_t pixel = step / program_->colors();
  const Places& places = compiled_.plan().inputs[color];
  const int64_t offset = places.rows[pixel / program_->width()] + places.cols[pixel % program_->width()];
  const int channels = program_->channels_drawn();
  for (const auto& share : shares_) {
    const Worker<T>& worker = share->workers[0];
    for (int i = 0; i < worker.images; ++i) {
      const T* source = values + int64_t{worker.first_image + i} * channels;
      std::copy(source, source + channels, worker.arena + offset + i * places.image_stride);
    }
  }
}

template <class T>
int64_t Session<T>::ring_bytes() const {
  return compiled_.arena_elements() * static_cast<int64_t>(sizeof(T)) * num_shares() * options_.team_size;
}

template class Session<float>;
template class Session<double>;

}  // namespace sampling
}  // namespace fastgen
