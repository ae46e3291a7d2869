/* Public interface of the crop decoder: decode a rectangle of a baseline or progressive JPEG, resize it, flip it.

   DailyMAE (Sec. 3.1, "crop decode") decodes only the MCUs under the crop. This library does so through libjpeg-turbo's own
   pixel pipeline, so that the result equals full decode + crop bit for bit, and adds what the paper leaves standing: entropy
   decoding that jumps to the crop (restart markers or a seek index) and a resize fused with colour conversion.

   Every integer argument is 64 bits wide and every pointer travels as an address, because numba calls these functions too. */
#ifndef CROP_DECODE_H
#define CROP_DECODE_H

#include <stdint.h>

#define CD_PUBLIC __attribute__((visibility("default")))

#define CROP_DECODE_VERSION 3
#define CROP_DECODE_MESSAGE 160 /* bytes of an error message, final zero included */

/* Status of one sample. */
enum {
    CD_OK = 0,
    CD_CORRUPT = 1,     /* libjpeg error, any warning about the data, or entropy data that do not parse */
    CD_UNSUPPORTED = 2, /* CMYK, more than 8 bits, not three or one components */
    CD_BOX = 3,         /* the box does not lie in the image */
    CD_TOO_LARGE = 4,   /* more pixels than the library agrees to handle */
    CD_MEMORY = 5,
    CD_INDEX = 6, /* the seek index does not belong to this JPEG, or one of them has changed */
    CD_FILE = 7   /* the file is shorter than it was, or cannot be read */
};

/* Flags, or-ed together. */
enum {
    CD_FAST_DCT = 1,      /* libjpeg's fast DCT, as stock FFCV uses; else the accurate one, as PIL */
    CD_PLANAR = 2,        /* write (3, S, S) instead of (S, S, 3) */
    CD_FUSED = 4,         /* resize the YCbCr planes and convert afterwards: fast, differs from exact by rounding */
    CD_LIBJPEG_HUFFMAN = 8, /* entropy-decode with libjpeg: to measure against, and for formats the own decoder refuses */
    CD_NO_SEEK = 16,      /* ignore seek indices and restart markers: to measure against */
    CD_FULL = 32,         /* decode the whole image, then crop: the reference path */
    CD_BICUBIC = 64,      /* antialiased bicubic, as PIL; else area, as OpenCV */
    CD_VERIFY = 128       /* parse the whole scan, so that damage outside the crop is an error too */
};

/* What a JPEG's header says; all int64 so that a numpy array can hold it. */
typedef struct {
    int64_t width, height, components, progressive, arithmetic, restart_interval;
    int64_t mcu_width, mcu_height, mcus_per_row, mcu_rows, seekable, h_samp, v_samp;
} cd_info;

CD_PUBLIC int64_t crop_decode_version(void);
CD_PUBLIC const char *crop_decode_isa(void);

/* Whether the own entropy decoder and the fused mode passed their self-test with this libjpeg; if not, libjpeg's decoder is used. */
CD_PUBLIC int64_t crop_decode_trusted(void);

/* Header of one JPEG. message: CROP_DECODE_MESSAGE bytes or 0. */
CD_PUBLIC int64_t crop_decode_info(int64_t jpeg, int64_t length, int64_t info, int64_t message);

/* The box's pixels, (height, width, 3) uint8, unresized. index may be 0. */
CD_PUBLIC int64_t crop_decode_pixels(int64_t jpeg, int64_t length, int64_t index, int64_t index_length, int64_t out, int64_t top,
                           int64_t left, int64_t height, int64_t width, int64_t flip, int64_t flags, int64_t message);

/* The box resized to size x size; ten integers, for pipelines compiled by numba. */
CD_PUBLIC int64_t crop_decode_resize(int64_t jpeg, int64_t length, int64_t out, int64_t size, int64_t top, int64_t left, int64_t height,
                           int64_t width, int64_t flip, int64_t flags);

/* The same with a seek index, a size per axis and a message. */
CD_PUBLIC int64_t crop_decode_resize_indexed(int64_t jpeg, int64_t length, int64_t index, int64_t index_length, int64_t out,
                                   int64_t out_height, int64_t out_width, int64_t top, int64_t left, int64_t height,
                                   int64_t width, int64_t flip, int64_t flags, int64_t message);

/* The same for bytes that stand in open files, `index_length` 0 for none: they are read, not mapped, so that a file that somebody cuts
   meanwhile is a status and not a signal. */
CD_PUBLIC int64_t crop_decode_resize_stored(int64_t file, int64_t offset, int64_t length, int64_t index_file, int64_t index_offset,
                                  int64_t index_length, int64_t out, int64_t size, int64_t top, int64_t left, int64_t height,
                                  int64_t width, int64_t flip, int64_t flags);

/* The box of an image stored as (rows, columns, 3) uint8 pixels in an open file. */
CD_PUBLIC int64_t crop_decode_resize_stored_pixels(int64_t file, int64_t offset, int64_t columns, int64_t out, int64_t size, int64_t top,
                                         int64_t left, int64_t height, int64_t width, int64_t flip, int64_t flags);

/* n samples on `threads` threads. jpegs, lengths, indices, index_lengths: n uint64 each (indices may be 0); boxes: (n, 4) int32
   top, left, height, width; flips: n uint8 or 0; out: n contiguous outputs; status: n int32; messages: n x CROP_DECODE_MESSAGE
   or 0. Returns the number of samples that failed; their outputs are zero. An output size that is refused fails them all and leaves
   the outputs alone. */
CD_PUBLIC int64_t crop_decode_batch(int64_t n, int64_t jpegs, int64_t lengths, int64_t indices, int64_t index_lengths, int64_t boxes,
                          int64_t flips, int64_t out, int64_t out_height, int64_t out_width, int64_t flags, int64_t threads,
                          int64_t status, int64_t messages);

/* Resizes (height, width, 3) uint8 pixels, rows of `stride` bytes, as crop_decode_resize does in its exact mode. */
CD_PUBLIC int64_t crop_decode_resize_pixels(int64_t pixels, int64_t stride, int64_t height, int64_t width, int64_t out, int64_t out_height,
                                  int64_t out_width, int64_t flip, int64_t flags);

/* Lossless transcode to baseline sequential with a restart marker every `interval` MCUs (0: none); optimize: Huffman tables fitted
   to the image. *out receives malloc'ed bytes, to be given to crop_decode_free. */
CD_PUBLIC int64_t crop_decode_transcode(int64_t jpeg, int64_t length, int64_t interval, int64_t optimize, int64_t keep_markers, int64_t out,
                              int64_t out_length, int64_t message);
CD_PUBLIC void crop_decode_free(int64_t pointer);

/* Seek index with an entry every `step` MCUs (the restart interval where the file has one), written to out (capacity bytes).
   Returns its length, or minus a status. */
CD_PUBLIC int64_t crop_decode_build_index(int64_t jpeg, int64_t length, int64_t step, int64_t out, int64_t capacity, int64_t message);

#endif
