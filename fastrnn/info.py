"""``python -m fastrnn.info``: what is installed and what the kernels run with."""

import os
import platform

import torch

import fastrnn
from fastrnn import _ops


def _cuda() -> str:
    if not _ops.cuda_compiled():
        return "no (this build has no CUDA kernels; torch's own serve CUDA tensors)"
    if not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        return f"no (compiled, but torch, built with {build}, finds no usable device)"
    if not _ops.device_has_kernels("cuda"):
        return "no (compiled, but without ops for torch; torch's own serve CUDA tensors)"
    return f"yes ({torch.cuda.get_device_name()})"


def _active_isa() -> str:
    try:
        return _ops.active_isa()
    except RuntimeError as error:  # FASTRNN_FORCE_ISA names one that is unknown or that this CPU lacks
        return f"none: {error}"


def describe() -> dict[str, str]:
    """What the command prints, by name."""
    compiled, supported = _ops.compiled_isas(), _ops.supported_isas()
    facts = {
        "fastrnn": fastrnn.__version__,
        "torch": str(torch.__version__),
        "python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        "active ISA": _active_isa(),
        "compiled ISAs": ", ".join(compiled),
        "on this CPU": ", ".join(supported),
        "threads": str(torch.get_num_threads()),
        "CUDA kernels": _cuda(),
    }
    forced = os.environ.get("FASTRNN_FORCE_ISA")
    if forced:
        facts["FASTRNN_FORCE_ISA"] = forced
    return facts


def main() -> None:
    facts = describe()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
