"""Ways to train a student: one file a paper."""

import inspect
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from stillmotion.config import MethodConfig
from stillmotion.methods.base import Method
from stillmotion.methods.fusion import Fusion
from stillmotion.methods.hallucinate import Hallucinate
from stillmotion.methods.im2flow import GuessFlow
from stillmotion.methods.logits import LogitDistillation
from stillmotion.methods.mimic import D3d, InternalRelation, Mars, Mers
from stillmotion.methods.stddcn import Stddcn
from stillmotion.methods.supervised import Supervised
from stillmotion.models.encoder import Encoder
from stillmotion.tasks import Task

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "hallucinate": Hallucinate,
    "logits": LogitDistillation,
    "mars": Mars,
    "mers": Mers,
    "d3d": D3d,
    "relation": InternalRelation,
    "fusion": Fusion,
    "im2flow": GuessFlow,
    "stddcn": Stddcn,
}


def method_class(name: str) -> type[Method]:
    """The method of this name.

    Raises:
        ValueError: There is none.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join(METHODS)}")
    return METHODS[name]


def method_options(name: str) -> dict[str, inspect.Parameter]:
    """Settings of a method: of its student and of itself, in this order.

    Example:
        >>> list(method_options("logits"))
        ['temperature', 'weight', 'task_weight']
    """
    cls = method_class(name)
    return {**_keywords(cls.make_student), **_keywords(cls.__init__)}


def build_method(
    config: MethodConfig, student_backbone: Encoder, teachers: Mapping[str, Encoder], task: Task
) -> Method:
    """A method, ready to train.

    Args:
        config: Its name and settings. A setting goes to whichever takes it: the student, the method, or both.
        student_backbone: What the student is built from.
        teachers: Networks by role. Those that the method does not use are left out, so that one file of settings
            serves a distillation and its plain baseline.
        task: The student's own loss.

    Raises:
        ValueError: Unknown method, setting or value; a teacher is missing or does not fit.
    """
    cls, options = method_class(config.name), dict(config.options)
    known = method_options(config.name)
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"method {config.name} has no option {name!r}; known: {', '.join(known) or 'none'}")
        _check_value(f"method {config.name}: {name}", value, known[name].annotation)
    for_student, for_method = _keywords(cls.make_student), _keywords(cls.__init__)
    student = cls.make_student(
        student_backbone, teachers, task, **{k: v for k, v in options.items() if k in for_student}
    )
    encoders = {"student": student, **{role: teachers[role] for role in cls.roles if role in teachers}}
    build: Callable[..., Method] = cls
    return build(encoders, task, **{k: v for k, v in options.items() if k in for_method})


def _keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Keyword-only parameters, with evaluated annotations."""
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.replace(annotation=hints[p.name]) for p in parameters if p.kind is p.KEYWORD_ONLY}


def _check_value(name: str, value: Any, kind: Any) -> None:
    """Refuses a value that its annotation (literals, plain types, unions of them) does not allow."""
    choices = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    literals = [v for c in choices if get_origin(c) is Literal for v in get_args(c)]
    types = tuple(t for c in choices if isinstance(t := get_origin(c) or c, type))
    if float in types:
        types += (int,)
    if value in literals or (isinstance(value, types) and (bool in types or not isinstance(value, bool))):
        return
    wanted = [repr(v) for v in literals] + ["null" if t is NoneType else t.__name__ for t in types]
    raise ValueError(f"{name}={value!r}: give {' or '.join(dict.fromkeys(wanted))}")
