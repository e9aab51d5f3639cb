# cython: language_level=3, binding=False, boundscheck=False, wraparound=False, initializedcheck=False
"""The ends of a network, compiled: the binding of ends.c."""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdint cimport uint8_t


cdef extern from "ends.h":
    const Py_ssize_t ENDS_CHANNELS

    ctypedef double (*EndsQuantize)(
        const float *image, Py_ssize_t channels, Py_ssize_t area, float scale, int zero_point, uint8_t *pixels
    ) noexcept nogil

    ctypedef struct EndsVariant:
        const char *name
        EndsQuantize quantize

    Py_ssize_t ends_variants(const EndsVariant **variants) noexcept

    int ends_finite(const float *values, Py_ssize_t count) noexcept nogil

    void ends_look_up(
        const uint8_t *image,
        Py_ssize_t channels,
        Py_ssize_t area,
        const uint8_t *levels,
        int zero_point,
        uint8_t *pixels,
    ) noexcept nogil


CHANNELS = ENDS_CHANNELS

cdef const EndsVariant *_variants
cdef Py_ssize_t _count = ends_variants(&_variants)

VARIANTS = tuple([_variants[i].name.decode() for i in range(_count)])


cdef int _view(Py_buffer *view, array, str format, int dimensions=0, bint writable=False) except -1:
    cdef int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS
    PyObject_GetBuffer(array, view, flags | PyBUF_WRITABLE if writable else flags)
    if view.format.decode() != format or dimensions not in (0, view.ndim):
        given = view.format.decode(), view.ndim
        PyBuffer_Release(view)
        raise TypeError(f"an array of {given[0]!r} with {given[1]} dimensions, expected {format!r} with {dimensions}")
    return 0


cdef int _check(Py_ssize_t channels, Py_ssize_t height, Py_ssize_t width, int zero_point, Py_buffer *pixels) except -1:
    if not 1 <= channels <= ENDS_CHANNELS:
        raise ValueError(f"images of {channels} channels, expected 1 to {ENDS_CHANNELS}")
    if pixels.shape[0] != height or pixels.shape[1] != width or pixels.shape[2] != ENDS_CHANNELS:
        raise ValueError(f"pixels of another shape than ({height}, {width}, {ENDS_CHANNELS})")
    if not 0 <= zero_point <= 255:
        raise ValueError(f"a zero point of {zero_point}, expected 0 to 255")
    return 0


# The GIL stays: to release it and wait for it again would cost as much as half of the work.


def quantize(image, float scale, int zero_point, pixels, Py_ssize_t variant=0):
    cdef Py_buffer source, target
    if not 0 <= variant < _count:
        raise ValueError(f"variant {variant}, expected 0 to {_count - 1}")
    _view(&source, image, "f", 3)
    try:
        _view(&target, pixels, "B", 3, True)
        try:
            _check(source.shape[0], source.shape[1], source.shape[2], zero_point, &target)
            return _variants[variant].quantize(
                <const float *> source.buf,
                source.shape[0],
                source.shape[1] * source.shape[2],
                scale,
                zero_point,
                <uint8_t *> target.buf,
            )
        finally:
            PyBuffer_Release(&target)
    finally:
        PyBuffer_Release(&source)


def look_up(image, levels, int zero_point, pixels):
    cdef Py_buffer source, table, target
    _view(&source, image, "B", 3)
    try:
        _view(&table, levels, "B", 2)
        try:
            _view(&target, pixels, "B", 3, True)
            try:
                _check(source.shape[2], source.shape[0], source.shape[1], zero_point, &target)
                if table.shape[0] != source.shape[2] or table.shape[1] != 256:
                    raise ValueError(f"levels of another shape than ({source.shape[2]}, 256)")
                ends_look_up(
                    <const uint8_t *> source.buf,
                    source.shape[2],
                    source.shape[0] * source.shape[1],
                    <const uint8_t *> table.buf,
                    zero_point,
                    <uint8_t *> target.buf,
                )
            finally:
                PyBuffer_Release(&target)
        finally:
            PyBuffer_Release(&table)
    finally:
        PyBuffer_Release(&source)


def are_finite(values):
    cdef Py_buffer view
    _view(&view, values, "f")
    try:
        return ends_finite(<const float *> view.buf, view.len // <Py_ssize_t> sizeof(float)) != 0
    finally:
        PyBuffer_Release(&view)
