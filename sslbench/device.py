"""The device and the threads that a stage works with."""


def prepare_device(wanted: str = "auto", threads: int = 0) -> str:
    """Return the device to use and set this process's number of threads.

    Args:
        wanted: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of the CPU; 0 leaves torch's own choice, all cores the process may use.

    Raises:
        ValueError: a GPU was asked for that is not there.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        index = int(wanted.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise ValueError(
                f"device {wanted!r} was asked for, but this machine has "
                f"{torch.cuda.device_count()} GPUs that torch can use; take device=auto or cpu"
            )
    return wanted
