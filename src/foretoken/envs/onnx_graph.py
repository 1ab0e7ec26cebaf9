"""A function of tensors as a graph of ONNX operators, run by ONNX Runtime on the CPU (extra "onnx")."""

import logging
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foretoken.core.errors import MissingExtra

FEW_ROWS = 8  # below, waking a second thread costs more than it brings


class OnnxGraph:
    """What `module` does with tensors of these shapes and values' kind; weights are constants of it.

    A tensor that the module writes in place, or hands through, is written in place here too; others are answered anew.
    `rounded` does the products with weights in eight bits: weights rounded by output, what enters them by its largest number.

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
        RuntimeError: something in it has no ONNX operator.
    """

    def __init__(self, module: nn.Module, example: list[Tensor], *, rounded: bool = False) -> None:
        self.require()
        from torch.fx.experimental.proxy_tensor import make_fx

        given = [leaf.clone() for leaf in example]
        answers = module(*given)
        self._own = _same_memory(answers, given)
        record = make_fx(module, _PLAIN, tracing_mode="real", _error_on_data_dependent_ops=False)
        inputs = tuple(leaf.clone(memory_format=torch.contiguous_format) for leaf in example)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of a package that nothing here needs
        program: Any = torch.onnx.export(record(*inputs).eval(), inputs, dynamo=True, verbose=False)
        model = _rounded(program.model_proto) if rounded else program.model_proto
        self._session = _session(model, torch.get_num_threads() if len(example[0]) >= FEW_ROWS else 1)
        names = [[each.name for each in part] for part in (self._session.get_inputs(), self._session.get_outputs())]
        if [len(part) for part in names] != [len(inputs), len(answers)]:
            raise RuntimeError("the exporter dropped inputs or outputs")
        self._names = dict(zip(("input", "output"), names, strict=True))
        self._binding = self._session.io_binding()
        self._given, self._answers = list(inputs), [torch.empty_like(answer).contiguous() for answer in answers]
        for number, leaf in enumerate(self._given):
            self._bind("input", number, leaf)
        for number, own in enumerate(self._own):
            self._bind("output", number, self._answers[number] if own is None else self._given[own])

    @staticmethod
    def require() -> None:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            if find_spec(name) is None:
                raise MissingExtra(
                    f"the engine onnx needs the package {name}: pip install 'foretoken[onnx]', or take the engine torch"
                )

    def __call__(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        for number, leaf in enumerate(leaves):
            given = self._given[number]
            if leaf is given or leaf.data_ptr() == given.data_ptr():
                continue
            if number in self._own:
                self._given[number] = leaf = leaf.contiguous()
                self._bind("input", number, leaf)
                self._bind("output", self._own.index(number), leaf)
            else:
                given.copy_(leaf)
        self._session.run_with_iobinding(self._binding)
        return tuple(
            answer.clone() if own is None else self._given[own]
            for own, answer in zip(self._own, self._answers, strict=True)
        )

    def _bind(self, kind: str, number: int, leaf: Tensor) -> None:
        array = leaf.numpy()
        bind = self._binding.bind_input if kind == "input" else self._binding.bind_output
        bind(self._names[kind][number], "cpu", 0, array.dtype, list(array.shape), leaf.data_ptr())


def _attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
    attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Softmax attention in operations that ONNX Runtime joins; what the exporter makes of it copies the keys."""
    scores = q * (q.shape[-1] ** -0.5 if scale is None else scale) @ k.transpose(-1, -2)
    if is_causal:
        attn_mask = torch.full(scores.shape[-2:], float("-inf")).triu_(1)
    return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v, scores


_PLAIN = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default: _attention}


def _session(model: Any, threads: int, path: Path | None = None) -> Any:
    """Ready to run; its graph is written to `path`, where given, with what follows from weights alone worked out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if path is not None:
        options.optimized_model_filepath = str(path)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # its errors have no common kind
        raise RuntimeError(f"ONNX Runtime cannot take the graph: {problem}") from problem


def _rounded(model: Any) -> Any:
    """The model with its matrix products by weights in eight bits; those of several matrices at once stay as they are."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    with tempfile.TemporaryDirectory() as folder:
        path, rounded = Path(folder) / "model.onnx", Path(folder) / "rounded.onnx"
        _session(model, 1, path)
        model = onnx.load(path)
        add_pre_process_metadata(model)  # else it logs that it would like to optimise the graph first
        several = {weight.name for weight in model.graph.initializer if len(weight.dims) > 2}
        kept = [node.name for node in model.graph.node if several & set(node.input)]
        quantize_dynamic(
            model, rounded, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=kept, extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
        return onnx.load(rounded)


def _same_memory(answers: Sequence[Tensor], given: Sequence[Tensor]) -> list[int | None]:
    """For each answer the input whose memory it is; an input is named once."""
    numbers = {(leaf.data_ptr(), leaf.shape): number for number, leaf in enumerate(given) if leaf.numel()}
    return [numbers.pop((answer.data_ptr(), answer.shape), None) for answer in answers]
