/* OpenCV's INTER_AREA on 8-bit RGB, with the same bytes: the filter of FFCV's crops.

   Shrinking in both directions averages the covered area in float, columns first, each sum in the order of its taps; whole-number
   factors sum integers; enlarging in either direction is OpenCV's 11-bit bilinear variant of the area filter. Compiled without
   fused multiply-add, which would round differently. */

typedef float float4 __attribute__((vector_size(16)));
typedef float float4_unaligned __attribute__((vector_size(16), aligned(4)));

/* Weights of one axis: output i sums weight[i * taps + t] * input[start[i] + t]. */
typedef struct {
    int taps;
    int *start, *count;
    float *weight;
} area_axis;

typedef struct {
    const uint8_t *pixels;
    int64_t stride, height, width;
    uint8_t *out;
    int64_t out_height, out_width;
    bool flip, planar;
} resize_job;

static void place_axis(arena *a, area_axis *axis, int64_t target)
{
    axis->start = take(a, target * sizeof(int));
    axis->count = take(a, target * sizeof(int));
    axis->weight = take(a, target * axis->taps * sizeof(float));
}

static int max_taps(int64_t source, int64_t target) { return (int)(source / target) + 3; }

static bool near_whole(double scale, int *whole)
{
    *whole = (int)__builtin_rint(scale);
    return __builtin_fabs(scale - *whole) < 2.220446049250313e-16;
}

/* The scale as OpenCV has it: the reciprocal of a rounded quotient. */
static double axis_scale(int64_t source, int64_t target) { return 1.0 / ((double)target / (double)source); }

/* Pixels narrower than a thousandth do not count, as in OpenCV. */
static void area_weights(area_axis *axis, int64_t source, int64_t target)
{
    double scale = axis_scale(source, target);
    for (int64_t i = 0; i < target; i++) {
        double from = i * scale, to = from + scale, cell = source - from < scale ? source - from : scale;
        int64_t first = (int64_t)__builtin_ceil(from), last = (int64_t)__builtin_floor(to);
        if (last > source - 1) last = source - 1;
        if (first > last) first = last;
        float *weight = axis->weight + i * axis->taps;
        int n = 0;
        axis->start[i] = (int)first;
        if (first - from > 1e-3) {
            axis->start[i] = (int)first - 1;
            weight[n++] = (float)((first - from) / cell);
        }
        for (int64_t x = first; x < last; x++) weight[n++] = (float)(1.0 / cell);
        if (to - last > 1e-3) {
            double part = to - last < 1.0 ? to - last : 1.0;
            weight[n++] = (float)((part < cell ? part : cell) / cell);
        }
        axis->count[i] = n;
        while (n < axis->taps) weight[n++] = 0.0f;
    }
}

static int most_taps(const area_axis *axis, int64_t target)
{
    int most = 1;
    for (int64_t i = 0; i < target; i++) most = axis->count[i] > most ? axis->count[i] : most;
    return most;
}

/* Drops taps that no output uses. */
static void tighten(area_axis *axis, int64_t target)
{
    int most = most_taps(axis, target);
    for (int64_t i = 0; i < target; i++)
        for (int t = 0; t < most; t++) axis->weight[i * most + t] = axis->weight[i * axis->taps + t];
    axis->taps = most;
}

static inline uint8_t round_byte(float value)
{
    int v = (int)__builtin_rintf(value);
    return v < 0 ? 0 : v > 255 ? 255 : (uint8_t)v;
}

/* Where the bytes of output row y are put together: in place, unless they must be parted into planes, or writing a few bytes too many
   would leave the output. `spare` holds one row. */
static uint8_t *row_buffer(const resize_job *job, int64_t y, uint8_t *spare)
{
    int64_t bytes = job->out_width * 3;
    return job->planar || (job->out_height - 1 - y) * bytes < 16 ? spare : job->out + y * bytes;
}

/* From there into the interleaved output, or one row in each of three planes. */
static void store_row(const resize_job *job, int64_t y, const uint8_t *rgb)
{
    int64_t width = job->out_width, plane = job->out_height * width;
    if (!job->planar) {
        if (rgb != job->out + y * width * 3) memcpy(job->out + y * width * 3, rgb, width * 3);
        return;
    }
    uint8_t *r = job->out + y * width, *g = r + plane, *b = g + plane;
    for (int64_t x = 0; x < width; x++) {
        r[x] = rgb[3 * x];
        g[x] = rgb[3 * x + 1];
        b[x] = rgb[3 * x + 2];
    }
}

/* Weights as the columns pass wants them: in output order, and for two output pixels side by side, each weight four times. */
typedef struct {
    int taps;
    const int *start;
    float *pairs;
} area_columns;

static void spread_weights(const area_axis *axis, int64_t target, bool flip, int *start, area_columns *out)
{
    out->taps = axis->taps;
    out->start = start;
    for (int64_t x = 0; x < (target + 1) / 2 * 2; x++) {
        int64_t column = x < target ? (flip ? target - 1 - x : x) : (flip ? 0 : target - 1);
        start[x] = 3 * axis->start[column];
        for (int t = 0; t < axis->taps; t++)
            for (int lane = 0; lane < 4; lane++)
                out->pairs[((x / 2) * axis->taps + t) * 8 + (x & 1) * 4 + lane] = axis->weight[column * axis->taps + t];
    }
}

/* Sums of two output pixels, taps in order. The fourth lane of each is of no use, and the next store overwrites it. */
static inline __attribute__((always_inline)) void sum_columns(const float *in, const area_columns *axis, int taps, int64_t target,
                                                              float *restrict out)
{
    for (int64_t x = 0; x < target; x += 2) {
        const float *a = in + axis->start[x], *b = in + axis->start[x + 1], *weight = axis->pairs + x / 2 * taps * 8;
#ifdef __AVX2__
        __m256 sum = _mm256_mul_ps(_mm256_loadu2_m128(b, a), _mm256_load_ps(weight));
        for (int t = 1; t < taps; t++)
            sum = _mm256_add_ps(sum, _mm256_mul_ps(_mm256_loadu2_m128(b + 3 * t, a + 3 * t), _mm256_load_ps(weight + 8 * t)));
        _mm_storeu_ps(out + 3 * x, _mm256_castps256_ps128(sum));
        _mm_storeu_ps(out + 3 * x + 3, _mm256_extractf128_ps(sum, 1));
#else
        float4 sum_a = *(const float4_unaligned *)a * weight[0], sum_b = *(const float4_unaligned *)b * weight[4];
        for (int t = 1; t < taps; t++) {
            sum_a += *(const float4_unaligned *)(a + 3 * t) * weight[8 * t];
            sum_b += *(const float4_unaligned *)(b + 3 * t) * weight[8 * t + 4];
        }
        *(float4_unaligned *)(out + 3 * x) = sum_a;
        *(float4_unaligned *)(out + 3 * x + 3) = sum_b;
#endif
    }
}

static void area_row(const uint8_t *restrict row, int64_t values, const area_columns *axis, int64_t target, float *restrict in,
                     float *restrict out)
{
    for (int64_t i = 0; i < values; i++) in[i] = row[i];
    switch (axis->taps) {
    case 2: sum_columns(in, axis, 2, target, out); break;
    case 3: sum_columns(in, axis, 3, target, out); break;
    case 4: sum_columns(in, axis, 4, target, out); break;
    default: sum_columns(in, axis, axis->taps, target, out);
    }
}

/* Sixteen sums, rounded half to even. */
static inline void store_sums(const float *sums, uint8_t *out)
{
#ifdef __AVX2__
    __m256i a = _mm256_cvtps_epi32(_mm256_load_ps(sums)), b = _mm256_cvtps_epi32(_mm256_load_ps(sums + 8));
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
    _mm_storeu_si128((__m128i *)out, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#else
    for (int k = 0; k < 16; k++) out[k] = round_byte(sums[k]);
#endif
}

static inline __attribute__((always_inline)) void sum_rows_of(const float *const *lines, const float *weight, int taps, int64_t n,
                                                              uint8_t *out)
{
    for (int64_t k = 0; k < n; k += 16) {
        float sums[16] __attribute__((aligned(32)));
        for (int i = 0; i < 16; i++) sums[i] = lines[0][k + i] * weight[0];
        for (int t = 1; t < taps; t++)
            for (int i = 0; i < 16; i++) sums[i] = lines[t][k + i] * weight[t] + sums[i];
        store_sums(sums, out + k);
    }
}

static void sum_rows(const float *const *lines, const float *weight, int taps, int64_t n, uint8_t *out)
{
    switch (taps) {
    case 1: sum_rows_of(lines, weight, 1, n, out); break;
    case 2: sum_rows_of(lines, weight, 2, n, out); break;
    case 3: sum_rows_of(lines, weight, 3, n, out); break;
    default: sum_rows_of(lines, weight, taps, n, out);
    }
}

typedef struct {
    area_axis x, y;
    area_columns columns;
    int *start;
    float *in, *ring;
    uint8_t *bytes;
} area_memory;

/* Called twice: with an empty arena to measure, then to place. */
static void place_area(arena *a, const resize_job *job, area_memory *m)
{
    int64_t n = (job->out_width * 3 + 31) / 16 * 16;
    place_axis(a, &m->x, job->out_width);
    place_axis(a, &m->y, job->out_height);
    m->start = take(a, (job->out_width + 1) * sizeof(int));
    m->columns.pairs = take(a, (job->out_width + 1) / 2 * m->x.taps * 8 * sizeof(float));
    m->in = take(a, (job->width + m->x.taps + 2) * 3 * sizeof(float)); /* zero-weighted taps may lie beyond the row */
    m->ring = take(a, n * m->y.taps * sizeof(float));
    m->bytes = take(a, n);
}

static void area_general(context *c, const resize_job *job)
{
    int64_t n = (job->out_width * 3 + 31) / 16 * 16, values = job->width * 3, ready = 0;
    area_memory m = {.x.taps = max_taps(job->width, job->out_width), .y.taps = max_taps(job->height, job->out_height)};
    arena measure = {0};
    place_area(&measure, job, &m);
    arena memory = {.base = scratch(c, SCRATCH_RESIZE, measure.used)};
    place_area(&memory, job, &m);
    memset(m.in + values, 0, (m.x.taps + 2) * 3 * sizeof(float));
    area_weights(&m.x, job->width, job->out_width);
    area_weights(&m.y, job->height, job->out_height);
    tighten(&m.x, job->out_width);
    spread_weights(&m.x, job->out_width, job->flip, m.start, &m.columns);
    const float *lines[m.y.taps];
    for (int64_t i = 0; i < job->out_height; i++) {
        int64_t first = m.y.start[i], end = first + m.y.count[i];
        for (ready = ready < first ? first : ready; ready < end; ready++)
            area_row(job->pixels + ready * job->stride, values, &m.columns, job->out_width, m.in, m.ring + ready % m.y.taps * n);
        for (int t = 0; t < m.y.count[i]; t++) lines[t] = m.ring + (first + t) % m.y.taps * n;
        uint8_t *bytes = row_buffer(job, i, m.bytes);
        sum_rows(lines, m.y.weight + i * m.y.taps, m.y.count[i], job->out_width * 3, bytes);
        store_row(job, i, bytes);
    }
}

static void area_whole(context *c, const resize_job *job, int step_x, int step_y)
{
    uint8_t *bytes = scratch(c, SCRATCH_RESIZE, job->out_width * 3);
    float scale = 1.0f / (step_x * step_y);
    bool halves = step_x == 2 && step_y == 2;
    for (int64_t i = 0; i < job->out_height; i++) {
        for (int64_t x = 0; x < job->out_width; x++) {
            int64_t column = job->flip ? job->out_width - 1 - x : x;
            int sums[3] = {0, 0, 0};
            for (int dy = 0; dy < step_y; dy++) {
                const uint8_t *from = job->pixels + (i * step_y + dy) * job->stride + column * step_x * 3;
                for (int dx = 0; dx < step_x; dx++)
                    for (int k = 0; k < 3; k++) sums[k] += from[dx * 3 + k];
            }
            for (int k = 0; k < 3; k++) bytes[x * 3 + k] = halves ? (uint8_t)((sums[k] + 2) >> 2) : round_byte(sums[k] * scale);
        }
        store_row(job, i, bytes);
    }
}

/* OpenCV's coefficients for enlarging in "area" mode: a step at each pixel border, 11 bits. */
static void linear_weight(int64_t source, int64_t target, int64_t i, int *start, int16_t weight[2])
{
    double inverse = (double)target / (double)source, scale = 1.0 / inverse;
    int64_t at = (int64_t)__builtin_floor(i * scale);
    float part = (float)((i + 1) - (at + 1) * inverse);
    part = part <= 0 ? 0.0f : part - __builtin_floorf(part);
    if (at < 0) part = 0, at = 0;
    if (at >= source - 1) part = 0, at = source - 1;
    *start = (int)at;
    weight[0] = (int16_t)__builtin_rintf((1.0f - part) * 2048);
    weight[1] = (int16_t)__builtin_rintf(part * 2048);
}

typedef struct {
    int *start;
    int16_t (*weight)[2];
} linear_axis;

/* One row, enlarged: sums of two pixels in 11 bits, of which OpenCV keeps seven; `row` is readable for eight bytes past its end. */
static void linear_row(const uint8_t *restrict row, const linear_axis *axis, int64_t source, int64_t target, bool flip,
                       int16_t *restrict out)
{
    for (int64_t x = 0; x < target; x++) {
        int64_t column = flip ? target - 1 - x : x;
        const uint8_t *from = row + 3 * axis->start[column];
        const int16_t *weight = axis->weight[column];
#ifdef __AVX2__
        const __m128i side_by_side = _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
        int both;
        memcpy(&both, weight, 4);
        __m128i pixels = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)from), side_by_side);
        __m128i sums = _mm_srai_epi32(_mm_madd_epi16(pixels, _mm_set1_epi32(both)), 4);
        _mm_storel_epi64((__m128i *)(out + 3 * x), _mm_packs_epi32(sums, sums));
        (void)source;
#else
        int64_t next = axis->start[column] + 1 < source ? 3 : 0;
        for (int k = 0; k < 3; k++) out[x * 3 + k] = (int16_t)((from[k] * weight[0] + from[next + k] * weight[1]) >> 4);
#endif
    }
}

static void linear_mix(const int16_t *restrict upper, const int16_t *restrict lower, int16_t b0, int16_t b1, int64_t n, uint8_t *restrict out)
{
    for (int64_t k = 0; k < n; k += 16) {
#ifdef __AVX2__
        __m256i u = _mm256_mulhi_epi16(_mm256_loadu_si256((const __m256i *)(upper + k)), _mm256_set1_epi16(b0));
        __m256i l = _mm256_mulhi_epi16(_mm256_loadu_si256((const __m256i *)(lower + k)), _mm256_set1_epi16(b1));
        __m256i sum = _mm256_srai_epi16(_mm256_add_epi16(_mm256_add_epi16(u, l), _mm256_set1_epi16(2)), 2);
        _mm_storeu_si128((__m128i *)(out + k), _mm_packus_epi16(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1)));
#else
        for (int i = 0; i < 16; i++) out[k + i] = (uint8_t)((((b0 * upper[k + i]) >> 16) + ((b1 * lower[k + i]) >> 16) + 2) >> 2);
#endif
    }
}

static void place_linear(arena *a, linear_axis *axis, int64_t target)
{
    axis->start = take(a, target * sizeof(int));
    axis->weight = take(a, target * sizeof axis->weight[0]);
}

typedef struct {
    linear_axis x, y;
    int16_t *lines[2];
    uint8_t *row, *bytes;
} linear_memory;

static void place_enlarge(arena *a, const resize_job *job, linear_memory *m)
{
    int64_t n = (job->out_width * 3 + 31) / 16 * 16;
    place_linear(a, &m->x, job->out_width);
    place_linear(a, &m->y, job->out_height);
    for (int i = 0; i < 2; i++) m->lines[i] = take(a, n * sizeof(int16_t));
    m->row = take(a, job->width * 3 + 16);
    m->bytes = take(a, n);
}

static void area_enlarge(context *c, const resize_job *job)
{
    linear_memory m = {0};
    arena measure = {0};
    place_enlarge(&measure, job, &m);
    arena memory = {.base = scratch(c, SCRATCH_RESIZE, measure.used)};
    place_enlarge(&memory, job, &m);
    for (int64_t i = 0; i < job->out_width; i++) linear_weight(job->width, job->out_width, i, &m.x.start[i], m.x.weight[i]);
    for (int64_t i = 0; i < job->out_height; i++) linear_weight(job->height, job->out_height, i, &m.y.start[i], m.y.weight[i]);
    int64_t have[2] = {-1, -1}; /* which row each line holds; row r is kept in line r % 2 */
    for (int64_t i = 0; i < job->out_height; i++) {
        int64_t rows[2] = {m.y.start[i], m.y.start[i] + 1 < job->height ? m.y.start[i] + 1 : m.y.start[i]};
        for (int k = 0; k < 2; k++)
            if (have[rows[k] & 1] != rows[k]) {
                memcpy(m.row, job->pixels + rows[k] * job->stride, job->width * 3);
                linear_row(m.row, &m.x, job->width, job->out_width, job->flip, m.lines[rows[k] & 1]);
                have[rows[k] & 1] = rows[k];
            }
        uint8_t *bytes = row_buffer(job, i, m.bytes);
        linear_mix(m.lines[rows[0] & 1], m.lines[rows[1] & 1], m.y.weight[i][0], m.y.weight[i][1], job->out_width * 3, bytes);
        store_row(job, i, bytes);
    }
}

static void copy_rows(context *c, const resize_job *job)
{
    uint8_t *bytes = scratch(c, SCRATCH_RESIZE, job->width * 3);
    for (int64_t i = 0; i < job->height; i++) {
        memcpy(bytes, job->pixels + i * job->stride, job->width * 3);
        if (job->flip) mirror_pixels(bytes, 1, job->width);
        store_row(job, i, bytes);
    }
}

static void resize_area(context *c, const resize_job *job)
{
    int step_x, step_y;
    double scale_x = axis_scale(job->width, job->out_width), scale_y = axis_scale(job->height, job->out_height);
    if (job->height == job->out_height && job->width == job->out_width)
        copy_rows(c, job);
    else if (scale_x < 1 || scale_y < 1)
        area_enlarge(c, job);
    else if (near_whole(scale_x, &step_x) & near_whole(scale_y, &step_y))
        area_whole(c, job, step_x, step_y);
    else
        area_general(c, job);
}
