"""Caches of what modules make of their weights, and when these may be used again. The only file that decides it.

A layer packs its weights, inverts its matrix or traces its network, and keeps the result with the tensors that it was
made of. It is used again only where it is certain that they are the same:

- By default every bit of the tensors that the module has now is compared with a copy. That costs one pass over both,
  and takes the weights however they came to be there: by an optimiser, `.data`, `functional_call`, a parametrisation,
  `load_state_dict`. On a GPU the comparison would wait for the device: there nothing is kept, and the layers run as
  they are.
- After `module.freeze()`, a promise that the weights stay, nothing is compared but which tensors they are. Others
  (`functional_call`, a parametrisation, an assigned parameter) are taken as they come, without what was kept. Writes
  that PyTorch counts (in-place operations, an optimiser, `load_state_dict`) and weights that moved (`.to()`, an
  assigned `.data`) are noticed, and what was kept is made anew. What cannot be seen is a write in place through
  `.data` or into shared memory: call `freeze()` again after one. `train()` and `unfreeze()` end it; copies and pickles
  are not frozen.

Nothing is kept or used while autograd records the call, nor under `torch.compile`, tracing or `torch.func`, where the
tensors are not what they seem.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor as _is_wrapped
from torch._C._functorch import maybe_current_level as _functorch_level
from torch.autograd import forward_ad as _forward_ad

from fastgen.ops.extensions import UNUSABLE

__all__ = ["Copies", "Freezable", "Kept", "KeptOfModules", "Originals", "Structure", "are_plain", "freeze", "unfreeze"]

T = TypeVar("T")
_PLAIN = {Tensor, nn.Parameter}
_IS_CPU = operator.attrgetter("is_cpu")
_IS_TRAINING = operator.attrgetter("training")
_VERSION = operator.attrgetter("_version")


class Kept:
    """Values made of some tensors, with these tensors. Copies and pickles of it are not frozen and start empty, except
    for what was made of indices.

    Args:
        waits: compare on a GPU too, for a value that costs far more than to wait for the device.
        indices: the tensors say which elements, not how much: index buffers and masks. On a GPU they count as the same
            where they are the same objects and PyTorch has counted no write; torch.compile and torch.jit.trace take
            what is there.
    """

    def __init__(self, *, waits: bool = False, indices: bool = False) -> None:
        self._waits, self._indices = waits, indices
        self._frozen = False
        self._made_of: Copies | Originals | None = None

    def __reduce__(self) -> tuple:
        return _copied, (type(self), self._waits, self._indices, self._made_of if self._indices else None)

    @property
    def is_frozen(self) -> bool:
        return self._frozen

    def freeze(self, tensors: Sequence[Tensor]) -> None:
        """Keeps what will be made of these tensors, until `forget`, without looking at their values again."""
        self._made_of = Originals(tensors, ()) if are_plain(tensors) else None
        self._frozen = self._made_of is not None

    def forget(self) -> None:
        self._made_of, self._frozen = None, False

    def get(self, make: Callable[[], T], tensors: Sequence[Tensor], *settings: Any) -> T | None:
        """`make()`, kept or new, which depends on `tensors` and `settings` alone; None where it cannot be known that
        what is kept belongs to them: the caller does without.
        """
        if torch.compiler.is_compiling() or torch._C._get_tracing_state():
            return self.last(make.__name__) if self._indices else None
        made_of, kind = self._made_of, self._kind_for(tensors)
        if kind is None:
            return None
        # `_kind_for` has seen that a frozen module's tensors are the same objects.
        holds = Originals.are_unwritten if self._frozen else kind.hold
        if type(made_of) is not kind or made_of.settings != settings or not holds(made_of, tensors):
            # Before `make` reads them: what is written meanwhile is then noticed at the next call.
            made_of = self._made_of = kind(tensors, settings)
        if tensors and tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
            # What a graph computes is not there before its first replay.
            return made_of.values.get(make.__name__)
        return made_of.value(make)

    def _kind_for(self, tensors: Sequence[Tensor]) -> type[Copies] | type[Originals] | None:
        """How to know whether what is kept belongs to these tensors."""
        if self._frozen:
            return Originals if self._made_of.are(tensors) and _is_ordinary_call() else None
        if not are_plain(tensors, differentiable=not self._indices):
            return None
        if self._waits or all(map(_IS_CPU, tensors)):
            return Copies
        return Originals if self._indices and not tensors[0].is_meta else None

    def last(self, name: str) -> Any:
        """The last result of the function of this name, unchecked."""
        return None if self._made_of is None else self._made_of.values.get(name)


class KeptOfModules(Kept):
    """`Kept` of all tensors of some modules, and of how these are made.

    Attributes:
        structure: of the modules of the last call.
    """

    structure: Structure | None = None

    def freeze_modules(self, roots: Sequence[nn.Module], tensors: Sequence[Tensor] = ()) -> None:
        self.structure = Structure(roots)
        self.freeze([*self.structure.tensors(roots), *tensors])

    def forget(self) -> None:
        super().forget()
        self.structure = None

    def of(
        self, make: Callable[[], T], roots: Sequence[nn.Module], tensors: Sequence[Tensor] = (), *settings: Any
    ) -> T | None:
        """As `get`, for a value made of all tensors of `roots` and of the further `tensors`."""
        frozen, own = self.is_frozen, None
        if self.structure is not None:
            own = self.structure.tensors(roots, briefly=frozen)
        if own is None:
            self.forget()
            if frozen:
                self.freeze_modules(roots, tensors)
            else:
                self.structure = Structure(roots)
            own = self.structure.tensors(roots)
        return self.get(make, [*own, *tensors] if tensors else own, *settings)


class _MadeOf:
    """Values by the name of what made them, and what they were made of."""

    def __init__(self, settings: tuple = ()) -> None:
        self.settings = settings
        self.values: dict[str, Any] = {}

    def value(self, make: Callable[[], Any]) -> Any:
        if make.__name__ not in self.values:
            # Ordinary tensors, whoever asks first.
            with torch.inference_mode(False), torch.no_grad(), torch._C._DisableFuncTorch():
                self.values[make.__name__] = make()
        return self.values[make.__name__]


class Copies(_MadeOf):
    """Compares all bits."""

    def __init__(self, tensors: Sequence[Tensor], settings: tuple = ()) -> None:
        super().__init__(settings)
        with torch.inference_mode(False), torch.no_grad(), torch._C._DisableFuncTorch():
            self._copies = [t.detach().clone(memory_format=torch.contiguous_format) for t in tensors]

    def hold(self, tensors: Sequence[Tensor]) -> bool:
        copies = self._copies
        if len(tensors) != len(copies):
            return False
        with torch._C._DisableFuncTorch():
            if tensors and not UNUSABLE["cpp"] and all(map(_IS_CPU, tensors)) and all(map(_IS_CPU, copies)):
                return torch.ops.fastgen._same_bits(tensors, copies)
            return all(map(_same_bits, tensors, copies))


class Originals(_MadeOf):
    """Holds the tensors and their memory, so that nothing else can take their place, and asks whether others are
    these, unwritten as far as PyTorch counts.
    """

    def __init__(self, tensors: Sequence[Tensor], settings: tuple = ()) -> None:
        super().__init__(settings)
        self.tensors = list(tensors)
        with torch._C._DisableFuncTorch():
            self._memory = [t.detach() for t in tensors]
        self._addresses, self._versions = list(map(Tensor.data_ptr, tensors)), _versions(tensors)
        self._strides = list(map(Tensor.stride, tensors))

    def are(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same objects."""
        return len(tensors) == len(self.tensors) and all(map(operator.is_, tensors, self.tensors))

    def are_unwritten(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these, the same objects, have not been written to as far as PyTorch counts, nor moved."""
        return _versions(tensors) == self._versions and list(map(Tensor.data_ptr, tensors)) == self._addresses

    def hold(self, tensors: Sequence[Tensor]) -> bool:
        return self.are(tensors) and self.are_unwritten(tensors)

    def can_be_read_in_place(self, tensors: Sequence[Tensor]) -> bool:
        """As `hold`, and their strides are what they were: whether a graph that reads them in place is still right."""
        return self.hold(tensors) and list(map(Tensor.stride, tensors)) == self._strides


class Structure:
    """The make-up of modules besides the numbers: submodules, hooks, public attributes, and where their tensors are."""

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        self._roots = list(roots)
        self._modules = list({module: None for root in self._roots for module in root.modules()})
        modules, hooks, attributes, tensors = [], [], [], []
        for module in self._modules:
            modules.append(module._modules)
            hooks += [module._forward_hooks, module._forward_pre_hooks]
            attributes.append(vars(module))
            tensors += [module._parameters, module._buffers]
        self._tensors = _Slots(tensors, lambda name, value: value is not None)
        self._parts = _Slots([*filter(None, modules), *hooks])
        public = _Slots(attributes, lambda name, value: name[0] != "_" and name != "training")
        self._rest = (public, _Slots(modules), _Slots(tensors, lambda name, value: value is None))

    def tensors(self, roots: Sequence[nn.Module], *, briefly: bool = False) -> list[Tensor] | None:
        """The parameters and buffers that these modules have now; None where they are made otherwise.

        Args:
            briefly: look at submodules and hooks, not at attributes.
        """
        if len(roots) != len(self._roots) or not all(map(operator.is_, roots, self._roots)):
            return None
        try:
            same = self._parts.unchanged() and (briefly or all(slots.unchanged() for slots in self._rest))
            return self._tensors.now() if same else None
        except KeyError:
            return None

    def is_training(self) -> bool:
        return any(map(_IS_TRAINING, self._modules))


class _Slots:
    """Entries of dictionaries, and what was in them."""

    def __init__(self, dicts: Iterable[dict], wanted: Callable[[str, Any], bool] = lambda name, value: True) -> None:
        dicts = list(dicts)
        # Most are the hooks of modules that have none; whether that is still so is told quickest.
        self._empty, self._filled = [d for d in dicts if not d], [d for d in dicts if d]
        self._sizes = list(map(len, self._filled))
        slots = [(d, name) for d in self._filled for name in d if wanted(name, d[name])]
        self._holders, self._names = [d for d, _ in slots], [name for _, name in slots]
        self._were = self.now()

    def now(self) -> list:
        return list(map(operator.getitem, self._holders, self._names))

    def unchanged(self) -> bool:
        same_names = not any(self._empty) and list(map(len, self._filled)) == self._sizes
        return same_names and all(map(operator.is_, self.now(), self._were))


class Freezable(nn.Module):
    """A module that keeps something made of its weights, or has parts that do; a subclass says what it is made of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept = Kept()
        self.register_load_state_dict_post_hook(_freeze_again)

    def freeze(self) -> Self:
        """Puts it in eval mode and promises that its weights stay, until `train()` or `unfreeze()`: what is made of
        them is made once. `fastgen.nn.frozen` tells what is noticed all the same. Gradients flow as before; what is
        kept is used where none is recorded.
        """
        return freeze(self)

    def unfreeze(self) -> Self:
        """Takes the promise back; it stays in eval mode."""
        return unfreeze(self)

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._unfreeze()
        return super().train(mode)

    def _sources(self) -> Sequence[Tensor]:
        """The tensors that what it keeps is made of; none where only its parts keep something."""
        return ()

    def _freeze(self) -> None:
        self._kept.freeze(self._sources())

    def _unfreeze(self) -> None:
        self._kept.forget()

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        super()._apply(*args, **kwargs)
        _freeze_again(self)
        return self


def freeze(module: nn.Module) -> nn.Module:
    """Puts a module of any kind in eval mode and freezes what is `Freezable` in it: `Freezable.freeze` tells what that
    promises. Returns the module.
    """
    module.eval()
    for part in _freezable(module):
        part._freeze()
    return module


def unfreeze(module: nn.Module) -> nn.Module:
    """Undoes `freeze`, except for the mode; returns the module."""
    for part in _freezable(module):
        part._unfreeze()
    return module


def _freezable(module: nn.Module) -> Iterator[Freezable]:
    return (part for part in module.modules() if isinstance(part, Freezable))


def _freeze_again(module: Freezable, *_: Any) -> None:
    # Weights that were assigned, and not copied into the old ones.
    if module._kept.is_frozen:
        module._freeze()


def _copied(kind: type[Kept], waits: bool, indices: bool, made_of: Copies | Originals | None) -> Kept:
    kept = kind(waits=waits, indices=indices)
    kept._made_of = made_of
    return kept


def are_plain(tensors: Iterable[Tensor], *, differentiable: bool = True) -> bool:
    """Whether they are tensors whose numbers can be looked at here, and are all there is of them; `differentiable`:
    they may have tangents.
    """
    if not _is_ordinary_call(differentiable) or not set(map(type, tensors)) <= _PLAIN:
        return False
    return _functorch_level() is None or not any(map(_is_wrapped, tensors))


def _is_ordinary_call(differentiable: bool = True) -> bool:
    """Whether nothing intercepts the call: no compilation, trace, dispatch mode or forward-mode differentiation."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state()
        or torch._C._len_torch_dispatch_stack()
        or (differentiable and _forward_ad._current_level >= 0)
    )


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    try:
        return list(map(_VERSION, tensors))
    except RuntimeError:
        # Tensors made in inference mode have no version.
        return [-1 if t.is_inference() else t._version for t in tensors]


def _same_bits(tensor: Tensor, copy: Tensor) -> bool:
    same = tensor.shape == copy.shape and tensor.dtype == copy.dtype and tensor.device == copy.device
    return same and torch.equal(*(t.detach().reshape(-1).view(torch.uint8) for t in (tensor, copy)))
