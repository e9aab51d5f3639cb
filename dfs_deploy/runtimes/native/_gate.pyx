# cython: language_level=3, binding=False, boundscheck=False, wraparound=False, initializedcheck=False
"""The gate and its dispatch loop, compiled: the binding of kernel.c.

Everything it is given is checked for shape, type and contiguity, and its memory is held for as long as it may be read.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strcmp

from dfs_deploy.errors import UsageError


cdef extern from "Python.h":
    object PyObject_CallNoArgs(object call)


cdef extern from "kernel.h":
    const Py_ssize_t GATE_LANES
    const Py_ssize_t GATE_PIXELS

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
        double zero
        Py_ssize_t channels, area, channel_block

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


LANES = GATE_LANES

cdef str _INTP = "l" if sizeof(long) == sizeof(Py_ssize_t) else "q"  # numpy.intp, in the format of a buffer
cdef str _INT64 = "l" if sizeof(long) == 8 else "q"


def variants():
    cdef const GateKernel *kernels
    cdef Py_ssize_t count = gate_kernels(&kernels)
    return tuple([kernels[i].name.decode() for i in range(count)])


cdef class View:
    """Memory of an array, held for as long as this lives."""

    cdef Py_buffer buffer

    def __cinit__(self, array, str name, str format, int dimensions, bint writable=False):
        cdef int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS
        PyObject_GetBuffer(array, &self.buffer, flags | PyBUF_WRITABLE if writable else flags)
        if self.buffer.format.decode() != format:
            raise TypeError(f"{name} has elements of type {self.buffer.format.decode()!r}, expected {format!r}")
        if self.buffer.ndim != dimensions:
            raise ValueError(f"{name} has {self.buffer.ndim} dimensions, expected {dimensions}")

    def __dealloc__(self):
        PyBuffer_Release(&self.buffer)

    cdef tuple shape(self):
        return tuple([self.buffer.shape[i] for i in range(self.buffer.ndim)])

    cdef int expect(self, str name, tuple shape) except -1:
        if self.shape() != shape:
            raise ValueError(f"{name} has shape {self.shape()}, expected {shape}")
        return 0


cdef class CompiledGate:
    """Weights, one state for each sample, and the variant that steps them."""

    cdef readonly str variant
    cdef readonly Py_ssize_t samples
    cdef GateWeights weights
    cdef GateKernel kernel
    cdef tuple views
    cdef Py_ssize_t channel_block  # channels of a float map that lie together in memory
    cdef float *state  # for each sample the padded hidden state, then the padded cell
    cdef float *pooled  # for each sample its channels, `widest` apart; a step may use those of the step before
    cdef float *scratch
    cdef Py_ssize_t capacity
    cdef bint busy

    def __init__(
        self,
        input,
        bias,
        recurrent,  # None for a stateless gate
        projection,
        projection_bias,
        Py_ssize_t hidden,
        Py_ssize_t options,
        variant=None,
        Py_ssize_t channel_block=1,
    ):
        if self.views is not None:
            raise TypeError("a gate is set up once")
        cdef const GateKernel *kernels
        cdef Py_ssize_t count = gate_kernels(&kernels), chosen = 0
        if variant is not None:
            while chosen < count and kernels[chosen].name.decode() != variant:
                chosen += 1
            if chosen == count:
                raise ValueError(f"no variant {variant!r} here: there are {', '.join(variants())}")
        if hidden < 1 or options < 1 or channel_block < 1:
            raise ValueError(f"{hidden} hidden units, {options} options, a channel block of {channel_block}, expected >= 1")
        cdef View inputs = View(input, "input", "f", 4)
        cdef View biases = View(bias, "bias", "f", 3)
        cdef View recurrents = None if recurrent is None else View(recurrent, "recurrent", "f", 3)
        cdef View projections = View(projection, "projection", "f", 3 if recurrent is None else 2)
        cdef View projection_biases = View(projection_bias, "projection_bias", "f", 2)
        cdef Py_ssize_t gates = inputs.buffer.shape[0], widest = inputs.buffer.shape[1]
        cdef Py_ssize_t padded = _padded(hidden), scores = _padded(options), parts = 1 if recurrent is None else 4
        inputs.expect("input", (gates, widest, parts, padded))
        biases.expect("bias", (gates, parts, padded))
        if recurrent is None:
            projections.expect("projection", (gates, hidden, scores))
        else:
            recurrents.expect("recurrent", (hidden, 4, padded))
            projections.expect("projection", (hidden, scores))
        projection_biases.expect("projection_bias", (gates, scores))
        self.weights.gates, self.weights.widest = gates, widest
        self.weights.hidden, self.weights.padded = hidden, padded
        self.weights.options, self.weights.scores = options, scores
        self.weights.input = <const float *> inputs.buffer.buf
        self.weights.bias = <const float *> biases.buffer.buf
        if recurrent is not None:
            self.weights.recurrent = <const float *> recurrents.buffer.buf
        self.weights.projection = <const float *> projections.buffer.buf
        self.weights.projection_bias = <const float *> projection_biases.buffer.buf
        self.scratch = <float *> calloc(padded, sizeof(float))
        if self.scratch == NULL:
            raise MemoryError()
        self.kernel = kernels[chosen]
        self.channel_block = channel_block
        self.variant = kernels[chosen].name.decode()
        self.views = (inputs, biases, recurrents, projections, projection_biases)

    def __dealloc__(self):
        free(self.state)
        free(self.pooled)
        free(self.scratch)

    def reset(self, Py_ssize_t samples):
        self._check_idle()
        if samples < 0:
            raise ValueError(f"{samples} samples")
        cdef float *state
        cdef float *pooled
        if samples > self.capacity:
            # calloc checks the product; the old memory is freed only after the new was allocated
            state = <float *> calloc(samples, 2 * self.weights.padded * sizeof(float))
            pooled = <float *> calloc(samples, max(self.weights.widest, 1) * sizeof(float))
            if state == NULL or pooled == NULL:
                free(state)
                free(pooled)
                raise MemoryError()
            free(self.state)
            free(self.pooled)
            self.state, self.pooled, self.capacity = state, pooled, samples
        elif samples:
            memset(self.state, 0, samples * 2 * self.weights.padded * sizeof(float))
        self.samples = samples

    def bind(self, Py_ssize_t block, features, float factor, int zero_point=0):
        return BoundStep(self, block, features, factor, zero_point)

    def step(self, Py_ssize_t block, buffers, where, float factor, decisions, changed=None, int zero_point=0):
        self._check_idle()
        cdef View decision_view = View(decisions, "decisions", _INT64, 1, True)
        cdef View where_view = View(where, "where", _INTP, 2)
        cdef View changed_view, view
        cdef Py_ssize_t samples = self.samples, count = len(buffers), i
        decision_view.expect("decisions", (samples,))
        where_view.expect("where", (samples, 2))
        cdef const uint8_t *pools = NULL
        if changed is not None:
            changed_view = View(changed, "changed", "?", 1)
            changed_view.expect("changed", (samples,))
            pools = <const uint8_t *> changed_view.buffer.buf
        cdef list views = []
        for buffer in buffers:
            views.append(View(buffer, "a buffer", "B" if memoryview(buffer).format == "B" else "f", 4))
        cdef const Py_ssize_t *at = <const Py_ssize_t *> where_view.buffer.buf
        cdef int64_t *chosen = <int64_t *> decision_view.buffer.buf
        cdef float *hidden = self.state
        cdef float *pooled = self.pooled
        cdef Py_ssize_t padded = self.weights.padded, size
        cdef GateFeatures *described = <GateFeatures *> calloc(count, sizeof(GateFeatures))
        cdef GateFeatures features
        if described == NULL:
            raise MemoryError()
        try:
            for i in range(count):
                self._describe(&described[i], block, views[i], factor, zero_point)
            for i in range(samples):
                if not 0 <= at[2 * i] < count:
                    raise ValueError(f"buffer {at[2 * i]}, expected 0 to {count - 1}")
                view = views[at[2 * i]]
                if not 0 <= at[2 * i + 1] < view.buffer.shape[0]:
                    raise ValueError(f"row {at[2 * i + 1]}, expected 0 to {view.buffer.shape[0] - 1}")
            self.busy = True
            with nogil:
                for i in range(samples):
                    features = described[at[2 * i]]
                    if pools == NULL or pools[i]:
                        size = features.channels * features.area
                        if features.in_uint8:
                            features.data = <const uint8_t *> features.data + at[2 * i + 1] * size
                        else:
                            features.data = <const float *> features.data + at[2 * i + 1] * size
                        self.kernel.pool(&features, pooled)
                    chosen[i] = self.kernel.step(
                        &self.weights, block, pooled, features.channels, hidden, hidden + padded, self.scratch
                    )
                    hidden += 2 * padded
                    pooled += self.weights.widest
            self.busy = False
        finally:
            free(described)

    def copy_state(self, hidden, cell, bint out):
        self._check_idle()
        cdef Py_ssize_t i, part, size = self.weights.hidden
        cdef View view
        cdef float *inside
        cdef float *outside
        for part, (name, array) in enumerate((("hidden", hidden), ("cell", cell))):
            view = View(array, name, "f", 2, out)
            view.expect(name, (self.samples, size))
            for i in range(self.samples):
                inside = self.state + (2 * i + part) * self.weights.padded
                outside = <float *> view.buffer.buf + i * size
                if out:
                    memcpy(outside, inside, size * sizeof(float))
                else:
                    memcpy(inside, outside, size * sizeof(float))

    cdef int _check_channels(self, Py_ssize_t block, Py_ssize_t channels) except -1:
        if self.views is None:
            raise TypeError("the gate was not set up")
        if not 0 <= block < self.weights.gates:
            raise ValueError(f"block {block}, expected 0 to {self.weights.gates - 1}")
        if not 1 <= channels <= self.weights.widest:
            raise ValueError(f"features of {channels} channels, expected 1 to {self.weights.widest}")
        return 0

    cdef int _describe(
        self, GateFeatures *features, Py_ssize_t block, View view, float factor, int zero_point
    ) except -1:
        cdef bint in_uint8 = strcmp(view.buffer.format, "B") == 0
        cdef Py_ssize_t channels = view.buffer.shape[3 if in_uint8 else 1]
        cdef Py_ssize_t area = view.buffer.shape[2] * view.buffer.shape[1 if in_uint8 else 3]
        self._check_channels(block, channels)
        if in_uint8 and area > GATE_PIXELS:
            raise ValueError(f"features of {area} pixels in uint8, expected at most {GATE_PIXELS}, whose sum fits 32 bits")
        if area < 1 or channels % self.channel_block:
            raise ValueError(f"features of shape {view.shape()}, expected maps of a multiple of {self.channel_block} channels")
        features.data = view.buffer.buf
        features.in_uint8 = in_uint8
        features.factor = factor
        features.zero = <double> zero_point * area
        features.channels = channels
        features.area = area
        features.channel_block = self.channel_block
        return 0

    cdef int _check_idle(self) except -1:
        if self.busy:
            raise UsageError("the gate is stepping, in another thread or further up the stack of this one; wait until it is done")
        return 0

    cdef int _check_single(self) except -1:
        if self.samples != 1 or self.busy:
            self._check_idle()
            raise UsageError(f"the gate holds the states of {self.samples} samples: a bound step goes with reset(1)")
        return 0


cdef class BoundStep:
    """Step after one block on the buffer of a feature map."""

    cdef CompiledGate gate
    cdef View view
    cdef GateFeatures features
    cdef Py_ssize_t block

    def __cinit__(self, CompiledGate gate not None, Py_ssize_t block, features, float factor, int zero_point=0):
        self.view = View(features, "features", "B" if memoryview(features).format == "B" else "f", 4)
        gate._describe(&self.features, block, self.view, factor, zero_point)
        if self.view.buffer.shape[0] != 1:
            raise ValueError(f"features of {self.view.buffer.shape[0]} samples, expected one")
        self.gate = gate
        self.block = block

    # The GIL stays in both: to release it and wait for it again would cost more than the step.

    def advance(self):
        cdef CompiledGate gate = self.gate
        gate._check_single()
        cdef float *hidden = gate.state
        return gate.kernel.step(
            &gate.weights,
            self.block,
            gate.pooled,
            self.features.channels,
            hidden,
            hidden + gate.weights.padded,
            gate.scratch,
        )

    def __call__(self):
        self.gate._check_single()
        self.gate.kernel.pool(&self.features, self.gate.pooled)
        return self.advance()


cdef struct Choice:
    PyObject *call  # NULL if there is nothing to call
    Py_ssize_t slot


cdef struct BlockStep:
    const GateFeatures *features  # NULL for a fixed block, before which no gate steps
    Py_ssize_t index  # of the block, as the gate counts; of a fixed block its one option
    bint reuses


cdef class CompiledLoop:
    """The dispatch loop for one sample; see ``dfs_deploy.runtimes.dispatch``.

    A skipped block is its gate's step and nothing else: no object is made, and what was pooled before is used again.
    A fixed block is its engine's call and nothing else.
    """

    cdef CompiledGate gate
    cdef BlockStep *steps  # (blocks, slots)
    cdef Choice *choices  # (blocks, slots, options)
    cdef Py_ssize_t blocks, slots, options, start
    cdef list kept  # owners of what the pointers above borrow
    cdef readonly Py_ssize_t slot, block
    cdef readonly bytearray path

    def __cinit__(self, CompiledGate gate not None, steps, Py_ssize_t start=0):
        cdef Py_ssize_t i, j, k, at
        cdef BoundStep bound
        cdef BlockStep *step
        self.gate, self.kept, self.path = gate, [], bytearray()
        self.blocks = len(steps)
        self.slots = len(steps[0]) if self.blocks else 1
        self.options = gate.weights.options
        if not 0 <= start < (self.slots if self.blocks else start + 1):
            raise ValueError(f"slot {start} at the start, expected 0 to {self.slots - 1}")
        self.start = start
        self.steps = <BlockStep *> calloc(self.blocks * self.slots + 1, sizeof(BlockStep))
        self.choices = <Choice *> calloc(self.blocks * self.slots * self.options + 1, sizeof(Choice))
        if self.steps == NULL or self.choices == NULL:
            raise MemoryError()
        for i, slots in enumerate(steps):
            if len(slots) != self.slots:
                raise ValueError(f"{len(slots)} slots at gated block {i}, expected {self.slots}")
            for j, given in enumerate(slots):
                at = i * self.slots + j
                if len(given.options) != self.options:
                    raise ValueError(f"{len(given.options)} options at gated block {i}, expected {self.options}")
                step = &self.steps[at]
                bound = given.gate
                if bound is None:
                    if not 0 <= given.always < self.options:
                        raise ValueError(f"option {given.always} always, expected 0 to {self.options - 1}")
                    step.index = given.always
                else:
                    if bound.gate is not gate:
                        raise ValueError("a step of another gate")
                    step.features, step.index, step.reuses = &bound.features, bound.block, given.reuses
                    self.kept.append(bound)
                for k, (call, slot) in enumerate(given.options):
                    if not 0 <= slot < self.slots:
                        raise ValueError(f"slot {slot}, expected 0 to {self.slots - 1}")
                    self.choices[at * self.options + k].slot = slot
                    if call is not None:
                        self.kept.append(call)
                        self.choices[at * self.options + k].call = <PyObject *> call

    def __dealloc__(self):
        free(self.steps)
        free(self.choices)

    def run(self, forced):
        cdef CompiledGate gate = self.gate
        gate._check_single()
        cdef const uint8_t *instead = NULL
        cdef bytes given
        if forced is not None:
            given = forced
            if len(given) != self.blocks:
                raise ValueError(f"a path of {len(given)} blocks, expected {self.blocks}")
            instead = given
        cdef bytearray path = bytearray(self.blocks)
        cdef uint8_t *taken = path
        cdef Py_ssize_t block, option, slot = self.start
        cdef bint pooled = False
        cdef BlockStep *step
        cdef Choice *choice
        cdef float *hidden = gate.state
        cdef float *cell = hidden + gate.weights.padded
        self.path = path
        gate.busy = True  # engines are called, and what they call must not free the states
        try:
            for block in range(self.blocks):
                step = &self.steps[block * self.slots + slot]
                if step.features == NULL:
                    option = step.index
                else:
                    if not (pooled and step.reuses):
                        gate.kernel.pool(step.features, gate.pooled)
                    option = gate.kernel.step(
                        &gate.weights, step.index, gate.pooled, step.features.channels, hidden, cell, gate.scratch
                    )
                    if instead != NULL:
                        option = instead[block]
                        if option >= self.options:
                            raise ValueError(f"option {option}, expected 0 to {self.options - 1}")
                taken[block] = option
                choice = &self.choices[(block * self.slots + slot) * self.options + option]
                slot = choice.slot
                # Before a fixed block nothing is pooled, so what was pooled last may be of another place.
                pooled = choice.call == NULL and step.features != NULL
                if choice.call != NULL:
                    self.block = block
                    PyObject_CallNoArgs(<object> choice.call)
        finally:
            gate.busy = False
        self.slot = slot
        return path


cdef Py_ssize_t _padded(Py_ssize_t count):
    return (count + GATE_LANES - 1) // GATE_LANES * GATE_LANES
