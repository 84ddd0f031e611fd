// Sphere tracing of a network on the CPU: each lane of a tile runs the program of one ray (kernels/trace_ray.h), and
// takes the next ray when that has ended, so that nearly all lanes of nearly all tiles do something. Rays do not depend
// on each other: which thread and lane a ray gets does not matter to its result.
#include <atomic>

#include "../kernels/launch.h"
#include "parallel.h"
#include "sdf_network_tile.h"

namespace nsr::cpu {
namespace {

constexpr int64_t kBatch = 64;   // rays that a thread takes at a time
constexpr int64_t kGrain = 128;  // rays below which a second thread costs more than it brings

// The rays of one call, and how many of them have been taken.
template <typename T>
struct RayQueue {
  const TracePlan& plan;
  TracedRays<T> traced;
  std::atomic<int64_t> taken{0};
};

template <typename T>
class LaneTracer {
 public:
  LaneTracer(const SdfNetwork<T>& network, RayQueue<T>& queue) : queue_(queue), tile_(network) {}

  void run() {
    for (int lane = 0; lane < kLanes; ++lane) refill(lane);
    while (alive_ > 0) {
      const T* values = tile_.evaluate();
      for (int lane = 0; lane < kLanes; ++lane) {
        if (ray_[lane] < 0) continue;
        advance_program(queue_.plan, values[lane], program_[lane]);
        if (program_[lane].phase == kFinished) {
          finish(lane);
          --alive_;
          refill(lane);
        } else {
          aim(lane);
        }
      }
    }
  }

 private:
  // The next ray, or -1.
  int64_t take() {
    if (next_ == end_) {
      next_ = queue_.taken.fetch_add(kBatch, std::memory_order_relaxed);
      end_ = next_ + kBatch < queue_.traced.rays ? next_ + kBatch : queue_.traced.rays;
      if (next_ >= end_) next_ = end_ = queue_.traced.rays;
    }
    return next_ < end_ ? next_++ : -1;
  }

  // Gives the lane a ray that has something to ask; rays that have not are finished on the way.
  void refill(int lane) {
    while ((ray_[lane] = take()) >= 0) {
      queue_.traced.start(queue_.plan, ray_[lane], program_[lane]);
      if (program_[lane].phase != kFinished) {
        ++alive_;
        return aim(lane);
      }
      finish(lane);
    }
    for (int k = 0; k < 3; ++k) tile_.points()[k][lane] = T(0);
  }

  void aim(int lane) {
    for (int k = 0; k < 3; ++k) tile_.points()[k][lane] = queue_.traced.coordinate(ray_[lane], program_[lane], k);
  }

  void finish(int lane) { queue_.traced.finish(ray_[lane], program_[lane]); }

  RayQueue<T>& queue_;
  SdfTile<T> tile_;
  RayProgram<T> program_[kLanes];
  int64_t ray_[kLanes];
  int64_t next_ = 0, end_ = 0;  // rays taken from the queue and not started yet
  int alive_ = 0;
};

}  // namespace

template <typename T>
void trace_sdf_network(const SdfNetwork<T>& network, const TracePlan& plan, int64_t rays, const T* origins,
                       const T* directions, const bool* mask, T* distance, bool* hit, int32_t* evaluations) {
  RayQueue<T> queue{plan, {rays, origins, directions, mask, distance, hit, evaluations}};
  // Rays differ in cost, so a thread's share is not the range it is given but what it takes from the queue.
  parallel_for(0, rays, kGrain, [&](int64_t, int64_t) { LaneTracer<T>(network, queue).run(); });
}

#define NSR_INSTANTIATE(T)                                                                                          \
  template void trace_sdf_network<T>(const SdfNetwork<T>&, const TracePlan&, int64_t, const T*, const T*, const bool*, \
                                     T*, bool*, int32_t*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cpu
