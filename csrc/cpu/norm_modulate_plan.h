// Which planes norm_modulate normalises together, and how they are shared among threads.
#pragma once

#include "group_norm_silu.h"
#include "registration.h"

namespace fastgen {
namespace {

// A plane is a channel of a sample, [batch, channels] in order; a unit is the planes that are normalised together.
struct NormModulatePlan {
  int64_t batch, channels, positions, groups, units, unit_planes;

  NormModulatePlan(int64_t batch, int64_t channels, int64_t positions, int64_t groups)
      : batch(batch),
        channels(channels),
        positions(positions),
        groups(groups),
        units(groups ? batch * groups : channels),
        unit_planes(groups ? channels / groups : batch) {}

  int64_t planes() const { return batch * channels; }
  int64_t plane(int64_t unit, int64_t i) const { return groups ? unit * unit_planes + i : i * channels + unit; }
  int64_t unit_of(int64_t plane) const { return groups ? plane / unit_planes : plane % channels; }
  double count() const { return double(unit_planes) * positions; }

  // Runs first(plane) for the planes of a unit, then between(unit), then second(plane): unit after unit where there are
  // enough of them, so that the second reads what the first left in the cache, else with all planes shared among the
  // threads.
  template <class First, class Between, class Second>
  void for_each_unit(const First& first, const Between& between, const Second& second) const {
    auto share = [&](int64_t n, int64_t size, const auto& body) {
      parallel_for(0, n, grain_of(size), [&](int64_t begin, int64_t end) {
        DenormalsAreZero guard;
        for (int64_t i = begin; i < end; ++i) body(i);
      });
    };
    if (units >= 2 * int64_t(torch::stable::get_num_threads())) {
      share(units, unit_planes * positions, [&](int64_t unit) {
        for (int64_t i = 0; i < unit_planes; ++i) first(plane(unit, i));
        between(unit);
        for (int64_t i = 0; i < unit_planes; ++i) second(plane(unit, i));
      });
      return;
    }
    share(planes(), positions, first);
    for (int64_t unit = 0; unit < units; ++unit) between(unit);
    share(planes(), positions, second);
  }
};

// Count, mean and sum of squared deviations of some numbers, which can be combined (Chan et al. 1983).
struct NormModulateMoments {
  double count = 0, mean = 0, squares = 0;

  void add(const NormModulateMoments& other) {
    if (other.count == 0) return;
    double total = count + other.count, apart = other.mean - mean;
    squares += other.squares + apart * apart * count * other.count / total;
    mean += apart * other.count / total;
    count = total;
  }
};

// The moments of a plane, by group_norm_silu's function. A piece is read twice, so it must stay in the first cache.
template <class S, class T = typename Compute<S>::type>
static NormModulateMoments moments_of_plane(const S* x, int64_t n) {
  const auto& f = FASTGEN_PICK(group_norm_silu_planes).template of<S>();
  constexpr int64_t kPiece = 8192;
  NormModulateMoments moments;
  for (int64_t first = 0; first < n; first += kPiece) {
    int64_t count = std::min(kPiece, n - first);
    T mean, squares;
    f.statistics(x + first, {1, count, count}, &mean, &squares);
    moments.add({double(count), mean, squares});
  }
  return moments;
}

}  // namespace
}  // namespace fastgen
