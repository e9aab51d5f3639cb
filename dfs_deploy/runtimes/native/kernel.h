/* The gate's arithmetic: pooling, LSTM step, projection and argmax for one sample.
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

/* Weights, packed: outputs last, so that one input's products are one vector operation. */
typedef struct {
    ptrdiff_t gates;   /* as many as there are blocks that a gate follows */
    ptrdiff_t widest;  /* channels of the widest block */
    ptrdiff_t hidden;  /* units of the LSTM */
    ptrdiff_t padded;  /* the same, padded */
    ptrdiff_t options; /* what the argmax chooses from */
    ptrdiff_t scores;  /* the same, padded */
    const float *input;           /* (gates, widest, 4, padded); LSTM gates in the order input, forget, cell, output */
    const float *bias;            /* (gates, 4, padded) */
    const float *recurrent;       /* (hidden, 4, padded) */
    const float *projection;      /* (hidden, scores) */
    const float *projection_bias; /* (scores,) */
} GateWeights;

/* One sample's features, contiguous: (channels, area) of floats, or (area, channels) of uint8; or, with a
 * `channel_block` above 1, (channels / channel_block, area, channel_block) of floats: the blocked layout of ONNX
 * Runtime's convolutions. */
typedef struct {
    const void *data;
    int in_uint8;       /* float otherwise */
    float factor;       /* of uint8: what one step is worth, over the area */
    ptrdiff_t channels; /* a multiple of `channel_block` */
    ptrdiff_t area;
    ptrdiff_t channel_block;
} GateFeatures;

/* Averages each channel over the map, whatever the layout in the same order of additions. */
typedef void (*GatePool)(const GateFeatures *features, float *pooled);

/* Steps one sample's state by its pooled features, after block `block`, and returns the option of the greatest score: of
 * equal ones the lowest, of NaN the first. `hidden` and `cell` hold `padded` floats, and so does `scratch`. */
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
