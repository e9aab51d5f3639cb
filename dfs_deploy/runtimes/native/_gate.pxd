# cython: language_level=3
"""What the compiled modules share: kernel.h, and the gate that steps it."""

cdef extern from "kernel.h":
    const Py_ssize_t GATE_LANES

    ctypedef struct GateWeights:
        Py_ssize_t gates, widest, hidden, padded, options, scores
        const float *input
        const float *bias
        const float *recurrent
        const float *projection
        const float *projection_bias

    ctypedef struct GateFeatures:
        const void *data
        int in_uint8
        float factor
        Py_ssize_t channels, area, together

    ctypedef void (*GatePool)(const GateFeatures *features, float *pooled) noexcept nogil

    ctypedef Py_ssize_t (*GateStep)(
        const GateWeights *weights,
        Py_ssize_t block,
        const float *pooled,
        Py_ssize_t channels,
        float *hidden,
        float *cell,
        float *scratch,
    ) noexcept nogil

    ctypedef struct GateKernel:
        const char *name
        GatePool pool
        GateStep step

    Py_ssize_t gate_kernels(const GateKernel **kernels) noexcept


cdef class View:
    cdef Py_buffer buffer

    cdef tuple shape(self)
    cdef int expect(self, str name, tuple shape) except -1


cdef class CompiledGate:
    cdef readonly str variant
    cdef readonly Py_ssize_t samples
    cdef GateWeights weights
    cdef GateKernel kernel
    cdef tuple views
    cdef Py_ssize_t together  # channels of a float map that lie together
    cdef float *state  # for each sample the padded hidden state, then the padded cell
    cdef float *pooled  # for each sample its channels, `widest` apart; a step may use those of the step before
    cdef float *scratch
    cdef Py_ssize_t capacity
    cdef bint busy

    cdef int _pooled(self, Py_ssize_t block, Py_ssize_t channels) except -1
    cdef int _copy_state(self, hidden, cell, bint out) except -1
    cdef int _describe(self, GateFeatures *features, Py_ssize_t block, View view, float factor) except -1
    cdef int _free(self) except -1
    cdef int _single(self) except -1


cdef class BoundStep:
    cdef CompiledGate gate
    cdef View view
    cdef GateFeatures features
    cdef const float *given  # features that came pooled; NULL where they are a map
    cdef Py_ssize_t block
