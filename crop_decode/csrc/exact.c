/* The crop through libjpeg's own pixel pipeline: equal to full decode + crop bit for bit.

   Fancy upsampling looks one chroma sample to either side and repeats the last one at the edge of what is decoded; hence one more
   pixel on the left and two on the right. Below three chroma columns libjpeg drops fancy upsampling; hence at least eight columns. */

#define CONTEXT_LEFT 1
#define CONTEXT_RIGHT 2
#define MIN_DECODED_WIDTH 8

/* Sampling for which libjpeg-turbo's partial decoding is used; anything rarer is decoded in full. */
static bool can_crop_columns(j_decompress_ptr cinfo)
{
    if (cinfo->max_h_samp_factor > 2 || cinfo->max_v_samp_factor > 2) return false;
    for (int i = 0; i < cinfo->num_components; i++) {
        const jpeg_component_info *info = &cinfo->comp_info[i];
        bool largest = info->h_samp_factor == cinfo->max_h_samp_factor && info->v_samp_factor == cinfo->max_v_samp_factor;
        if (i == 0 ? !largest : info->h_samp_factor != 1 || info->v_samp_factor != 1) return false;
    }
    return true;
}

/* Without an end marker as its last bytes the file may have been cut or overwritten: then all of it must decode. */
static bool ends_properly(const request *r)
{
    const uint8_t *end = r->jpeg + r->length;
    while (end - r->jpeg > 2 && end[-1] == 0) end--; /* zeros behind the end marker are padding */
    return end[-2] == 0xFF && end[-1] == 0xD9;
}

static void start_pixels(context *c, const request *r)
{
    j_decompress_ptr cinfo = &c->cinfo;
    cinfo->out_color_space = JCS_RGB;
    cinfo->dct_method = r->flags & CD_FAST_DCT ? JDCT_IFAST : JDCT_ISLOW;
    jpeg_start_decompress(cinfo);
}

static void crop_columns(context *c, const request *r, JDIMENSION *first)
{
    j_decompress_ptr cinfo = &c->cinfo;
    int64_t width = cinfo->image_width, x0 = r->left - CONTEXT_LEFT, x1 = r->left + r->width + CONTEXT_RIGHT;
    if (x0 < 0) x0 = 0;
    if (x1 < x0 + MIN_DECODED_WIDTH) x1 = x0 + MIN_DECODED_WIDTH;
    if (x1 > width) x1 = width;
    if (x1 - x0 < MIN_DECODED_WIDTH) x0 = x1 > MIN_DECODED_WIDTH ? x1 - MIN_DECODED_WIDTH : 0;
    JDIMENSION decoded = (JDIMENSION)(x1 - x0);
    *first = (JDIMENSION)x0;
    if (decoded < width) jpeg_crop_scanline(cinfo, first, &decoded);
}

static void set_pixel_window(context *c, const request *r, JDIMENSION first)
{
    j_decompress_ptr cinfo = &c->cinfo;
    int w = mcu_width(cinfo), h = mcu_height(cinfo), context_rows = cinfo->max_v_samp_factor;
    int64_t top = r->top - context_rows, bottom = r->top + r->height - 1 + context_rows;
    set_window(c, top < 0 ? 0 : top / h, bottom / h, first / w, (first + cinfo->output_width - 1) / w);
}

/* Where decoded pixels stand: the crop's first pixel, and bytes from row to row. */
typedef struct {
    uint8_t *pixels;
    int64_t stride;
} decoded_crop;

static void read_rows(context *c, uint8_t *rows, int64_t stride, int64_t count)
{
    for (int64_t y = 0; y < count; y++) {
        JSAMPROW row[1] = {rows + y * stride};
        if (jpeg_read_scanlines(&c->cinfo, row, 1) != 1) fail(c, CD_CORRUPT, "premature end of the image");
    }
}

/* Every row is decoded; those above and below the crop go to a spare row. */
static decoded_crop read_all(context *c, const request *r)
{
    j_decompress_ptr cinfo = &c->cinfo;
    int64_t stride = (int64_t)cinfo->output_width * 3;
    uint8_t *rows = scratch(c, SCRATCH_PIXELS, (size_t)stride * (r->height + 1)), *spare = rows + stride * r->height;
    read_rows(c, spare, 0, r->top);
    read_rows(c, rows, stride, r->height);
    read_rows(c, spare, 0, cinfo->output_height - r->top - r->height);
    jpeg_finish_decompress(cinfo);
    return (decoded_crop){rows + r->left * 3, stride};
}

static decoded_crop read_crop(context *c, const request *r, bool own_entropy)
{
    j_decompress_ptr cinfo = &c->cinfo;
    JDIMENSION first = 0, top = (JDIMENSION)r->top;
    crop_columns(c, r, &first);
    int64_t stride = (int64_t)cinfo->output_width * 3;
    uint8_t *rows = scratch(c, SCRATCH_PIXELS, (size_t)stride * r->height);
    if (own_entropy) {
        begin_entropy(c, r);
        set_pixel_window(c, r, first);
        hook_entropy(c);
    }
    if (top && jpeg_skip_scanlines(cinfo, top) != top) fail(c, CD_CORRUPT, "premature end of the image");
    read_rows(c, rows, stride, r->height);
    if (own_entropy && (r->flags & CD_VERIFY)) verify_rest(c);
    return (decoded_crop){rows + (r->left - first) * 3, stride};
}

/* The crop's pixels in scratch memory. Header already read. */
static decoded_crop decode_pixels(context *c, const request *r)
{
    bool own_entropy = is_seekable(&c->cinfo) && !(r->flags & CD_LIBJPEG_HUFFMAN);
    bool full = (r->flags & CD_FULL) || !ends_properly(r) || !can_crop_columns(&c->cinfo) || ((r->flags & CD_VERIFY) && !own_entropy);
    start_pixels(c, r);
    return full ? read_all(c, r) : read_crop(c, r, own_entropy);
}

static void mirror_pixels(uint8_t *pixels, int64_t height, int64_t width)
{
    for (int64_t y = 0; y < height; y++) {
        uint8_t *a = pixels + y * width * 3, *b = a + (width - 1) * 3;
        for (; a < b; a += 3, b -= 3)
            for (int i = 0; i < 3; i++) {
                uint8_t swap = a[i];
                a[i] = b[i];
                b[i] = swap;
            }
    }
}

static int core_pixels(context *c, const request *r, uint8_t *out)
{
    begin(c);
    if (setjmp(c->escape) == 0) {
        read_header(c, r->jpeg, r->length);
        check_box(c, r);
        decoded_crop crop = decode_pixels(c, r);
        for (int64_t y = 0; y < r->height; y++) memcpy(out + y * r->width * 3, crop.pixels + y * crop.stride, r->width * 3);
        if (r->flip) mirror_pixels(out, r->height, r->width);
    }
    finish(c);
    return c->status;
}
