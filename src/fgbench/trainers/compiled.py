"""A step's pass captured once and compiled; captured anew where the model takes another way.

Dynamo captures the model and its loss as a graph, with guards: another shape, mode or flag is captured anew,
and what it cannot capture whole is run eagerly. The graph is then written out in plain operations together
with its derivatives, which inductor compiles: along tangents by the rules of the eager pass
(``forward_mode``), or backwards by autograd. Every capture has to agree with the eager pass before it is
used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fgbench.errors import ConfigError, FgbenchError
from fgbench.options import TrainerOptions
from fgbench.trainers.base import LossFunction, Trainer
from fgbench.trainers.capture import Capture, NewCaptureError, Result
from fgbench.trainers.forward_mode import Factors, ForwardPass
from fgbench.trainers.forward_mode.shifted import shifted_parameters
from fgbench.trainers.passes import differentiate, sample_losses
from fgbench.trainers.replay import OnePass, restoring_state
from fgbench.trainers.rounding import Trial, allowance, moved_by_rounding

AGREEMENT = 1e-2
"""How far a compiled derivative may be from the eager one, as a share of its root mean square: a mistake is
far beyond it, another order of summation far below."""
AGREEMENT_BF16 = 5e-2
"""The same where values or tangents are in bfloat16, whose own rounding is 0.4 %."""
DIRECTIONS = 8
"""Along how many directions a capture is compared with the eager pass."""

T = TypeVar("T", bound=Trainer)
Tangents = Mapping[Tensor, Tensor | Factors]


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
            f"{trainer.options.name} has no compiled form with these options; backprop, forward-gradient and "
            f"zeroth-order have one, without recompute, exact_output or exact_stages"
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
        self._captures: dict[tuple[int, int, int, bool, bool], Capture] = {}

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
        *,
        half: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss (), outputs (B, classes) and the derivatives (K,) along K tangents by parameter.

        With ``half`` tangents are carried in bfloat16, as by ``ForwardPass``; a capture is compared with the
        eager pass in full precision.

        Raises:
            ConfigError: the eager pass refuses the model.
        """

        def eager(inputs: Tensor, tangents: Tangents, half: bool = half) -> Result:
            with ForwardPass(model, tangents, count, half=half) as forward:
                outputs = model(inputs)
                loss = sample_losses(loss_fn, outputs, labels).mean()
                return loss, outputs, forward.tangent_of(loss)

        directions = (_with_random_signs(tangents, index) for index in range(DIRECTIONS))
        return self._run(
            model, loss_fn, inputs, labels, tangents, count, eager, directions, half=half,
            reference=partial(eager, half=False),
        )  # fmt: skip

    def shifted_loss(
        self, model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor, shifts: Tangents
    ) -> tuple[Tensor, Tensor]:
        """Mean loss (), in float64, and outputs (B, classes) where each parameter is moved by its shift.

        Args:
            model: see :class:`Trainer`.
            loss_fn: one loss per sample.
            inputs: shape (B, ...).
            labels: shape (B,).
            shifts: by parameter, in its shape, or as the factors of one tangent.
        """

        def eager(inputs: Tensor, shifts: Tangents) -> Result:
            with shifted_parameters(model, list(shifts), shifts.__getitem__, 1.0):
                outputs = model(inputs)
                loss = sample_losses(loss_fn, outputs, labels).double().mean()
            return loss, outputs, loss

        signed = (_with_random_signs(shifts, index) for index in range(DIRECTIONS))
        pairs = (each for one in signed for each in (one, _scaled(one, [-1.0] * len(one))))
        loss, outputs, _ = self._run(model, loss_fn, inputs, labels, shifts, 1, eager, pairs, shifted=True)
        return loss, outputs

    def gradient(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        params: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Mean loss (), outputs (B, classes) and the gradient of every parameter, by reverse mode."""

        def eager(inputs: Tensor, params: Mapping[Tensor, Any]) -> Result:
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
        eager: Callable[[Tensor, Any], Result],
        directions: Iterator[Mapping[Tensor, Any]],
        *,
        half: bool = False,
        shifted: bool = False,
        reference: Callable[[Tensor, Any], Result] | None = None,
    ) -> Any:
        """The compiled pass; the eager one if it cannot be compiled or does not agree with ``reference``."""
        if self.reason:
            return eager(inputs, params)
        key = id(model), id(loss_fn), count, half, shifted
        if key not in self._captures:
            self._captures[key] = Capture(model, loss_fn, count, half=half, shifted=shifted)
        capture = self._captures[key]

        def compiled(inputs: Tensor, params: Mapping[Tensor, Any]) -> Result:
            return capture(inputs, labels, params)

        try:
            return compiled(inputs, params)
        except NewCaptureError:  # raised before it has run
            with restoring_state(model):
                self.reason = self._compare(capture, inputs, compiled, reference or eager, list(directions))
        except FgbenchError:
            raise
        except Exception as error:  # whatever Dynamo cannot capture
            if capture.running:  # too late for another pass: this one may have moved buffers
                raise
            self.reason = _first_line(error)
        return (eager if self.reason else compiled)(inputs, params)

    def _compare(
        self,
        capture: "Capture",
        inputs: Tensor,
        compiled: Callable[[Tensor, Any], Result],
        eager: Callable[[Tensor, Any], Result],
        directions: list[Mapping[Tensor, Any]],
    ) -> str:
        """Why a new capture is not to be used; empty if it agrees with the eager pass."""
        one_pass = OnePass(capture.model, 3 * len(directions) + 1)

        def trial(function: Callable[[Tensor, Any], Result], inputs: Tensor) -> Trial:
            derivatives: list[Tensor] = []
            gradient: list[Tensor] = []
            state: list[Tensor] = []
            for direction in directions:
                with one_pass:
                    loss, outputs, result = function(inputs, direction)
                    if isinstance(result, Tensor):
                        derivatives.append(_copy(result))
                    else:
                        gradient += map(_copy, result)
                    state += map(_copy, (*capture.model.buffers(), loss, outputs))
            if capture.shifted:  # what counts is the difference of the losses on both sides
                pairs = zip(derivatives[0::2], derivatives[1::2], strict=True)
                derivatives = [first - second for first, second in pairs]
            # All directions are compared together: one derivative by itself may be small.
            return Trial([torch.stack(derivatives)] if derivatives else [], gradient, state)

        with one_pass:
            eager(inputs, directions[0])  # may refuse the model, in words of its own
        try:
            with capture.on_trial():
                true, found = trial(eager, inputs), trial(compiled, inputs)
        except FgbenchError:
            raise
        except Exception as error:  # whatever inductor cannot compile
            return _first_line(error)
        half = capture.half or torch.is_autocast_enabled(inputs.device.type)
        tolerance = AGREEMENT_BF16 if half else AGREEMENT
        difference = true.distance(found)
        if not difference <= tolerance and inputs.is_floating_point():
            tolerance = allowance(tolerance, true.distance(trial(eager, moved_by_rounding(inputs))))
        return "" if difference <= tolerance else f"it is off by {difference:.2g} from the eager pass"


def _copy(part: Tensor) -> Tensor:
    return part.detach().to(torch.float64, copy=True)


def _with_random_signs(tangents: Tangents, index: int) -> dict[Tensor, Tensor | Factors]:
    """Other tangents made of the given ones: each parameter's times 1 or -1."""
    generator = torch.Generator().manual_seed(index)
    signs = torch.randint(0, 2, (len(tangents),), generator=generator).mul(2).sub(1).tolist()
    return _scaled(tangents, signs)


def _scaled(tangents: Tangents, numbers: Sequence[float]) -> dict[Tensor, Tensor | Factors]:
    """Each multiplied by a number of its own."""
    return {
        param: tangent.times_number(number) if isinstance(tangent, Factors) else tangent * number
        for (param, tangent), number in zip(tangents.items(), numbers, strict=True)
    }


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
