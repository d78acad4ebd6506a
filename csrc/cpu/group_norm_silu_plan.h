// How group_norm_silu cuts a tensor into pieces and shares them among threads.
#pragma once

#include "group_norm_silu.h"
#include "registration.h"

namespace fastgen {
namespace {

// Elements of a piece, in planes and in rows: what is read twice must stay in a core's own cache in between. The
// pieces, and with them every rounding, do not depend on the number of threads.
constexpr int64_t kPlanesPiece = 8192, kRowsPiece = 32768;
// Positions of a piece in rows, which are added up lane by lane.
constexpr int64_t kRowsPositions = 1024;

// A unit is what can be computed by itself: a group of a sample in planes, a whole sample in rows. It is cut into
// chunks of positions, and in planes also into runs of channels.
struct GroupNormSiluPlan {
  int64_t batch, channels, positions, groups;
  bool rows;
  int64_t group_channels, units, unit_channels, unit_size;
  // The size of a piece, and how many pieces a unit has: runs of channels times chunks of positions.
  int64_t channels_at_once, positions_at_once, runs, chunks, pieces;

  GroupNormSiluPlan(int64_t batch, int64_t channels, int64_t positions, int64_t groups, bool rows)
      : batch(batch), channels(channels), positions(positions), groups(groups), rows(rows) {
    group_channels = channels / groups;
    units = rows ? batch : batch * groups;
    unit_channels = rows ? channels : group_channels;
    unit_size = unit_channels * positions;
    int64_t some = std::max<int64_t>(1, positions), most = rows ? std::min(some, kRowsPositions) : some;
    channels_at_once = rows ? channels : std::clamp<int64_t>(kPlanesPiece / some, 1, group_channels);
    positions_at_once = std::clamp<int64_t>((rows ? kRowsPiece : kPlanesPiece) / channels_at_once, 1, most);
    runs = ratio_up(unit_channels, channels_at_once);
    chunks = ratio_up(positions, positions_at_once);
    pieces = runs * chunks;
  }
};

// A piece's sizes, its first element and channel, and the index of its partial sums.
struct PlacedPiece {
  GroupNormSiluPiece sizes;
  int64_t element, first_channel, partial;

  PlacedPiece(const GroupNormSiluPlan& plan, int64_t unit, int64_t piece) {
    int64_t chunk = piece / plan.runs, channel = piece % plan.runs * plan.channels_at_once;
    int64_t position = chunk * plan.positions_at_once;
    sizes.channels = std::min(plan.channels_at_once, plan.unit_channels - channel);
    sizes.positions = std::min(plan.positions_at_once, plan.positions - position);
    sizes.stride = plan.rows ? plan.channels : plan.positions;
    element = unit * plan.unit_size + (plan.rows ? position * plan.channels : channel * plan.positions + position);
    first_channel = unit * plan.unit_channels + channel;
    partial = (unit * plan.chunks + chunk) * plan.unit_channels + channel;
  }
};

// Runs first(unit, piece) for all pieces of a unit, then between(unit), then second(unit, piece): unit after unit where
// there are enough of them, so that the second reads what the first left in the cache, else with the pieces of all
// units shared among the threads.
template <class First, class Between, class Second>
static void for_each_unit(const GroupNormSiluPlan& plan, const First& first, const Between& between,
                          const Second& second) {
  int64_t units = plan.units, pieces = plan.pieces;
  if (pieces == 1 || units >= 2 * int64_t(torch::stable::get_num_threads())) {
    parallel_for(0, units, grain_of(plan.unit_size), [&](int64_t begin, int64_t end) {
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
    parallel_for(0, units * pieces, 1, [&](int64_t begin, int64_t end) {
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
