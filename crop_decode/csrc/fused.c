/* Fused mode: crop, resize, flip, chroma upsampling and colour conversion in one pass over the decoded planes.

   Resizing, libjpeg's triangle upsampling of chroma and the colour matrix are all linear, so they commute: luma and chroma are
   resized as they are stored (chroma at half the size), with the upsampling folded into the weights, and only the output's pixels
   are converted. What differs from the exact mode is rounding, and clipping of out-of-range colours, which comes last here.

   Sixteen output rows at a time: rows are combined (vectors along x), the strip is transposed, columns are combined and converted
   (vectors along y), and the bytes are transposed back on the way out. Values are fixed-point in 16-bit lanes. */

#define WEIGHT_ONE 16384 /* bicubic weights exceed one: hence 14 bits, and each pass halves what it multiplies */
#define BYTE_SHIFT 7     /* fractional bits of bytes before the first pass; after it there are 6 */
#define FRACTION 5       /* after both; room for the overshoot of bicubic weights on top of saturated colours */
#define STRIP 16

typedef int16_t short8 __attribute__((vector_size(16)));
typedef int16_t short16 __attribute__((vector_size(32)));
typedef uint16_t ushort16 __attribute__((vector_size(32)));
typedef short16 short16_unaligned __attribute__((aligned(2)));
typedef uint8_t byte16 __attribute__((vector_size(16)));
typedef byte16 byte16_unaligned __attribute__((aligned(1)));
typedef short8 short8_unaligned __attribute__((aligned(2)));

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (__typeof__(a)){__VA_ARGS__})
#endif

/* a * w / 2^15, rounded. */
static inline short16 scaled(short16 a, short16 w)
{
#ifdef __AVX2__
    return (short16)_mm256_mulhrs_epi16((__m256i)a, (__m256i)w);
#else
    short16 product;
    for (int i = 0; i < STRIP; i++) product[i] = (int16_t)((a[i] * w[i] + 0x4000) >> 15);
    return product;
#endif
}

static inline short16 widened(const uint8_t *bytes)
{
#ifdef __AVX2__
    return (short16)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)bytes));
#else
    return __builtin_convertvector(*(const byte16_unaligned *)bytes, short16);
#endif
}

static inline short16 splat(int16_t v) { return (short16){0} + v; }

/* One axis of one plane: output i sums weight[i * taps + t] * sample[start[i] + t], weights in 1/WEIGHT_ONE. */
typedef struct {
    int taps;
    int *start;
    int16_t *weight;
} fused_axis;

typedef struct {
    uint8_t *samples;
    int64_t stride, rows, columns;   /* of the decoded window */
    int64_t first_row, first_column; /* where the window lies in the component */
    fused_axis x, y;
} fused_plane;

typedef struct {
    int planes;
    fused_plane plane[3];
} fused_image;

static bool can_fuse(context *c, const request *r)
{
    j_decompress_ptr cinfo = &c->cinfo;
    return is_seekable(cinfo) && can_crop_columns(cinfo) && ends_properly(r) && !(r->flags & (CD_FULL | CD_LIBJPEG_HUFFMAN)) &&
           (cinfo->jpeg_color_space == JCS_GRAYSCALE || cinfo->jpeg_color_space == JCS_YCbCr);
}

/* ---- decoding into planes ---- */

typedef struct {
    void (*start_pass)(j_decompress_ptr);
    void (*inverse_dct[MAX_COMPONENTS])(j_decompress_ptr, jpeg_component_info *, JCOEFPTR, JSAMPARRAY, JDIMENSION);
} libjpeg_idct; /* as in jpegint.h, see libjpeg_entropy */

static void fill_block(uint8_t *samples, int64_t stride, int dc, int quantum)
{
    int value = ((dc * quantum + 4) >> 3) + CENTERJSAMPLE;
    uint64_t eight = 0x0101010101010101ull * (uint64_t)(value < 0 ? 0 : value > 255 ? 255 : value);
    for (int y = 0; y < DCTSIZE; y++) memcpy(samples + y * stride, &eight, 8);
}

static void place_planes(context *c, fused_image *image)
{
    entropy *e = &c->entropy;
    int64_t rows = e->row_last - e->row_first + 1, columns = e->col_last - e->col_first + 1;
    size_t total = 0, offset[3];
    for (int i = 0; i < image->planes; i++) {
        const jpeg_component_info *info = c->cinfo.cur_comp_info[i];
        fused_plane *plane = &image->plane[i];
        plane->columns = columns * info->MCU_width * DCTSIZE;
        plane->rows = rows * info->MCU_height * DCTSIZE;
        plane->first_column = e->col_first * info->MCU_width * DCTSIZE;
        plane->first_row = e->row_first * info->MCU_height * DCTSIZE;
        plane->stride = (plane->columns + 63) / 32 * 32;
        offset[i] = total;
        total += plane->stride * plane->rows;
    }
    uint8_t *samples = scratch(c, SCRATCH_PLANES, total);
    for (int i = 0; i < image->planes; i++) image->plane[i].samples = samples + offset[i];
}

static void decode_mcu_row(context *c, fused_image *image, int64_t row, JBLOCK *blocks, bool accurate)
{
    entropy *e = &c->entropy;
    j_decompress_ptr cinfo = &c->cinfo;
    const libjpeg_idct *idct = (const libjpeg_idct *)cinfo->idct;
    JBLOCKROW pointers[D_MAX_BLOCKS_IN_MCU];
    JSAMPROW lines[3][2][DCTSIZE];
    int lasts[D_MAX_BLOCKS_IN_MCU];
    for (int i = 0; i < e->blocks; i++) pointers[i] = &blocks[i];
    for (int p = 0; p < image->planes; p++)
        for (int y = 0; y < cinfo->cur_comp_info[p]->MCU_height * DCTSIZE; y++)
            lines[p][y / DCTSIZE][y % DCTSIZE] =
                image->plane[p].samples +
                ((row - e->row_first) * cinfo->cur_comp_info[p]->MCU_height * DCTSIZE + y) * image->plane[p].stride;
    for (int64_t column = e->col_first; column <= e->col_last; column++) {
        memset(blocks, 0, e->blocks * sizeof *blocks);
        read_mcu(c, row * e->per_row + column, pointers, lasts);
        int i = 0;
        for (int p = 0; p < image->planes; p++) {
            jpeg_component_info *info = cinfo->cur_comp_info[p];
            for (int y = 0; y < info->MCU_height; y++)
                for (int x = 0; x < info->MCU_width; x++, i++) {
                    int64_t at = ((column - e->col_first) * info->MCU_width + x) * DCTSIZE;
                    if (lasts[i] == 0 && accurate)
                        fill_block(lines[p][y][0] + at, image->plane[p].stride, blocks[i][0], info->quant_table->quantval[0]);
                    else
                        idct->inverse_dct[info->component_index](cinfo, info, blocks[i], lines[p][y], (JDIMENSION)at);
                }
        }
    }
}

static void decode_planes(context *c, const request *r, fused_image *image)
{
    j_decompress_ptr cinfo = &c->cinfo;
    cinfo->raw_data_out = TRUE;
    cinfo->out_color_space = cinfo->jpeg_color_space;
    cinfo->dct_method = r->flags & CD_FAST_DCT ? JDCT_IFAST : JDCT_ISLOW;
    jpeg_start_decompress(cinfo);
    begin_entropy(c, r);
    int w = mcu_width(cinfo), h = mcu_height(cinfo);
    int64_t top = r->top > 0 ? r->top - 1 : 0, left = r->left > 0 ? r->left - 1 : 0; /* upsampling looks one sample beyond */
    set_window(c, top / h, (r->top + r->height) / h, left / w, (r->left + r->width) / w);
    image->planes = cinfo->comps_in_scan;
    place_planes(c, image);
    JBLOCK blocks[D_MAX_BLOCKS_IN_MCU] __attribute__((aligned(32)));
    for (int64_t row = c->entropy.row_first; row <= c->entropy.row_last; row++)
        decode_mcu_row(c, image, row, blocks, !(r->flags & CD_FAST_DCT));
    if (r->flags & CD_VERIFY) verify_rest(c);
}

/* ---- weights ---- */

/* Weights of the pixel grid, of the filter that the exact mode would use. */
static void pixel_filter(const request *r, int64_t out_height, int64_t out_width, bool vertical, area_axis *axis)
{
    int64_t source = vertical ? r->height : r->width, target = vertical ? out_height : out_width;
    if (r->flags & CD_BICUBIC) {
        bicubic_fractions(axis, source, target);
    } else if (r->height >= out_height && r->width >= out_width) {
        area_weights(axis, source, target);
    } else {
        for (int64_t i = 0; i < target; i++) {
            int16_t weight[2];
            linear_weight(source, target, i, &axis->start[i], weight);
            axis->count[i] = weight[1] ? 2 : 1;
            axis->weight[i * axis->taps] = weight[0] / 2048.0f;
            axis->weight[i * axis->taps + 1] = weight[1] / 2048.0f;
        }
    }
}

static int pixel_taps(const request *r, int64_t source, int64_t target)
{
    return r->flags & CD_BICUBIC ? bicubic_taps(source, target) : max_taps(source, target);
}

/* Integer weights that sum to WEIGHT_ONE; what rounding leaves goes to the largest. */
static void quantize(const float *weight, int n, int16_t *out)
{
    int sum = 0, largest = 0;
    for (int t = 0; t < n; t++) {
        out[t] = (int16_t)__builtin_rintf(weight[t] * WEIGHT_ONE);
        sum += out[t];
        if (out[t] > out[largest]) largest = t;
    }
    out[largest] = (int16_t)(out[largest] + WEIGHT_ONE - sum);
}

/* From weights of pixels, whose first is pixel `origin`, to weights of a component's samples. factor 2: each pixel is 3/4 of its own
   sample and 1/4 of the nearer neighbour (fancy), or its own sample alone. */
static void sample_filter(const area_axis *pixels, int64_t target, int64_t origin, int factor, bool fancy, int64_t samples,
                          int64_t window_first, bool flip, fused_axis *out)
{
    float sums[out->taps];
    for (int64_t i = 0; i < target; i++) {
        int64_t from = flip ? target - 1 - i : i, first = origin + pixels->start[from], count = pixels->count[from];
        int64_t start = factor == 1 ? first : (first >> 1) - (fancy && !(first & 1) && first > 1);
        const float *weight = pixels->weight + from * pixels->taps;
        memset(sums, 0, sizeof sums);
        for (int64_t t = 0; t < count; t++) {
            int64_t pixel = first + t, own = factor == 1 ? pixel : pixel >> 1, other = pixel & 1 ? own + 1 : own - 1;
            if (factor == 1 || !fancy || other < 0 || other >= samples) {
                sums[own - start] += weight[t];
            } else {
                sums[own - start] += 0.75f * weight[t];
                sums[other - start] += 0.25f * weight[t];
            }
        }
        out->start[i] = (int)(start - window_first);
        quantize(sums, out->taps, out->weight + i * out->taps);
    }
}

static int sample_taps(int pixel_taps, int factor) { return factor == 1 ? pixel_taps : pixel_taps / 2 + 2; }

/* ---- the pass ---- */

static inline __attribute__((always_inline)) void combine_rows_of(const uint8_t **lines, const int16_t *weight, int taps, int64_t n,
                                                                  int16_t *restrict out)
{
    for (int64_t x = 0; x < n; x += STRIP) {
        short16 sum = {0};
        for (int t = 0; t < taps; t++) {
            sum += scaled(widened(lines[t] + x) << BYTE_SHIFT, splat(weight[t]));
        }
        *(short16_unaligned *)(out + x) = sum;
    }
}

/* Output row i of one plane before its columns are combined. */
static void combine_rows(const fused_plane *plane, int64_t i, int16_t *out)
{
    int taps = plane->y.taps;
    const uint8_t *lines[taps];
    const int16_t *weight = plane->y.weight + i * taps;
    for (int t = 0; t < taps; t++) {
        int64_t row = plane->y.start[i] + t;
        lines[t] = plane->samples + (row < plane->rows ? row : plane->rows - 1) * plane->stride;
    }
    switch (taps) {
    case 2: combine_rows_of(lines, weight, 2, plane->columns, out); break;
    case 3: combine_rows_of(lines, weight, 3, plane->columns, out); break;
    case 4: combine_rows_of(lines, weight, 4, plane->columns, out); break;
    default: combine_rows_of(lines, weight, taps, plane->columns, out);
    }
}

/* 8 x 8 values from rows `stride` apart to columns STRIP apart. */
static inline void transpose8(const int16_t *in, int64_t stride, int16_t *out)
{
    short8 r[8], s[8];
    for (int i = 0; i < 8; i++) r[i] = *(const short8_unaligned *)(in + i * stride);
    for (int i = 0; i < 4; i++) {
        s[2 * i] = SHUFFLE(r[i], r[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
        s[2 * i + 1] = SHUFFLE(r[i], r[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int i = 0; i < 4; i++) {
        r[2 * i] = SHUFFLE(s[i], s[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
        r[2 * i + 1] = SHUFFLE(s[i], s[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int i = 0; i < 4; i++) {
        s[2 * i] = SHUFFLE(r[i], r[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
        s[2 * i + 1] = SHUFFLE(r[i], r[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i++) *(short8_unaligned *)(out + i * STRIP) = s[i];
}

static inline __attribute__((always_inline)) void combine_columns_of(const int16_t *turned, const fused_axis *axis, int taps,
                                                                     int64_t width, int16_t *restrict out)
{
    for (int64_t x = 0; x < width; x++) {
        const int16_t *from = turned + (int64_t)axis->start[x] * STRIP, *weight = axis->weight + x * taps;
        ushort16 sum = {0}; /* rows of a strip that is not full hold anything, and may overflow; nobody looks at them */
        for (int t = 0; t < taps; t++) sum += (ushort16)scaled(*(const short16_unaligned *)(from + t * STRIP), splat(weight[t]));
        *(short16_unaligned *)(out + x * STRIP) = (short16)sum;
    }
}

static void combine_columns(const int16_t *turned, const fused_axis *axis, int64_t width, int16_t *out)
{
    switch (axis->taps) {
    case 2: combine_columns_of(turned, axis, 2, width, out); break;
    case 3: combine_columns_of(turned, axis, 3, width, out); break;
    case 4: combine_columns_of(turned, axis, 4, width, out); break;
    default: combine_columns_of(turned, axis, axis->taps, width, out);
    }
}

/* Bicubic overshoot of luma and chroma together may leave 16 bits; what is too bright must not come out dark. */
static inline short16 saturated_sum(short16 a, short16 b)
{
#ifdef __AVX2__
    return (short16)_mm256_adds_epi16((__m256i)a, (__m256i)b);
#else
    short16 sum = (short16)((ushort16)a + (ushort16)b), over = ((a ^ sum) & (b ^ sum)) < 0;
    return (sum & ~over) | (((a >> 15) ^ splat(INT16_MAX)) & over);
#endif
}

static inline byte16 to_bytes(short16 v)
{
    v = saturated_sum(v, splat(1 << (FRACTION - 1))) >> FRACTION;
#ifdef __AVX2__
    return (byte16)_mm_packus_epi16(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
#endif
    short16 over = v > 255;
    v = ((v & ~over) | (splat(255) & over)) & (v > 0);
    return __builtin_convertvector(v, byte16);
}

/* JFIF's matrix (as libjpeg), chroma around 128. planes: values of `width` columns, STRIP rows each. */
static void convert_colours(int16_t *const plane[3], int64_t width, byte16 *restrict rgb[3])
{
    const short16 middle = splat(-(128 << FRACTION));
    for (int64_t x = 0; x < width; x++) {
        short16 y = *(const short16_unaligned *)(plane[0] + x * STRIP);
        short16 cb = saturated_sum(*(const short16_unaligned *)(plane[1] + x * STRIP), middle);
        short16 cr = saturated_sum(*(const short16_unaligned *)(plane[2] + x * STRIP), middle);
        short16 red = saturated_sum(cr, scaled(cr, splat(13173)));                              /* 1 + .402 */
        short16 green = saturated_sum(scaled(cb, splat(-11277)), scaled(cr, splat(-23401)));    /* -.344136, -.714136 */
        short16 blue = saturated_sum(cb, scaled(cb, splat(25297)));                             /* 1 + .772 */
        rgb[0][x] = to_bytes(saturated_sum(y, red));
        rgb[1][x] = to_bytes(saturated_sum(y, green));
        rgb[2][x] = to_bytes(saturated_sum(y, blue));
    }
}

static inline void transpose16(const byte16 *in, byte16 *out)
{
    byte16 r[16], s[16];
    for (int i = 0; i < 16; i++) r[i] = in[i];
    for (int stage = 0; stage < 4; stage++) {
        for (int i = 0; i < 8; i++) {
            s[2 * i] = SHUFFLE(r[i], r[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            s[2 * i + 1] = SHUFFLE(r[i], r[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        for (int i = 0; i < 16; i++) r[i] = s[i];
    }
    for (int i = 0; i < 16; i++) out[i] = r[i];
}

/* Sixteen pixels of r, g, b as 48 bytes. */
static inline void interleave(byte16 r, byte16 g, byte16 b, uint8_t *out)
{
    byte16 rg0 = SHUFFLE(r, g, 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
    byte16 rg1 = SHUFFLE(r, g, 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
    byte16 rg2 = SHUFFLE(r, g, 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
    byte16_unaligned *to = (byte16_unaligned *)out;
    to[0] = SHUFFLE(rg0, b, 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15);
    to[1] = SHUFFLE(rg1, b, 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15);
    to[2] = SHUFFLE(rg2, b, 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31);
}

/* `rows` rows of the strip that starts at output row `y`. */
static void store_strip(byte16 *const rgb[3], int64_t y, int64_t rows, int64_t out_height, int64_t out_width, bool planar, uint8_t *out)
{
    byte16 turned[3][16];
    uint8_t pixels[48];
    for (int64_t x = 0; x < out_width; x += 16) {
        int64_t columns = out_width - x < 16 ? out_width - x : 16;
        for (int k = 0; k < 3; k++) transpose16(rgb[k] + x, turned[k]);
        for (int64_t i = 0; i < rows; i++) {
            if (planar) {
                for (int k = 0; k < 3; k++) memcpy(out + ((k * out_height + y + i) * out_width + x), &turned[k][i], columns);
            } else if (columns == 16) {
                interleave(turned[0][i], turned[1][i], turned[2][i], out + ((y + i) * out_width + x) * 3);
            } else {
                interleave(turned[0][i], turned[1][i], turned[2][i], pixels);
                memcpy(out + ((y + i) * out_width + x) * 3, pixels, columns * 3);
            }
        }
    }
}

typedef struct {
    area_axis pixel[2]; /* columns, rows */
    int16_t *strip, *turned, *combined[3];
    byte16 *rgb[3];
} fused_memory;

static void place_plane_axis(arena *a, fused_axis *axis, int64_t target)
{
    axis->start = take(a, target * sizeof(int));
    axis->weight = take(a, target * axis->taps * sizeof(int16_t));
}

/* Called twice: with an empty arena to measure, then to place. */
static void place_memory(arena *a, fused_image *image, fused_memory *m, int64_t out_height, int64_t out_width)
{
    int64_t columns = (out_width + 15) / 16 * 16, widest = image->plane[0].columns;
    int taps = 0;
    place_axis(a, &m->pixel[0], out_width);
    place_axis(a, &m->pixel[1], out_height);
    for (int p = 0; p < image->planes; p++) {
        place_plane_axis(a, &image->plane[p].x, out_width);
        place_plane_axis(a, &image->plane[p].y, out_height);
        taps = image->plane[p].x.taps > taps ? image->plane[p].x.taps : taps;
    }
    m->strip = take(a, (widest + STRIP) * STRIP * sizeof(int16_t));
    m->turned = take(a, (widest + STRIP + taps) * STRIP * sizeof(int16_t));
    for (int k = 0; k < 3; k++) {
        m->combined[k] = take(a, columns * STRIP * sizeof(int16_t));
        m->rgb[k] = take(a, columns * sizeof(byte16));
    }
}

static int factor_of(j_decompress_ptr cinfo, const jpeg_component_info *info, bool vertical)
{
    if (cinfo->num_components == 1) return 1;
    return vertical ? cinfo->max_v_samp_factor / info->v_samp_factor : cinfo->max_h_samp_factor / info->h_samp_factor;
}

static void make_weights(context *c, const request *r, fused_image *image, fused_memory *m, int64_t out_height, int64_t out_width)
{
    j_decompress_ptr cinfo = &c->cinfo;
    pixel_filter(r, out_height, out_width, false, &m->pixel[0]);
    pixel_filter(r, out_height, out_width, true, &m->pixel[1]);
    int most[2] = {most_taps(&m->pixel[0], out_width), most_taps(&m->pixel[1], out_height)};
    for (int p = 0; p < image->planes && p < 2; p++) {
        const jpeg_component_info *info = cinfo->cur_comp_info[p];
        fused_plane *plane = &image->plane[p];
        int across = factor_of(cinfo, info, false), down = factor_of(cinfo, info, true);
        bool fancy = across == 1 || info->downsampled_width > 2;
        plane->x.taps = sample_taps(most[0], across);
        plane->y.taps = sample_taps(most[1], down);
        sample_filter(&m->pixel[0], out_width, r->left, across, fancy, info->downsampled_width, plane->first_column, r->flip, &plane->x);
        sample_filter(&m->pixel[1], out_height, r->top, down, fancy, info->downsampled_height, plane->first_row, false, &plane->y);
    }
    image->plane[2].x = image->plane[1].x; /* can_crop_columns has seen to it that both chroma planes are alike */
    image->plane[2].y = image->plane[1].y;
}

static void combine_strip(const fused_plane *plane, int64_t y, int64_t rows, int64_t out_width, fused_memory *m, int16_t *out)
{
    int64_t stride = plane->columns + STRIP;
    for (int64_t i = 0; i < rows; i++) combine_rows(plane, y + i, m->strip + i * stride);
    for (int64_t x = 0; x < plane->columns; x += 8)
        for (int half = 0; half < STRIP; half += 8)
            transpose8(m->strip + half * stride + x, stride, m->turned + x * STRIP + half);
    combine_columns(m->turned, &plane->x, out_width, out);
}

static void resize_planes(context *c, const request *r, fused_image *image, uint8_t *out, int64_t out_height, int64_t out_width)
{
    fused_memory m;
    arena measure = {0};
    m.pixel[0].taps = pixel_taps(r, r->width, out_width);
    m.pixel[1].taps = pixel_taps(r, r->height, out_height);
    for (int p = 0; p < image->planes; p++) { /* upper bounds; the filters may turn out shorter */
        image->plane[p].x.taps = sample_taps(m.pixel[0].taps, factor_of(&c->cinfo, c->cinfo.cur_comp_info[p], false));
        image->plane[p].y.taps = sample_taps(m.pixel[1].taps, factor_of(&c->cinfo, c->cinfo.cur_comp_info[p], true));
    }
    place_memory(&measure, image, &m, out_height, out_width);
    arena memory = {.base = scratch(c, SCRATCH_RESIZE, measure.used)};
    place_memory(&memory, image, &m, out_height, out_width);
    make_weights(c, r, image, &m, out_height, out_width);
    for (int64_t y = 0; y < out_height; y += STRIP) {
        int64_t rows = out_height - y < STRIP ? out_height - y : STRIP;
        for (int p = 0; p < image->planes; p++) combine_strip(&image->plane[p], y, rows, out_width, &m, m.combined[p]);
        if (image->planes == 3) {
            convert_colours(m.combined, out_width, m.rgb);
        } else
            for (int64_t x = 0; x < out_width; x++)
                m.rgb[0][x] = m.rgb[1][x] = m.rgb[2][x] = to_bytes(*(const short16_unaligned *)(m.combined[0] + x * STRIP));
        store_strip(m.rgb, y, rows, out_height, out_width, r->flags & CD_PLANAR, out);
    }
}

static void resize_fused(context *c, const request *r, uint8_t *out, int64_t out_height, int64_t out_width)
{
    fused_image image = {0};
    decode_planes(c, r, &image);
    resize_planes(c, r, &image, out, out_height, out_width);
}
