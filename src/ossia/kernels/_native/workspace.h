// Memory that a step needs, kept from step to step: named stretches of one allocation.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ossia {

// Sizes are added up first (`plan`), then the memory is made (`commit`), then pointers are taken (`at`).
class Workspace {
public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace() { std::free(memory_); }

    void begin() { size_ = 0; }

    // Reserve so many bytes; returns where they will lie.
    size_t plan(size_t bytes) {
        const size_t offset = size_;
        size_ += (bytes + 127) / 128 * 128 + 128;  // apart, so that no two threads share a line
        return offset;
    }

    bool commit() {
        if (size_ <= capacity_) return true;
        std::free(memory_);
        memory_ = nullptr;
        capacity_ = 0;
        const size_t page = (size_t)1 << (size_ >= ((size_t)4 << 20) ? 21 : 12);
        const size_t rounded = (size_ + page - 1) / page * page;
        void* made = nullptr;
        if (posix_memalign(&made, page, rounded) != 0) return false;
#if defined(__linux__)
        madvise(made, rounded, MADV_HUGEPAGE);
#endif
        memory_ = static_cast<uint8_t*>(made);
        capacity_ = rounded;
        return true;
    }

    template <class T>
    T* at(size_t offset) const {
        return reinterpret_cast<T*>(memory_ + offset);
    }

private:
    uint8_t* memory_ = nullptr;
    size_t size_ = 0, capacity_ = 0;
};

}  // namespace ossia
