"""The compiled gate, the one thing of the build that pyproject.toml cannot say.

It is optional: where Cython or a C compiler is missing or fails, the install succeeds without it, and the gate runs in
NumPy.
"""

from __future__ import annotations

from setuptools import Extension, setup

NATIVE = "dfs_deploy/runtimes/native"


def extensions() -> list[Extension]:
    """The gate, or nothing where Cython is missing."""
    try:
        from Cython.Build import cythonize
    except ImportError:
        return []
    gate = Extension(
        "dfs_deploy.runtimes.native._gate",
        [f"{NATIVE}/_gate.pyx", f"{NATIVE}/kernel.c"],
        include_dirs=[NATIVE],
        depends=[f"{NATIVE}/{name}" for name in ("kernel.h", "kernel_variant.h")],
        # No -march: kernel.c picks the instruction set at run time. No contraction: every variant gives the same bits.
        extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"],
    )
    (built,) = cythonize([gate], build_dir="build/cython")
    built.optional = True  # cythonize makes another Extension, and forgets it
    return [built]


setup(
    ext_modules=extensions(),
    # The sdist carries the sources (MANIFEST.in); an installed package has no use for them.
    exclude_package_data={"dfs_deploy.runtimes.native": ["*.c", "*.h", "*.pyx"]},
)
