/* Done once, when a data set is written: the lossless transcode that adds restart markers, and the seek index. */

static bool rewritten_by_libjpeg(j_compress_ptr writer, jpeg_saved_marker_ptr m)
{
    bool jfif = m->marker == JPEG_APP0 && m->data_length >= 5 && !memcmp(m->data, "JFIF", 5);
    bool adobe = m->marker == JPEG_APP0 + 14 && m->data_length >= 5 && !memcmp(m->data, "Adobe", 5);
    return (jfif && writer->write_JFIF_header) || (adobe && writer->write_Adobe_marker);
}

static void write_coefficients(context *c, int64_t interval, bool optimize, unsigned char **out, unsigned long *length)
{
    j_compress_ptr writer = &c->writer;
    jvirt_barray_ptr *coefficients = jpeg_read_coefficients(&c->cinfo);
    create_writer(c);
    jpeg_copy_critical_parameters(&c->cinfo, writer);
    writer->restart_interval = (unsigned)interval;
    writer->restart_in_rows = 0;
    writer->optimize_coding = optimize;
    jpeg_write_coefficients(writer, coefficients);
    for (jpeg_saved_marker_ptr m = c->cinfo.marker_list; m; m = m->next)
        if (!rewritten_by_libjpeg(writer, m)) jpeg_write_marker(writer, m->marker, m->data, m->data_length);
    jpeg_finish_compress(writer);
    jpeg_finish_decompress(&c->cinfo);
    *length = take_written(c, out);
}

/* The same coefficients as one baseline scan. On success *out is malloc'ed. */
static int core_transcode(context *c, const uint8_t *jpeg, int64_t length, int64_t interval, bool optimize, bool keep_markers,
                          unsigned char **out, unsigned long *out_length)
{
    begin(c);
    c->keep_markers = keep_markers;
    *out = NULL;
    *out_length = 0;
    if (setjmp(c->escape) == 0) {
        read_header(c, jpeg, length);
        write_coefficients(c, interval, optimize, out, out_length);
    }
    c->keep_markers = false;
    finish(c);
    return c->status;
}

/* Where in the jpeg a byte of the segment without stuffing stands; asked for in ascending order. */
typedef struct {
    const uint8_t *raw;
    int64_t clean;
} stuffing_cursor;

static int64_t raw_offset(const entropy *e, stuffing_cursor *at, int64_t clean)
{
    for (; at->clean < clean; at->clean++) at->raw += *at->raw == 0xFF ? 2 : 1;
    return at->raw - e->jpeg;
}

static void write_u32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }

static void write_entry(uint8_t *p, int64_t offset, int bit, const int *pred, int components)
{
    memset(p, 0, INDEX_ENTRY);
    write_u32(p, (uint32_t)offset);
    p[4] = (uint8_t)bit;
    for (int i = 0; i < components && i < 3; i++) {
        int16_t value = (int16_t)pred[i];
        memcpy(p + 6 + 2 * i, &value, 2);
    }
}

static int64_t index_scan(context *c, int64_t length, int64_t step, uint8_t *out, int64_t capacity)
{
    entropy *e = &c->entropy;
    bool restarts = c->cinfo.restart_interval > 0;
    if (restarts) step = c->cinfo.restart_interval;
    int64_t entries = ceil_div(e->mcus, step), bytes = INDEX_HEADER + entries * INDEX_ENTRY;
    if (bytes > capacity) fail(c, CD_MEMORY, "the seek index needs %lld bytes", (long long)bytes);
    const int64_t words[] = {INDEX_MAGIC, restarts ? INDEX_RESTARTS : 0, length, e->start - e->jpeg, step, entries};
    for (int i = 0; i < 6; i++) write_u32(out + 4 * i, (uint32_t)words[i]);
    stuffing_cursor cursor = {e->start, 0};
    e->seek = false;
    for (int64_t i = 0; i < entries; i++) {
        uint8_t *p = out + INDEX_HEADER + i * INDEX_ENTRY;
        move_to(c, i * step);
        int64_t used = bits_used(e);
        if (restarts)
            write_entry(p, e->restarts[i], 0, e->pred, 0);
        else
            write_entry(p, raw_offset(e, &cursor, used >> 3), used & 7, e->pred, e->components);
    }
    skip_to(c, e->mcus);
    uint64_t hash = index_fingerprint(e->jpeg, length, out, entries);
    memcpy(out + INDEX_FINGERPRINT, &hash, 8);
    return bytes;
}

/* Length of the index, or minus a status. Every MCU is parsed, so that a damaged scan is found here. */
static int64_t core_build_index(context *c, const uint8_t *jpeg, int64_t length, int64_t step, uint8_t *out, int64_t capacity)
{
    volatile int64_t bytes = 0;
    begin(c);
    if (setjmp(c->escape) == 0) {
        read_header(c, jpeg, length);
        if (!is_seekable(&c->cinfo))
            fail(c, CD_UNSUPPORTED, "only baseline JPEGs of one scan can be indexed; transcode progressive ones first");
        c->cinfo.raw_data_out = TRUE;
        jpeg_start_decompress(&c->cinfo);
        begin_entropy(c, &(request){.jpeg = jpeg, .length = length});
        bytes = index_scan(c, length, step < 1 ? 1 : step, out, capacity);
    }
    finish(c);
    return c->status ? -c->status : bytes;
}
