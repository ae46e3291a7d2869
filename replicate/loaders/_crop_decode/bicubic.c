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

static void bicubic_row(const uint8_t *restrict row, const bicubic_axis *axis, int64_t target, bool flip, uint8_t *restrict out)
{
    for (int64_t x = 0; x < target; x++) {
        int64_t column = flip ? target - 1 - x : x;
        const int *weight = axis->weight + column * axis->taps;
        const uint8_t *from = row + 3 * axis->start[column];
        int r = 1 << (BICUBIC_BITS - 1), g = r, b = r;
        for (int t = 0; t < axis->count[column]; t++) {
            r += from[3 * t] * weight[t];
            g += from[3 * t + 1] * weight[t];
            b += from[3 * t + 2] * weight[t];
        }
        out[3 * x] = bicubic_byte(r), out[3 * x + 1] = bicubic_byte(g), out[3 * x + 2] = bicubic_byte(b);
    }
}

/* A ring of resized rows: each output row needs `taps` consecutive ones. */
static void resize_bicubic(context *c, const resize_job *job)
{
    int64_t n = job->out_width * 3;
    bool across = job->width != job->out_width, down = job->height != job->out_height;
    bicubic_axis x = {.taps = bicubic_taps(job->width, job->out_width)}, y = {.taps = bicubic_taps(job->height, job->out_height)};
    size_t ints = job->out_width * (x.taps + 2) + job->out_height * (y.taps + 2) + n;
    int *memory = scratch(c, SCRATCH_RESIZE, ints * sizeof(int) + (size_t)n * (y.taps + 1));
    x.start = memory, x.count = x.start + job->out_width, x.weight = x.count + job->out_width;
    y.start = x.weight + job->out_width * x.taps, y.count = y.start + job->out_height, y.weight = y.count + job->out_height;
    int *sum = y.weight + job->out_height * y.taps;
    uint8_t *ring = (uint8_t *)(sum + n), *bytes = ring + n * y.taps;
    bicubic_weights(&x, job->width, job->out_width);
    bicubic_weights(&y, job->height, job->out_height);
    if (!down)
        for (int64_t i = 0; i < job->out_height; i++) {
            y.start[i] = (int)i, y.count[i] = 1;
            y.weight[i * y.taps] = 1 << BICUBIC_BITS;
        }
    int64_t ready = 0;
    for (int64_t i = 0; i < job->out_height; i++) {
        if (ready < y.start[i]) ready = y.start[i];
        for (; ready < y.start[i] + y.count[i]; ready++) {
            uint8_t *line = ring + ready % y.taps * n;
            const uint8_t *row = job->pixels + ready * job->stride;
            if (across)
                bicubic_row(row, &x, job->out_width, job->flip, line);
            else {
                memcpy(line, row, n);
                if (job->flip) mirror_pixels(line, 1, job->width);
            }
        }
        for (int64_t k = 0; k < n; k++) sum[k] = 1 << (BICUBIC_BITS - 1);
        for (int t = 0; t < y.count[i]; t++) {
            const uint8_t *line = ring + (y.start[i] + t) % y.taps * n;
            int weight = y.weight[i * y.taps + t];
            for (int64_t k = 0; k < n; k++) sum[k] += line[k] * weight;
        }
        for (int64_t k = 0; k < n; k++) bytes[k] = bicubic_byte(sum[k]);
        store_row(job, i, bytes);
    }
}
