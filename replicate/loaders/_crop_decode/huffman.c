/* Huffman tables and blocks of baseline JPEG (ITU-T T.81, Annexes C and F.2).

   One look-up of LOOK_BITS bits yields run, length and, where the value's own bits fit as well, the value: at qualities of 90 to 95
   that is four coefficients in five. */

/* Entry: bits 0-4 code plus value bits · bit 5 the value is in bits 16-31 · bit 6 the value is still to be read, its size is in bits
   16-19 · bits 8-15 coefficients to advance (ADVANCE_END for end of block). 0: the code is longer than LOOK_BITS. */
#define ENTRY_VALUE 32u
#define ENTRY_SIZE 64u
#define ADVANCE_END 128u
#define ENTRY_BITS(e) ((e) & 31)
#define ENTRY_ADVANCE(e) (((e) >> 8) & 255)
#define ENTRY_SIZE_OF(e) (((e) >> 16) & 15)

static const uint8_t zigzag[DCTSIZE2] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
                                         41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
                                         30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

/* T.81 Table F.1: the value whose `size` bits stand at the top of acc. */
static inline int extend(uint64_t acc, int size)
{
    int value = (int)((acc >> 1) >> (63 - size));
    int negative = ~(int)((int64_t)acc >> 63);
    return value + (negative & (1 - (1 << size)));
}

static uint32_t entry(uint32_t symbol, int length, bool is_dc, uint32_t prefix)
{
    uint32_t run = is_dc ? 0 : symbol >> 4, size = symbol & 15, total = length + size;
    uint32_t advance = (size == 0 && run != 15 && !is_dc ? ADVANCE_END : run + 1) << 8;
    if (total > LOOK_BITS) return size << 16 | advance | ENTRY_SIZE | total;
    uint64_t acc = (uint64_t)prefix << (64 - LOOK_BITS) << length;
    int value = size ? extend(acc, size) : 0;
    return (uint32_t)(uint16_t)value << 16 | advance | ENTRY_VALUE | total;
}

static void build_huffman(context *c, huffman *t, const JHUFF_TBL *table, bool is_dc)
{
    if (!table) fail(c, CD_CORRUPT, "a Huffman table is missing");
    if (t->ready && !memcmp(t->bits + 1, table->bits + 1, 16) && !memcmp(t->values, table->huffval, 256)) return;
    t->ready = false;
    memcpy(t->bits, table->bits, 17);
    memcpy(t->values, table->huffval, 256);
    memset(t->look, 0, sizeof t->look);
    uint32_t code = 0, k = 0;
    for (int length = 1; length <= 16; length++, code <<= 1) {
        t->offset[length] = (int32_t)k - (int32_t)code;
        if (k + t->bits[length] > 256 || code + t->bits[length] > 1u << length) fail(c, CD_CORRUPT, "bogus Huffman table");
        for (int i = 0; i < t->bits[length]; i++, code++, k++) {
            if (is_dc && t->values[k] > 15) fail(c, CD_CORRUPT, "bogus Huffman table");
            if (length > LOOK_BITS) continue;
            uint32_t first = code << (LOOK_BITS - length), last = (code + 1) << (LOOK_BITS - length);
            for (uint32_t prefix = first; prefix < last; prefix++) t->look[prefix] = entry(t->values[k], length, is_dc, prefix);
        }
        t->limit[length] = code << (16 - length);
    }
    t->ready = true;
}

/* An entry as the look-up table would hold it, for codes longer than LOOK_BITS; 0 for a code that does not exist. */
static __attribute__((noinline)) uint32_t long_code(const huffman *t, uint64_t acc, bool is_dc)
{
    uint32_t prefix = (uint32_t)(acc >> 48);
    for (int length = LOOK_BITS + 1; length <= 16; length++)
        if (prefix < t->limit[length]) {
            uint32_t symbol = t->values[t->offset[length] + (int32_t)(prefix >> (16 - length))];
            return entry(symbol, length, is_dc, 0);
        }
    return 0;
}

static inline uint64_t load_big_endian(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, 8);
    return __builtin_bswap64(word);
}

/* At least 56 bits afterwards, without a branch (F. Giesen's "variant 4"); bytes must be free of stuffing. */
#define REFILL()                               \
    do {                                       \
        acc |= load_big_endian(next) >> count; \
        next += (63 - count) >> 3;             \
        count |= 56;                           \
    } while (0)
#define LOOK(table) ((table)->look[acc >> (64 - LOOK_BITS)])
#define CONSUME(n)     \
    do {               \
        acc <<= (n);   \
        count -= (n);  \
    } while (0)

/* The value of an entry that holds only its size. */
#define READ_VALUE()                                \
    do {                                            \
        int size_ = ENTRY_SIZE_OF(e);               \
        CONSUME(ENTRY_BITS(e) - size_);             \
        value = size_ ? extend(acc, size_) : 0;     \
        CONSUME(size_);                             \
    } while (0)

/* The DC value of a block into *pred. False for a bad code. */
#define READ_DC(table)                                          \
    do {                                                        \
        e = LOOK(table);                                        \
        if (UNLIKELY(!e)) {                                     \
            e = long_code((table), acc, true);                  \
            if (UNLIKELY(!e)) return false;                     \
        }                                                       \
        if (e & ENTRY_VALUE) {                                  \
            CONSUME(ENTRY_BITS(e));                             \
            value = (int16_t)(e >> 16);                         \
        } else                                                  \
            READ_VALUE();                                       \
        *pred += value;                                         \
        if (UNLIKELY(*pred != (int16_t)*pred)) return false;    \
    } while (0)

/* One block into zeroed coefficients in natural order; *last is the index of the last coefficient that may be non-zero. False if
   the data are not a block. Reads at most 31 * 64 bits, the end is checked by the caller. */
static inline __attribute__((always_inline)) bool decode_block(bit_reader *bits, const huffman *dc, const huffman *ac, int *pred,
                                                               int16_t *block, int *last)
{
    uint64_t acc = bits->acc;
    int count = bits->count, value;
    const uint8_t *next = bits->next;
    REFILL();
    uint32_t e;
    READ_DC(dc);
    block[0] = (int16_t)*pred;
    unsigned k = 1;
#define STORE(v)                               \
    k += ENTRY_ADVANCE(e);                     \
    if (k > DCTSIZE2) goto end;                \
    block[zigzag[k - 1]] = (int16_t)(v);       \
    if (k == DCTSIZE2) goto end;
    for (;;) {
        REFILL();
        for (int repeat = 0; repeat < 2; repeat++) { /* two values of LOOK_BITS leave room for the longest code */
            e = LOOK(ac);
            if (UNLIKELY(!(e & ENTRY_VALUE))) goto complete;
            CONSUME(ENTRY_BITS(e));
            STORE(e >> 16)
        }
        e = LOOK(ac);
        if (LIKELY(e & ENTRY_VALUE)) {
            CONSUME(ENTRY_BITS(e));
            STORE(e >> 16)
            continue;
        }
    complete:
        if (UNLIKELY(!e)) {
            e = long_code(ac, acc, false);
            if (UNLIKELY(!e)) return false;
        }
        READ_VALUE();
        STORE(value)
    }
#undef STORE
end:
    if (UNLIKELY(k > DCTSIZE2 && k < ADVANCE_END)) return false; /* a run past the block's end */
    *last = k >= ADVANCE_END ? (int)(k - ADVANCE_END) - 1 : DCTSIZE2 - 1;
    *bits = (bit_reader){acc, count, next};
    return true;
}

/* The same without coefficients: only the DC value, which later blocks build on. */
static inline bool skip_block(bit_reader *bits, const huffman *dc, const huffman *ac, int *pred)
{
    uint64_t acc = bits->acc;
    int count = bits->count, value;
    const uint8_t *next = bits->next;
    REFILL();
    uint32_t e;
    READ_DC(dc);
    unsigned k = 1;
    while (k < DCTSIZE2) {
        if (count < 32) REFILL();
        e = LOOK(ac);
        if (UNLIKELY(!e)) {
            e = long_code(ac, acc, false);
            if (UNLIKELY(!e)) return false;
        }
        CONSUME(ENTRY_BITS(e));
        k += ENTRY_ADVANCE(e);
    }
    if (UNLIKELY(k > DCTSIZE2 && k < ADVANCE_END)) return false;
    *bits = (bit_reader){acc, count, next};
    return true;
}
