"""A step's pass captured once and compiled; captured anew where the model takes another way.

Dynamo captures the model and its loss as a graph, with guards: another shape, mode or flag is captured anew,
and what it cannot capture whole is run eagerly. The graph is then written out in plain operations together
with its derivatives, which inductor compiles: along tangents by the rules of the eager pass
(``forward_mode``), or backwards by autograd. Every capture has to agree with the eager pass before it is
used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError, FgbenchError
from fgbench.options import TrainerOptions
from fgbench.trainers.base import LossFunction, Trainer
from fgbench.trainers.forward_mode import Factors, ForwardPass
from fgbench.trainers.forward_mode.compiled_rules import RULES
from fgbench.trainers.forward_mode.refusals import constant_parameters
from fgbench.trainers.forward_mode.shadows import Shadows
from fgbench.trainers.passes import differentiate, sample_losses
from fgbench.trainers.replay import OnePass, RandomStates, restoring_state

AGREEMENT = 1e-2
"""How far a compiled derivative may be from the eager one, as a share of its root mean square: a mistake is
far beyond it, another order of summation far below."""
AGREEMENT_BF16 = 5e-2
DIRECTIONS = 8
"""Along how many directions a capture is compared with the eager pass."""

T = TypeVar("T", bound=Trainer)
Tangents = Mapping[Tensor, Tensor | Factors]
Result = tuple[Tensor, Tensor, Any]


def require_compiler() -> None:
    """Refuse where torch finds no C++ compiler.

    Raises:
        ConfigError: in one line, what to install.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "compiling needs a C++ compiler (g++ or clang++, or the variable CXX), and there is none"
        ) from error


def compile_steps(trainer: T) -> T:
    """Let a trainer take its steps' pass in compiled form; returns the trainer.

    Seconds to a minute for each new kind of batch, then equal to rounding. What cannot be compiled, or does
    not agree with the eager pass along a few test directions, runs eagerly: ``trainer.compiled.reason`` says
    why.

    Raises:
        ConfigError: this trainer has no compiled form, or there is no C++ compiler.
    """
    if not (isinstance(trainer.options, TrainerOptions) and trainer.options.can_compile):
        raise ConfigError(
            f"{trainer.options.name} has no compiled form with these options; backprop and forward-gradient "
            f"have one, without recompute, exact_output or exact_stages"
        )
    require_compiler()
    trainer.compiled = CompiledPass()
    return trainer


class CompiledPass:
    """One pass over a batch in compiled form; eagerly, with a ``reason``, where that cannot be had.

    Can be pickled and copied at any time; what was compiled stays behind.

    Attributes:
        reason: why the eager pass is used, in one line; empty while the compiled one is.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._captures: dict[tuple[int, int, int], _Capture] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledPass, ()

    def derivatives(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        tangents: Tangents,
        count: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss (), outputs (B, classes) and the derivatives (K,) along K tangents by parameter.

        Raises:
            ConfigError: the eager pass refuses the model.
        """

        def eager(tangents: Tangents) -> Result:
            with ForwardPass(model, tangents, count) as forward:
                outputs = model(inputs)
                loss = sample_losses(loss_fn, outputs, labels).mean()
                return loss, outputs, forward.tangent_of(loss)

        directions = (_turned(tangents, index) for index in range(DIRECTIONS))
        return self._run(model, loss_fn, inputs, labels, tangents, count, eager, directions)

    def gradient(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        params: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Mean loss (), outputs (B, classes) and the gradient of every parameter, by reverse mode."""

        def eager(params: Mapping[Tensor, Any]) -> Result:
            with torch.enable_grad():
                outputs = model(inputs)
                loss = sample_losses(loss_fn, outputs, labels).mean()
            return loss.detach(), outputs.detach(), differentiate([loss], list(params))

        wanted = dict.fromkeys(params)
        return self._run(model, loss_fn, inputs, labels, wanted, 0, eager, iter([wanted]))

    def _run(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        params: Mapping[Tensor, Any],
        count: int,
        eager: Callable[[Any], Result],
        tests: Iterator[Mapping[Tensor, Any]],
    ) -> Any:
        """The compiled pass, or the eager one if it cannot be compiled or does not agree with it."""
        if self.reason:
            return eager(params)
        key = id(model), id(loss_fn), count
        if key not in self._captures:
            self._captures[key] = _Capture(model, loss_fn, count)
        capture = self._captures[key]

        def compiled(params: Mapping[Tensor, Any]) -> Result:
            return capture(inputs, labels, params)

        try:
            return compiled(params)
        except _NewCaptureError:  # raised before it has run
            with restoring_state(model):
                self.reason = self._try(capture, compiled, eager, list(tests))
        except FgbenchError:
            raise
        except Exception as error:  # whatever Dynamo cannot capture
            if capture.running:  # too late for another pass: this one may have moved buffers
                raise
            self.reason = _first_line(error)
        return eager(params) if self.reason else compiled(params)

    def _try(
        self,
        capture: "_Capture",
        compiled: Callable[[Any], Result],
        eager: Callable[[Any], Result],
        tests: list[Mapping[Tensor, Any]],
    ) -> str:
        """Why a new capture is not to be used; empty if it agrees with the eager pass."""
        one_pass = OnePass(capture.model, 2 * len(tests) + 1)
        results: list[tuple[Tensor, list[Tensor]]] = []
        with one_pass:
            eager(tests[0])  # may refuse the model, in words of its own
        try:
            with capture.on_trial():
                for test in tests:
                    for function in (eager, compiled):
                        with one_pass:
                            loss, outputs, result = function(test)
                            state = [*capture.model.buffers(), loss, outputs]
                            results.append((_flat(result), [_flat(each) for each in state]))
        except FgbenchError:
            raise
        except Exception as error:  # whatever inductor cannot compile
            return _first_line(error)
        tolerance = AGREEMENT_BF16 if torch.is_autocast_enabled(results[0][0].device.type) else AGREEMENT
        true, found = (torch.cat([result for result, _ in results[side::2]]) for side in range(2))
        pairs = [(true, found)]  # of all directions together: by itself a derivative may be small
        for (_, state), (_, other) in zip(results[::2], results[1::2], strict=True):
            pairs += zip(state, other, strict=True)
        for true, found in pairs:
            if not true.numel():
                continue
            off = float((found - true).abs().max() / true.square().mean().sqrt().clamp(min=1e-30))
            if not off <= tolerance:
                return f"it is off by {off:.2g} from the eager pass"
        return ""


class _NewCaptureError(Exception):
    """A capture that has not been compared with the eager pass was about to run."""


class _Capture:
    """Model and loss as Dynamo captures them, again for every way that its guards tell apart.

    Called with what has tangents (count > 0) or wants a gradient (count 0); returns loss, outputs and those.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, count: int) -> None:
        def mean_loss(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            outputs = model(inputs)
            return sample_losses(loss_fn, outputs, labels).mean(), outputs

        self.model, self.count = model, count
        self.params: Mapping[Tensor, Any] = {}
        self.latest: tuple[Tensor, Any] | None = None
        self.trying = self.running = False
        self._programs: list[_Program] = []
        # Code of its own, since Dynamo bounds how often one piece of code is captured.
        mean_loss.__code__ = mean_loss.__code__.replace()
        self._function: Any = torch.compile(mean_loss, backend=self._backend, fullgraph=True, dynamic=False)

    def _backend(self, graph: torch.fx.GraphModule, examples: list[Tensor]) -> "_Program":
        self._programs.append(_Program(graph, self))
        return self._programs[-1]

    @contextmanager
    def on_trial(self) -> Iterator[None]:
        """Within, captures that have not been compared run; those that did count as compared afterwards."""
        self.trying = True
        try:
            yield
            for program in self._programs:
                program.compared = program.function is not None
        finally:
            self.trying = False

    def __call__(self, inputs: Tensor, labels: Tensor, params: Mapping[Tensor, Any]) -> Result:
        self.params, self.latest, self.running = params, None, False
        try:
            with constant_parameters(self.model), torch.enable_grad():
                loss, outputs = self._function(inputs, labels)
            assert self.latest is not None
            value, result = self.latest
            if value is not loss:
                raise RuntimeError("the captured loss is not what the model's loss is")
            return loss, outputs, result
        finally:
            self.params, self.latest = {}, None


class _Program:
    """One captured graph with its derivatives, compiled when it first runs."""

    def __init__(self, graph: torch.fx.GraphModule, capture: _Capture) -> None:
        self.graph, self.capture = graph, capture
        self.compared = False
        self.function: Any = None
        self.chosen: list[int] = []

    def __call__(self, *args: Any) -> Any:
        capture = self.capture
        if not (self.compared or capture.trying):
            raise _NewCaptureError
        values = [arg.detach() if isinstance(arg, Tensor) else arg for arg in args]
        chosen = [
            index for index, arg in enumerate(args) if isinstance(arg, Tensor) and arg in capture.params
        ]
        given = [_plain(capture.params[args[index]]) for index in chosen]
        device = next(value.device.type for value in values if isinstance(value, Tensor))
        with torch.no_grad():
            if self.function is None:
                self.function, self.chosen = self._compile(values, chosen, given), chosen
            if chosen != self.chosen:
                raise RuntimeError("other parameters are trained than when it was compiled")
            capture.running = self.compared
            with torch.autocast(device, enabled=False):  # the graph has its casts in it
                outs, where, result = self.function(values, given)
        if capture.count == 0:  # in the order asked for, zeros where a parameter is not used
            found = {id(args[index]): part for index, part in zip(chosen, result, strict=True)}
            result = [
                found[id(each)] if id(each) in found else torch.zeros_like(each) for each in capture.params
            ]
        capture.latest = outs[where], result
        return outs

    def _compile(self, values: list[Any], chosen: list[int], given: list[Any]) -> Any:
        from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds to import

        memory = [each.untyped_storage()._cdata for each in values if isinstance(each, Tensor)]
        if len(set(memory)) < len(memory):
            raise RuntimeError("what the model computes with shares memory")

        def write(values: list[Any], given: list[Any]) -> Any:
            if self.capture.count:
                return self._along(values, chosen, given)
            return self._backwards(values, chosen)

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

    def _along(self, values: list[Any], chosen: list[int], given: list[Any]) -> tuple[Any, int, Any]:
        """The graph and the tangents of its loss, by the rules of the eager pass."""
        shadows = Shadows(self.capture.count, RULES)
        for index, tangent in zip(chosen, given, strict=True):
            shadows.give_leaf(values[index], Factors(*tangent) if isinstance(tangent, tuple) else tangent)
        with torch.enable_grad(), shadows:
            outs = self.graph(*values)
        where = _find_loss(outs)
        tangent = shadows.get(outs[where])
        if tangent is None:
            raise RuntimeError("the loss depends on no parameter")
        return outs, where, tangent

    def _backwards(self, values: list[Any], chosen: list[int]) -> tuple[Any, int, Any]:
        """The graph and the gradient of its loss, by autograd."""
        for index in chosen:
            values[index] = values[index].detach().requires_grad_()
        with torch.enable_grad():
            outs = self.graph(*values)
        where = _find_loss(outs)
        gradient = torch.autograd.grad(
            outs[where], [values[index] for index in chosen], materialize_grads=True
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
        raise RuntimeError("the model leaves numbers behind beside its loss")
    return numbers[0]


def _plain(tangent: Any) -> Any:
    """Factors as a plain tuple, tensors from the first byte of their memory on, as the graph takes them."""
    if isinstance(tangent, Factors):
        return tuple(part for part in tangent if part is not None)
    return tangent.clone() if isinstance(tangent, Tensor) and tangent.storage_offset() else tangent


def _turned(tangents: Tangents, index: int) -> dict[Tensor, Tensor | Factors]:
    """Other tangents made of the given ones: a sign for every parameter."""
    generator = torch.Generator().manual_seed(index)
    signs = torch.randint(0, 2, (len(tangents),), generator=generator).mul(2).sub(1).tolist()
    return {
        param: tangent._replace(rows=tangent.rows * sign) if isinstance(tangent, Factors) else tangent * sign
        for (param, tangent), sign in zip(tangents.items(), signs, strict=True)
    }


def _flat(parts: Any) -> Tensor:
    """All numbers of some tensors in a row, float64; a copy."""
    parts = [parts] if isinstance(parts, Tensor) else list(parts)
    return torch.cat([part.detach().flatten().double() for part in parts])


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
