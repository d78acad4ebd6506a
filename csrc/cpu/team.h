// How the threads of a team keep step: barriers, at which every member waits until all have come.
//
// A barrier is worth its wait only while every member has a core to itself. Where other programs take the cores away,
// each barrier waits for the scheduler. A team that waits too often therefore parts at the start of a step, and its
// first member goes on alone.
#pragma once

#include <sched.h>
#include <stdint.h>

namespace fastgen {

constexpr int kMaxTeam = 8;

// What the members share.
struct TeamState {
  // How many barriers a member has reached; two cache lines apart, since prefetchers fetch them in pairs.
  struct alignas(128) Reached {
    int64_t barriers = 0;
  };
  Reached reached[kMaxTeam];
  // Written by the first member: how often it waited long for another, and from which step on it goes on alone.
  int64_t long_waits = 0;
  int64_t parts_at = INT64_MAX;
};

namespace {

// Looks at a flag (some microseconds) before a thread gives its core to whoever else may want it.
constexpr int kPatience = 512;

// What any member wrote before is there for all members afterwards.
inline void meet(TeamState* team, int rank, int size) {
  if (size == 1) return;
  const int64_t barrier = team->reached[rank].barriers + 1;
  __atomic_store_n(&team->reached[rank].barriers, barrier, __ATOMIC_RELEASE);
  for (int member = 0; member < size; ++member) {
    int looks = 0;
    while (__atomic_load_n(&team->reached[member].barriers, __ATOMIC_ACQUIRE) < barrier) {
      __builtin_ia32_pause();
      if (++looks > kPatience) sched_yield();
    }
    if (looks > kPatience && rank == 0) ++team->long_waits;
  }
}

// The barrier at the start of a step. If the team parts here, having waited long more than `most` times, its size
// becomes 1; false for the members that do not go on.
inline bool start_step(TeamState* team, int rank, int* size, int64_t step, int64_t most) {
  if (*size == 1) return true;
  if (rank == 0 && team->long_waits > most) __atomic_store_n(&team->parts_at, step, __ATOMIC_RELAXED);
  meet(team, rank, *size);
  // The first member may be a step ahead: what counts is the step, not that it has decided.
  if (__atomic_load_n(&team->parts_at, __ATOMIC_RELAXED) > step) return true;
  *size = 1;
  return rank == 0;
}

}  // namespace
}  // namespace fastgen
