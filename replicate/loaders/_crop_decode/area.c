/* OpenCV's INTER_AREA on 8-bit RGB, with the same bytes: the filter of FFCV's crops.

   Shrinking in both directions averages the covered area in float, columns first, each sum in the order of its taps; whole-number
   factors sum integers; enlarging in either direction is OpenCV's 11-bit bilinear variant of the area filter. Compiled without
   fused multiply-add, which would round differently. */

typedef float float4 __attribute__((vector_size(16)));
typedef float float4_unaligned __attribute__((vector_size(16), aligned(4)));
typedef int int4 __attribute__((vector_size(16)));
typedef uint8_t byte4 __attribute__((vector_size(4)));

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

static inline uint8_t round_byte(float value)
{
    int v = (int)__builtin_rintf(value);
    return v < 0 ? 0 : v > 255 ? 255 : (uint8_t)v;
}

/* Interleaved output row, or one row in each of three planes. */
static void store_row(const resize_job *job, int64_t y, const uint8_t *rgb)
{
    int64_t width = job->out_width, plane = job->out_height * width;
    if (!job->planar) {
        memcpy(job->out + y * width * 3, rgb, width * 3);
        return;
    }
    uint8_t *r = job->out + y * width, *g = r + plane, *b = g + plane;
    for (int64_t x = 0; x < width; x++) {
        r[x] = rgb[3 * x];
        g[x] = rgb[3 * x + 1];
        b[x] = rgb[3 * x + 2];
    }
}

/* One row of pixels to floats, each output column's taps summed in order. Columns go from left to right in the output, so that the
   fourth lane of a store is overwritten by the next pixel. */
static void area_row(const uint8_t *restrict row, int64_t values, const area_axis *axis, int64_t target, bool flip,
                     float *restrict in, float *restrict out)
{
    for (int64_t i = 0; i < values; i++) in[i] = row[i];
    int taps = axis->taps;
    for (int64_t x = 0; x < target; x++) {
        int64_t column = flip ? target - 1 - x : x;
        const float *from = in + 3 * axis->start[column], *weight = axis->weight + column * taps;
        float4 sum = *(const float4_unaligned *)from * weight[0];
        for (int t = 1; t < taps; t++) sum += *(const float4_unaligned *)(from + 3 * t) * weight[t];
        *(float4_unaligned *)(out + 3 * x) = sum;
    }
}

static void area_general(context *c, const resize_job *job)
{
    int64_t n = job->out_width * 3, padded = n + 16, values = job->width * 3;
    area_axis x = {.taps = max_taps(job->width, job->out_width)}, y = {.taps = max_taps(job->height, job->out_height)};
    size_t x_size = job->out_width * (x.taps + 2), y_size = job->out_height * (y.taps + 2);
    size_t tail = (x.taps + 2) * 3; /* zero-weighted taps may lie beyond the row */
    float *memory = scratch(c, SCRATCH_RESIZE, (x_size + y_size + 2 * padded + values + tail) * sizeof(float) + n);
    float *line = memory, *sum = line + padded, *in = sum + padded;
    x.weight = in + values + tail, x.start = (int *)(x.weight + job->out_width * x.taps), x.count = x.start + job->out_width;
    y.weight = (float *)(x.count + job->out_width), y.start = (int *)(y.weight + job->out_height * y.taps);
    y.count = y.start + job->out_height;
    uint8_t *bytes = (uint8_t *)(y.count + job->out_height);
    memset(in, 0, (values + tail) * sizeof(float));
    area_weights(&x, job->width, job->out_width);
    area_weights(&y, job->height, job->out_height);
    int have = -1;
    for (int64_t i = 0; i < job->out_height; i++) {
        for (int t = 0; t < y.count[i]; t++) {
            int row = y.start[i] + t;
            if (row != have) area_row(job->pixels + row * job->stride, values, &x, job->out_width, job->flip, in, line);
            have = row;
            float weight = y.weight[i * y.taps + t];
            if (t == 0)
                for (int64_t k = 0; k < n; k++) sum[k] = line[k] * weight;
            else
                for (int64_t k = 0; k < n; k++) sum[k] = line[k] * weight + sum[k];
        }
        for (int64_t k = 0; k < n; k++) bytes[k] = round_byte(sum[k]);
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
static void linear_weights(int64_t source, int64_t target, int *start, int16_t (*weight)[2])
{
    double inverse = (double)target / (double)source, scale = 1.0 / inverse;
    for (int64_t i = 0; i < target; i++) {
        int64_t at = (int64_t)__builtin_floor(i * scale);
        float part = (float)((i + 1) - (at + 1) * inverse);
        part = part <= 0 ? 0.0f : part - __builtin_floorf(part);
        if (at < 0) part = 0, at = 0;
        if (at >= source - 1) part = 0, at = source - 1;
        start[i] = (int)at;
        weight[i][0] = (int16_t)__builtin_rintf((1.0f - part) * 2048);
        weight[i][1] = (int16_t)__builtin_rintf(part * 2048);
    }
}

static void linear_row(const uint8_t *restrict row, const int *start, int16_t (*weight)[2], int64_t source, int64_t target,
                       bool flip, int *restrict out)
{
    for (int64_t x = 0; x < target; x++) {
        int64_t column = flip ? target - 1 - x : x, at = start[column], next = at + 1 < source ? at + 1 : at;
        for (int k = 0; k < 3; k++) out[x * 3 + k] = row[at * 3 + k] * weight[column][0] + row[next * 3 + k] * weight[column][1];
    }
}

static void area_enlarge(context *c, const resize_job *job)
{
    int64_t n = job->out_width * 3;
    size_t ints = 2 * n + 2 * job->out_width + 2 * job->out_height;
    int *memory = scratch(c, SCRATCH_RESIZE, ints * sizeof(int) + n);
    int *upper = memory, *lower = upper + n, *x = lower + n, *y = x + job->out_width;
    int16_t(*weight_x)[2] = (int16_t(*)[2])(y + job->out_height), (*weight_y)[2] = weight_x + job->out_width;
    uint8_t *bytes = (uint8_t *)(weight_y + job->out_height);
    linear_weights(job->width, job->out_width, x, weight_x);
    linear_weights(job->height, job->out_height, y, weight_y);
    int64_t have_upper = -1, have_lower = -1;
    for (int64_t i = 0; i < job->out_height; i++) {
        int64_t first = y[i], second = first + 1 < job->height ? first + 1 : first;
        if (have_lower == first) {
            int *swap = upper;
            upper = lower, lower = swap;
            have_upper = have_lower, have_lower = -1;
        }
        if (have_upper != first)
            linear_row(job->pixels + first * job->stride, x, weight_x, job->width, job->out_width, job->flip, upper);
        if (have_lower != second)
            linear_row(job->pixels + second * job->stride, x, weight_x, job->width, job->out_width, job->flip, lower);
        have_upper = first, have_lower = second;
        int b0 = weight_y[i][0], b1 = weight_y[i][1];
        for (int64_t k = 0; k < n; k++)
            bytes[k] = (uint8_t)((((b0 * (upper[k] >> 4)) >> 16) + ((b1 * (lower[k] >> 4)) >> 16) + 2) >> 2);
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
