"""What an optimizer sees of training: the inputs and gradients of layers, from the passes that happen anyway.

Every module with layers in it may be the one that is called: the outermost opens the hooks of its layers
while it runs with gradients enabled, in training or evaluation mode. Calls under no_grad, those inside a
backward pass (the second forward of activation checkpointing) and those under a transform of torch.func add
nothing. Modules that are called one after another, each with what the other gave, are one pass. Gradients
come to the outputs by hooks on the graph, with the user's own backward; a pass counts when gradients of
parameters arrive in a backward pass through it.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.base.precision import reference
from fisherlab.collect.hooks import capture, is_looked_at
from fisherlab.collect.outputs import Outputs
from fisherlab.errors import InputError, InputTypeError
from fisherlab.layers import LayerCall, LayerView
from fisherlab.layers.checks import check_whole
from fisherlab.likelihoods import Bernoulli, Categorical, Likelihood
from fisherlab.likelihoods.labels import DRAWN, EMPIRICAL, LabelKind
from fisherlab.optim.cadence import Cadence
from fisherlab.optim.cautions import loss_factor
from fisherlab.optim.gradients import GradientEdits, ParameterMatrices, check_reduction
from fisherlab.optim.observer import Observer
from fisherlab.optim.passes import (
    ForwardPass,
    Hook,
    KeptCall,
    Passes,
    current_backward,
    graph_is_kept,
    is_compiled,
    is_inside_itself,
    is_transformed,
    listen,
    removed_with,
    situation,
    sweep,
    tensors_in,
)
from fisherlab.optim.plain import PlainLayers
from fisherlab.optim.preconditioner import LayerPreconditioner
from fisherlab.optim.rows import SampleLook, check_joint, has_batch_norm
from fisherlab.optim.samples import SampleDims, SampleProducts
from fisherlab.optim.settings import Options
from fisherlab.optim.turn import Turn

_LOOKED_AT = 2**20  # entries of outputs: a choice, of which a batch has fewer but for large vocabularies
ADD_LOSSES = (
    "a second backward pass comes from the same samples before the step, and gradients of samples are "
    "those of both together: add the losses and call backward() once"
)


class TrainingTap:
    """Follows a model through training.

    Args:
        options: see `Options`; the model is the root module.
        blocks: by layer; they are given what counts.
        kind: the labels of the statistics.
        cadence: says what is due.
        likelihood: what the output means.
        generator: source of drawn labels.
        reasons: by layer why it is left out; it is added to.

    Attributes:
        left: the layers that are left out.
        turn: what came for the next step.
        gradients: those in the parameters.
        edits: what became of them.
        products: the calls of layers, for what samples contribute.
        observer: makes statistics of them.
        passes: the forward passes that may come back.
    """

    def __init__(
        self,
        options: Options,
        blocks: Mapping[str, LayerPreconditioner],
        kind: LabelKind,
        cadence: Cadence,
        likelihood: Likelihood,
        generator: torch.Generator,
        reasons: dict[str, str],
    ) -> None:
        self.options, self.blocks = options, blocks
        self._views = {name: block.view for name, block in blocks.items()}
        self._likelihood, self.kind, self.cadence = likelihood, kind, cadence
        model = options.model
        sweep(model)
        self.gradients = ParameterMatrices(dict(model.named_parameters()), self._views)
        self.edits = GradientEdits(self.gradients)
        self.left = PlainLayers(self._views, self.gradients.parameters, reasons)
        self._owned = {
            name: [model.get_parameter(p) for p in view.parameters] for name, view in self._views.items()
        }
        self._dims = SampleDims(self._views, dict(model.named_parameters()), options.batch_dim)
        self.products = SampleProducts(self._views, self._dims.by_layer, options.rate_samples)
        self.passes = Passes(generator)
        self._outputs = Outputs(model, options.output)
        self.observer = Observer(
            blocks, kind, cadence, self._dims.by_layer, likelihood, self._outputs, self.passes, self.gradients
        )
        self._open_pass: tuple[nn.Module, Callable[[], None]] | None = None
        self._ends: dict[str, str] = {}
        self._joints: set[tuple[str, ...]] = set()
        self._met: dict[int, str] = {}
        self.turn = Turn(0)
        self._follow(model)

    def _follow(self, model: nn.Module) -> None:
        """Hooks on every module with layers in it."""
        self._inside: dict[int, dict[str, LayerView]] = {}
        self._names: dict[int, str] = {}
        self._is_layer = {
            id(module)
            for view in self._views.values()
            for module in (*view.modules, view.fused)
            if module is not None
        }
        parts = {name: {id(m) for m in view.modules} for name, view in self._views.items()}
        handles = []
        for path, module in model.named_modules():
            own = {id(part) for part in module.modules()}
            inside = {name: self._views[name] for name, modules in parts.items() if modules & own}
            if inside:
                self._inside[id(module)], self._names[id(module)] = inside, path
                handles.append(module.register_forward_pre_hook(Hook(self._open), with_kwargs=True))
        removed_with(self, handles)

    # --- what belongs to a step -------------------------------------------------------------------

    def start_at(self, count: int) -> None:
        """Goes on after so many steps; what was made for another is forgotten."""
        self.cadence.count = count
        self.passes.forget()
        self._met.clear()
        self._forget()

    def abandon(self) -> None:
        """The backward passes since the last step belong to no step, nor what was observed in them."""
        if not self.turn.fresh:
            return
        for block in self.blocks.values():
            block.drop()
        self.passes.take_back()
        self._forget()

    def _forget(self) -> None:
        self.turn = Turn(self.turn.number + 1)
        self.edits.forget()
        self.products.let_all_go()

    def _abandon_cleared(self) -> None:
        """Where gradients were cleared by others than `zero_grad`, they belong to no step either."""
        if not self.turn.fresh:
            return
        if self.gradients.are_cleared() or self.gradients.were_zeroed(self.turn.versions):
            self.abandon()

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Leaves layers to the step of other parameters, with the reason, and forgets what was made of them.

        Raises:
            InputError: where none would be left.
        """
        for name in self.left.add(reasons):
            self.blocks[name].forget()
            self.turn.leave_out(name)
            if name in self.products.names:
                self.products.let_go(name)

    def why_unseen(self, name: str) -> str:
        """Why a layer's gradient came without a call that was seen."""
        view = self._views[name]
        met = [self._met[id(m)] for m in (*view.modules, view.fused) if id(m) in self._met]
        if "no_grad" in met:
            return "its module was called under no_grad"
        if view.fused is not None and met:
            return (
                f"its {type(view.fused).__name__} was called by itself, or inside activation checkpointing: "
                "call a module that has it inside, and leave it out of what is checkpointed"
            )
        if "backward" in met:
            return (
                "its module was called without gradients and again in the backward pass, as reentrant "
                "activation checkpointing does: give checkpoint(..., use_reentrant=False)"
            )
        if met:
            return "the call of its module was not part of the pass that the gradient came through"
        return (
            "its module was not called since the last step: its weight is used outside the module, which has "
            "to be called itself, or the module was replaced or compiled after the optimizer was made"
        )

    # --- a forward pass ---------------------------------------------------------------------------

    def _open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_compiled():
            raise InputError(
                "the model was compiled after the optimizer was made, which hides its layers; train it "
                "without torch.compile"
            )
        if is_transformed() or is_looked_at():
            return
        if id(module) in self._is_layer:
            self._met[id(module)] = situation()
        if self._open_pass is not None and self._open_pass[0] is module and not is_inside_itself(module):
            self._open_pass[1]()  # an interrupt ended it, which hooks are not told of
            self._open_pass = None
        if self._open_pass is not None or situation() != "seen":
            return
        first = reference(module)
        if first.dtype == torch.float16:
            raise InputError(
                "the model has weights in float16 now, too few digits for statistics and steps; use "
                "bfloat16, or float32 weights under torch.autocast"
            )
        if self.options.scaler is None and _half_precision(first.device.type):
            raise InputError(
                "the model runs in float16, whose gradients are scaled; give the GradScaler in use as "
                "scaler=, or use bfloat16"
            )
        if self.cadence.checks:
            check_whole(self.options.model)  # it was when the optimizer was made
        self._abandon_cleared()
        trained = self._trained(module)
        self._dims.require_own_forwards(self.options.model, module, trained, args, kwargs)
        stack = ExitStack()
        closing = weakref.finalize(self, stack.close)  # also where an interrupt leaves it open
        closing.atexit = False
        self._open_pass = module, closing
        look = self._dims.look(module, trained, args, kwargs)
        seen = stack.enter_context(capture(trained, outputs=False))
        done = Hook(self._done, seen, look)
        stack.callback(module.register_forward_hook(done, always_call=True, with_kwargs=True).remove)

    def _done(
        self,
        seen: Mapping[str, list[LayerCall]],
        look: SampleLook | None,
        module: nn.Module,
        args: tuple[Any, ...],
        *rest: Any,
    ) -> None:
        """The pass that is open comes to its end."""
        if is_looked_at() or self._open_pass is None:  # another optimizer's look in the middle of this pass
            return
        kwargs, output = rest if len(rest) == 2 else ({}, rest[0])  # after a failure, without them
        self._open_pass[1]()
        try:
            if output is not None:
                self._finish(module, args, kwargs, seen, output, look)
        finally:
            self._open_pass = None

    def _trained(self, module: nn.Module) -> dict[str, LayerView]:
        """The layers in a module that are neither frozen now nor left out."""
        inside = self._inside[id(module)]
        return {
            name: view
            for name, view in inside.items()
            if name not in self.left and any(p.requires_grad for p in self._owned[name])
        }

    def _finish(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        seen: Mapping[str, list[LayerCall]],
        output: Any,
        look: SampleLook | None,
    ) -> None:
        outputs = [t for t in tensors_in(output) if t.requires_grad]
        if not outputs:
            return
        used = {name: [call for call in calls if call.output.numel()] for name, calls in seen.items()}
        taken = {name: calls for name, calls in used.items() if calls}
        given = tensors_in((args, kwargs))
        samples = self._dims.count(given, outputs)
        if samples is not None:
            reasons = self._dims.settle(module, args, kwargs, samples, taken, look)
            if reasons:
                self.leave_out(reasons)
                taken = {name: calls for name, calls in taken.items() if name not in self.left}
        before = self.passes.earlier(given)
        earlier = list(dict.fromkeys(one for one, _ in before))
        refresh = self.cadence.refreshes(taken) or any(one.refresh for one in earlier)
        layers = {name: [KeptCall(call.without_graph()) for call in calls] for name, calls in taken.items()}
        kin = [t for t in (*given, *outputs) if t.dim() and len(t) == samples] or outputs
        record = ForwardPass(
            samples,
            frozenset(layers),
            layers,
            refresh,
            self._names[id(module)],
            self.passes.group_of(kin),
            before=self.passes.random_state(),
        )
        listens, forward = self.cadence.listens(refresh), refresh and self.kind != EMPIRICAL
        for name, calls in taken.items():
            for call, kept in zip(calls, layers[name], strict=True):
                if listens:
                    listen(call.edge, kept.slot)
                if forward:
                    record.marks.append(self.observer.mark(name, call, kept))
        if earlier:
            joint = (record.end, *(one.end for one, _ in before))
            ends = [t for t in outputs if t.dim() and len(t) == earlier[0].samples and t.is_floating_point()]
            blind = module.training and has_batch_norm(module)  # spreads it over all samples: tells nothing
            if joint not in self._joints and not blind and ends and len(ends[0]) > 1:
                self._joints.add(joint)
                check_joint(record.end, before, ends)
            record = self.passes.joined(record, earlier)
        if forward and record.samples is not None:
            self.observer.of_forward(record, taken, outputs, output, kwargs, joined=bool(earlier))
        if not listens:
            record.layers.clear()
        if self.cadence.checks:
            record.outputs = self._scores(output)
        for tensor in outputs:
            tensor.register_hook(Hook(self._begins, record))
        self.passes.add(record, outputs)

    def _scores(self, returned: Any) -> Tensor | None:
        """The outputs in what a module returned; None where it is not clear which they are."""
        try:
            return self._outputs.of(returned).detach()
        except (InputError, InputTypeError):
            return None

    # --- a backward pass --------------------------------------------------------------------------

    def _begins(self, record: ForwardPass, g: Tensor) -> None:
        """A backward pass has reached the outputs of a forward pass; whether it counts is not known yet."""
        record = record.whole
        if record.outputs is not None and record.outputs.shape == g.shape:
            record.output_gradient = g.detach()
        if not self.passes.begins(record, current_backward()):
            return
        self._abandon_cleared()
        if not self.options.layerwise and self.cadence.looks_closely and not self.turn.fresh:
            self.turn.before = {name: self.gradients.matrix(name) for name in self.gradients.with_any()}

    def arrivals(self, parameter: str, layers: Sequence[str], p: nn.Parameter) -> Iterator[str]:
        """A gradient arrives: the passes that it came through count, and layers may be complete.

        Args:
            parameter: its name.
            layers: those with the parameter in their block.
            p: the parameter.

        Yields:
            The layers of which all gradients are there.

        Raises:
            InputError: where a second backward pass goes through a pass.
        """
        backward = current_backward()
        for one in self.passes.begun(backward):
            self._count(one, backward)
        turn = self.turn
        turn.fresh = True
        turn.came.add(parameter)
        turn.versions[parameter] = -1 if p.grad is None else p.grad._version
        for name in layers:
            come = turn.arrived.setdefault(name, set())
            come.add(parameter)
            if all(p in come for p in self.gradients.trained(name)):
                del turn.arrived[name]
                yield name

    def _count(self, one: ForwardPass, backward: int) -> None:
        """Gradients of parameters arrive through a forward pass: it counts, once a step."""
        turn = self.turn
        if one.counted == turn.number:
            if self.cadence.listens(one.refresh):
                raise InputError(ADD_LOSSES)
            return
        if one.spent:
            raise InputError(
                "a backward pass goes through a forward pass whose statistics went with zero_grad() or an "
                "earlier step; run the forward pass again"
            )
        self._require_one_end(one)
        self.passes.take(one)
        keep = graph_is_kept()
        for name, observations in one.observed.items():
            if name in self.left:
                continue
            for _, observation in observations:
                self.blocks[name].count(observation, keep=keep)
            turn.prepared.discard(name)
        if not keep:
            one.spent, one.observed = bool(one.observed), {}
        one.counted = turn.number
        turn.backwards.add(backward)
        for (
            group,
            samples,
            names,
        ) in turn.groups:  # parts cut apart have the same samples
            if samples == one.samples and not names & one.names:
                one.group = group
        if all(group != one.group for group, _, _ in turn.groups):  # else of samples that count already
            turn.samples += one.samples or 0
        turn.groups.append((one.group, one.samples or 0, one.names))
        if self.options.scaler is not None:
            turn.scale = float(self.options.scaler.get_scale())
        if self.cadence.checks and one.outputs is not None and one.output_gradient is not None:
            self._look_at_loss(one.outputs, one.output_gradient, one.samples or 0)
            one.outputs = None

    @torch.no_grad()
    def _look_at_loss(self, outputs: Tensor, gradient: Tensor, samples: int) -> None:
        """Of what multiple of the likelihood's the loss is, for `Cautions`; refuses the other reduction."""
        if not outputs.dim() or not outputs.numel():
            return
        few = max(1, _LOOKED_AT // outputs[0].numel())
        factor = loss_factor(self._likelihood, outputs[:few], gradient[:few] / self.turn.scale)
        if factor is None:
            return
        if isinstance(self._likelihood, Categorical) and samples > 1:
            check_reduction(factor, samples, self.options.loss_reduction)
        labels = gradient if isinstance(self._likelihood, Bernoulli) else gradient.any(-1)
        if self.turn.loss is None:
            self.turn.loss = factor, samples, int(labels.count_nonzero())

    def _require_one_end(self, one: ForwardPass) -> None:
        """Refuses a pass without samples, and layers whose labels are drawn at outputs of several modules."""
        if one.samples is None:
            raise InputError("the model is called without a tensor whose first dimension could count samples")
        for name in one.observed if self.kind == DRAWN else ():
            end = self._ends.setdefault(name, one.end)
            if end != one.end:
                raise InputError(
                    f"layer {name!r} is part of passes that end in module {end!r} and in {one.end!r}: "
                    "labels can be drawn from one output only; use source='empirical', or call the "
                    "whole model"
                )


def _half_precision(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
