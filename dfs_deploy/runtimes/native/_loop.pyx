# cython: language_level=3, binding=False, boundscheck=False, wraparound=False, initializedcheck=False
"""The dispatch loop, compiled; see :mod:`dfs_deploy.runtimes.loop`.

A skipped block is its gate's step and nothing else: no object is made, and what was pooled before is used again.
"""

from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free

from dfs_deploy.runtimes.native._gate cimport BoundStep, CompiledGate, GateFeatures


cdef extern from "Python.h":
    object PyObject_CallNoArgs(object call)


cdef struct Choice:
    PyObject *call  # NULL where there is nothing to call
    Py_ssize_t place


cdef struct Turn:
    const GateFeatures *features
    Py_ssize_t index  # of the block, as the gate counts
    bint follows


cdef class CompiledLoop:
    cdef CompiledGate gate
    cdef Turn *turns  # (blocks, places)
    cdef Choice *choices  # (blocks, places, options)
    cdef Py_ssize_t blocks, places, options
    cdef list kept  # owns what the pointers above borrow
    cdef readonly Py_ssize_t place, block
    cdef readonly bytearray path

    def __cinit__(self, CompiledGate gate not None, turns):
        cdef Py_ssize_t i, j, k, at
        cdef BoundStep step
        cdef Turn *turn
        self.gate, self.kept, self.path = gate, [], bytearray()
        self.blocks = len(turns)
        self.places = len(turns[0]) if self.blocks else 1
        self.options = gate.weights.options
        self.turns = <Turn *> calloc(self.blocks * self.places + 1, sizeof(Turn))
        self.choices = <Choice *> calloc(self.blocks * self.places * self.options + 1, sizeof(Choice))
        if self.turns == NULL or self.choices == NULL:
            raise MemoryError()
        for i, places in enumerate(turns):
            if len(places) != self.places:
                raise ValueError(f"{len(places)} places at gated block {i}, expected {self.places}")
            for j, given in enumerate(places):
                at = i * self.places + j
                step = given.step
                if step.gate is not gate or step.given != NULL:
                    raise ValueError("a loop goes with steps that its own gate pools")
                if len(given.options) != self.options:
                    raise ValueError(f"{len(given.options)} options at gated block {i}, expected {self.options}")
                turn = &self.turns[at]
                turn.features, turn.index, turn.follows = &step.features, step.block, given.follows
                self.kept.append(step)
                for k, (call, place) in enumerate(given.options):
                    if not 0 <= place < self.places:
                        raise ValueError(f"place {place}, expected 0 to {self.places - 1}")
                    self.choices[at * self.options + k].place = place
                    if call is not None:
                        self.kept.append(call)
                        self.choices[at * self.options + k].call = <PyObject *> call

    def __dealloc__(self):
        free(self.turns)
        free(self.choices)

    def run(self, choices):
        cdef CompiledGate gate = self.gate
        gate._single()
        cdef const uint8_t *forced = NULL
        cdef bytes given
        if choices is not None:
            given = choices
            if len(given) != self.blocks:
                raise ValueError(f"{len(given)} choices, expected {self.blocks}")
            forced = given
        cdef bytearray path = bytearray(self.blocks)
        cdef uint8_t *taken = path
        cdef Py_ssize_t block, option, place = 0
        cdef bint pooled = False
        cdef Turn *turn
        cdef Choice *choice
        cdef float *hidden = gate.state
        cdef float *cell = hidden + gate.weights.padded
        self.path = path
        for block in range(self.blocks):
            turn = &self.turns[block * self.places + place]
            if not (pooled and turn.follows):
                gate.kernel.pool(turn.features, gate.pooled)
            option = gate.kernel.step(
                &gate.weights, turn.index, gate.pooled, turn.features.channels, hidden, cell, gate.scratch
            )
            if forced != NULL:
                option = forced[block]
                if option >= self.options:
                    raise ValueError(f"option {option}, expected 0 to {self.options - 1}")
            taken[block] = option
            choice = &self.choices[(block * self.places + place) * self.options + option]
            place = choice.place
            pooled = choice.call == NULL
            if not pooled:
                self.block = block
                PyObject_CallNoArgs(<object> choice.call)
        self.place = place
        return path
