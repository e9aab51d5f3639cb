from numpy import float32, uint8
from numpy.typing import NDArray

CHANNELS: int
VARIANTS: tuple[str, ...]

def quantize(
    image: NDArray[float32], scale: float, zero_point: int, pixels: NDArray[uint8], variant: int = 0
) -> float: ...
def look_up(image: NDArray[uint8], levels: NDArray[uint8], zero_point: int, pixels: NDArray[uint8]) -> None: ...
def are_finite(values: NDArray[float32]) -> bool: ...
