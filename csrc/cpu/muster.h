// Gathers the threads of one team. A pool promises that every task is run, not that two of them run at the same time,
// so a team is whoever turns up while the first to come is waiting; later comers find the team closed and have nothing
// to do.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>

namespace fastgen {

class Muster {
 public:
  explicit Muster(int expected) : expected_(expected) {}

  struct Place {
    int rank;  // negative: the team has left
    int size;
  };

  Place join() {
    const int rank = joined_.fetch_add(1);
    if (rank == 0) return {0, lead()};
    int size;
    while ((size = size_.load(std::memory_order_acquire)) == 0) std::this_thread::yield();
    return {rank < size ? rank : -1, size};
  }

 private:
  int lead() {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (joined_.load() < expected_ && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    // What is added closes the team: whoever joins from now on gets a rank beyond its size.
    const int size = joined_.exchange(kClosed);
    size_.store(size < expected_ ? size : expected_, std::memory_order_release);
    return size < expected_ ? size : expected_;
  }

  static constexpr std::chrono::microseconds kPatience{500};
  static constexpr int kClosed = 1 << 20;

  const int expected_;
  std::atomic<int> joined_{0};
  std::atomic<int> size_{0};
};

}  // namespace fastgen
