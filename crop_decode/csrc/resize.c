/* Exact mode: the crop's pixels, then the filter. */

static void resize_exact(context *c, const resize_job *job, unsigned flags)
{
    if (flags & CD_BICUBIC)
        resize_bicubic(c, job);
    else
        resize_area(c, job);
}

static int core_resize(context *c, const request *r, uint8_t *out, int64_t out_height, int64_t out_width)
{
    begin(c);
    if (setjmp(c->escape) == 0) {
        read_header(c, r->jpeg, r->length);
        check_box(c, r);
        if ((r->flags & CD_FUSED) && can_fuse(c, r)) {
            resize_fused(c, r, out, out_height, out_width);
        } else {
            decoded_crop crop = decode_pixels(c, r);
            resize_job job = {.pixels = crop.pixels, .stride = crop.stride, .height = r->height, .width = r->width, .out = out,
                              .out_height = out_height, .out_width = out_width, .flip = r->flip, .planar = r->flags & CD_PLANAR};
            resize_exact(c, &job, r->flags);
        }
    }
    finish(c);
    return c->status;
}

static int core_resize_pixels(context *c, const uint8_t *pixels, int64_t stride, int64_t height, int64_t width, uint8_t *out,
                              int64_t out_height, int64_t out_width, bool flip, unsigned flags)
{
    begin(c);
    if (setjmp(c->escape) == 0) {
        resize_job job = {.pixels = pixels, .stride = stride, .height = height, .width = width, .out = out,
                          .out_height = out_height, .out_width = out_width, .flip = flip, .planar = flags & CD_PLANAR};
        if (height < 1 || width < 1 || height * width > MAX_PIXELS) fail(c, CD_BOX, "no pixels to resize");
        resize_exact(c, &job, flags);
    }
    finish(c);
    return c->status;
}
