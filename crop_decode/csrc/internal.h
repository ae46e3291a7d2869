/* What the parts of the crop decoder share. The library is one translation unit (core.c), compiled once per instruction set. */
#ifndef CROP_DECODE_INTERNAL_H
#define CROP_DECODE_INTERNAL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include <jerror.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "crop_decode.h"

#ifndef LIBJPEG_TURBO_VERSION
#error "libjpeg-turbo is needed: plain libjpeg cannot decode part of a row"
#endif

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

#define MAX_PIXELS 178956970LL /* Pillow's own limit against decompression bombs */
#define MAX_JPEG_BYTES (1LL << 31)
#define MAX_CODER_MEMORY (1L << 30)
#define MAX_SCANS 200
#define MAX_OUTPUT_SIDE 16384

enum { SCRATCH_PIXELS, SCRATCH_CLEAN, SCRATCH_RESTARTS, SCRATCH_RESIZE, SCRATCH_PLANES, SCRATCH_KINDS };

#define LOOK_BITS 11

/* One Huffman table, derived for decoding. It is rebuilt only when the JPEG's table differs from the last one. */
typedef struct {
    uint8_t bits[17], values[256];
    bool ready;
    uint32_t limit[18]; /* first 16-bit prefix that is longer than the length */
    int32_t offset[17];
    uint64_t look[1 << LOOK_BITS];
} huffman;

/* Bits not yet consumed: left-justified in acc; next is the first byte not yet (wholly) in acc. */
typedef struct {
    uint64_t acc;
    int count;
    const uint8_t *next;
} bit_reader;

/* Entropy decoder of baseline scans that starts at any segment: a restart interval, a stretch between two index entries, or all. */
typedef struct {
    huffman tables[2][4];
    const huffman *dc[D_MAX_BLOCKS_IN_MCU], *ac[D_MAX_BLOCKS_IN_MCU];
    int component[D_MAX_BLOCKS_IN_MCU];
    int blocks, components;
    int pred[MAX_COMPS_IN_SCAN];
    bit_reader bits;
    const uint8_t *jpeg, *start, *end; /* start: first byte of entropy data */
    const uint8_t *index;              /* entries, or 0 */
    const uint32_t *restarts;          /* start of each restart interval relative to jpeg, or 0 */
    int64_t restarts_known;
    const uint8_t *clean; /* the segment without stuffed bytes */
    int64_t clean_bits;   /* its length */
    const uint8_t *segment_stop; /* the marker behind it, in the jpeg */
    int64_t exact_end;    /* bit at which the segment must end, or -1 */
    int64_t mcus, per_row, step, segment, segment_end, next_mcu;
    bool seek; /* jump to segments instead of decoding up to them */
    int64_t row_first, row_last, col_first, col_last; /* window, inclusive */
    int64_t hook_row, hook_col;
} entropy;

typedef struct {
    void *data;
    size_t capacity;
} scratch_buffer;

typedef struct context {
    struct jpeg_decompress_struct cinfo;
    struct jpeg_compress_struct writer;
    struct jpeg_destination_mgr destination;
    bool keep_markers;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
    int status;
    char message[CROP_DECODE_MESSAGE];
    scratch_buffer scratch[SCRATCH_KINDS], written, stored[2]; /* stored: a JPEG and its index, read from files */
    entropy entropy;
} context;

typedef struct {
    const uint8_t *jpeg;
    int64_t length;
    const uint8_t *index;
    int64_t index_length;
    int64_t top, left, height, width;
    bool flip;
    unsigned flags;
} request;

/* What dispatch.c asks of a core. */
typedef struct {
    const char *name;
    int (*info)(context *, const uint8_t *, int64_t, cd_info *);
    int (*pixels)(context *, const request *, uint8_t *);
    int (*resize)(context *, const request *, uint8_t *, int64_t, int64_t);
    int (*resize_pixels)(context *, const uint8_t *, int64_t, int64_t, int64_t, uint8_t *, int64_t, int64_t, bool, unsigned);
    int64_t (*build_index)(context *, const uint8_t *, int64_t, int64_t, uint8_t *, int64_t);
    int (*transcode)(context *, const uint8_t *, int64_t, int64_t, bool, bool, unsigned char **, unsigned long *);
    bool (*self_test)(context *);
} core;

#endif
