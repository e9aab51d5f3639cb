/* One variant of the kernel; kernel.c includes this file once for each, with
 *     VARIANT       its name,
 *     VECTOR_BYTES  the width of its vectors, a power of two from 16 to 64,
 *     TARGET        the attribute that lets the compiler use its instructions.
 *
 * Vectors are those of GCC and Clang, and a group of lanes is an array of them: the lanes, and the order in which they
 * are added, are the same whatever the width.
 */

#define NAME(name) PASTE(name, VARIANT)

#define FLOATS (VECTOR_BYTES / 4)
#define POOL_LANES 32 /* partial sums of a channel */
#define POOL_CHAINS 8 /* of them at a time where vectors hold channels */
#define POOL_VECTORS (POOL_LANES / FLOATS)
#define LANE_VECTORS (GATE_LANES / FLOATS)

#define Floats NAME(Floats)
#define Ints NAME(Ints)
#define Pairs NAME(Pairs)

typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Ints __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t Pairs __attribute__((vector_size(VECTOR_BYTES))); /* of bytes, added up apart from each other */

/* Memory is read and written through memcpy: no alignment is asked for. */
#define LOAD(vector, from) memcpy(&(vector), (from), sizeof(vector))
#define STORE(to, vector) memcpy((to), &(vector), sizeof(vector))

/* Adds up lanes: the upper half onto the lower until one is left. */
TARGET static inline float NAME(fold)(Floats *lanes) {
    for (int i = 0; i < POOL_VECTORS / 2; i++) lanes[i] += lanes[i + POOL_VECTORS / 2];
    for (int i = 0; i < POOL_VECTORS / 4; i++) lanes[i] += lanes[i + POOL_VECTORS / 4];
    for (int i = 0; i < POOL_VECTORS / 8; i++) lanes[i] += lanes[i + POOL_VECTORS / 8];
    Floats4 four[VECTOR_BYTES > 16 ? 2 : 1];
#if VECTOR_BYTES == 64
    Floats8 eight[2];
    memcpy(eight, lanes, sizeof eight);
    eight[0] += eight[1];
    memcpy(four, eight, sizeof *eight);
#else
    memcpy(four, lanes, sizeof four);
#endif
#if VECTOR_BYTES > 16
    four[0] += four[1];
#endif
    return (four[0][0] + four[0][2]) + (four[0][1] + four[0][3]);
}

TARGET static float NAME(sum_floats)(const float *x, ptrdiff_t n) {
    const Floats zero = {0};
    Floats lanes[POOL_VECTORS], read;
    ptrdiff_t i = 0;
    for (int v = 0; v < POOL_VECTORS; v++) lanes[v] = zero;
    for (; i + POOL_LANES <= n; i += POOL_LANES)
        for (int v = 0; v < POOL_VECTORS; v++) {
            LOAD(read, x + i + v * FLOATS);
            lanes[v] += read;
        }
    if (i < n) {
        float rest[POOL_LANES];
        for (int v = 0; v < POOL_VECTORS; v++) STORE(rest + v * FLOATS, zero);
        for (ptrdiff_t k = 0; k < n - i; k++) rest[k] = x[i + k];
        for (int v = 0; v < POOL_VECTORS; v++) {
            LOAD(read, rest + v * FLOATS);
            lanes[v] += read;
        }
    }
    return NAME(fold)(lanes);
}

/* Adds up columns of bytes: up to GATE_COLUMNS channels of a map whose pixels lie `stride` apart. In 16 bits, which 256
 * pixels cannot overflow, and then in 32. */
TARGET static inline void NAME(sum_columns)(const uint8_t *x, ptrdiff_t area, ptrdiff_t stride, ptrdiff_t columns,
                                            uint32_t *sums) {
    for (ptrdiff_t c = 0; c < columns; c++) sums[c] = 0;
    if (columns < GATE_COLUMNS) {
        for (ptrdiff_t i = 0; i < area; i++)
            for (ptrdiff_t c = 0; c < columns; c++) sums[c] += x[i * stride + c];
        return;
    }
    for (ptrdiff_t i = 0; i < area;) {
        const ptrdiff_t end = i + 256 < area ? i + 256 : area;
        Columns wide = {0};
        ByteColumns read;
        for (; i < end; i++) {
            LOAD(read, x + i * stride);
            wide += __builtin_convertvector(read, Columns);
        }
        for (int c = 0; c < GATE_COLUMNS; c++) sums[c] += wide[c];
    }
}

/* Adds up bytes lane by lane: of `count` vectors that lie `stride` apart. In 16 bits, which 256 vectors cannot overflow,
 * and then in 32. */
TARGET static inline void NAME(sum_lanes)(const uint8_t *x, ptrdiff_t count, ptrdiff_t stride, uint32_t *sums) {
    for (int k = 0; k < VECTOR_BYTES; k++) sums[k] = 0;
    for (ptrdiff_t i = 0; i < count;) {
        const ptrdiff_t end = i + 256 < count ? i + 256 : count;
        Pairs low = {0}, high = {0}, read;
        for (; i < end; i++) {
            LOAD(read, x + i * stride);
            low += read & 255;
            high += read >> 8;
        }
        for (int k = 0; k < VECTOR_BYTES / 2; k++) {
            sums[2 * k + LOW_BYTE] += low[k];
            sums[2 * k + 1 - LOW_BYTE] += high[k];
        }
    }
}

/* Adds up each channel of a map of bytes whose pixels fill vectors, or vectors pixels; false where they do neither. */
TARGET static inline int NAME(sum_whole)(const uint8_t *x, ptrdiff_t area, ptrdiff_t channels, double zero,
                                         double factor, float *pooled) {
    uint32_t sums[VECTOR_BYTES];
    if (channels % VECTOR_BYTES == 0) {
        for (ptrdiff_t first = 0; first < channels; first += VECTOR_BYTES) {
            NAME(sum_lanes)(x + first, area, channels, sums);
            for (int k = 0; k < VECTOR_BYTES; k++) pooled[first + k] = (float)((sums[k] - zero) * factor);
        }
        return 1;
    }
    if (VECTOR_BYTES % channels) return 0;
    const ptrdiff_t whole = area * channels / VECTOR_BYTES;
    NAME(sum_lanes)(x, whole, VECTOR_BYTES, sums);
    for (ptrdiff_t i = whole * VECTOR_BYTES; i < area * channels; i++) sums[i % VECTOR_BYTES] += x[i];
    for (ptrdiff_t c = 0; c < channels; c++) {
        uint32_t sum = 0;
        for (ptrdiff_t k = c; k < VECTOR_BYTES; k += channels) sum += sums[k];
        pooled[c] = (float)((sum - zero) * factor);
    }
    return 1;
}

/* Adds up one channel of a blocked map, as sum_floats does, its pixels `stride` floats apart. */
TARGET static float NAME(sum_strided)(const float *x, ptrdiff_t n, ptrdiff_t stride) {
    float gathered[POOL_LANES];
    Floats lanes[POOL_VECTORS], read;
    memset(lanes, 0, sizeof lanes);
    for (ptrdiff_t i = 0; i < n; i += POOL_LANES) {
        for (ptrdiff_t k = 0; k < POOL_LANES; k++) gathered[k] = i + k < n ? x[(i + k) * stride] : 0.0f;
        for (int v = 0; v < POOL_VECTORS; v++) {
            LOAD(read, gathered + v * FLOATS);
            lanes[v] += read;
        }
    }
    return NAME(fold)(lanes);
}

/* Adds up FLOATS channels of a blocked map at once: each channel in the order of sum_floats, so to the same bits. */
TARGET static void NAME(sum_blocked)(const float *x, ptrdiff_t n, ptrdiff_t stride, float *sums) {
    Floats lanes[POOL_LANES], read;
    memset(lanes, 0, sizeof lanes);
    for (int first = 0; first < POOL_LANES; first += POOL_CHAINS) { /* as many sums as there are registers for */
        Floats chains[POOL_CHAINS];
        memset(chains, 0, sizeof chains);
        ptrdiff_t i = first;
        for (; i + POOL_CHAINS <= n; i += POOL_LANES)
            for (int k = 0; k < POOL_CHAINS; k++) {
                LOAD(read, x + (i + k) * stride);
                chains[k] += read;
            }
        for (int k = 0; i + k < n && k < POOL_CHAINS; k++) {
            LOAD(read, x + (i + k) * stride);
            chains[k] += read;
        }
        memcpy(lanes + first, chains, sizeof chains);
    }
    for (int half = POOL_LANES / 2; half >= 4; half /= 2)
        for (int k = 0; k < half; k++) lanes[k] += lanes[k + half];
    lanes[0] = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
    STORE(sums, lanes[0]);
}

TARGET static void NAME(pool)(const GateFeatures *features, float *pooled) {
    const ptrdiff_t channels = features->channels, area = features->area;
    if (features->in_uint8) {
        const uint8_t *x = features->data;
        const double zero = features->zero, factor = features->factor;
        if (NAME(sum_whole)(x, area, channels, zero, factor, pooled)) return;
        for (ptrdiff_t done = 0; done < channels; done += GATE_COLUMNS) {
            const ptrdiff_t columns = channels < GATE_COLUMNS ? channels : GATE_COLUMNS;
            /* The last columns overlap those before, which is faster than to add up a few one by one. */
            const ptrdiff_t first = done + columns <= channels ? done : channels - columns;
            uint32_t sums[GATE_COLUMNS];
            NAME(sum_columns)(x + first, area, channels, columns, sums);
            for (ptrdiff_t c = 0; c < columns; c++) pooled[first + c] = (float)((sums[c] - zero) * factor);
        }
    } else {
        const float *x = features->data;
        const ptrdiff_t channel_block = features->channel_block;
        if (channel_block == 1)
            for (ptrdiff_t c = 0; c < channels; c++) pooled[c] = NAME(sum_floats)(x + c * area, area);
        else
            for (ptrdiff_t first = 0; first < channels; first += channel_block) {
                const float *block = x + first * area;
                ptrdiff_t c = 0;
                for (; c + FLOATS <= channel_block; c += FLOATS)
                    NAME(sum_blocked)(block + c, area, channel_block, pooled + first + c);
                for (; c < channel_block; c++) pooled[first + c] = NAME(sum_strided)(block + c, area, channel_block);
            }
        for (ptrdiff_t c = 0; c < channels; c++) pooled[c] /= (float)area;
    }
}

/* Puts `value` where the mask is set. */
TARGET static inline void NAME(select)(Floats *x, Ints mask, Floats value) {
    *x = (Floats)((mask & (Ints)value) | (~mask & (Ints)*x));
}

/* exp(x) - 1, to about 2 ulp: x = n ln 2 + r, and a polynomial in r. Beyond 87 it stays at exp(87) - 1. */
TARGET static inline void NAME(expm1)(Floats *x) {
    const Floats zero = {0}, shift = zero + 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    Floats bounded = *x;
    NAME(select)(&bounded, bounded > 87.0f, zero + 87.0f);
    NAME(select)(&bounded, bounded < -87.0f, zero - 87.0f);
    Floats rounded = bounded * 1.44269504f + shift;
    Ints n = (Ints)rounded - (Ints)shift;
    rounded -= shift;
    Floats r = bounded - rounded * 0.693359375f;
    r -= rounded * -2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r;
    Floats power = (Floats)((n + 127) << 23);
    *x = power * p + (power - 1.0f);
}

TARGET static inline void NAME(sigmoid)(Floats *x) {
    *x = -*x;
    NAME(expm1)(x);
    *x = 1.0f / (*x + 2.0f);
}

TARGET static inline void NAME(tanh)(Floats *x) {
    *x += *x;
    NAME(expm1)(x);
    *x = *x / (*x + 2.0f);
}

/* Adds x[k] * rows[k] for k < n to the sums, a row being `parts` times `padded` floats. */
TARGET static inline void NAME(accumulate)(Floats (*sums)[LANE_VECTORS], const float *rows, const float *x, ptrdiff_t n,
                                           ptrdiff_t padded, const int parts) {
    Floats row;
    for (ptrdiff_t k = 0; k < n; k++)
        for (int g = 0; g < parts; g++)
            for (int v = 0; v < LANE_VECTORS; v++) {
                LOAD(row, rows + (k * parts + g) * padded + v * FLOATS);
                sums[g][v] += row * x[k];
            }
}

/* Steps the LSTM; `next` receives the new hidden state. */
TARGET static void NAME(lstm)(const GateWeights *w, ptrdiff_t block, const float *pooled, ptrdiff_t channels,
                              const float *hidden, float *cell, float *next) {
    const ptrdiff_t padded = w->padded;
    const float *input = w->input + block * w->widest * 4 * padded;
    const float *bias = w->bias + block * 4 * padded;
    for (ptrdiff_t unit = 0; unit < padded; unit += GATE_LANES) {
        Floats gates[4][LANE_VECTORS];
        for (int g = 0; g < 4; g++)
            for (int v = 0; v < LANE_VECTORS; v++) LOAD(gates[g][v], bias + g * padded + unit + v * FLOATS);
        NAME(accumulate)(gates, input + unit, pooled, channels, padded, 4);
        NAME(accumulate)(gates, w->recurrent + unit, hidden, w->hidden, padded, 4);
        for (int v = 0; v < LANE_VECTORS; v++) {
            Floats memory;
            LOAD(memory, cell + unit + v * FLOATS);
            NAME(sigmoid)(&gates[0][v]);
            NAME(sigmoid)(&gates[1][v]);
            NAME(tanh)(&gates[2][v]);
            NAME(sigmoid)(&gates[3][v]);
            memory = gates[1][v] * memory + gates[0][v] * gates[2][v];
            STORE(cell + unit + v * FLOATS, memory);
            NAME(tanh)(&memory);
            memory *= gates[3][v];
            STORE(next + unit + v * FLOATS, memory);
        }
    }
}

/* Computes the units of a stateless gate: what its first layer leaves after max(0, x), in which NaN stays NaN. */
TARGET static void NAME(perceive)(const GateWeights *w, ptrdiff_t block, const float *pooled, ptrdiff_t channels,
                                  float *units) {
    const ptrdiff_t padded = w->padded;
    const float *input = w->input + block * w->widest * padded;
    const float *bias = w->bias + block * padded;
    const Floats zero = {0};
    for (ptrdiff_t unit = 0; unit < padded; unit += GATE_LANES) {
        Floats sums[1][LANE_VECTORS];
        for (int v = 0; v < LANE_VECTORS; v++) LOAD(sums[0][v], bias + unit + v * FLOATS);
        NAME(accumulate)(sums, input + unit, pooled, channels, padded, 1);
        for (int v = 0; v < LANE_VECTORS; v++) {
            NAME(select)(&sums[0][v], sums[0][v] < 0.0f, zero);
            STORE(units + unit + v * FLOATS, sums[0][v]);
        }
    }
}

/* Scores every option from the hidden units, with a gate's projection and bias; the index of the greatest. */
TARGET static ptrdiff_t NAME(choose)(const GateWeights *w, const float *projection, const float *bias,
                                     const float *hidden) {
    ptrdiff_t best = -1;
    float greatest = 0;
    for (ptrdiff_t first = 0; first < w->options; first += GATE_LANES) {
        Floats sums[LANE_VECTORS], row;
        for (int v = 0; v < LANE_VECTORS; v++) LOAD(sums[v], bias + first + v * FLOATS);
        for (ptrdiff_t k = 0; k < w->hidden; k++)
            for (int v = 0; v < LANE_VECTORS; v++) {
                LOAD(row, projection + k * w->scores + first + v * FLOATS);
                sums[v] += row * hidden[k];
            }
        float score[GATE_LANES];
        memcpy(score, sums, sizeof score);
        for (ptrdiff_t i = 0; i < GATE_LANES && first + i < w->options; i++) {
            if (bias[first + i] == GATE_MASKED) continue;
            if (score[i] != score[i]) return first + i;
            if (best < 0 || score[i] > greatest) {
                greatest = score[i];
                best = first + i;
            }
        }
    }
    return best < 0 ? 0 : best;
}

TARGET static ptrdiff_t NAME(step)(const GateWeights *w, ptrdiff_t block, const float *pooled, ptrdiff_t channels,
                                   float *hidden, float *cell, float *scratch) {
    const float *projection = w->projection;
    if (w->recurrent == NULL) {
        NAME(perceive)(w, block, pooled, channels, hidden);
        projection += block * w->hidden * w->scores;
    } else {
        NAME(lstm)(w, block, pooled, channels, hidden, cell, scratch);
        for (ptrdiff_t unit = 0; unit < w->padded; unit++) hidden[unit] = scratch[unit];
    }
    return NAME(choose)(w, projection, w->projection_bias + block * w->scores, hidden);
}

#undef NAME
#undef FLOATS
#undef POOL_LANES
#undef POOL_CHAINS
#undef POOL_VECTORS
#undef LANE_VECTORS
#undef Floats
#undef Ints
#undef Pairs
#undef LOAD
#undef STORE
