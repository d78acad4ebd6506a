// How several threads run a flow on one row or a few, where its time is the time to read the weights: of every dense
// layer each member computes some columns, so that each core reads, and from call to call keeps in its cache, its share
// of the weights alone. Members meet behind every layer. With more rows what they hand each other costs more than that:
// then each takes rows.
//
// A meeting is worth it only while every member has a core to itself. Where other programs take the cores away, each
// would wait for the scheduler, so a team that waits too often parts at the start of a step, and its first member goes
// on alone: the state is shared.
#pragma once

#include <sched.h>
#include <stdint.h>

namespace fastgen {
namespace flow {

constexpr int kMaxMembers = 8;

struct Team {
  // Each in a cache line of its own.
  struct alignas(64) Reached {
    int64_t meetings = 0;
  };
  Reached reached[kMaxMembers];
  int64_t long_waits = 0;
  int64_t parts_at = INT64_MAX;
};

namespace {

// Looks at a flag (some microseconds) before giving the core to whoever else may want it.
constexpr int kPatience = 512;
// A team parts when its first member has waited longer than that more often.
constexpr int64_t kLongWaits = 4;

// One of `size` threads; alone, it shares nothing.
struct Member {
  Team* team;
  int rank, size;

  // Of `count` things in a row, this member's are from first to first(count, rank + 1).
  int64_t first(int64_t count) const { return count * rank / size; }
  int64_t end(int64_t count) const { return count * (rank + 1) / size; }

  // What any member wrote before is there for all members afterwards.
  void meet() const {
    if (size == 1) return;
    const int64_t meeting = team->reached[rank].meetings + 1;
    __atomic_store_n(&team->reached[rank].meetings, meeting, __ATOMIC_RELEASE);
    int looks = 0;
    for (int member = 0; member < size; ++member) {
      while (__atomic_load_n(&team->reached[member].meetings, __ATOMIC_ACQUIRE) < meeting) {
        __builtin_ia32_pause();
        if (++looks > kPatience) sched_yield();
      }
    }
    if (looks > kPatience && rank == 0) ++team->long_waits;
  }

  // Before each step. False if the team parts here and this member is not the one that goes on.
  bool start(int64_t step) {
    if (size == 1) return true;
    if (rank == 0 && team->long_waits > kLongWaits) __atomic_store_n(&team->parts_at, step, __ATOMIC_RELAXED);
    meet();
    // The first member may be a step ahead: what counts is the step, not that it has decided.
    if (__atomic_load_n(&team->parts_at, __ATOMIC_RELAXED) > step) return true;
    size = 1;
    return rank == 0;
  }
};

}  // namespace
}  // namespace flow
}  // namespace fastgen
