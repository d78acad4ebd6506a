// How the members of a team keep step. Each has every ring in its own arena and computes every small event for itself;
// of a large convolution it computes some columns and writes them to all arenas. A ring is never read in the step that
// overwrites it, so it takes one barrier at the start of a step, and one after each shared convolution before its
// result is read.
//
// Barriers are worth it only while every member has a core to itself. Where other programs take the cores away, each
// barrier waits for the scheduler, so a team that waits too often parts: at the start of a step each member holds the
// whole state.
#pragma once

#include <sched.h>
#include <string.h>

#include "sampling.h"

namespace fastgen {
namespace sampling {
namespace {

// Multiplications from which sharing a convolution is worth its barrier.
constexpr int64_t kSharedMultiplications = 8192;
// Looks at a flag (some microseconds) before giving the core to whoever else may want it.
constexpr int kPatience = 512;
// A team parts when its first member has waited longer than that this many times, and more than once in so many steps.
constexpr int64_t kLongWaits = 16, kStepsPerLongWait = 16;

template <class T>
void meet(const Worker<T>& worker) {
  Team<T>& team = *worker.team;
  if (worker.team_size == 1) return;
  const int64_t reached = team.reached[worker.rank].barriers + 1;
  __atomic_store_n(&team.reached[worker.rank].barriers, reached, __ATOMIC_RELEASE);
  for (int member = 0; member < worker.team_size; ++member) {
    int looks = 0;
    while (__atomic_load_n(&team.reached[member].barriers, __ATOMIC_ACQUIRE) < reached) {
      __builtin_ia32_pause();
      if (++looks > kPatience) sched_yield();
    }
    if (looks > kPatience && worker.rank == 0) ++team.long_waits;
  }
}

// The barrier at the start of a step. False if the team parts here and this member is not the one that goes on alone.
template <class T>
bool start_step(Worker<T>& worker, int64_t step, int64_t steps_done) {
  if (worker.team_size == 1) return true;
  Team<T>& team = *worker.team;
  if (worker.rank == 0 && team.long_waits > kLongWaits + steps_done / kStepsPerLongWait) {
    __atomic_store_n(&team.parts_at, step, __ATOMIC_RELAXED);
  }
  meet(worker);
  // The first member may be a step ahead: what counts is the step, not that it has decided.
  if (__atomic_load_n(&team.parts_at, __ATOMIC_RELAXED) > step) return true;
  worker.team_size = 1;
  return worker.rank == 0;
}

// Copies `count` elements from each address to the same place in the arenas of the other members.
template <class T>
void send(const Worker<T>& worker, T* const* addresses, int rows, int column, int count) {
  for (int member = 0; member < worker.team_size; ++member) {
    if (member == worker.rank) continue;
    T* arena = worker.team->arenas[member];
    for (int i = 0; i < rows; ++i) {
      const T* source = addresses[i] + column;
      memcpy(arena + (source - worker.arena), source, count * sizeof(T));
    }
  }
}

}  // namespace
}  // namespace sampling
}  // namespace fastgen
