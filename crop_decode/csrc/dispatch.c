/* The public functions: one context a thread, the core that suits the processor, batches on threads. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "internal.h"

extern const core cd_core_generic;
#ifdef CD_HAVE_AVX2
extern const core cd_core_avx2;
#endif

static const core *chosen_core(void)
{
#ifdef CD_HAVE_AVX2
    static _Atomic(const core *) chosen;
    const core *known = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (!known) {
        bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && !getenv("CROP_DECODE_GENERIC");
        known = avx2 ? &cd_core_avx2 : &cd_core_generic;
        atomic_store_explicit(&chosen, known, memory_order_relaxed);
    }
    return known;
#else
    return &cd_core_generic;
#endif
}

static void free_context(void *pointer)
{
    context *c = pointer;
    if (!c) return;
    for (int i = 0; i < SCRATCH_KINDS; i++) free(c->scratch[i].data);
    for (int i = 0; i < 2; i++) free(c->stored[i].data);
    free(c);
}

static pthread_key_t context_key;
static pthread_once_t context_once = PTHREAD_ONCE_INIT;
static bool context_key_made;

static void make_context_key(void) { context_key_made = pthread_key_create(&context_key, free_context) == 0; }

/* The calling thread's own context, freed when the thread ends; 0 when there is no memory. */
static context *thread_context(void)
{
    pthread_once(&context_once, make_context_key);
    if (!context_key_made) return NULL;
    context *c = pthread_getspecific(context_key);
    if (!c) {
        c = calloc(1, sizeof *c);
        if (c && pthread_setspecific(context_key, c)) {
            free(c);
            c = NULL;
        }
    }
    return c;
}

static pthread_once_t trust_once = PTHREAD_ONCE_INIT;
static bool trusted;

static void run_self_test(void)
{
    context *c = calloc(1, sizeof *c);
    trusted = c && chosen_core()->self_test(c);
    free_context(c);
}

/* Flags that this libjpeg allows: without ours, its own entropy decoder gives the same pixels. */
static unsigned allowed(int64_t flags)
{
    pthread_once(&trust_once, run_self_test);
    return trusted ? (unsigned)flags : ((unsigned)flags & ~CD_FUSED) | CD_LIBJPEG_HUFFMAN;
}

int64_t crop_decode_trusted(void) { return allowed(0) == 0; }

/* One huge image must not keep its memory for as long as the thread lives. */
static void release_if_large(scratch_buffer *buffer)
{
    if (buffer->capacity <= (size_t)16 << 20) return;
    free(buffer->data);
    *buffer = (scratch_buffer){0};
}

static void release_large_scratch(context *c)
{
    for (int i = 0; i < SCRATCH_KINDS; i++) release_if_large(&c->scratch[i]);
    for (int i = 0; i < 2; i++) release_if_large(&c->stored[i]);
}

static void tell(const context *c, int64_t message, int status)
{
    if (!message) return;
    char *to = (char *)(intptr_t)message;
    snprintf(to, CROP_DECODE_MESSAGE, "%s", status == CD_OK ? "" : c ? c->message : "out of memory");
}

static bool output_allowed(int64_t height, int64_t width)
{
    return height >= 1 && width >= 1 && height <= MAX_OUTPUT_SIDE && width <= MAX_OUTPUT_SIDE;
}

static int refuse_output(int64_t message, int64_t height, int64_t width)
{
    if (message)
        snprintf((char *)(intptr_t)message, CROP_DECODE_MESSAGE, "output of %lld x %lld pixels, where a side may have 1 to %d",
                 (long long)height, (long long)width, MAX_OUTPUT_SIDE);
    return CD_TOO_LARGE;
}

static const uint8_t *bytes_at(int64_t address) { return (const uint8_t *)(intptr_t)address; }

int64_t crop_decode_version(void) { return CROP_DECODE_VERSION; }
const char *crop_decode_isa(void) { return chosen_core()->name; }
void crop_decode_free(int64_t pointer) { free((void *)(intptr_t)pointer); }

int64_t crop_decode_info(int64_t jpeg, int64_t length, int64_t info, int64_t message)
{
    context *c = thread_context();
    int status = c ? chosen_core()->info(c, bytes_at(jpeg), length, (cd_info *)(intptr_t)info) : CD_MEMORY;
    tell(c, message, status);
    return status;
}

int64_t crop_decode_pixels(int64_t jpeg, int64_t length, int64_t index, int64_t index_length, int64_t out, int64_t top,
                           int64_t left, int64_t height, int64_t width, int64_t flip, int64_t flags, int64_t message)
{
    context *c = thread_context();
    const request r = {bytes_at(jpeg), length, bytes_at(index), index_length, top, left, height, width, flip != 0, allowed(flags)};
    int status = c ? chosen_core()->pixels(c, &r, (uint8_t *)(intptr_t)out) : CD_MEMORY;
    tell(c, message, status);
    if (c) release_large_scratch(c);
    return status;
}

int64_t crop_decode_resize_indexed(int64_t jpeg, int64_t length, int64_t index, int64_t index_length, int64_t out,
                                   int64_t out_height, int64_t out_width, int64_t top, int64_t left, int64_t height,
                                   int64_t width, int64_t flip, int64_t flags, int64_t message)
{
    if (!output_allowed(out_height, out_width)) return refuse_output(message, out_height, out_width);
    context *c = thread_context();
    const request r = {bytes_at(jpeg), length, bytes_at(index), index_length, top, left, height, width, flip != 0, allowed(flags)};
    int status = c ? chosen_core()->resize(c, &r, (uint8_t *)(intptr_t)out, out_height, out_width) : CD_MEMORY;
    tell(c, message, status);
    if (c) release_large_scratch(c);
    return status;
}

int64_t crop_decode_resize(int64_t jpeg, int64_t length, int64_t out, int64_t size, int64_t top, int64_t left, int64_t height,
                           int64_t width, int64_t flip, int64_t flags)
{
    return crop_decode_resize_indexed(jpeg, length, 0, 0, out, size, size, top, left, height, width, flip, flags, 0);
}

int64_t crop_decode_resize_pixels(int64_t pixels, int64_t stride, int64_t height, int64_t width, int64_t out, int64_t out_height,
                                  int64_t out_width, int64_t flip, int64_t flags)
{
    context *c = thread_context();
    if (!c) return CD_MEMORY;
    if (!output_allowed(out_height, out_width)) return CD_TOO_LARGE;
    int status = chosen_core()->resize_pixels(c, bytes_at(pixels), stride, height, width, (uint8_t *)(intptr_t)out, out_height,
                                              out_width, flip != 0, (unsigned)flags);
    release_large_scratch(c);
    return status;
}

int64_t crop_decode_transcode(int64_t jpeg, int64_t length, int64_t interval, int64_t optimize, int64_t keep_markers, int64_t out,
                              int64_t out_length, int64_t message)
{
    context *c = thread_context();
    unsigned char *bytes = NULL;
    unsigned long count = 0;
    int status = CD_MEMORY;
    if (c) status = chosen_core()->transcode(c, bytes_at(jpeg), length, interval, optimize != 0, keep_markers != 0, &bytes, &count);
    tell(c, message, status);
    *(int64_t *)(intptr_t)out = (int64_t)(intptr_t)bytes;
    *(int64_t *)(intptr_t)out_length = (int64_t)count;
    return status;
}

int64_t crop_decode_build_index(int64_t jpeg, int64_t length, int64_t step, int64_t out, int64_t capacity, int64_t message)
{
    context *c = thread_context();
    int64_t result = -CD_MEMORY;
    if (c) result = chosen_core()->build_index(c, bytes_at(jpeg), length, step, (uint8_t *)(intptr_t)out, capacity);
    tell(c, message, result < 0 ? (int)-result : CD_OK);
    return result;
}

/* `length` bytes of an open file at `offset` into memory that the context keeps. */
static int read_stored(scratch_buffer *buffer, int64_t file, int64_t offset, int64_t length)
{
    if (length < 0 || length >= MAX_JPEG_BYTES) return CD_TOO_LARGE;
    if (buffer->capacity < (size_t)length) {
        size_t capacity = (size_t)length + (size_t)length / 4;
        free(buffer->data);
        *buffer = (scratch_buffer){malloc(capacity), 0};
        if (!buffer->data) return CD_MEMORY;
        buffer->capacity = capacity;
    }
    for (int64_t done = 0; done < length;) {
        ssize_t count = pread((int)file, (char *)buffer->data + done, (size_t)(length - done), offset + done);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return CD_FILE;
        done += count;
    }
    return CD_OK;
}

int64_t crop_decode_resize_stored(int64_t file, int64_t offset, int64_t length, int64_t index_file, int64_t index_offset,
                                  int64_t index_length, int64_t out, int64_t size, int64_t top, int64_t left, int64_t height,
                                  int64_t width, int64_t flip, int64_t flags)
{
    context *c = thread_context();
    if (!c) return CD_MEMORY;
    int status = read_stored(&c->stored[0], file, offset, length);
    if (status == CD_OK && index_length) status = read_stored(&c->stored[1], index_file, index_offset, index_length);
    if (status != CD_OK) return status;
    return crop_decode_resize_indexed((int64_t)(intptr_t)c->stored[0].data, length, index_length ? (int64_t)(intptr_t)c->stored[1].data : 0,
                                      index_length, out, size, size, top, left, height, width, flip, flags, 0);
}

int64_t crop_decode_resize_stored_pixels(int64_t file, int64_t offset, int64_t columns, int64_t out, int64_t size, int64_t top,
                                         int64_t left, int64_t height, int64_t width, int64_t flip, int64_t flags)
{
    context *c = thread_context();
    if (!c) return CD_MEMORY;
    if (columns < 1 || columns > MAX_PIXELS || height < 1 || height > MAX_PIXELS / columns || width < 1 || left < 0 || top < 0 ||
        left + width > columns)
        return CD_BOX;
    int status = read_stored(&c->stored[0], file, offset + 3 * columns * top, 3 * columns * height);
    if (status != CD_OK) return status;
    return crop_decode_resize_pixels((int64_t)(intptr_t)c->stored[0].data + 3 * left, 3 * columns, height, width, out, size, size, flip,
                                     flags);
}

typedef struct {
    int64_t n, out_height, out_width;
    const uint64_t *jpegs, *lengths, *indices, *index_lengths;
    const int32_t *boxes;
    const uint8_t *flips;
    uint8_t *out;
    unsigned flags;
    int32_t *status;
    char *messages;
    atomic_llong next, failed;
} batch;

static int64_t message_of(const batch *b, int64_t i)
{
    return b->messages ? (int64_t)(intptr_t)(b->messages + i * CROP_DECODE_MESSAGE) : 0;
}

static int decode_sample(context *c, const batch *b, int64_t i)
{
    const int32_t *box = b->boxes + 4 * i;
    const uint8_t *index = b->indices ? bytes_at((int64_t)b->indices[i]) : NULL;
    const request r = {.jpeg = bytes_at((int64_t)b->jpegs[i]),
                       .length = (int64_t)b->lengths[i],
                       .index = index,
                       .index_length = index ? (int64_t)b->index_lengths[i] : 0,
                       .top = box[0],
                       .left = box[1],
                       .height = box[2],
                       .width = box[3],
                       .flip = b->flips && b->flips[i],
                       .flags = b->flags};
    return chosen_core()->resize(c, &r, b->out + i * b->out_height * b->out_width * 3, b->out_height, b->out_width);
}

static void *run_batch(void *pointer)
{
    batch *b = pointer;
    context *c = thread_context();
    int64_t i, size = b->out_height * b->out_width * 3;
    while ((i = atomic_fetch_add(&b->next, 1)) < b->n) {
        int status = c ? decode_sample(c, b, i) : CD_MEMORY;
        b->status[i] = status;
        tell(c, message_of(b, i), status);
        if (status != CD_OK) {
            memset(b->out + i * size, 0, size);
            atomic_fetch_add(&b->failed, 1);
        }
        if (c) release_large_scratch(c);
    }
    return NULL;
}

/* Memory of such a size was hardly meant: it is not touched. */
static int64_t refuse_batch(const batch *b)
{
    for (int64_t i = 0; i < b->n; i++) b->status[i] = refuse_output(message_of(b, i), b->out_height, b->out_width);
    return b->n;
}

#define MAX_THREADS 64

int64_t crop_decode_batch(int64_t n, int64_t jpegs, int64_t lengths, int64_t indices, int64_t index_lengths, int64_t boxes,
                          int64_t flips, int64_t out, int64_t out_height, int64_t out_width, int64_t flags, int64_t threads,
                          int64_t status, int64_t messages)
{
    batch b = {.n = n,
               .out_height = out_height,
               .out_width = out_width,
               .jpegs = (const uint64_t *)(intptr_t)jpegs,
               .lengths = (const uint64_t *)(intptr_t)lengths,
               .indices = (const uint64_t *)(intptr_t)indices,
               .index_lengths = (const uint64_t *)(intptr_t)index_lengths,
               .boxes = (const int32_t *)(intptr_t)boxes,
               .flips = bytes_at(flips),
               .out = (uint8_t *)(intptr_t)out,
               .flags = allowed(flags),
               .status = (int32_t *)(intptr_t)status,
               .messages = (char *)(intptr_t)messages};
    if (!output_allowed(out_height, out_width)) return refuse_batch(&b);
    pthread_t helpers[MAX_THREADS];
    int64_t started = 0, wanted = (threads > n ? n : threads) - 1;
    if (wanted > MAX_THREADS) wanted = MAX_THREADS;
    while (started < wanted && pthread_create(&helpers[started], NULL, run_batch, &b) == 0) started++;
    run_batch(&b);
    for (int64_t i = 0; i < started; i++) pthread_join(helpers[i], NULL);
    return atomic_load(&b.failed);
}
