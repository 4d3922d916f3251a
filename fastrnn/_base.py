"""What the modules share: the options that torch.nn lacks, and the choice between fastrnn's and torch.nn's forward."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError

from fastrnn import _ops
from fastrnn._heads import check_heads
from fastrnn._options import NONE, Constants, check_cell_clip, check_together, check_zoneout
from fastrnn._spec import CellSpec, Choice

_NONE: Mapping[str, Any] = MappingProxyType({})
_AUTOCAST = frozenset({torch.float32, torch.bfloat16, torch.float16})


def is_state(tensor: object, shape: tuple[int, ...], like: Tensor) -> bool:
    """Whether it is a tensor of that shape that goes with like."""
    return isinstance(tensor, Tensor) and tensor.shape == shape and is_alike(tensor, like)


def are_strided(states: Sequence[object]) -> bool:
    """Whether they are tensors that the dispatcher gives to the ops; of other layouts it has an error of its own."""
    for state in states:  # noqa: SIM110 (a generator takes three times as long)
        if not isinstance(state, Tensor) or state.layout is not torch.strided:
            return False
    return True


def is_alike(tensor: Tensor, like: Tensor) -> bool:
    """Whether it has strides, and device and dtype are the same or autocast makes them the same."""
    if tensor.layout != torch.strided:
        return False
    if tensor.dtype != like.dtype and not (
        tensor.dtype in _AUTOCAST and like.dtype in _AUTOCAST and _ops.autocasts(like)
    ):
        return False
    return (tensor.is_cpu and like.is_cpu) or tensor.device == like.device


def is_uniform(weights: Sequence[object]) -> bool:
    """Whether they are tensors of one dtype, none of them away from the CPU if the first is there."""
    first = weights[0]
    if not isinstance(first, Tensor):
        return False
    dtype, is_cpu = first.dtype, first.is_cpu
    for weight in weights:
        if not isinstance(weight, Tensor) or weight.dtype != dtype or weight.is_cpu != is_cpu:
            return False
    return True


class Base(nn.Module):
    """What layers and cells share: the options that torch.nn lacks, and the way to torch.nn's forward."""

    _cell: ClassVar[CellSpec]
    # those that torch.nn lacks, whatever the cell, with the values that make a module torch.nn's
    _own_options: ClassVar[dict[str, Any]] = {
        "heads": 1,
        "zoneout": 0.0,
        "peephole": False,
        "cell_clip": None,
    }
    _options: ClassVar[dict[str, Any]]  # those and the cell's extras
    _torch_forward: ClassVar[Callable[..., Any]]
    hidden_size: int
    bias: bool
    layer_norm: bool
    heads: int
    zoneout: float | tuple[float, float]
    # of an LSTM alone
    coupled_gates: bool = False
    peephole: bool = False
    cell_clip: float | None = None
    forget_bias: float | None = None  # of an LSTM: the sum of the forget gate's biases to begin with
    _operand_names: tuple[
        str, ...
    ] = ()  # of the parameters that torch.nn lacks, layer by layer as the ops take them

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "_cell"):
            cls._options = cls._cell.extras | cls._own_options

    def _choice(self) -> Choice:
        """The values of the cell's options, in their order."""
        raise NotImplementedError

    def _changed_options(self) -> dict[str, Any]:
        """The options that make the module compute what torch.nn's does not."""
        values = {name: getattr(self, name) for name in self._options}
        changed = {name: value for name, value in values.items() if value != self._options[name]}
        for option in self._cell.options:
            if option.torchs and getattr(self, option.name) not in option.torchs:
                changed[option.name] = getattr(self, option.name)
        return changed

    def _add_heads(self, heads: int) -> None:
        """Narrows the recurrent weights to what each head's units meet."""
        widths = {self.hidden_size, getattr(self, "proj_size", 0) or self.hidden_size}
        self.heads = check_heads(heads, *widths)
        names = [name for name in self._parameters if name.startswith("weight_hh")] if heads > 1 else []
        for name in names:
            weight: Tensor = getattr(self, name).detach()
            setattr(self, name, nn.Parameter(weight[:, : weight.shape[1] // heads].clone()))

    def _constants(self) -> Constants:
        """What the values of zoneout and cell_clip are to the operands of a call."""
        if not self.zoneout and self.cell_clip is None:
            return NONE
        constants = Constants(*check_zoneout(self.zoneout, self._cell.states), self.cell_clip)
        if self._cell.states == 2:
            check_together(self._choice(), self.peephole, constants, bool(getattr(self, "proj_size", 0)))
        return constants

    def _is_general(self) -> bool:
        """Whether it takes the cell with all options (fastrnn/_spec.py)."""
        if self.peephole and not self._operand_names:
            raise ValueError("peephole is to be given to the constructor, which makes its parameters")
        return self.peephole or self._constants() != NONE

    def _add_options(
        self,
        suffixes: Sequence[str],
        zoneout: float | tuple[float, float],
        peephole: bool = False,
        cell_clip: float | None = None,
    ) -> None:
        """Behind the values of the cell's own options: parameters for what it takes beside its gates, of each layer and
        direction that a suffix names.

        Raises:
            ValueError: values that do not go together, or are none
        """
        zones = check_zoneout(zoneout, self._cell.states)
        self.zoneout = zones if isinstance(zoneout, (tuple, list)) and any(zones) else zones[0]
        if self._cell.states == 2:
            self.peephole, self.cell_clip = bool(peephole), check_cell_clip(cell_clip)
            check_together(self._choice(), self.peephole, NONE, projected=False)
        general = self.peephole or self._constants() != NONE
        self._cell.spec(self._choice(), bool(self.bias), general=general)
        if self.coupled_gates:
            self._couple_gates()
        rows, hidden = self._cell.gates * self.hidden_size, self.hidden_size
        sizes: dict[str, int] = {}
        if self.layer_norm:
            sizes = {"ln_ih_weight": rows, "ln_hh_weight": rows}
            if self._cell.states == 2:
                sizes |= {"ln_c_weight": hidden, "ln_c_bias": hidden}
        elif self.peephole:
            sizes = {"weight_peephole": (2 if self.coupled_gates else 3) * hidden}
        like: Tensor = next(self.parameters())
        bound = 1 / math.sqrt(hidden) if hidden > 0 else 0.0
        for suffix in suffixes:
            for name, size in sizes.items():
                made = like.new_empty(size)
                nn.init.uniform_(made, -bound, bound)  # torch.nn's, of peepholes; gains have their own below
                self.register_parameter(name + suffix, nn.Parameter(made))
        if sizes:
            self._operand_names = tuple(name + suffix for suffix in suffixes for name in sizes)
            self._reset_gains()

    def _couple_gates(self) -> None:
        """Takes the rows of f from the weights: those of i g o stay."""
        hidden = self.hidden_size
        for name, parameter in list(self._parameters.items()):
            if (
                parameter is not None
                and parameter.shape[0] == 4 * hidden
                and not name.startswith("weight_hr")
            ):
                kept = torch.cat([parameter[:hidden], parameter[2 * hidden :]]).detach()
                setattr(self, name, nn.Parameter(kept))

    @torch.no_grad()
    def _reset_gains(self) -> None:
        for name, operand in zip(self._operand_names, self._parameters_of_operands(), strict=True):
            if name.startswith("ln_"):
                operand.fill_(0.0 if "bias" in name else 1.0)

    def _add_forget_bias(self, forget_bias: float | None) -> None:
        if forget_bias is None:
            return
        if isinstance(forget_bias, bool) or not isinstance(forget_bias, (int, float)):
            raise TypeError(f"forget_bias should be a number or None, got {type(forget_bias).__name__}")
        if not math.isfinite(forget_bias):
            raise ValueError(f"forget_bias must be finite, got {forget_bias}")
        if self.coupled_gates:
            raise ValueError("forget_bias is of the forget gate, which coupled_gates has none of: f = 1 - i")
        if not self.bias:
            raise ValueError("forget_bias is an initial value of biases, and with bias=False there are none")
        self.forget_bias = float(forget_bias)
        self._reset_forget_bias()

    @torch.no_grad()
    def _reset_forget_bias(self) -> None:
        if self.forget_bias is None:
            return
        for name, parameter in self._parameters.items():
            if name.startswith("bias_") and parameter is not None:
                of_f = parameter[self.hidden_size : 2 * self.hidden_size]
                of_f.fill_(self.forget_bias if name.startswith("bias_ih") else 0.0)

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]
        self._reset_gains()
        self._reset_forget_bias()

    def _parameters_of_operands(self) -> Sequence[Tensor]:
        """Parameters beside torch's flat list, read anew for every call."""
        names = self._operand_names
        if not names:
            return ()
        parameters: dict[str, Any] = self._parameters
        try:
            return [parameters[name] for name in names]
        except KeyError:  # parametrized
            return [getattr(self, name) for name in names]

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        options = (f"{name}={value}" for name, value in self._changed_options().items())
        return ", ".join([shown, *(option for option in options if option not in shown)])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for name, value in self._options.items():  # a pickle of torch.nn's module has none
            self.__dict__.setdefault(name, value)

    def _states(self, hx: Any) -> Sequence[Tensor] | None:
        """The states in hx, () if there is no hx, None if it is of the wrong kind."""
        if hx is None:
            return ()
        return (hx,) if isinstance(hx, Tensor) else None

    def _traced(self, input: Any, hx: Any, options: Mapping[str, Any] = _NONE) -> Proxy | None:
        """Where torch.fx traces, a node that calls this module, as torch.fx makes one of each module of torch.nn."""
        arguments = (input,) if hx is None else (input, hx)
        inner = (
            (input, *hx, *options.values())
            if isinstance(hx, (tuple, list))
            else (*arguments, *options.values())
        )
        tracer: Any = next((value.tracer for value in inner if isinstance(value, Proxy)), None)
        if tracer is None:
            return None
        path = tracer.path_of_module(self)
        if not path:
            raise TraceError(
                f"{type(self).__name__} is one node for torch.fx: trace a module that contains it"
            )
        node: Proxy = tracer.create_proxy("call_module", path, arguments, dict(options))
        return node

    def _forward_by_torch(self, input: Any, hx: Any) -> Any:
        result = self._torch_forward(input, hx)
        if self._changed_options():
            raise self._refusal()
        return result

    def _refusal(self) -> RuntimeError:
        return RuntimeError(
            f"{self} takes input, hx and weights of one device and one dtype: float32, float64, bfloat16 or float16"
        )


def pair_states(self: Base, hx: Any) -> Sequence[Tensor] | None:
    """The _states of an LSTM."""
    if hx is None:
        return ()
    if (
        isinstance(hx, (tuple, list))
        and len(hx) == 2
        and isinstance(hx[0], Tensor)
        and isinstance(hx[1], Tensor)
    ):
        return hx
    return None
