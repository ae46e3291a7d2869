/* Two of libjpeg's structures are used by their layout alone. Before any image, a small one is decoded with them and without. */

#define TEST_WIDTH 52
#define TEST_HEIGHT 37

static unsigned long test_image(context *c, unsigned char **jpeg)
{
    j_compress_ptr writer = &c->writer;
    uint8_t row[TEST_WIDTH * 3];
    create_writer(c);
    writer->image_width = TEST_WIDTH, writer->image_height = TEST_HEIGHT;
    writer->input_components = 3, writer->in_color_space = JCS_RGB;
    jpeg_set_defaults(writer);
    jpeg_start_compress(writer, TRUE);
    for (int y = 0; y < TEST_HEIGHT; y++) {
        for (int x = 0; x < TEST_WIDTH; x++)
            row[3 * x] = (uint8_t)(5 * x), row[3 * x + 1] = (uint8_t)(6 * y), row[3 * x + 2] = (uint8_t)((x * y) >> 3);
        JSAMPROW rows[1] = {row};
        jpeg_write_scanlines(writer, rows, 1);
    }
    jpeg_finish_compress(writer);
    return take_written(c, jpeg);
}

static int make_test_image(context *c, unsigned char **jpeg, int64_t *length)
{
    begin(c);
    if (setjmp(c->escape) == 0) *length = (int64_t)test_image(c, jpeg);
    finish(c);
    return c->status;
}

/* Whether our entropy decoder inside libjpeg, and libjpeg's inverse DCT inside ours, give what libjpeg gives. */
static bool core_self_test(context *c)
{
    enum { SIDE = 20 };
    uint8_t ours[SIDE * SIDE * 3], theirs[SIDE * SIDE * 3], fused[SIDE * SIDE * 3];
    unsigned char *jpeg = NULL;
    request r = {.top = 9, .left = 11, .height = SIDE, .width = SIDE};
    if (make_test_image(c, &jpeg, &r.length) != CD_OK) return false;
    r.jpeg = jpeg;
    bool good = core_pixels(c, &r, ours) == CD_OK;
    r.flags = CD_FUSED;
    good = good && core_resize(c, &r, fused, SIDE, SIDE) == CD_OK;
    r.flags = CD_LIBJPEG_HUFFMAN;
    good = good && core_pixels(c, &r, theirs) == CD_OK && !memcmp(ours, theirs, sizeof ours);
    for (size_t i = 0; good && i < sizeof fused; i++) good = abs(fused[i] - theirs[i]) <= 4;
    free(jpeg);
    return good;
}
