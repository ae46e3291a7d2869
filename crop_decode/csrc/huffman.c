/* Huffman tables and blocks of baseline JPEG (ITU-T T.81, Annexes C and F.2).

   Decoding is bound by the chain look-up, shift, look-up. One look-up of LOOK_BITS bits therefore yields a whole coefficient, run
   and value, and a second one or the end of the block where both fit, as they mostly do at qualities up to 95. */

/* Entry: bits 0-5 code and value bits of all that it holds, ready to be a shift count · bit 6 it holds values · bit 7 it holds only
   the value's size, in bits 16-19 · bits 8-15 coefficients to advance (ADVANCE_END at the end of the block) · bits 16-31 the value ·
   bits 32-39 the second's advance, 0 for none · bits 40-47 bits of the first alone · bits 48-63 the second's value (the first's
   again where there is none: it is stored twice). 0: the code is longer than LOOK_BITS. */
#define ENTRY_VALUE 64u
#define ENTRY_SIZE 128u
#define ADVANCE_END 128u
#define ENTRY_BITS(e) ((e) & 63)
#define ENTRY_ADVANCE(e) (((e) >> 8) & 255)
#define ENTRY_SIZE_OF(e) (((e) >> 16) & 15)
#define ENTRY_FIRST(e) ((int16_t)((e) >> 16))
#define ENTRY_ADVANCE_2(e) (((e) >> 32) & 255)
#define ENTRY_BITS_1(e) (((e) >> 40) & 63)
#define ENTRY_SECOND(e) ((int16_t)((e) >> 48))

/* Natural order of coefficient k. Whatever lies past the block's end goes to the place behind it: the next block's DC, which is yet
   to be written, or a spare block. */
#define PAST(n) n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n
static const uint8_t zigzag[DCTSIZE2 + 272] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    PAST(64), PAST(64), PAST(64), PAST(64), PAST(64), PAST(64), PAST(64), PAST(64), PAST(64), PAST(64), PAST(64), PAST(64),
    PAST(64), PAST(64), PAST(64), PAST(64), PAST(64)};
#undef PAST

/* T.81 Table F.1: the value whose `size` bits stand at the top of acc. */
static inline int extend(uint64_t acc, int size)
{
    int value = (int)((acc >> 1) >> (63 - size));
    int negative = ~(int)((int64_t)acc >> 63);
    return value + (negative & (1 - (1 << size)));
}

static uint64_t entry(uint32_t symbol, int length, bool is_dc, uint32_t prefix)
{
    uint32_t run = is_dc ? 0 : symbol >> 4, size = symbol & 15, total = length + size;
    uint64_t advance = (size == 0 && run != 15 && !is_dc ? ADVANCE_END : run + 1) << 8;
    if (total > LOOK_BITS) return size << 16 | advance | ENTRY_SIZE | total;
    uint64_t acc = (uint64_t)prefix << (64 - LOOK_BITS) << length;
    uint64_t value = size ? (uint16_t)extend(acc, size) : 0;
    return value << 48 | (uint64_t)total << 40 | value << 16 | advance | ENTRY_VALUE | total;
}

/* Entries that hold a second coefficient, wherever the bits behind the first suffice for one. */
static void pair_entries(huffman *t, const uint64_t *single)
{
    for (uint32_t prefix = 0; prefix < 1u << LOOK_BITS; prefix++) {
        uint64_t e = single[prefix], second = single[(prefix << ENTRY_BITS(e)) & ((1u << LOOK_BITS) - 1)];
        bool pair = (e & ENTRY_VALUE) && (second & ENTRY_VALUE) && ENTRY_ADVANCE(e) != ADVANCE_END &&
                    ENTRY_BITS(e) + ENTRY_BITS(second) <= LOOK_BITS;
        if (pair) {
            e += ENTRY_BITS(second);
            e = (e & 0xFF00FFFFFFFFull) | (uint64_t)(uint16_t)ENTRY_FIRST(second) << 48 | ENTRY_ADVANCE(second) << 32;
        }
        t->look[prefix] = e;
    }
}

static void build_huffman(context *c, huffman *t, const JHUFF_TBL *table, bool is_dc)
{
    if (!table) fail(c, CD_CORRUPT, "a Huffman table is missing");
    if (t->ready && !memcmp(t->bits + 1, table->bits + 1, 16) && !memcmp(t->values, table->huffval, 256)) return;
    t->ready = false;
    memcpy(t->bits, table->bits, 17);
    memcpy(t->values, table->huffval, 256);
    uint64_t single[1 << LOOK_BITS] = {0};
    uint32_t code = 0, k = 0;
    for (int length = 1; length <= 16; length++, code <<= 1) {
        t->offset[length] = (int32_t)k - (int32_t)code;
        if (k + t->bits[length] > 256 || code + t->bits[length] > 1u << length) fail(c, CD_CORRUPT, "bogus Huffman table");
        for (int i = 0; i < t->bits[length]; i++, code++, k++) {
            if (is_dc && t->values[k] > 15) fail(c, CD_CORRUPT, "bogus Huffman table");
            if (length > LOOK_BITS) continue;
            uint32_t first = code << (LOOK_BITS - length), last = (code + 1) << (LOOK_BITS - length);
            for (uint32_t prefix = first; prefix < last; prefix++) single[prefix] = entry(t->values[k], length, is_dc, prefix);
        }
        t->limit[length] = code << (16 - length);
    }
    if (is_dc)
        memcpy(t->look, single, sizeof single);
    else
        pair_entries(t, single);
    t->ready = true;
}

/* An entry as the look-up table would hold it, for codes longer than LOOK_BITS; 0 for a code that does not exist. */
static __attribute__((noinline)) uint64_t long_code(const huffman *t, uint64_t acc, bool is_dc)
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
            value = ENTRY_FIRST(e);                         \
        } else                                                  \
            READ_VALUE();                                       \
        *pred += value;                                         \
        if (UNLIKELY(*pred != (int16_t)*pred)) return false;    \
    } while (0)

#define PAST_END(k) ((k) > DCTSIZE2 && (k) < ADVANCE_END)

/* One block into zeroed coefficients in natural order; *last is the index of the last coefficient that may be non-zero. False if
   the data are not a block. Reads at most 31 * 64 bits, the end is checked by the caller. */
static inline __attribute__((always_inline)) bool decode_block(bit_reader *bits, const huffman *dc, const huffman *ac, int *pred,
                                                               int16_t *block, int *last)
{
    uint64_t acc = bits->acc;
    int count = bits->count, value;
    const uint8_t *next = bits->next;
    REFILL();
    uint64_t e;
    READ_DC(dc);
    block[0] = (int16_t)*pred;
    unsigned k = 1; /* coefficients done */
    uint64_t before = 0;
#define STORE()                                    \
    before = acc;                                  \
    CONSUME(ENTRY_BITS(e));                        \
    k += ENTRY_ADVANCE(e);                         \
    block[zigzag[k - 1]] = ENTRY_FIRST(e);         \
    k += ENTRY_ADVANCE_2(e);                       \
    block[zigzag[k - 1]] = ENTRY_SECOND(e);        \
    if (k >= DCTSIZE2) break;
    for (;;) {
        REFILL();
        e = LOOK(ac);
        if (LIKELY(e & ENTRY_VALUE)) {
            STORE()
            e = LOOK(ac);
            if (LIKELY(e & ENTRY_VALUE)) {
                STORE()
                e = LOOK(ac); /* what two look-ups leave suffices for the longest code */
                if (LIKELY(e & ENTRY_VALUE)) {
                    STORE()
                    continue;
                }
            }
        }
        if (UNLIKELY(!e)) {
            e = long_code(ac, acc, false);
            if (UNLIKELY(!e)) return false;
        }
        READ_VALUE();
        k += ENTRY_ADVANCE(e);
        block[zigzag[k - 1]] = (int16_t)value;
        e &= ~(uint64_t)0xFF << 32; /* no second */
        if (k >= DCTSIZE2) break;
    }
#undef STORE
    unsigned second = ENTRY_ADVANCE_2(e), first = k - second;
    if (UNLIKELY(second && first == DCTSIZE2)) { /* the block was full: what was taken for a second coefficient is the next block's */
        acc = before << ENTRY_BITS_1(e);
        count += (int)(ENTRY_BITS(e) - ENTRY_BITS_1(e));
        k = first;
    }
    if (UNLIKELY(PAST_END(first) || PAST_END(k))) return false; /* a run past the block's end */
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
    uint64_t e;
    READ_DC(dc);
    unsigned k = 1;
    uint64_t before = 0;
    do {
        if (count < 32) REFILL();
        e = LOOK(ac);
        if (UNLIKELY(!e)) {
            e = long_code(ac, acc, false);
            if (UNLIKELY(!e)) return false;
        }
        before = acc;
        CONSUME(ENTRY_BITS(e));
        k += ENTRY_ADVANCE(e) + ENTRY_ADVANCE_2(e);
    } while (k < DCTSIZE2);
    unsigned second = ENTRY_ADVANCE_2(e), first = k - second;
    if (UNLIKELY(second && first == DCTSIZE2)) {
        acc = before << ENTRY_BITS_1(e);
        count += (int)(ENTRY_BITS(e) - ENTRY_BITS_1(e));
        k = first;
    }
    if (UNLIKELY(PAST_END(first) || PAST_END(k))) return false;
    *bits = (bit_reader){acc, count, next};
    return true;
}
