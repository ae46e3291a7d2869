/* Entropy decoding that begins where the crop begins.

   The scan is cut into segments of `step` MCUs whose start is known: restart intervals (found by their markers, or listed in an
   index), or, in a file without restart markers, stretches whose bit position and DC predictors were noted in an index when the
   file was written. Without either, the scan is one segment. libjpeg calls `decode_mcu` for every MCU in order; calls outside the
   window return at once, the first call inside it moves to the segment that holds the MCU. */

#define INDEX_MAGIC 0x32584449u /* "IDX2" */
#define INDEX_RESTARTS 1u
#define INDEX_HEADER 32
#define INDEX_FINGERPRINT 24 /* where it stands */
#define INDEX_ENTRY 12
#define MCU_SLACK (D_MAX_BLOCKS_IN_MCU * DCTSIZE2 * 4 + 64) /* bytes that one MCU of garbage may read past the end */

/* Index: magic, flags, jpeg length, start of entropy data, step, entries (uint32 each), fingerprint of the jpeg and of the rest of
   the index (uint64), then an entry a segment: byte offset in the jpeg (uint32), bit (uint8), zero (uint8), DC predictors
   (3 x int16). Little endian. */
static inline uint32_t read_u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

typedef struct {
    int64_t offset;
    int bit;
    int16_t pred[3];
} index_entry;

static inline index_entry read_entry(const entropy *e, int64_t i)
{
    const uint8_t *p = e->index + i * INDEX_ENTRY;
    index_entry entry = {.offset = read_u32(p), .bit = p[4]};
    memcpy(entry.pred, p + 6, 6);
    return entry;
}

static uint64_t index_fingerprint(const uint8_t *jpeg, int64_t length, const uint8_t *index, int64_t segments)
{
    uint64_t hash = fingerprint(fingerprint(0, jpeg, length), index, INDEX_FINGERPRINT);
    return fingerprint(hash, index + INDEX_HEADER, segments * INDEX_ENTRY);
}

static void check_fingerprint(context *c, const request *r, int64_t segments)
{
#ifdef CD_FUZZING /* so that damaged indices reach what lies behind */
    (void)c, (void)r, (void)segments;
#else
    uint64_t expected;
    memcpy(&expected, r->index + INDEX_FINGERPRINT, 8);
    if (index_fingerprint(r->jpeg, r->length, r->index, segments) != expected)
        fail(c, CD_INDEX, "the seek index or the JPEG has changed since the index was made");
#endif
}

static void attach_index(context *c, const request *r)
{
    entropy *e = &c->entropy;
    const uint8_t *p = r->index;
    int64_t segments;
    if (r->index_length < INDEX_HEADER || read_u32(p) != INDEX_MAGIC) fail(c, CD_INDEX, "not a seek index");
    e->step = read_u32(p + 16);
    segments = read_u32(p + 20);
    if (read_u32(p + 8) != r->length || read_u32(p + 12) != e->start - e->jpeg || e->step < 1 ||
        segments != ceil_div(e->mcus, e->step) || r->index_length != INDEX_HEADER + segments * INDEX_ENTRY)
        fail(c, CD_INDEX, "the seek index belongs to another file");
    if (!!(read_u32(p + 4) & INDEX_RESTARTS) != (c->cinfo.restart_interval > 0) ||
        (c->cinfo.restart_interval && e->step != c->cinfo.restart_interval))
        fail(c, CD_INDEX, "the seek index belongs to a file with other restart intervals");
    check_fingerprint(c, r, segments);
    e->index = p + INDEX_HEADER;
}

/* Starts of restart intervals up to number `last`. In entropy data 0xFF is followed by 0 or by a marker. */
static void find_restarts(context *c, int64_t last)
{
    entropy *e = &c->entropy;
    uint32_t *starts = (uint32_t *)e->restarts;
    const uint8_t *p = e->jpeg + starts[e->restarts_known - 1];
    while (e->restarts_known <= last) {
        p = memchr(p, 0xFF, e->end - p);
        if (!p || p + 1 >= e->end) fail(c, CD_CORRUPT, "restart marker %lld is missing", (long long)e->restarts_known - 1);
        if (p[1] == 0) {
            p += 2;
        } else if (p[1] == 0xFF) {
            p += 1;
        } else if (p[1] == 0xD0 + ((e->restarts_known - 1) & 7)) {
            p += 2;
            starts[e->restarts_known++] = (uint32_t)(p - e->jpeg);
        } else
            fail(c, CD_CORRUPT, "restart marker %lld is missing", (long long)e->restarts_known - 1);
    }
}

static void begin_entropy(context *c, const request *r)
{
    entropy *e = &c->entropy;
    j_decompress_ptr cinfo = &c->cinfo;
    e->blocks = cinfo->blocks_in_MCU;
    e->components = cinfo->comps_in_scan;
    for (int i = 0; i < e->blocks; i++) {
        int component = cinfo->MCU_membership[i];
        const jpeg_component_info *info = cinfo->cur_comp_info[component];
        huffman *dc = &e->tables[0][info->dc_tbl_no & 3], *ac = &e->tables[1][info->ac_tbl_no & 3];
        build_huffman(c, dc, cinfo->dc_huff_tbl_ptrs[info->dc_tbl_no & 3], true);
        build_huffman(c, ac, cinfo->ac_huff_tbl_ptrs[info->ac_tbl_no & 3], false);
        e->component[i] = component;
        e->dc[i] = dc;
        e->ac[i] = ac;
    }
    e->jpeg = r->jpeg;
    e->start = cinfo->src->next_input_byte;
    e->end = r->jpeg + r->length;
    e->per_row = cinfo->MCUs_per_row;
    e->mcus = (int64_t)cinfo->MCUs_per_row * cinfo->MCU_rows_in_scan;
    e->index = NULL;
    e->restarts = NULL;
    e->step = e->mcus;
    if (r->index && !(r->flags & CD_NO_SEEK)) {
        attach_index(c, r);
    } else if (cinfo->restart_interval) {
        e->step = cinfo->restart_interval;
        uint32_t *starts = scratch(c, SCRATCH_RESTARTS, sizeof(uint32_t) * (ceil_div(e->mcus, e->step) + 1));
        starts[0] = (uint32_t)(e->start - e->jpeg);
        e->restarts = starts;
        e->restarts_known = 1;
    }
    e->seek = !(r->flags & (CD_NO_SEEK | CD_VERIFY));
    e->segment = -1;
    e->next_mcu = 0;
}

static void set_window(context *c, int64_t row_first, int64_t row_last, int64_t col_first, int64_t col_last)
{
    entropy *e = &c->entropy;
    int64_t rows = e->mcus / e->per_row;
    e->row_first = row_first < 0 ? 0 : row_first;
    e->row_last = row_last >= rows ? rows - 1 : row_last;
    e->col_first = col_first < 0 ? 0 : col_first;
    e->col_last = col_last >= e->per_row ? e->per_row - 1 : col_last;
    e->hook_row = e->hook_col = 0;
}

/* Copies [*source, to) without the zero that follows each 0xFF, up to the first marker, where *source is left. Returns the end of
   what was written. */
static uint8_t *unstuff(uint8_t *out, const uint8_t **source, const uint8_t *to)
{
    const uint8_t *from = *source;
    while (from < to) {
#ifdef __AVX2__
        while (to - from >= 32) {
            __m256i bytes = _mm256_loadu_si256((const __m256i *)from);
            _mm256_storeu_si256((__m256i *)out, bytes);
            unsigned found = (unsigned)_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(-1)));
            int clear = found ? __builtin_ctz(found) : 32;
            out += clear;
            from += clear;
            if (found) break;
        }
#endif
        while (to - from >= 8) { /* eight bytes at once as long as none is 0xFF */
            uint64_t word;
            memcpy(&word, from, 8);
            memcpy(out, &word, 8);
            uint64_t inverse = ~word;
            uint64_t found = (inverse - 0x0101010101010101ull) & ~inverse & 0x8080808080808080ull;
            int clear = found ? __builtin_ctzll(found) >> 3 : 8;
            out += clear;
            from += clear;
            if (found) break;
        }
        if (from == to) break;
        if (*from != 0xFF) {
            *out++ = *from++;
        } else if (from + 1 < to && from[1] == 0) {
            *out++ = 0xFF;
            from += 2;
        } else
            break;
    }
    *source = from;
    return out;
}

static void skip_bits(bit_reader *bits, int n)
{
    bits->acc = load_big_endian(bits->next) << n;
    bits->count = 56 - n;
    bits->acc &= ~0ull << (64 - bits->count);
    bits->next += 7;
}

static int64_t bits_used(const entropy *e) { return (e->bits.next - e->clean) * 8 - e->bits.count; }

/* Byte range of a segment in the jpeg. */
static void segment_range(context *c, int64_t segment, int64_t *from, int64_t *to, index_entry *entry, int *end_bit)
{
    entropy *e = &c->entropy;
    int64_t segments = ceil_div(e->mcus, e->step), size = e->end - e->jpeg;
    bool last = segment == segments - 1;
    *entry = (index_entry){0};
    *to = size;
    *end_bit = -1;
    if (e->index) {
        *entry = read_entry(e, segment);
        *from = entry->offset;
        if (!last) {
            index_entry next = read_entry(e, segment + 1);
            *to = next.offset;
            *end_bit = next.bit;
            if (c->cinfo.restart_interval) {
                *to -= 2;
                if (*to < *from || *to + 2 > size || e->jpeg[*to] != 0xFF || e->jpeg[*to + 1] != 0xD0 + (segment & 7))
                    fail(c, CD_INDEX, "restart marker %lld is not where the seek index says", (long long)segment);
            }
        }
    } else if (e->restarts) {
        if (segment >= e->restarts_known || (!last && segment + 1 >= e->restarts_known)) find_restarts(c, last ? segment : segment + 1);
        *from = e->restarts[segment];
        if (!last) *to = e->restarts[segment + 1] - 2;
    } else
        *from = e->start - e->jpeg;
    if (*from < e->start - e->jpeg || *from > *to || *to > size || entry->bit > 7 || *end_bit > 7)
        fail(c, CD_INDEX, "the seek index points outside the file");
}

static void open_segment(context *c, int64_t segment)
{
    entropy *e = &c->entropy;
    int64_t from, to;
    int end_bit;
    index_entry entry;
    segment_range(c, segment, &from, &to, &entry, &end_bit);
    uint8_t *clean = scratch(c, SCRATCH_CLEAN, to - from + MCU_SLACK);
    e->segment_stop = e->jpeg + from;
    uint8_t *end = unstuff(clean, &e->segment_stop, e->jpeg + to);
    bool indexed = e->index && !c->cinfo.restart_interval;
    e->exact_end = indexed && end_bit >= 0 ? (end - clean) * 8 + end_bit : -1;
    if (indexed && end_bit > 0 && to < e->end - e->jpeg) *end++ = e->jpeg[to]; /* the byte that both segments share */
    e->clean = clean;
    e->clean_bits = (end - clean) * 8;
    e->bits = (bit_reader){0, 0, clean};
    if (entry.bit) skip_bits(&e->bits, entry.bit);
    for (int i = 0; i < e->components; i++) e->pred[i] = i < 3 ? entry.pred[i] : 0;
    e->segment = segment;
    e->next_mcu = segment * e->step;
    e->segment_end = e->next_mcu + e->step < e->mcus ? e->next_mcu + e->step : e->mcus;
}

/* After the last MCU of a segment: whether the data agree that it is the last. A byte lost or gained inside shows here. */
static void close_segment(context *c)
{
    entropy *e = &c->entropy;
    int64_t used = bits_used(e);
    bool good = true;
    if (e->exact_end >= 0) {
        index_entry next = read_entry(e, e->segment + 1);
        good = used == e->exact_end;
        for (int i = 0; i < e->components; i++) good = good && e->pred[i] == next.pred[i];
    } else if (e->next_mcu < e->mcus)
        good = e->clean_bits - used < 8; /* only padding is left before the restart marker */
    if (!good) fail(c, CD_CORRUPT, "corrupt entropy data before MCU %lld", (long long)e->next_mcu);
}

static void check_mcu(context *c, bool parsed)
{
    entropy *e = &c->entropy;
    if (UNLIKELY(!parsed)) fail(c, CD_CORRUPT, "corrupt entropy data at MCU %lld", (long long)e->next_mcu);
    if (UNLIKELY(bits_used(e) > e->clean_bits)) fail(c, CD_CORRUPT, "premature end of entropy data at MCU %lld", (long long)e->next_mcu);
    if (++e->next_mcu == e->segment_end) close_segment(c);
}

static void skip_to(context *c, int64_t mcu)
{
    entropy *e = &c->entropy;
    while (e->next_mcu < mcu) {
        bool parsed = true;
        for (int i = 0; parsed && i < e->blocks; i++) parsed = skip_block(&e->bits, e->dc[i], e->ac[i], &e->pred[e->component[i]]);
        check_mcu(c, parsed);
    }
}

/* So that the next MCU to be read is `mcu`, which lies behind the last one read. */
static void move_to(context *c, int64_t mcu)
{
    entropy *e = &c->entropy;
    int64_t target = mcu / e->step;
    if (e->segment < 0) open_segment(c, e->seek ? target : 0);
    while (e->segment < target) {
        if (!e->seek) skip_to(c, e->segment_end);
        open_segment(c, e->seek ? target : e->segment + 1);
    }
    skip_to(c, mcu);
}

/* Parses what is left of the scan and holds its end against the end marker. */
static void verify_rest(context *c)
{
    entropy *e = &c->entropy;
    if (e->next_mcu < e->mcus) move_to(c, e->mcus - 1);
    skip_to(c, e->mcus);
    const uint8_t *p = e->segment_stop;
    while (p + 1 < e->end && p[0] == 0xFF && p[1] == 0xFF) p++;
    if (e->clean_bits - bits_used(e) >= 8 || p + 1 >= e->end || p[0] != 0xFF || p[1] != 0xD9)
        fail(c, CD_CORRUPT, "corrupt entropy data: no end-of-image marker after the last MCU");
}

/* Coefficients of one MCU into zeroed blocks. lasts: index of each block's last coefficient, or 0. */
static inline void read_mcu(context *c, int64_t mcu, JBLOCKROW *blocks, int *lasts)
{
    entropy *e = &c->entropy;
    if (e->segment < 0 || mcu != e->next_mcu || mcu == e->segment_end) move_to(c, mcu);
    bool parsed = true;
    int last = 0;
    for (int i = 0; parsed && i < e->blocks; i++) {
        parsed = decode_block(&e->bits, e->dc[i], e->ac[i], &e->pred[e->component[i]], blocks[i][0], &last);
        if (lasts) lasts[i] = last;
    }
    check_mcu(c, parsed);
}

/* libjpeg's own view of its entropy decoder (jpegint.h, which not every distribution installs); the layout has been the same since
   version 6b, and selftest.c holds both decoders against each other before the first image. */
typedef struct {
    void (*start_pass)(j_decompress_ptr);
    boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW *);
    boolean insufficient_data;
} libjpeg_entropy;

static boolean hooked_decode_mcu(j_decompress_ptr cinfo, JBLOCKROW *blocks)
{
    context *c = cinfo->client_data;
    entropy *e = &c->entropy;
    int64_t row = e->hook_row, col = e->hook_col;
    if (++e->hook_col == e->per_row) {
        e->hook_col = 0;
        e->hook_row++;
    }
    if (blocks && row >= e->row_first && row <= e->row_last && col >= e->col_first && col <= e->col_last)
        read_mcu(c, row * e->per_row + col, blocks, NULL);
    return TRUE;
}

static void hook_entropy(context *c) { ((libjpeg_entropy *)c->cinfo.entropy)->decode_mcu = hooked_decode_mcu; }
