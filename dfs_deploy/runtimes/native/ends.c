#include "ends.h"

#include <string.h>

#include "variants.h"

/* Vectors are those of GCC and Clang. Every variant has the same lanes, in as many registers as they take. */
#define LANES 16

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Pixels __attribute__((vector_size(4 * LANES)));

/* 1.5 * 2^23: added to a float of less than 2^22, it leaves the nearest integer, ties to even, in the lowest bits. */
#define ROUNDING 12582912.0f

#define SELECT(mask, yes, no) ((Floats)(((mask) & (Ints)(yes)) | (~(mask) & (Ints)(no))))

static inline __attribute__((always_inline)) double quantize(const float *image, ptrdiff_t channels, ptrdiff_t area,
                                                             float scale, int zero_point, uint8_t *pixels) {
    const Floats none = {0};
    const Floats low = none + (float)-zero_point, high = none + (float)(255 - zero_point), scales = none + scale;
    const Floats rounding = none + ROUNDING;
    /* The lowest bits of ROUNDING are zero, so that what is added to its bits is the level itself. */
    const Ints base = (Ints)rounding - zero_point;
    uint32_t rest = 0;
    for (ptrdiff_t c = channels; c < ENDS_CHANNELS; c++) rest |= (uint32_t)zero_point << 8 * c;
    Floats squares[ENDS_CHANNELS] = {{0}};
    for (ptrdiff_t i = 0; i < area; i += LANES) {
        const ptrdiff_t count = area - i < LANES ? area - i : LANES;
        Pixels pixel = (Pixels){0} + rest;
        for (ptrdiff_t c = 0; c < channels; c++) {
            Floats x = none;
            if (count == LANES)
                memcpy(&x, image + c * area + i, sizeof x);
            else
                memcpy(&x, image + c * area + i, (size_t)count * sizeof(float));
            squares[c] += x * x;
            x /= scales;
            x = SELECT(x < low, low, x);
            x = SELECT(x > high, high, x);
            pixel |= (Pixels)((Ints)(x + rounding) - base) << (uint32_t)(8 * c);
        }
        if (count == LANES)
            memcpy(pixels + ENDS_CHANNELS * i, &pixel, sizeof pixel);
        else
            memcpy(pixels + ENDS_CHANNELS * i, &pixel, (size_t)(ENDS_CHANNELS * count));
    }
    double sum = 0.0;
    for (ptrdiff_t c = 0; c < channels; c++)
        for (int k = 0; k < LANES; k++) sum += squares[c][k];
    return sum;
}

/* A number of channels that the compiler knows keeps everything in registers. */
static inline __attribute__((always_inline)) double quantize_known(const float *image, ptrdiff_t channels,
                                                                   ptrdiff_t area, float scale, int zero_point,
                                                                   uint8_t *pixels) {
    if (channels == 3) return quantize(image, 3, area, scale, zero_point, pixels);
    if (channels == 1) return quantize(image, 1, area, scale, zero_point, pixels);
    return quantize(image, channels, area, scale, zero_point, pixels);
}

#define VARIANT(name, target)                                                                                         \
    target static double quantize_##name(const float *image, ptrdiff_t channels, ptrdiff_t area, float scale,         \
                                         int zero_point, uint8_t *pixels) {                                           \
        return quantize_known(image, channels, area, scale, zero_point, pixels);                                      \
    }

VARIANT(baseline, )
#if defined(__x86_64__)
VARIANT(avx2, __attribute__((target("avx2"))))
VARIANT(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))))
#endif

ptrdiff_t ends_variants(const EndsVariant **variants) {
    static const EndsVariant all[] = {
#if defined(__x86_64__)
        {"avx512", quantize_avx512},
        {"avx2", quantize_avx2},
#endif
        {"baseline", quantize_baseline},
    };
    const ptrdiff_t count = (ptrdiff_t)(sizeof all / sizeof *all);
    const ptrdiff_t first = first_variant();
    *variants = all + first;
    return count - first;
}

void ends_look_up(const uint8_t *image, ptrdiff_t channels, ptrdiff_t area, const uint8_t *levels, int zero_point,
                   uint8_t *pixels) {
    uint32_t table[ENDS_CHANNELS][256], rest = 0;
    for (ptrdiff_t c = 0; c < channels; c++)
        for (int k = 0; k < 256; k++) table[c][k] = (uint32_t)levels[256 * c + k] << 8 * c;
    for (ptrdiff_t c = channels; c < ENDS_CHANNELS; c++) rest |= (uint32_t)zero_point << 8 * c;
    for (ptrdiff_t i = 0; i < area; i++) {
        uint32_t pixel = rest;
        if (channels == 3)
            pixel |= table[0][image[3 * i]] | table[1][image[3 * i + 1]] | table[2][image[3 * i + 2]];
        else
            for (ptrdiff_t c = 0; c < channels; c++) pixel |= table[c][image[channels * i + c]];
        memcpy(pixels + ENDS_CHANNELS * i, &pixel, sizeof pixel);
    }
}

int ends_finite(const float *values, ptrdiff_t count) {
    uint32_t largest = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        bits &= 0x7FFFFFFF;
        largest = bits > largest ? bits : largest;
    }
    return largest < 0x7F800000; /* from here on all bits of the exponent are set */
}
