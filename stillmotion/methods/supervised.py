"""Plain training: the student and its task. The row that every distillation is compared with."""

from stillmotion.methods.base import Method


class Supervised(Method):
    """The task loss alone."""
