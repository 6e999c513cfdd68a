// A small thread pool: a team of threads runs one function together and meets at barriers.
#pragma once
#include <atomic>
#include <cstdint>

namespace ossia {

// What the threads of one run share. Loops hand out chunks from a common counter, so that a slow core does less; which
// thread makes a result never changes it.
class Team {
public:
    explicit Team(int size) : size_(size) {}

    int size() const { return size_; }

    // Wait for all; the last one to come runs `work` alone before the others go on.
    template <class Work>
    void barrier(Work&& work) {
        if (size_ == 1) {
            next_.store(0, std::memory_order_relaxed);
            work();
            return;
        }
        const uint32_t phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            next_.store(0, std::memory_order_relaxed);
            work();
            phase_.store(phase + 1, std::memory_order_release);
            phase_.notify_all();
        } else {
            wait_for(phase);
        }
    }

    void barrier() {
        barrier([] {});
    }

    // Run body(begin, end) over [0, count) in chunks, on whichever thread asks next. A barrier must follow.
    template <class Body>
    void chunks(int64_t count, int64_t chunk, Body&& body) {
        for (;;) {
            const int64_t begin = next_.fetch_add(chunk, std::memory_order_relaxed);
            if (begin >= count) return;
            body(begin, begin + chunk < count ? begin + chunk : count);
        }
    }

    // The same, then wait for all.
    template <class Body>
    void loop(int64_t count, int64_t chunk, Body&& body) {
        chunks(count, chunk, body);
        barrier();
    }

    // Wait for all, then run body(i) for [0, count), then wait again. Work of one piece costs no second barrier.
    template <class Body>
    void barrier_each(int count, Body&& body) {
        if (count == 1) {
            barrier([&] { body(0); });
            return;
        }
        barrier();
        loop(count, 1, [&](int64_t i, int64_t) { body((int)i); });
    }

private:
    void wait_for(uint32_t phase);

    const int size_;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

using TeamFunction = void (*)(Team& team, int thread, void* argument);

// Runs `function` on all threads of the pool, the caller being thread 0. One run at a time; others wait.
void run_team(TeamFunction function, void* argument);

// Runs `function` on the caller alone.
inline void run_alone(TeamFunction function, void* argument) {
    Team team(1);
    function(team, 0, argument);
}

int num_threads();
int set_num_threads(int count);

}  // namespace ossia
