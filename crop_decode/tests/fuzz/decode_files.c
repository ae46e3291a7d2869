/* Decode the files named on the command line in every mode, without Python, for valgrind and sanitizers. `make sanitize`
   runs it with sanitizers. With valgrind, which checks libjpeg too, from the folder crop_decode/:

     python tests/fuzz/mutate_jpegs.py 2000 1 --write corpus
     gcc -g -O1 -mavx2 -mbmi2 -DCD_FUZZING -DCORE=cd_core_generic -DCORE_NAME=generic -Icsrc tests/fuzz/decode_files.c \
         csrc/core.c csrc/dispatch.c -ljpeg -pthread -o decode_files
     export JSIMD_FORCENONE=1   # libjpeg-turbo's assembly computes on padding, which memcheck reports
     find corpus -name '*.jpg' -exec valgrind -q --error-exitcode=9 --leak-check=full ./decode_files {} +

   A file x.jpg may have a seek index beside it, x.seek. With CD_FUZZING the decoder follows an index that does not match. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crop_decode.h"

typedef struct {
    uint8_t *bytes;
    int64_t length;
    int descriptor;
} file;

static file read_file(const char *path)
{
    file f = {.descriptor = open(path, O_RDONLY)};
    FILE *stream = fopen(path, "rb");
    if (!stream) return f;
    fseek(stream, 0, SEEK_END);
    f.length = ftell(stream);
    rewind(stream);
    f.bytes = malloc(f.length ? f.length : 1); /* exactly as long as the file, so that reading past it shows */
    if (fread(f.bytes, 1, f.length, stream) != (size_t)f.length) f.length = 0;
    fclose(stream);
    return f;
}

static void close_file(file f)
{
    free(f.bytes);
    if (f.descriptor >= 0) close(f.descriptor);
}

static int64_t at(const void *pointer) { return (int64_t)(intptr_t)pointer; }

static int64_t decode_box(file jpeg, file index, const int64_t *box, int64_t flags, int64_t size)
{
    char message[CROP_DECODE_MESSAGE];
    uint8_t *pixels = malloc(box[2] * box[3] * 3), *resized = malloc(size * size * 3);
    int64_t status = crop_decode_pixels(at(jpeg.bytes), jpeg.length, at(index.bytes), index.length, at(pixels), box[0], box[1], box[2],
                                        box[3], size & 1, flags, at(message));
    if (status == CD_OK) crop_decode_resize_pixels(at(pixels), box[3] * 3, box[2], box[3], at(resized), size, size, size & 1, flags);
    crop_decode_resize_indexed(at(jpeg.bytes), jpeg.length, at(index.bytes), index.length, at(resized), size, size, box[0], box[1],
                               box[2], box[3], size & 1, flags, at(message));
    crop_decode_resize_stored(jpeg.descriptor, 0, jpeg.length, index.descriptor, 0, index.length, at(resized), size, box[0], box[1], box[2],
                              box[3], size & 1, flags);
    crop_decode_resize_stored_pixels(jpeg.descriptor, 0, box[3], at(resized), size, box[0], 0, box[2], box[3], size & 1, flags);
    /* What came out is looked at, so that a value never written shows. */
    unsigned sum = 0;
    for (int64_t i = 0; status == CD_OK && i < size * size * 3; i++) sum += resized[i];
    if (sum == 0x7FFFFFFF) puts("");
    free(pixels);
    free(resized);
    return status;
}

static void rewrite(file jpeg)
{
    char message[CROP_DECODE_MESSAGE];
    int64_t out = 0, length = 0;
    uint8_t *index = malloc(1 << 16);
    for (int64_t interval = 0; interval < 8; interval += 5) {
        crop_decode_transcode(at(jpeg.bytes), jpeg.length, interval, interval == 0, 1, at(&out), at(&length), at(message));
        crop_decode_free(out);
        crop_decode_build_index(at(jpeg.bytes), jpeg.length, interval + 1, at(index), 1 << 16, at(message));
    }
    free(index);
}

int main(int count, char **paths)
{
    const int64_t flags[] = {0, CD_LIBJPEG_HUFFMAN, CD_NO_SEEK, CD_VERIFY, CD_FUSED, CD_FUSED | CD_PLANAR, CD_BICUBIC, CD_BICUBIC | CD_FUSED,
                             CD_FAST_DCT | CD_PLANAR, CD_FULL};
    const int64_t sizes[] = {33, 1, 20, 64};
    long decoded = 0, refused = 0;
    for (int i = 1; i < count; i++) {
        char beside[4096];
        snprintf(beside, sizeof beside, "%.*s.seek", (int)strcspn(paths[i], "."), paths[i]);
        file jpeg = read_file(paths[i]), index = read_file(beside);
        cd_info info = {.width = 20, .height = 20};
        crop_decode_info(at(jpeg.bytes), jpeg.length, at(&info), 0);
        if (info.width > 2000) info.width = 2000;
        if (info.height > 2000) info.height = 2000;
        const int64_t boxes[][4] = {{0, 0, info.height, info.width},
                                    {info.height / 3, info.width / 4, info.height - info.height / 3, (info.width + 1) / 2},
                                    {info.height / 2, info.width - 1, 1, 1}};
        for (size_t f = 0; f < sizeof flags / sizeof *flags; f++)
            for (size_t b = 0; b < 3; b++)
                for (int indexed = 0; indexed < 2; indexed++)
                    *(decode_box(jpeg, indexed ? index : (file){0}, boxes[b], flags[f], sizes[(f + b + jpeg.length) % 4]) ? &refused : &decoded) += 1;
        rewrite(jpeg);
        close_file(jpeg);
        close_file(index);
    }
    printf("%d files: %ld crops decoded, %ld refused\n", count - 1, decoded, refused);
    return 0;
}
