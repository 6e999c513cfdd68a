// The pool behind run_team: threads sleep between runs, and are pinned when there is one for every core.
#include "pool.h"

#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ossia {
namespace {

constexpr int kSpins = 4000;  // some tens of microseconds, longer than a phase of a small model takes

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

std::vector<int> allowed_cores() {
    std::vector<int> cores;
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (int core = 0; core < CPU_SETSIZE; ++core)
            if (CPU_ISSET(core, &set)) cores.push_back(core);
#endif
    if (cores.empty())
        for (unsigned core = 0; core < std::max(1u, std::thread::hardware_concurrency()); ++core)
            cores.push_back((int)core);
    return cores;
}

#if defined(__linux__)
void pin(int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}
int process_id() { return (int)getpid(); }
#else
void pin(int) {}
int process_id() { return 0; }
#endif

struct Pool {
    std::vector<std::thread> workers;
    std::vector<int> cores;
    bool is_pinned = false;
    int owner = 0;  // after a fork the threads are gone, and a new pool is made
    std::atomic<uint32_t> round{0};
    std::atomic<int> finished{0};
    std::atomic<bool> is_stopping{false};
    TeamFunction function = nullptr;
    void* argument = nullptr;
    Team* team = nullptr;

    void work(int thread, uint32_t seen) {
        if (is_pinned) pin(cores[thread]);
        for (;;) {
            for (int spin = 0; spin < kSpins && round.load(std::memory_order_acquire) == seen; ++spin) relax();
            round.wait(seen, std::memory_order_acquire);
            seen = round.load(std::memory_order_acquire);
            if (is_stopping.load()) return;
            function(*team, thread, argument);
            finished.fetch_add(1, std::memory_order_acq_rel);
            finished.notify_one();
        }
    }
};

std::mutex run_mutex;
Pool* pool = nullptr;
int wanted_threads = 0;  // 0: as many as there are cores

Pool* make_pool() {
    Pool* made = new Pool;
    made->owner = process_id();
    made->cores = allowed_cores();
    const int count = wanted_threads > 0 ? wanted_threads : (int)made->cores.size();
    made->is_pinned = count > 1 && count == (int)made->cores.size();
    for (int thread = 1; thread < count; ++thread) {
        try {
            made->workers.emplace_back([made, thread] { made->work(thread, 0); });
        } catch (const std::system_error&) {
            break;  // the system allows no more: go on with those there are
        }
    }
    return made;
}

void stop_pool() {
    if (pool == nullptr) return;
    if (pool->owner == process_id()) {
        pool->is_stopping.store(true);
        pool->round.fetch_add(1, std::memory_order_acq_rel);
        pool->round.notify_all();
        for (std::thread& worker : pool->workers) worker.join();
        delete pool;
    }  // else: the threads stayed in the parent, and their handles cannot be joined here
    pool = nullptr;
}

Pool& current_pool() {
    if (pool != nullptr && pool->owner != process_id()) stop_pool();
    if (pool == nullptr) pool = make_pool();
    return *pool;
}

}  // namespace

void Team::wait_for(uint32_t phase) {
    for (int spin = 0; spin < kSpins; ++spin) {
        if (phase_.load(std::memory_order_acquire) != phase) return;
        relax();
    }
    while (phase_.load(std::memory_order_acquire) == phase) phase_.wait(phase, std::memory_order_acquire);
}

void run_team(TeamFunction function, void* argument) {
    std::lock_guard<std::mutex> lock(run_mutex);
    Pool& pool = current_pool();
    const int size = 1 + (int)pool.workers.size();
    Team team(size);
    if (size == 1) {
        function(team, 0, argument);
        return;
    }
#if defined(__linux__)
    cpu_set_t before;
    const bool is_pinned = pool.is_pinned && pthread_getaffinity_np(pthread_self(), sizeof before, &before) == 0;
    if (is_pinned) pin(pool.cores[0]);
#endif
    pool.function = function;
    pool.argument = argument;
    pool.team = &team;
    pool.finished.store(0, std::memory_order_relaxed);
    pool.round.fetch_add(1, std::memory_order_acq_rel);
    pool.round.notify_all();
    function(team, 0, argument);
    // The team lives on this stack: no worker may still be leaving its last barrier.
    for (int spin = 0; spin < kSpins && pool.finished.load(std::memory_order_acquire) != size - 1; ++spin) relax();
    for (int seen; (seen = pool.finished.load(std::memory_order_acquire)) != size - 1;)
        pool.finished.wait(seen, std::memory_order_acquire);
#if defined(__linux__)
    if (is_pinned) pthread_setaffinity_np(pthread_self(), sizeof before, &before);
#endif
}

int num_threads() {
    std::lock_guard<std::mutex> lock(run_mutex);
    return 1 + (int)current_pool().workers.size();
}

int set_num_threads(int count) {
    std::lock_guard<std::mutex> lock(run_mutex);
    stop_pool();
    wanted_threads = count > 0 ? count : 0;
    return 1 + (int)current_pool().workers.size();
}

}  // namespace ossia
