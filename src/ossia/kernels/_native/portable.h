// All kernels that need no intrinsics. OSSIA_LANES (floats a vector) and OSSIA_GROUP (MXFP4 blocks that are multiplied
// together) are set by the level.
#pragma once
#include "activations.h"
#include "attention.h"
#include "bf12.h"
#include "dense_rows.h"
#include "f32_tiles.h"
#include "vectors.h"
