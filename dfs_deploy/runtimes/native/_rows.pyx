# cython: language_level=3, binding=False, boundscheck=False, wraparound=False, initializedcheck=False
"""Regrouping a batch, compiled; see :mod:`dfs_deploy.runtimes.rows`."""

import numpy as np

from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from dfs_deploy.runtimes.native._gate cimport View
from dfs_deploy.runtimes.native._gate import INTP


cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX


cdef str _INTP = INTP


def group_rows(where, choice, runs, in_uint8):
    cdef View where_view = View(where, "where", _INTP, 2)
    cdef View choice_view = View(choice, "choice", "B", 1)
    cdef View runs_view = View(runs, "runs", "?", 1)
    cdef Py_ssize_t samples = choice_view.buffer.shape[0], options = runs_view.buffer.shape[0], arrays = len(in_uint8)
    where_view.expect("where", (samples, 2))
    cdef const Py_ssize_t *at = <const Py_ssize_t *> where_view.buffer.buf
    cdef const uint8_t *chosen = <const uint8_t *> choice_view.buffer.buf
    cdef const uint8_t *wanted = <const uint8_t *> runs_view.buffer.buf
    cdef Py_ssize_t i, spot, array, row, kind, total, kinds = 2 * options
    cdef Py_ssize_t limit = PY_SSIZE_T_MAX // sizeof(Py_ssize_t) // (arrays + 1)  # of rows, so that no sum overflows
    cdef Py_ssize_t *first = <Py_ssize_t *> calloc(arrays + 1, sizeof(Py_ssize_t))
    cdef Py_ssize_t *sample = NULL  # by place, from array to array and row to row; one more than it is, 0 for nobody's
    cdef Py_ssize_t *counts = <Py_ssize_t *> calloc(kinds + 1, sizeof(Py_ssize_t))
    cdef Py_ssize_t **ends = <Py_ssize_t **> calloc(kinds + 1, sizeof(Py_ssize_t *))
    cdef uint8_t *layout = <uint8_t *> calloc(arrays + 1, 1)
    cdef View view
    cdef list views = [], groups = []
    try:
        if first == NULL or counts == NULL or ends == NULL or layout == NULL:
            raise MemoryError()
        for i in range(arrays):
            layout[i] = bool(in_uint8[i])
        for i in range(samples):
            array, row = at[2 * i], at[2 * i + 1]
            if not 0 <= array < arrays or not 0 <= row < limit or chosen[i] >= options:
                raise ValueError(
                    f"sample {i} lies in row {row} of array {array} and runs option {chosen[i]}, expected arrays below"
                    f" {arrays} and options below {options}"
                )
            if wanted[chosen[i]]:
                first[array + 1] = max(first[array + 1], row + 1)
        for i in range(arrays):
            first[i + 1] += first[i]
        total = first[arrays]
        sample = <Py_ssize_t *> calloc(total + 1, sizeof(Py_ssize_t))
        if sample == NULL:
            raise MemoryError()
        for i in range(samples):
            if wanted[chosen[i]]:
                spot = first[at[2 * i]] + at[2 * i + 1]
                if sample[spot]:
                    raise ValueError(f"samples {sample[spot] - 1} and {i} lie in one row")
                sample[spot] = i + 1
                counts[2 * chosen[i] + layout[at[2 * i]]] += 1
        for kind in range(kinds):
            if counts[kind]:
                rows = np.empty(counts[kind], np.intp)
                view = View(rows, "rows", _INTP, 1, True)
                views.append(view)
                ends[kind] = <Py_ssize_t *> view.buffer.buf
                groups.append((kind // 2, kind % 2 == 1, rows))
        for spot in range(total):
            if sample[spot]:
                i = sample[spot] - 1
                kind = 2 * chosen[i] + layout[at[2 * i]]
                ends[kind][0] = i
                ends[kind] += 1
        return groups
    finally:
        free(first)
        free(sample)
        free(counts)
        free(ends)
        free(layout)


def gather_rows(arrays, where, rows, out):
    cdef View where_view = View(where, "where", _INTP, 2)
    cdef View rows_view = View(rows, "rows", _INTP, 1)
    cdef str format = memoryview(out).format
    cdef View out_view = View(out, "out", format, out.ndim, True)
    cdef Py_ssize_t samples = where_view.buffer.shape[0], count = rows_view.buffer.shape[0], i, array, row, size
    if where_view.buffer.shape[1] != 2 or out_view.buffer.ndim < 1 or out_view.buffer.shape[0] != count:
        raise ValueError(f"where of shape {where_view.shape()} and out of shape {out_view.shape()} for {count} rows")
    size = out_view.buffer.len // max(count, 1)
    cdef const Py_ssize_t *at = <const Py_ssize_t *> where_view.buffer.buf
    cdef const Py_ssize_t *wanted = <const Py_ssize_t *> rows_view.buffer.buf
    cdef char *target = <char *> out_view.buffer.buf
    cdef const char **sources = <const char **> calloc(count + 1, sizeof(char *))
    cdef View view
    cdef dict views = {}
    cdef tuple shape = out_view.shape()[1:]
    if sources == NULL:
        raise MemoryError()
    try:
        for i in range(count):
            if not 0 <= wanted[i] < samples:
                raise ValueError(f"sample {wanted[i]}, expected 0 to {samples - 1}")
            array, row = at[2 * wanted[i]], at[2 * wanted[i] + 1]
            if i == 0 or array != at[2 * wanted[i - 1]]:
                if array not in views:
                    if not 0 <= array < len(arrays):
                        raise ValueError(f"array {array}, expected 0 to {len(arrays) - 1}")
                    view = View(arrays[array], "an array", format, out_view.buffer.ndim)
                    if view.shape()[1:] != shape:
                        raise ValueError(f"an array of shape {view.shape()}, expected rows of shape {shape}")
                    views[array] = view
                view = views[array]
            if not 0 <= row < view.buffer.shape[0]:
                raise ValueError(f"row {row}, expected 0 to {view.buffer.shape[0] - 1}")
            sources[i] = <const char *> view.buffer.buf + row * size
        with nogil:
            for i in range(count):
                memcpy(target + i * size, sources[i], size)
    finally:
        free(sources)


def place_rows(where, rows, Py_ssize_t array):
    cdef View where_view = View(where, "where", _INTP, 2, True)
    cdef View rows_view = View(rows, "rows", _INTP, 1)
    cdef Py_ssize_t samples = where_view.buffer.shape[0], i
    where_view.expect("where", (samples, 2))
    cdef Py_ssize_t *at = <Py_ssize_t *> where_view.buffer.buf
    cdef const Py_ssize_t *placed = <const Py_ssize_t *> rows_view.buffer.buf
    for i in range(rows_view.buffer.shape[0]):
        if not 0 <= placed[i] < samples:
            raise ValueError(f"sample {placed[i]}, expected 0 to {samples - 1}")
        at[2 * placed[i]], at[2 * placed[i] + 1] = array, i
