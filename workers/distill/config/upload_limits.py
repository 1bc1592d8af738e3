"""What is said of an upload beyond a limit, by the engine and by the worker that watches it."""


def too_much_memory(memory_bytes: int | None) -> str:
    """Return why an upload is refused that needs more than the limit, None: than there is."""
    most = "this machine has" if memory_bytes is None else f"the limit of {memory_bytes} bytes"
    return (
        f"the upload needs more memory than {most}; give pictures a smaller input.height and "
        "input.width, divide a large file, or have the operator raise the worker's "
        "RETORT_INSPECTION_MEMORY_BYTES"
    )
