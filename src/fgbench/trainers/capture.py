"""What Dynamo captures of a model and its loss, written out with derivatives and compiled by inductor."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fgbench.trainers.base import LossFunction
from fgbench.trainers.forward_mode import Factors
from fgbench.trainers.forward_mode.refusals import constant_parameters
from fgbench.trainers.forward_mode.rules.compiled import COMPILED_RULES
from fgbench.trainers.forward_mode.shadows import Shadows
from fgbench.trainers.forward_mode.shifted import ShiftedParameters
from fgbench.trainers.forward_mode.tangent_mode import TangentMode
from fgbench.trainers.passes import sample_losses
from fgbench.trainers.replay import RandomStates

Result = tuple[Tensor, Tensor, Any]


class NewCaptureError(Exception):
    """A capture that has not been compared with the eager pass was about to run."""


class Capture:
    """Model and loss as Dynamo captures them, once for every case that its guards tell apart.

    Args:
        model: see :class:`Trainer`.
        loss_fn: one loss per sample.
        count: derivatives along so many tangents; 0: the gradient.
        half: carry the tangents in bfloat16.
        shifted: no derivatives, but the mean loss in float64 at shifted parameters.

    Attributes:
        params: of the pass under way: by parameter its tangents, its shift, or anything where a gradient is
            asked for.
        latest: the loss and the derivatives that the last program found.
        comparing: whether captures run that have not been compared with the eager pass.
        running: whether a compared program has begun to run, and so may have moved buffers.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        count: int,
        *,
        half: bool = False,
        shifted: bool = False,
    ) -> None:
        def mean_loss(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            outputs = model(inputs)
            losses = sample_losses(loss_fn, outputs, labels)
            return (losses.double() if shifted else losses).mean(), outputs

        self.model, self.count, self.half, self.shifted = model, count, half, shifted
        self.params: Mapping[Tensor, Any] = {}
        self.latest: tuple[Tensor, Any] | None = None
        self.comparing = self.running = False
        self._programs: list[Program] = []
        # A copy of the code, since Dynamo limits how often one code object is captured.
        mean_loss.__code__ = mean_loss.__code__.replace()
        self._function: Any = torch.compile(mean_loss, backend=self._backend, fullgraph=True, dynamic=False)

    def _backend(self, graph: torch.fx.GraphModule, examples: list[Tensor]) -> "Program":
        self._programs.append(Program(graph, self))
        return self._programs[-1]

    @contextmanager
    def on_trial(self) -> Iterator[None]:
        """Within, captures that have not been compared run; those that did count as compared afterwards."""
        self.comparing = True
        try:
            yield
            for program in self._programs:
                program.compared = program.function is not None
        finally:
            self.comparing = False

    def __call__(self, inputs: Tensor, labels: Tensor, params: Mapping[Tensor, Any]) -> Result:
        """Loss, outputs, and the derivatives (shifted: the loss again).

        Raises:
            NewCaptureError: before a capture runs that has not been compared with the eager pass.
        """
        self.params, self.latest, self.running = params, None, False
        try:
            with constant_parameters(self.model), torch.enable_grad():
                loss, outputs = self._function(inputs, labels)
            assert self.latest is not None
            found, result = self.latest
            if found is not loss:
                raise RuntimeError("the captured loss is not what the model's loss is")
            return loss, outputs, result
        finally:
            self.params, self.latest = {}, None


class Program:
    """One captured graph with its derivatives, compiled when it first runs."""

    def __init__(self, graph: torch.fx.GraphModule, capture: Capture) -> None:
        self.graph, self.capture = graph, capture
        self.compared = False
        self.function: Any = None
        self.positions: list[int] = []

    def __call__(self, *args: Any) -> Any:
        """What the captured graph returns; the derivatives are passed to the capture separately."""
        capture = self.capture
        if not (self.compared or capture.comparing):
            raise NewCaptureError
        values = [arg.detach() if isinstance(arg, Tensor) else arg for arg in args]
        positions = [
            index for index, arg in enumerate(args) if isinstance(arg, Tensor) and arg in capture.params
        ]
        given = [_as_graph_input(capture.params[args[index]]) for index in positions]
        device = next(value.device.type for value in values if isinstance(value, Tensor))
        with torch.no_grad():
            if self.function is None:
                self.function, self.positions = self._compile(values, positions, given), positions
            if positions != self.positions:
                raise RuntimeError("other parameters are trained than when it was compiled")
            capture.running = self.compared
            with torch.autocast(device, enabled=False):  # the graph has its casts in it
                outs, where, result = self.function(values, given)
        if capture.count == 0 and not capture.shifted:  # in the order asked for; zeros of unused parameters
            found = {id(args[index]): part for index, part in zip(positions, result, strict=True)}
            result = [
                found[id(each)] if id(each) in found else torch.zeros_like(each) for each in capture.params
            ]
        capture.latest = outs[where], result
        return outs

    def _compile(self, values: list[Any], positions: list[int], given: list[Any]) -> Any:
        from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds to import

        memory = [each.untyped_storage()._cdata for each in values if isinstance(each, Tensor)]
        if len(set(memory)) < len(memory):
            raise RuntimeError("two inputs of the captured graph share memory")

        def write(values: list[Any], given: list[Any]) -> Any:
            if self.capture.shifted:
                return self._shifted(values, positions, given)
            if self.capture.count:
                return self._with_tangents(values, positions, given)
            return self._with_gradient(values, positions)

        examples = [each.clone() if isinstance(each, Tensor) else each for each in values]
        states, cached = RandomStates(), torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            program = make_fx(write, tracing_mode="real")(examples, given)
        finally:
            torch.set_autocast_cache_enabled(cached)
            states.restore()
        program.graph.eliminate_dead_code()
        program.recompile()
        # Random numbers as the eager pass draws them: the same dropout, whether compiled or not.
        return torch.compile(program, fullgraph=True, dynamic=False, options={"fallback_random": True})

    def _with_tangents(
        self, values: list[Any], positions: list[int], given: list[Any]
    ) -> tuple[Any, int, Any]:
        """The graph and the tangents of its loss, by the rules of the eager pass."""
        shadows = Shadows(self.capture.count, half=self.capture.half)
        for index, tangent in zip(positions, given, strict=True):
            shadows.give_leaf(values[index], Factors(*tangent) if isinstance(tangent, tuple) else tangent)
        with torch.enable_grad(), TangentMode(shadows, COMPILED_RULES):
            outs = self.graph(*values)
        where = _find_loss(outs)
        tangent = shadows.get(outs[where])
        if tangent is None:
            raise RuntimeError("the loss depends on no parameter")
        return outs, where, tangent

    def _shifted(self, values: list[Any], positions: list[int], given: list[Any]) -> tuple[Any, int, Any]:
        """The graph at shifted parameters, by the products of the eager pass."""
        shares = {
            id(values[index]): Factors(*share) if isinstance(share, tuple) else share
            for index, share in zip(positions, given, strict=True)
        }
        with ShiftedParameters([values[index] for index in positions], lambda each: shares[id(each)], 1.0):
            outs = self.graph(*values)
        where = _find_loss(outs)
        return outs, where, outs[where].clone()

    def _with_gradient(self, values: list[Any], positions: list[int]) -> tuple[Any, int, Any]:
        """The graph and the gradient of its loss, by autograd."""
        for index in positions:
            values[index] = values[index].detach().requires_grad_()
        with torch.enable_grad():
            outs = self.graph(*values)
        where = _find_loss(outs)
        gradient = torch.autograd.grad(
            outs[where], [values[index] for index in positions], materialize_grads=True
        )
        return [each.detach() if isinstance(each, Tensor) else each for each in outs], where, list(gradient)


def _find_loss(outs: Sequence[Any]) -> int:
    """Which of a graph's results is the loss: the only number."""
    numbers = [
        index
        for index, each in enumerate(outs)
        if isinstance(each, Tensor) and each.dim() == 0 and each.is_floating_point()
    ]
    if len(numbers) != 1:
        raise RuntimeError("the captured graph returns other numbers beside the loss")
    return numbers[0]


def _as_graph_input(tangent: Any) -> Any:
    """Factors as a plain tuple, tensors from the first byte of their memory on, as the graph takes them."""
    if isinstance(tangent, Factors):
        return tuple(part for part in tangent if part is not None)
    return tangent.clone() if isinstance(tangent, Tensor) and tangent.storage_offset() else tangent
