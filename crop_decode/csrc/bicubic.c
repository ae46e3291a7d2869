/* Pillow's bicubic on 8-bit RGB, with the same bytes: the filter of torchvision's RandomResizedCrop and of the MAE reference.

   Keys' kernel (a = -1/2), widened when it shrinks; columns first, rounded to bytes in between; 22-bit integer weights.
   Pillow 13 takes rows first for some shapes; here columns always come first, as in every version before. */

#define BICUBIC_BITS 22

typedef struct {
    int taps;
    int *start, *count;
    int *weight;
} bicubic_axis;

static double bicubic_kernel(double x)
{
    const double a = -0.5;
    x = __builtin_fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

static int bicubic_taps(int64_t source, int64_t target)
{
    double scale = (double)source / target;
    return (int)__builtin_ceil(2.0 * (scale < 1 ? 1 : scale)) * 2 + 1;
}

/* Taps of output i: where they start, how many, and their weights, not yet normalised; returns their sum. */
static double bicubic_values(int64_t source, int64_t target, int64_t i, int *start, int *count, double *values)
{
    double scale = (double)source / target, widened = scale < 1 ? 1 : scale, support = 2.0 * widened;
    double centre = (i + 0.5) * scale, total = 0;
    int64_t first = (int64_t)(centre - support + 0.5), end = (int64_t)(centre + support + 0.5);
    if (first < 0) first = 0;
    if (end > source) end = source;
    *start = (int)first;
    *count = (int)(end - first);
    for (int k = 0; k < *count; k++) total += values[k] = bicubic_kernel((k + first - centre + 0.5) * (1.0 / widened));
    return total != 0 ? total : 1;
}

static void bicubic_weights(bicubic_axis *axis, int64_t source, int64_t target)
{
    double values[axis->taps];
    for (int64_t i = 0; i < target; i++) {
        double total = bicubic_values(source, target, i, &axis->start[i], &axis->count[i], values);
        for (int k = 0; k < axis->count[i]; k++) {
            double v = values[k] / total * (1 << BICUBIC_BITS);
            axis->weight[i * axis->taps + k] = (int)(v < 0 ? v - 0.5 : v + 0.5);
        }
    }
}

/* The same as fractions. */
static void bicubic_fractions(area_axis *axis, int64_t source, int64_t target)
{
    double values[axis->taps];
    for (int64_t i = 0; i < target; i++) {
        double total = bicubic_values(source, target, i, &axis->start[i], &axis->count[i], values);
        for (int k = 0; k < axis->count[i]; k++) axis->weight[i * axis->taps + k] = (float)(values[k] / total);
    }
}

static inline uint8_t bicubic_byte(int sum)
{
    sum >>= BICUBIC_BITS;
    return sum < 0 ? 0 : sum > 255 ? 255 : (uint8_t)sum;
}

/* Weights in output order, for two output pixels side by side, each four times (compare area_columns). */
typedef struct {
    int taps, *start, *pairs;
} bicubic_columns;

static void spread_bicubic(const bicubic_axis *axis, int64_t target, bool flip, bicubic_columns *out)
{
    for (int64_t x = 0; x < (target + 1) / 2 * 2; x++) {
        int64_t column = x < target ? (flip ? target - 1 - x : x) : (flip ? 0 : target - 1);
        out->start[x] = 3 * axis->start[column];
        for (int t = 0; t < out->taps; t++)
            for (int lane = 0; lane < 4; lane++)
                out->pairs[((x / 2) * out->taps + t) * 8 + (x & 1) * 4 + lane] =
                    t < axis->count[column] ? axis->weight[column * axis->taps + t] : 0;
    }
}

/* One row of pixels to bytes. Two output pixels at a time, six bytes of every eight that are written. */
static void bicubic_row(const uint8_t *restrict row, int64_t values, const bicubic_columns *axis, int64_t target, int *restrict in,
                        uint8_t *restrict out)
{
    for (int64_t i = 0; i < values; i++) in[i] = row[i];
    int taps = axis->taps;
    for (int64_t x = 0; x < target; x += 2) {
        const int *a = in + axis->start[x], *b = in + axis->start[x + 1], *weight = axis->pairs + x / 2 * taps * 8;
#ifdef __AVX2__
        __m256i sum = _mm256_set1_epi32(1 << (BICUBIC_BITS - 1));
        for (int t = 0; t < taps; t++) {
            __m256i pixels = _mm256_loadu2_m128i((const __m128i *)(b + 3 * t), (const __m128i *)(a + 3 * t));
            sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(pixels, _mm256_load_si256((const __m256i *)(weight + 8 * t))));
        }
        sum = _mm256_srai_epi32(sum, BICUBIC_BITS);
        __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        __m128i bytes = _mm_shuffle_epi8(_mm_packus_epi16(words, words), _mm_setr_epi8(0, 1, 2, 4, 5, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6));
        _mm_storel_epi64((__m128i *)(out + 3 * x), bytes);
#else
        for (int k = 0; k < 3; k++) {
            int sum_a = 1 << (BICUBIC_BITS - 1), sum_b = sum_a;
            for (int t = 0; t < taps; t++) {
                sum_a += a[3 * t + k] * weight[8 * t];
                sum_b += b[3 * t + k] * weight[8 * t + 4];
            }
            out[3 * x + k] = bicubic_byte(sum_a), out[3 * x + 3 + k] = bicubic_byte(sum_b);
        }
#endif
    }
}

static void bicubic_sum(const uint8_t *const *lines, const int *weight, int taps, int64_t n, uint8_t *restrict out)
{
    for (int64_t k = 0; k < n; k += 16) {
#ifdef __AVX2__
        __m256i low = _mm256_set1_epi32(1 << (BICUBIC_BITS - 1)), high = low;
        for (int t = 0; t < taps; t++) {
            __m128i bytes = _mm_loadu_si128((const __m128i *)(lines[t] + k));
            __m256i w = _mm256_set1_epi32(weight[t]);
            low = _mm256_add_epi32(low, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), w));
            high = _mm256_add_epi32(high, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)), w));
        }
        __m256i words = _mm256_packs_epi32(_mm256_srai_epi32(low, BICUBIC_BITS), _mm256_srai_epi32(high, BICUBIC_BITS));
        words = _mm256_permute4x64_epi64(words, 0xD8);
        _mm_storeu_si128((__m128i *)(out + k), _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#else
        int sums[16];
        for (int i = 0; i < 16; i++) sums[i] = 1 << (BICUBIC_BITS - 1);
        for (int t = 0; t < taps; t++)
            for (int i = 0; i < 16; i++) sums[i] += lines[t][k + i] * weight[t];
        for (int i = 0; i < 16; i++) out[k + i] = bicubic_byte(sums[i]);
#endif
    }
}

typedef struct {
    bicubic_axis x, y;
    bicubic_columns columns;
    int *in;
    uint8_t *ring, *bytes;
} bicubic_memory;

static void place_bicubic_axis(arena *a, bicubic_axis *axis, int64_t target)
{
    axis->start = take(a, target * sizeof(int));
    axis->count = take(a, target * sizeof(int));
    axis->weight = take(a, target * axis->taps * sizeof(int));
}

static void place_bicubic(arena *a, const resize_job *job, bicubic_memory *m)
{
    int64_t n = (job->out_width * 3 + 31) / 16 * 16;
    place_bicubic_axis(a, &m->x, job->out_width);
    place_bicubic_axis(a, &m->y, job->out_height);
    m->columns.start = take(a, (job->out_width + 1) * sizeof(int));
    m->columns.pairs = take(a, (job->out_width + 1) / 2 * m->x.taps * 8 * sizeof(int));
    m->in = take(a, (job->width + m->x.taps + 2) * 3 * sizeof(int)); /* zero-weighted taps may lie beyond the row */
    m->ring = take(a, n * m->y.taps);
    m->bytes = take(a, n);
}

/* An axis that keeps its size takes each sample as it is. */
static void bicubic_axis_weights(bicubic_axis *axis, int64_t source, int64_t target)
{
    if (source != target) {
        bicubic_weights(axis, source, target);
        return;
    }
    for (int64_t i = 0; i < target; i++) axis->start[i] = (int)i, axis->count[i] = 1, axis->weight[i * axis->taps] = 1 << BICUBIC_BITS;
}

static int most_bicubic_taps(const bicubic_axis *axis, int64_t target)
{
    int most = 1;
    for (int64_t i = 0; i < target; i++) most = axis->count[i] > most ? axis->count[i] : most;
    return most;
}

/* A ring of resized rows: each output row needs at most `taps` consecutive ones. */
static void resize_bicubic(context *c, const resize_job *job)
{
    int64_t n = (job->out_width * 3 + 31) / 16 * 16, values = job->width * 3, ready = 0;
    bicubic_memory m = {.x.taps = bicubic_taps(job->width, job->out_width), .y.taps = bicubic_taps(job->height, job->out_height)};
    arena measure = {0};
    place_bicubic(&measure, job, &m);
    arena memory = {.base = scratch(c, SCRATCH_RESIZE, measure.used)};
    place_bicubic(&memory, job, &m);
    memset(m.in + values, 0, (m.x.taps + 2) * 3 * sizeof(int));
    bicubic_axis_weights(&m.x, job->width, job->out_width);
    bicubic_axis_weights(&m.y, job->height, job->out_height);
    m.columns.taps = most_bicubic_taps(&m.x, job->out_width);
    spread_bicubic(&m.x, job->out_width, job->flip, &m.columns);
    const uint8_t *lines[m.y.taps];
    for (int64_t i = 0; i < job->out_height; i++) {
        int64_t first = m.y.start[i], end = first + m.y.count[i];
        for (ready = ready < first ? first : ready; ready < end; ready++)
            bicubic_row(job->pixels + ready * job->stride, values, &m.columns, job->out_width, m.in, m.ring + ready % m.y.taps * n);
        for (int t = 0; t < m.y.count[i]; t++) lines[t] = m.ring + (first + t) % m.y.taps * n;
        uint8_t *bytes = row_buffer(job, i, m.bytes);
        bicubic_sum(lines, m.y.weight + i * m.y.taps, m.y.count[i], job->out_width * 3, bytes);
        store_row(job, i, bytes);
    }
}
