"""The compiled step; all else is in pyproject.toml."""

import sysconfig

import setuptools

# There is no stable ABI without the interpreter's lock.
STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")

setuptools.setup(
    ext_modules=[
        setuptools.Extension(
            "layerlab_fused._step",
            sources=["src/layerlab_fused/_step.c"],
            depends=["src/layerlab_fused/_both.h", "src/layerlab_fused/_kernel.h"],
            extra_compile_args=["-O3", "-fopenmp"],
            extra_link_args=["-fopenmp"],
            py_limited_api=STABLE,
            # Without a compiler, or with one that has no OpenMP, the tier runs on torch's operations.
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE else {},
)
