from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def group_rows(
    where: NDArray[np.intp], choice: NDArray[np.uint8], runs: NDArray[np.bool_], in_uint8: Sequence[bool]
) -> list[tuple[int, bool, NDArray[np.intp]]]: ...
def gather_rows(
    arrays: Sequence[NDArray[Any]], where: NDArray[np.intp], rows: NDArray[np.intp], out: NDArray[Any]
) -> None: ...
def place_rows(where: NDArray[np.intp], rows: NDArray[np.intp], array: int) -> None: ...
