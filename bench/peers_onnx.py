"""onnxruntime and OpenVINO: the case as an ONNX graph of LSTM, GRU or RNN nodes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from bench.problem import Problem
from bench.runner import Outputs, Runner, Settings, Unsupported

OPSET = 17
# position of each of ONNX's gates in torch's order: iofc from ifgo, zrh from rzn
_GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


def in_onnx_order(cell: str, rows: torch.Tensor) -> np.ndarray:
    """The rows of a weight or bias of all gates, gate by gate as ONNX has them."""
    order = _GATE_ORDER[cell]
    return rows.unflatten(0, (len(order), -1))[list(order)].flatten(0, 1).numpy()


def make_graph(problem: Problem) -> bytes:
    """A serialised model.

    Inputs: x [T, B, I], where given lengths [B] and h0, c0 [D, B, H].
    Outputs: y [T, B, D*H], then of each layer h_n and for LSTM c_n, [D, B, H].
    """
    case = problem.case
    if problem.state_given and case.layers > 1:
        raise Unsupported("the graph takes the initial state of one layer only")
    directions = case.directions
    nodes: list[onnx.NodeProto] = []
    constants = [
        numpy_helper.from_array(np.array([0, 0, -1], np.int64), "merged"),
        numpy_helper.from_array(np.array([1], np.int64), "direction_axis"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [case.time, case.batch, case.input])]
    state_shape = [directions, case.batch, case.hidden]
    states = ("h", "c")[: len(problem.state)]
    if problem.lengths is not None:
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [case.batch]))
    if problem.state_given:
        inputs += [helper.make_tensor_value_info(f"{s}0", TensorProto.FLOAT, state_shape) for s in states]
    final = [f"{s}_n_l{layer}" for layer in range(case.layers) for s in states]
    outputs = [
        helper.make_tensor_value_info(
            "y", TensorProto.FLOAT, [case.time, case.batch, directions * case.hidden]
        ),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, state_shape) for name in final),
    ]

    x = "x"
    for layer in range(case.layers):
        per_direction = [
            [in_onnx_order(case.cell, weight) for weight in weights]
            for weights in problem.layer_weights(layer)
        ]
        arrays = {
            "w": np.stack([w_ih for w_ih, *_ in per_direction]),
            "r": np.stack([w_hh for _, w_hh, _, _ in per_direction]),
            "b": np.stack([np.concatenate(biases) for _, _, *biases in per_direction]),
        }
        constants += [numpy_helper.from_array(array, f"{key}_l{layer}") for key, array in arrays.items()]
        node_inputs = [x, f"w_l{layer}", f"r_l{layer}", f"b_l{layer}"]
        node_inputs.append("lengths" if problem.lengths is not None else "")
        node_inputs += [f"{s}0" for s in states] if problem.state_given else []
        nodes.append(
            helper.make_node(
                case.cell.upper(),
                node_inputs,
                [f"raw_l{layer}", *(f"{s}_n_l{layer}" for s in states)],
                hidden_size=case.hidden,
                direction="bidirectional" if case.bidirectional else "forward",
            )
        )
        if case.cell == "gru":
            nodes[-1].attribute.append(helper.make_attribute("linear_before_reset", 1))
        # [T, D, B, H] to [T, B, D*H]
        x = "y" if layer == case.layers - 1 else f"y_l{layer}"
        if case.bidirectional:
            nodes.append(
                helper.make_node("Transpose", [f"raw_l{layer}"], [f"turned_l{layer}"], perm=[0, 2, 1, 3])
            )
            nodes.append(helper.make_node("Reshape", [f"turned_l{layer}", "merged"], [x]))
        else:
            nodes.append(helper.make_node("Squeeze", [f"raw_l{layer}", "direction_axis"], [x]))

    graph = helper.make_graph(nodes, "layer", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _feeds(problem: Problem) -> dict[str, np.ndarray]:
    feeds = {"x": problem.x.numpy()}
    if problem.lengths is not None:
        feeds["lengths"] = problem.lengths.numpy().astype(np.int32)
    if problem.state_given:
        feeds |= dict(zip(("h0", "c0"), (s.numpy() for s in problem.state), strict=False))
    return feeds


def _named(problem: Problem, results: list[np.ndarray]) -> Outputs:
    y, *states = results
    kinds = len(problem.state)
    return {"y": y} | {
        name: np.concatenate(states[i::kinds]) for i, name in enumerate(("h_n", "c_n")[:kinds])
    }


def _runner(problem: Problem, infer: Callable[[dict[str, np.ndarray]], Any]) -> Runner:
    """infer: from the inputs by name to a sequence of the outputs."""
    feeds = _feeds(problem)

    def stream() -> Any:
        step = dict(feeds)
        for _ in range(problem.repeats):
            results = infer(step)
            for i, name in enumerate(("h0", "c0")[: len(problem.state)]):
                step[name] = results[1 + i]
        return results

    call = stream if problem.mode.stream else lambda: infer(feeds)
    return Runner(call, lambda results: _named(problem, [results[i] for i in range(len(results))]))


def _session_options(settings: Settings) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def build_onnxruntime(problem: Problem, settings: Settings) -> Runner:
    if problem.mode.training:
        raise Unsupported("inference only")
    import onnxruntime

    session = onnxruntime.InferenceSession(
        make_graph(problem), _session_options(settings), providers=["CPUExecutionProvider"]
    )
    return _runner(problem, lambda feeds: session.run(None, feeds))


def build_onnxruntime_int8(problem: Problem, settings: Settings) -> Runner:
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic

    if problem.case.cell != "lstm":
        raise Unsupported("onnxruntime quantizes LSTM alone")
    with tempfile.TemporaryDirectory() as folder:
        plain, small = f"{folder}/plain.onnx", f"{folder}/int8.onnx"
        Path(plain).write_bytes(make_graph(problem))
        quantize_dynamic(plain, small, per_channel=True)
        graph = Path(small).read_bytes()
    session = onnxruntime.InferenceSession(
        graph, _session_options(settings), providers=["CPUExecutionProvider"]
    )
    return _runner(problem, lambda feeds: session.run(None, feeds))


def build_openvino(problem: Problem, settings: Settings) -> Runner:
    if problem.mode.training:
        raise Unsupported("inference only")
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(make_graph(problem)),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": settings.threads,
            "NUM_STREAMS": 1,
            # without the hint CPUs with bfloat16 instructions compute in bfloat16
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = compiled.create_infer_request()
    # a streamed state is an input of the next step, so it must not lie in the output's own memory
    share_outputs = not problem.mode.stream
    return _runner(
        problem, lambda feeds: request.infer(feeds, share_inputs=True, share_outputs=share_outputs)
    )
