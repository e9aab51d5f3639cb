/* The ends of a network: images as the pixels that an INT8 stem convolves, quantised, channels last, four bytes each; and
 * whether logits are finite.
 *
 * The same source is compiled once for each instruction set; each gives the same bytes.
 */
#ifndef DFS_DEPLOY_ENDS_H
#define DFS_DEPLOY_ENDS_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of a pixel: its channels, and zero points up to these. */
#define ENDS_CHANNELS 4

/* Quantises a normalised image, (channels, area) floats, as QuantizeLinear of ONNX does: divided by the scale, rounded to
 * even, moved by the zero point, within 0 to 255. Returns the sum of its squares, which is NaN or infinite if any value
 * is. */
typedef double (*EndsQuantize)(const float *image, ptrdiff_t channels, ptrdiff_t area, float scale, int zero_point,
                                uint8_t *pixels);

/* Looks up an image of bytes, (area, channels), in a table of 256 levels for each channel; what is missing of a pixel
 * becomes `zero_point`. */
void ends_look_up(const uint8_t *image, ptrdiff_t channels, ptrdiff_t area, const uint8_t *levels, int zero_point,
                   uint8_t *pixels);

/* Whether no value is NaN or infinite. */
int ends_finite(const float *values, ptrdiff_t count);

typedef struct {
    const char *name;
    EndsQuantize quantize;
} EndsVariant;

/* The variants that this machine runs, the fastest first; never none. */
ptrdiff_t ends_variants(const EndsVariant **variants);

#endif
