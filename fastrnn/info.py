"""``python -m fastrnn.info``: what is installed and what the kernels run with.

With ``--explain``, what the CUDA kernels would do with a layer.
"""

import argparse
import os
import platform

import torch

import fastrnn
from fastrnn import _library, _ops


def _cuda() -> str:
    if not _ops.cuda_compiled():
        return "no (this build has no CUDA kernels; torch's own serve CUDA tensors)"
    if not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        return f"no (compiled, but torch, built with {build}, finds no usable device)"
    if not _ops.device_has_kernels("cuda"):
        return (
            f"off (torch's own serve {torch.cuda.get_device_name()}; FASTRNN_CUDA_ENGINE turns fastrnn's on)"
        )
    return f"yes ({torch.cuda.get_device_name()}, FASTRNN_CUDA_ENGINE={_ops.cuda_engine})"


def _active_isa() -> str:
    try:
        return _ops.active_isa()
    except RuntimeError as error:  # FASTRNN_FORCE_ISA names one that is unknown or that this CPU lacks
        return f"none: {error}"


def _kept_memory() -> str:
    try:
        kept, limit = _ops.kept_memory()
    except RuntimeError as error:  # FASTRNN_KEEP_MB is no number
        return f"none: {error}"
    return f"{kept >> 20} of at most {limit >> 20} MiB"


def describe() -> dict[str, str]:
    """What the command prints, by name."""
    compiled, supported = _ops.compiled_isas(), _ops.supported_isas()
    facts = {
        "fastrnn": fastrnn.__version__,
        "torch": str(torch.__version__),
        "python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        "ops": str(_library.library_path),
        "active ISA": _active_isa(),
        "compiled ISAs": ", ".join(compiled),
        "on this CPU": ", ".join(supported),
        "threads": str(torch.get_num_threads()),
        "memory kept": _kept_memory(),
        "CUDA kernels": _cuda(),
    }
    for variable in ("FASTRNN_FORCE_ISA", "FASTRNN_KEEP_MB", "FASTRNN_CUDA_ENGINE"):
        if os.environ.get(variable):
            facts[variable] = os.environ[variable]
    return facts


def cuda_properties() -> tuple[str, tuple[int, ...]]:
    """Name and properties of the current CUDA device."""
    index = torch.cuda.current_device()
    return torch.cuda.get_device_name(index), _ops.cuda_properties(index)


def explain(arguments: argparse.Namespace) -> dict[str, str]:
    """The plan for a layer, forward and backward, by name."""
    device, properties = arguments.device, tuple[int, ...]()
    if device is None:
        device, properties = cuda_properties() if torch.cuda.is_available() else ("h100", ())
    cell, time, batch, inputs, hidden, dtype = arguments.explain
    directions = 2 if arguments.bidirectional else 1
    sizes = (
        int(time),
        int(batch),
        int(inputs),
        int(hidden),
        arguments.projection,
        directions,
        arguments.layers,
    )
    packed = arguments.packed
    wanted = arguments.engine
    if wanted is None:
        wanted = "auto" if _ops.cuda_engine == "torch" else _ops.cuda_engine
    facts = {"device": device, "asked for": wanted}
    if _ops.cuda_engine == "torch":
        facts["in use"] = "torch's own kernels, for FASTRNN_CUDA_ENGINE does not turn fastrnn's on"
    for name, backward in (("forward", False), ("backward", True)):
        plan = _ops.cuda_plan(cell, dtype, sizes, packed, backward, wanted, device, properties)
        for line in plan.splitlines():
            key, value = line.split(": ", 1)
            facts[f"{name} {key}"] = value
    for name, training in (("inference", False), ("training", True)):
        left = wanted == "auto" and _ops.torch_is_quicker(
            cell, dtype, sizes, packed, training, device, properties
        )
        facts[name] = "left to torch's kernels" if left else "by these engines"
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastrnn.info", description=__doc__)
    parser.add_argument(
        "--explain",
        nargs=6,
        metavar=("CELL", "T", "B", "I", "H", "DTYPE"),
        help="what the CUDA kernels would do, for example: lstm 1024 16 768 768 bfloat16",
    )
    parser.add_argument("--device", help="h100, h200 or a100 (default: the device that is here, else h100)")
    parser.add_argument("--engine", help="auto, steps or grid (default: FASTRNN_CUDA_ENGINE, else auto)")
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--projection", type=int, default=0, metavar="P")
    parser.add_argument("--layers", type=int, default=1, metavar="L")
    parser.add_argument("--packed", action="store_true")
    arguments = parser.parse_args()
    try:
        facts = explain(arguments) if arguments.explain else describe()
    except (RuntimeError, ValueError) as error:
        parser.error(str(error).splitlines()[0])
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
