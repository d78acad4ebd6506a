"""The variants that are compiled without a GPU: the rows of the `COMPILE` tables."""

import triton


def variants(kernel: triton.JITFunction, kinds: dict[str, str], *chosen: tuple[str, dict], **options: object) -> list:
    """The signature and the constants of a kernel for each chosen dtype of its tensors, with the compiler's options.

    `kinds` has the names of the arguments of every other Triton type, separated by spaces. Constants that the kernel
    does not take are left out, so that the kernels of a family can share them.
    """
    given = {name: kind for kind, names in kinds.items() for name in names.split()}
    arguments = [name for name in kernel.arg_names if not name.isupper()]
    return [
        (
            {name: given.get(name, dtype) for name in arguments},
            {name: value for name, value in constants.items() if name in kernel.arg_names},
            *([options] if options else []),
        )
        for dtype, constants in chosen
    ]
