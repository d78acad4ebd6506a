// How group_norm_silu cuts a tensor into pieces and shares them among threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "denormals.h"
#include "group_norm_silu.h"

namespace fastgen {
namespace {

// Elements of a piece: what is read twice must stay in a core's own cache in between. The pieces, and with them every
// rounding, do not depend on the number of threads.
constexpr int64_t kPiece = 8192;
// Positions of a piece in rows, which are added up lane by lane.
constexpr int64_t kPiecePositions = 1024;
// Elements one thread should have at least, so that waking it costs little beside its work.
constexpr int64_t kGrain = 16384;

// A unit is what can be computed by itself: a group of a sample in planes, a whole sample in rows. It is cut into
// chunks of positions, and in planes also into runs of channels.
struct GroupNormSiluPlan {
  int64_t batch, channels, positions, groups;
  bool rows;

  int64_t group_channels() const { return channels / groups; }
  int64_t units() const { return rows ? batch : batch * groups; }
  int64_t unit_channels() const { return rows ? channels : group_channels(); }
  int64_t unit_size() const { return unit_channels() * positions; }
  int64_t channels_at_once() const {
    return rows ? channels : std::clamp<int64_t>(kPiece / std::max<int64_t>(1, positions), 1, group_channels());
  }
  int64_t positions_at_once() const {
    int64_t most = rows ? std::min(positions, kPiecePositions) : positions;
    return std::clamp<int64_t>(kPiece / channels_at_once(), 1, std::max<int64_t>(1, most));
  }
  int64_t runs() const { return (unit_channels() + channels_at_once() - 1) / channels_at_once(); }
  int64_t chunks() const { return (positions + positions_at_once() - 1) / positions_at_once(); }
  int64_t pieces() const { return runs() * chunks(); }
  int64_t sample_of(int64_t unit) const { return rows ? unit : unit / groups; }
  // Of a unit among its sample's channels.
  int64_t first_channel(int64_t unit) const { return rows ? 0 : unit % groups * group_channels(); }
};

// One piece: where it lies and where its results go.
struct PlacedPiece {
  GroupNormSiluPiece sizes;
  int64_t element, first_channel, partial;

  PlacedPiece(const GroupNormSiluPlan& plan, int64_t unit, int64_t piece) {
    int64_t chunk = piece / plan.runs(), channel = piece % plan.runs() * plan.channels_at_once();
    int64_t position = chunk * plan.positions_at_once();
    sizes.channels = std::min(plan.channels_at_once(), plan.unit_channels() - channel);
    sizes.positions = std::min(plan.positions_at_once(), plan.positions - position);
    sizes.stride = plan.rows ? plan.channels : plan.positions;
    element = unit * plan.unit_size() + (plan.rows ? position * plan.channels : channel * plan.positions + position);
    first_channel = unit * plan.unit_channels() + channel;
    partial = (unit * plan.chunks() + chunk) * plan.unit_channels() + channel;
  }
};

// Runs first(unit, piece) for all pieces of a unit, then between(unit), then second(unit, piece): unit after unit where
// there are enough of them, so that the second reads what the first left in the cache, else with the pieces of all
// units shared among the threads.
template <class First, class Between, class Second>
static void for_each_unit(const GroupNormSiluPlan& plan, const First& first, const Between& between,
                          const Second& second) {
  int64_t units = plan.units(), pieces = plan.pieces(), size = std::max<int64_t>(1, plan.unit_size());
  if (pieces == 1 || units >= 2 * int64_t(torch::stable::get_num_threads())) {
    torch::stable::parallel_for(0, units, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
      DenormalsAreZero guard;
      for (int64_t unit = begin; unit < end; ++unit) {
        for (int64_t piece = 0; piece < pieces; ++piece) first(unit, piece);
        between(unit);
        for (int64_t piece = 0; piece < pieces; ++piece) second(unit, piece);
      }
    });
    return;
  }
  auto share = [&](const auto& body) {
    torch::stable::parallel_for(0, units * pieces, 1, [&](int64_t begin, int64_t end) {
      DenormalsAreZero guard;
      for (int64_t i = begin; i < end; ++i) body(i / pieces, i % pieces);
    });
  };
  share(first);
  for (int64_t unit = 0; unit < units; ++unit) between(unit);
  share(second);
}

}  // namespace
}  // namespace fastgen
