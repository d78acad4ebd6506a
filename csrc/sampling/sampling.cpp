// The cached sampler's kernels for one instruction set: the loop over steps, and the table by which the host finds it.
#include "sampling.h"

#include <string.h>

#include "convolve.h"
#include "draw.h"
#include "pointwise.h"

namespace fastgen {
namespace sampling {
namespace {

template <class T>
void run_event(const Plan<T>& plan, const Event& event, const Worker<T>& worker) {
  const Node<T>& node = plan.nodes[event.node];
  switch (node.op) {
    case Op::kConv:
      return convolve(plan, node, event, worker);
    case Op::kPointwise:
      return pointwise(plan, node, event, worker);
    case Op::kConcat:
      return concat(plan, node, event, worker);
    case Op::kNorm:
      return layer_norm(plan, node, event, worker);
    case Op::kSource:
      return;
  }
}

// A step: the pixel and the colour that it draws.
struct Site {
  int64_t step;
  int row, col, color;
};

template <class T>
Site site_of(const Plan<T>& plan, int64_t step) {
  const int64_t pixel = step / plan.colors;
  return {step, static_cast<int>(pixel / plan.width), static_cast<int>(pixel % plan.width),
          static_cast<int>(step % plan.colors)};
}

// Element of an image [batch, channels, height, width] that a site draws first; its next channel is height * width on.
template <class T>
int64_t image_index(const Plan<T>& plan, const Site& site, int64_t image) {
  return ((image * plan.channels + site.color) * plan.height + site.row) * plan.width + site.col;
}

template <class T>
void copy_outputs(const Plan<T>& plan, const Worker<T>& worker, const Job<T>& job, const Site& site) {
  const Position<const T> outputs = read(plan, worker, plan.outputs[site.color], site.row, site.col);
  T* target = job.outputs + ((site.step - job.step_begin) * job.batch + worker.first_image) * plan.output_channels;
  for (int i = 0; i < worker.images; ++i) {
    memcpy(target + i * plan.output_channels, outputs.image(i), plan.output_channels * sizeof(T));
  }
}

template <class T>
void take_values(const Plan<T>& plan, const Worker<T>& worker, const Job<T>& job, const Site& site) {
  const Position<T> input = written(worker, plan.inputs[site.color], site.row, site.col);
  const int64_t plane = static_cast<int64_t>(plan.height) * plan.width;
  for (int i = 0; i < worker.images; ++i) {
    const T* values = job.values + image_index(plan, site, worker.first_image + i);
    for (int c = 0; c < plan.channels_drawn; ++c) input.image(i)[c] = values[c * plane];
  }
}

// False if the outputs of an image are no distribution to draw from.
template <class T>
bool draw_values(const Plan<T>& plan, const Worker<T>& worker, const Job<T>& job, const Site& site) {
  const Draw& draw = plan.draw;
  const Position<T> input = written(worker, plan.inputs[site.color], site.row, site.col);
  const Position<const T> outputs = read(plan, worker, plan.outputs[site.color], site.row, site.col);
  const int64_t plane = static_cast<int64_t>(plan.height) * plan.width;
  for (int i = 0; i < worker.images; ++i) {
    const int64_t image = worker.first_image + i, index = image_index(plan, site, image);
    const double* u = job.noise + (site.step * job.batch + image) * draw.uniforms_per_step;
    int64_t drawn[kMaxChannelsDrawn];
    if (!draw_levels(draw, plan.channels_drawn, outputs.image(i), u, worker.scratch.probabilities, drawn)) return false;
    for (int c = 0; c < plan.channels_drawn; ++c) {
      int64_t& level = job.levels[index + c * plane];
      const bool given = job.mask && job.mask[index + c * plane];
      const int64_t value = given ? level : drawn[c];
      if (worker.rank == 0 && !given) level = value;
      input.image(i)[c] = static_cast<T>(draw.table[value]);
    }
  }
  return true;
}

// A team parts when its first member has waited long this many times, and more than once in so many steps.
constexpr int64_t kLongWaits = 16, kStepsPerLongWait = 16;

template <class T>
int64_t run(const Plan<T>& plan, const Worker<T>& hired, const Job<T>& job) {
  Worker<T> worker = hired;
  for (int64_t step = job.step_begin; step < job.step_end; ++step) {
    const int64_t long_waits = kLongWaits + (step - job.step_begin) / kStepsPerLongWait;
    if (!start_step(&worker.team->state, worker.rank, &worker.team_size, step, long_waits)) return kDone;
    for (int64_t e = plan.first_event[step]; e < plan.first_event[step + 1]; ++e) {
      run_event(plan, plan.events[e], worker);
    }
    const Site site = site_of(plan, step);
    if (job.mode == Mode::kDraw) {
      if (!draw_values(plan, worker, job, site)) return step;
      continue;
    }
    if (worker.rank == 0) copy_outputs(plan, worker, job, site);
    if (job.mode == Mode::kTeacherForce) take_values(plan, worker, job, site);
  }
  return kDone;
}

constexpr SamplingKernels table() {
  SamplingKernels kernels{kLanes<float>, kLanes<double>, {}, run<float>, run<double>};
  for (int i = 0; i < kMaxTileVectors; ++i) kernels.max_tile_rows[i] = kTileRows[i];
  return kernels;
}

}  // namespace
}  // namespace sampling
}  // namespace fastgen

extern "C" const fastgen::sampling::SamplingKernels FASTGEN_TABLE(sampling) = fastgen::sampling::table();
