"""Parts of the build that pyproject.toml cannot describe: the compiled parts, and the checkpoints of the demo.

The compiled parts are optional: if Cython or a C compiler is missing or fails, the install succeeds without them, the
gate runs in NumPy, and ONNX Runtime quantises images.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

NATIVE = "dfs_deploy/runtimes/native"


def extensions() -> list[Extension]:
    """The gate with its loop, and the ends; nothing if Cython is missing."""
    try:
        from Cython.Build import cythonize
    except ImportError:
        return []
    # No -march: each picks the instruction set at run time. No contraction: every variant gives the same bits.
    made = [
        Extension(
            f"{NATIVE.replace('/', '.')}.{name}",
            [f"{NATIVE}/{name}.pyx", f"{NATIVE}/{source}.c"],
            include_dirs=[NATIVE],
            depends=[f"{NATIVE}/{header}.h" for header in headers],
            extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"],
            # The debugging information that Python's own flags ask for takes five times the room of the code.
            extra_link_args=["-Wl,--strip-all"] if sys.platform.startswith("linux") else [],
        )
        for name, source, headers in (
            ("_gate", "kernel", ("kernel", "kernel_variant", "variants")),
            ("_ends", "ends", ("ends", "variants")),
        )
    ]
    built: list[Extension] = cythonize(made, build_dir="build/cython")
    for module in built:
        module.optional = True  # cythonize makes other Extensions, and forgets it
    return built


class BuildWithCheckpoints(build_py):
    """Puts the checkpoints of ``dfs-deploy demo`` into the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "dfs_deploy", "examples", "demo")
            self.mkpath(str(target))
            for checkpoint in sorted(Path("examples", "demo").glob("*.pt")):
                self.copy_file(str(checkpoint), str(target))


setup(
    ext_modules=extensions(),
    cmdclass={"build_py": BuildWithCheckpoints},
    # The sdist carries the sources (MANIFEST.in); an installed package has no use for them.
    exclude_package_data={"dfs_deploy.runtimes.native": ["*.c", "*.h", "*.pyx"]},
)
