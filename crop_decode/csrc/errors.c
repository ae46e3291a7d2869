/* One way out of every error: a status, a message and a long jump to where the sample began. Nothing here ends the process. */

static void fail(context *c, int status, const char *format, ...) __attribute__((noreturn, format(printf, 3, 4)));

static void fail(context *c, int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(c->message, sizeof c->message, format, arguments);
    va_end(arguments);
    c->status = status;
    longjmp(c->escape, 1);
}

static void fail_with_libjpeg_text(j_common_ptr cinfo)
{
    char text[JMSG_LENGTH_MAX];
    context *c = cinfo->client_data;
    int status = CD_CORRUPT;
    (*cinfo->err->format_message)(cinfo, text);
    if (cinfo->err->msg_code == JERR_OUT_OF_MEMORY || cinfo->err->msg_code == JERR_NO_BACKING_STORE) status = CD_MEMORY;
    if (cinfo->err->msg_code == JERR_BAD_PRECISION || cinfo->err->msg_code == JERR_SOF_UNSUPPORTED ||
        cinfo->err->msg_code == JERR_CONVERSION_NOTIMPL || cinfo->err->msg_code == JERR_ARITH_NOTIMPL)
        status = CD_UNSUPPORTED;
    fail(c, status, "%s", text);
}

static void on_error(j_common_ptr cinfo) { fail_with_libjpeg_text(cinfo); }

/* libjpeg repairs what it can and warns; a repaired image is silent garbage in training, so a warning is an error here, except
   for the two that speak of unusual header versions and leave the pixels alone. */
static void on_message(j_common_ptr cinfo, int level)
{
    if (level >= 0) return;
    if (cinfo->err->msg_code == JWRN_JFIF_MAJOR || cinfo->err->msg_code == JWRN_ADOBE_XFORM) return;
    fail_with_libjpeg_text(cinfo);
}

static void on_output(j_common_ptr cinfo) { (void)cinfo; }

/* Each scan of a progressive file costs a pass over the whole image: a small file may hold thousands. */
static void on_progress(j_common_ptr cinfo)
{
    if (cinfo->is_decompressor && ((j_decompress_ptr)cinfo)->input_scan_number > MAX_SCANS)
        fail(cinfo->client_data, CD_TOO_LARGE, "more than %d scans", MAX_SCANS);
}

static struct jpeg_error_mgr *error_manager(struct jpeg_error_mgr *errors)
{
    jpeg_std_error(errors);
    errors->error_exit = on_error;
    errors->emit_message = on_message;
    errors->output_message = on_output;
    return errors;
}

/* Grows only; contents are lost. Aligned to 64 bytes, with 64 spare bytes on both sides for vector code that reads or writes past
   either end. */
static void *scratch(context *c, int kind, size_t bytes)
{
    scratch_buffer *buffer = &c->scratch[kind];
    if (buffer->capacity < bytes) {
        size_t capacity = (bytes + bytes / 4 + 63) / 64 * 64;
        free(buffer->data);
        buffer->capacity = 0;
        buffer->data = aligned_alloc(64, capacity + 128);
        if (!buffer->data) fail(c, CD_MEMORY, "out of memory (%zu bytes)", bytes);
        memset(buffer->data, 0, capacity + 128);
        buffer->capacity = capacity;
    }
    return (char *)buffer->data + 64;
}

/* Hands out parts of one scratch buffer, each aligned to 64 bytes. */
typedef struct {
    uint8_t *base;
    size_t used;
} arena;

static void *take(arena *a, size_t bytes)
{
    void *part = a->base ? a->base + a->used : NULL;
    a->used += (bytes + 63) / 64 * 64;
    return part;
}

/* libjpeg's own memory destination loses its buffer when an error ends the writing; this one belongs to the context. */
#define WRITER_BLOCK 65536

static void give_room(context *c, size_t used)
{
    size_t capacity = c->written.capacity * 2 + WRITER_BLOCK;
    uint8_t *data = realloc(c->written.data, capacity);
    if (!data) fail(c, CD_MEMORY, "out of memory (%zu bytes)", capacity);
    c->written = (scratch_buffer){data, capacity};
    c->destination.next_output_byte = data + used;
    c->destination.free_in_buffer = capacity - used;
}

static void begin_writing(j_compress_ptr cinfo) { give_room(cinfo->client_data, 0); }

static boolean write_more(j_compress_ptr cinfo)
{
    context *c = cinfo->client_data;
    give_room(c, c->written.capacity); /* libjpeg calls this when the buffer is full to the last byte */
    return TRUE;
}

static void end_writing(j_compress_ptr cinfo) { (void)cinfo; }

static void create_writer(context *c)
{
    c->writer.err = &c->errors;
    jpeg_create_compress(&c->writer);
    c->writer.client_data = c;
    c->destination = (struct jpeg_destination_mgr){.init_destination = begin_writing, .empty_output_buffer = write_more, .term_destination = end_writing};
    c->writer.dest = &c->destination;
}

/* Length of what was written. *out is the caller's to free. */
static unsigned long take_written(context *c, unsigned char **out)
{
    unsigned long length = (unsigned long)(c->written.capacity - c->destination.free_in_buffer);
    *out = c->written.data;
    c->written = (scratch_buffer){0};
    return length;
}
