/* The gate's arithmetic for one sample: pooling, a step of the LSTM or of a stateless gate, projection and argmax.
 *
 * The same source is compiled once for each instruction set. Every sum runs in an order that the source fixes, and
 * products are never fused into additions, so each variant gives the same bits.
 */
#ifndef DFS_DEPLOY_GATE_KERNEL_H
#define DFS_DEPLOY_GATE_KERNEL_H

#include <stddef.h>
#include <stdint.h>

/* Hidden units and options are padded to a multiple of this, with zero weights. */
#define GATE_LANES 16

/* Channels of uint8 features that are added up together. */
#define GATE_COLUMNS 16

/* Most pixels of a map of uint8 features: their sum fits 32 bits. */
#define GATE_PIXELS (1 << 24)

/* Bias of an option that a block may not run: the argmax passes over it. */
#define GATE_MASKED -3e38f

/* Weights, packed: outputs last, so that one input's products are one vector operation. An LSTM has four parts, its
 * gates in the order input, forget, cell, output; a stateless gate has one. */
typedef struct {
    ptrdiff_t gates;   /* as many as there are blocks that a gate follows */
    ptrdiff_t widest;  /* channels of the widest block */
    ptrdiff_t hidden;  /* units of the LSTM, or of each stateless gate */
    ptrdiff_t padded;  /* the same, padded */
    ptrdiff_t options; /* what the argmax chooses from */
    ptrdiff_t scores;  /* the same, padded */
    const float *input;           /* (gates, widest, parts, padded) */
    const float *bias;            /* (gates, parts, padded) */
    const float *recurrent;       /* (hidden, 4, padded); NULL for a stateless gate */
    const float *projection;      /* (hidden, scores) of an LSTM, (gates, hidden, scores) of a stateless gate */
    const float *projection_bias; /* (gates, scores) */
} GateWeights;

/* One sample's features, contiguous: (channels, area) of floats, or (area, channels) of uint8; or, with a
 * `channel_block` above 1, (channels / channel_block, area, channel_block) of floats: the blocked layout of ONNX
 * Runtime's convolutions. */
typedef struct {
    const void *data;
    int in_uint8;       /* float otherwise */
    float factor;       /* of uint8: what one step is worth, over the area */
    double zero;        /* of uint8: what a map of nothing but the zero point adds up to */
    ptrdiff_t channels; /* a multiple of `channel_block` */
    ptrdiff_t area;
    ptrdiff_t channel_block;
} GateFeatures;

/* Averages each channel over the map, whatever the layout in the same order of additions. */
typedef void (*GatePool)(const GateFeatures *features, float *pooled);

/* Steps one sample's state by its pooled features, after block `block`, and returns the option of the greatest score that
 * is not masked: of equal ones the lowest, of NaN the first, and 0 if all are masked. `hidden` and `cell` hold `padded`
 * floats, and so does `scratch`. A stateless gate leaves its units in `hidden`, and reads neither. */
typedef ptrdiff_t (*GateStep)(const GateWeights *weights, ptrdiff_t block, const float *pooled, ptrdiff_t channels,
                              float *hidden, float *cell, float *scratch);

typedef struct {
    const char *name;
    GatePool pool;
    GateStep step;
} GateKernel;

/* The variants that this machine runs, the fastest first; never none. */
ptrdiff_t gate_kernels(const GateKernel **kernels);

#endif
