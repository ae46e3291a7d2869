/* From bytes to a checked header. */

static bool is_seekable(j_decompress_ptr cinfo)
{
    return !cinfo->progressive_mode && !cinfo->arith_code && !jpeg_has_multiple_scans(cinfo) && cinfo->Ss == 0 &&
           cinfo->Se == DCTSIZE2 - 1 && cinfo->Ah == 0 && cinfo->Al == 0;
}

static void check_supported(context *c)
{
    j_decompress_ptr cinfo = &c->cinfo;
    if ((int64_t)cinfo->image_width * cinfo->image_height > MAX_PIXELS)
        fail(c, CD_TOO_LARGE, "%u x %u pixels are too many", cinfo->image_width, cinfo->image_height);
    if (cinfo->data_precision != 8) fail(c, CD_UNSUPPORTED, "%d bits a sample are not supported", cinfo->data_precision);
    if (cinfo->num_components == 4) fail(c, CD_UNSUPPORTED, "CMYK images are not supported; convert it to RGB first");
    if (cinfo->num_components != 1 && cinfo->num_components != 3)
        fail(c, CD_UNSUPPORTED, "%d colour components are not supported", cinfo->num_components);
}

/* Leaves cinfo after its first start-of-scan. Fails on everything that the decoder does not handle. */
static void read_header(context *c, const uint8_t *jpeg, int64_t length)
{
    if (!jpeg || length < 4 || jpeg[0] != 0xFF || jpeg[1] != 0xD8) fail(c, CD_CORRUPT, "not a JPEG file");
    if (length >= MAX_JPEG_BYTES) fail(c, CD_TOO_LARGE, "%lld bytes are too many", (long long)length);
    jpeg_create_decompress(&c->cinfo);
    c->cinfo.client_data = c;
    c->cinfo.mem->max_memory_to_use = MAX_CODER_MEMORY;
    c->progress.progress_monitor = on_progress;
    c->cinfo.progress = &c->progress;
    for (int marker = JPEG_APP0; c->keep_markers && marker <= JPEG_COM; marker++)
        if (marker <= JPEG_APP0 + 15 || marker == JPEG_COM) jpeg_save_markers(&c->cinfo, marker, 0xFFFF);
    jpeg_mem_src(&c->cinfo, (unsigned char *)jpeg, (unsigned long)length);
    if (jpeg_read_header(&c->cinfo, TRUE) != JPEG_HEADER_OK) fail(c, CD_CORRUPT, "no image in the file");
    check_supported(c);
}

/* A context between two samples: destroying and creating the decompressor keeps no table of one image for the next. */
static void begin(context *c)
{
    memset(&c->cinfo, 0, sizeof c->cinfo);
    c->cinfo.err = error_manager(&c->errors);
    c->cinfo.client_data = c;
    memset(&c->writer, 0, sizeof c->writer);
    c->status = CD_OK;
    c->message[0] = 0;
}

static void finish(context *c)
{
    if (c->cinfo.mem) jpeg_destroy_decompress(&c->cinfo);
    if (c->writer.mem) jpeg_destroy_compress(&c->writer);
    c->cinfo.mem = NULL;
    c->writer.mem = NULL;
    free(c->written.data);
    c->written = (scratch_buffer){0};
}

static void check_box(context *c, const request *r)
{
    int64_t width = c->cinfo.image_width, height = c->cinfo.image_height;
    if (r->top < 0 || r->left < 0 || r->height < 1 || r->width < 1 || r->height > height || r->width > width ||
        r->top > height - r->height || r->left > width - r->width)
        fail(c, CD_BOX, "box (top %lld, left %lld, height %lld, width %lld) leaves the image of %lld x %lld (height x width)",
             (long long)r->top, (long long)r->left, (long long)r->height, (long long)r->width, (long long)height,
             (long long)width);
}

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Pixels of an MCU: one block where the scan holds a single component, whatever its sampling factors. */
static int mcu_width(j_decompress_ptr cinfo) { return cinfo->num_components == 1 ? DCTSIZE : cinfo->max_h_samp_factor * DCTSIZE; }
static int mcu_height(j_decompress_ptr cinfo) { return cinfo->num_components == 1 ? DCTSIZE : cinfo->max_v_samp_factor * DCTSIZE; }

static int core_info(context *c, const uint8_t *jpeg, int64_t length, cd_info *info)
{
    begin(c);
    if (setjmp(c->escape) == 0) {
        j_decompress_ptr cinfo = &c->cinfo;
        read_header(c, jpeg, length);
        *info = (cd_info){cinfo->image_width, cinfo->image_height, cinfo->num_components, cinfo->progressive_mode,
                          cinfo->arith_code, cinfo->restart_interval, mcu_width(cinfo), mcu_height(cinfo),
                          ceil_div(cinfo->image_width, mcu_width(cinfo)), ceil_div(cinfo->image_height, mcu_height(cinfo)),
                          is_seekable(cinfo), cinfo->max_h_samp_factor, cinfo->max_v_samp_factor};
    }
    finish(c);
    return c->status;
}
