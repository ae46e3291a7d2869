/* What ties a seek index to its JPEG: 64 bits over every byte of both. An index that was damaged, or that belongs to bytes which
   have changed since, would make the decoder start in the wrong place and give wrong pixels without a complaint.

   Eight lanes of 64 bits each sum up their words, and the product of both halves of each word, keyed by its place: a changed word
   changes the sum, words that changed places change the products. No cryptography; some 20 bytes a nanosecond with AVX2. */

#define FINGERPRINT_STRIPE 64
#define FINGERPRINT_STEP 0x9E3779B97F4A7C15ull

typedef struct {
    uint64_t sum[8], product[8], key[8];
} fingerprint_lanes;

static void fingerprint_stripes(fingerprint_lanes *lanes, const uint8_t *bytes, int64_t stripes)
{
#ifdef __AVX2__
    __m256i sum[2], product[2], key[2];
    const __m256i step = _mm256_set1_epi64x((long long)FINGERPRINT_STEP);
    for (int half = 0; half < 2; half++) {
        sum[half] = _mm256_loadu_si256((const __m256i *)(lanes->sum + 4 * half));
        product[half] = _mm256_loadu_si256((const __m256i *)(lanes->product + 4 * half));
        key[half] = _mm256_loadu_si256((const __m256i *)(lanes->key + 4 * half));
    }
    for (int64_t s = 0; s < stripes; s++)
        for (int half = 0; half < 2; half++) {
            __m256i words = _mm256_loadu_si256((const __m256i *)(bytes + s * FINGERPRINT_STRIPE + 32 * half));
            __m256i keyed = _mm256_xor_si256(words, key[half]);
            sum[half] = _mm256_add_epi64(sum[half], words);
            product[half] = _mm256_add_epi64(product[half], _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32)));
            key[half] = _mm256_add_epi64(key[half], step);
        }
    for (int half = 0; half < 2; half++) {
        _mm256_storeu_si256((__m256i *)(lanes->sum + 4 * half), sum[half]);
        _mm256_storeu_si256((__m256i *)(lanes->product + 4 * half), product[half]);
        _mm256_storeu_si256((__m256i *)(lanes->key + 4 * half), key[half]);
    }
#else
    for (int64_t s = 0; s < stripes; s++)
        for (int i = 0; i < 8; i++) {
            uint64_t word;
            memcpy(&word, bytes + s * FINGERPRINT_STRIPE + 8 * i, 8);
            uint64_t keyed = word ^ lanes->key[i];
            lanes->sum[i] += word;
            lanes->product[i] += (keyed & 0xFFFFFFFFu) * (keyed >> 32);
            lanes->key[i] += FINGERPRINT_STEP;
        }
#endif
}

static uint64_t fingerprint_mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value ^ (value >> 29)) * 0xBF58476D1CE4E5B9ull;
    return hash ^ (hash >> 32);
}

static uint64_t fingerprint(uint64_t seed, const uint8_t *bytes, int64_t length)
{
    fingerprint_lanes lanes = {0};
    uint8_t rest[FINGERPRINT_STRIPE] = {0};
    int64_t stripes = length / FINGERPRINT_STRIPE;
    for (int i = 0; i < 8; i++) lanes.key[i] = fingerprint_mix(FINGERPRINT_STEP, (uint64_t)i + 1);
    fingerprint_stripes(&lanes, bytes, stripes);
    memcpy(rest, bytes + stripes * FINGERPRINT_STRIPE, (size_t)(length - stripes * FINGERPRINT_STRIPE));
    fingerprint_stripes(&lanes, rest, 1);
    uint64_t hash = fingerprint_mix(seed, (uint64_t)length);
    for (int i = 0; i < 8; i++) hash = fingerprint_mix(fingerprint_mix(hash, lanes.sum[i]), lanes.product[i]);
    return hash;
}
