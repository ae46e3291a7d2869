/* The whole decoder as one translation unit. build_library.py compiles it once for each instruction set; CORE names the
   result. */
#include "internal.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the bit reader assumes a little-endian machine"
#endif

#include "errors.c"
#include "header.c"
#include "huffman.c"
#include "fingerprint.c"
#include "entropy.c"
#include "exact.c"
#include "area.c"
#include "bicubic.c"
#include "fused.c"
#include "resize.c"
#include "restart.c"
#include "selftest.c"

#define STRING_(x) #x
#define STRING(x) STRING_(x)

const core CORE = {.name = STRING(CORE_NAME),
                   .info = core_info,
                   .pixels = core_pixels,
                   .resize = core_resize,
                   .resize_pixels = core_resize_pixels,
                   .build_index = core_build_index,
                   .transcode = core_transcode,
                   .self_test = core_self_test};
