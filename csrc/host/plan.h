// A program resolved for one instruction set and number of images: weights packed into column blocks, every operand of
// every node turned into tables of addresses, every ring given its place in the arena.
#pragma once

#include <deque>
#include <vector>

#include "aligned_buffer.h"
#include "program.h"

namespace fastgen {
namespace sampling {

// Which kernels, and the shape of the work that they are given.
struct Target {
  const SamplingKernels* kernels;
  int images;     // in one arena
  int team_size;  // threads that share one image's convolutions
};

template <class T>
class CompiledPlan {
 public:
  CompiledPlan(const Program& program, const Draw& draw, const Target& target);
  CompiledPlan(const CompiledPlan&) = delete;
  CompiledPlan& operator=(const CompiledPlan&) = delete;

  const Plan<T>& plan() const { return plan_; }
  int64_t arena_elements() const { return arena_elements_; }
  int64_t weight_elements() const { return static_cast<int64_t>(weights_.taken()); }
  int64_t max_operands() const { return max_operands_; }

  // Where position (ring row, ring col) of image 0 of a node begins; images and positions are `stride` apart.
  struct Ring {
    int64_t begin, image_stride, position_stride;
  };
  const Ring& ring(int node) const { return rings_[node]; }

 private:
  void place_rings(const Program& program);
  void resolve_node(const Program& program, int index, int typical_rows);
  void pack_convolution(const NodeSpec& spec, Node<T>& node, int typical_rows);
  const T* pack_columns(const Tap& tap, int in_channels, int channels, int column, int width);
  const T* store_padded(const std::vector<double>& values, int size);
  Places places(const Program& program, const View& view, int height, int width, const Tap* tap,
                const NodeSpec* reader);
  Places own_places(const Program& program, int index);
  std::vector<int> typical_rows(const Program& program) const;

  Target target_;
  int lanes_;
  int64_t arena_elements_ = 0, max_operands_ = 0;
  std::vector<Ring> rings_;
  std::vector<Node<T>> nodes_;
  std::vector<Event> events_;
  std::vector<int64_t> first_event_;
  std::vector<Places> outputs_, inputs_;
  std::vector<double> table_;
  AlignedBuffer<T> zeros_;
  Pool<T> weights_;
  // Deques, so that what is appended later does not move what the plan points to.
  std::deque<std::vector<int64_t>> offsets_;
  std::deque<std::vector<Places>> operands_;
  std::deque<std::vector<Block<T>>> blocks_;
  std::deque<std::vector<BlockTap<T>>> block_taps_;
  Plan<T> plan_{};
};

extern template class CompiledPlan<float>;
extern template class CompiledPlan<double>;

}  // namespace sampling
}  // namespace fastgen
