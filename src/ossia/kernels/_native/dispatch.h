// Which level runs.
#pragma once
#include "kernels.h"

namespace ossia {

const Kernels& current_kernels();

// Held while a step uses the memory that all steps share.
class StepLock {
public:
    StepLock();
    ~StepLock();
    StepLock(const StepLock&) = delete;
    StepLock& operator=(const StepLock&) = delete;
};

}  // namespace ossia
