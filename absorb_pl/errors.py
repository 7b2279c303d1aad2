"""The named errors: each says which argument was wrong, what it was, what was expected, and the remedy."""


class AbsorbError(ValueError):
    """Base of all errors raised on purpose by this package.

    Attributes:
        argument: Name of the argument, setting or file at fault.
        value: What was given.
        expected: What would have been accepted.
        remedy: What to do about it.

    Example:
        >>> raise AbsorbError("ks", -1, expected="positive integers", remedy="Drop the negative k.")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.AbsorbError: `ks` was -1, expected positive integers. Drop the negative k.
    """

    def __init__(self, argument: str, value: object, *, expected: str, remedy: str) -> None:
        self.argument = argument
        self.value = value
        self.expected = expected
        self.remedy = remedy
        super().__init__(f"`{argument}` was {value!r}, expected {expected}. {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by fields, so that errors cross process borders whole."""
        return (_rebuild, (type(self), self.argument, self.value, self.expected, self.remedy))


def _rebuild(kind: type[AbsorbError], argument: str, value: object, expected: str, remedy: str) -> AbsorbError:
    return kind(argument, value, expected=expected, remedy=remedy)


class RangeError(AbsorbError):
    """A setting or an argument lies outside the range that its type declares."""


class ModelNotFoundError(AbsorbError):
    """The language model is neither a bundled name, a local folder nor a hub name."""


class ModelProcessingError(AbsorbError):
    """A language model lacks the processing that an SAE was trained with, or cannot be given it."""


class ModelWeightsError(AbsorbError):
    """The language model's files lack weights, or its tokenizer belongs to another model."""


class SaeWeightsError(AbsorbError):
    """The SAE's weights are no floating-point numbers, or all zero."""


class SaeNotFoundError(AbsorbError):
    """The SAE is neither a bundled name, a local folder nor a known release and id."""


class HookNotFoundError(AbsorbError):
    """The model has no hook of this name."""


class HookMismatchError(AbsorbError):
    """An SAE meets activations of another hook than the one it was trained at."""


class SaeWidthError(AbsorbError):
    """The SAE's input width is not the width of the activations at its hook."""


class SaeArchitectureError(AbsorbError):
    """The SAE is of a kind that cannot be measured this way."""


class SaeInterfaceError(AbsorbError):
    """An SAE from elsewhere lacks a member, or one of its members does something else than expected."""


class VocabularyError(AbsorbError):
    """The tokenizer or word list holds no usable words."""


class PromptError(AbsorbError):
    """A prompt cannot be built as asked."""


class ContextLengthError(AbsorbError):
    """A prompt is longer than the model's context."""


class TaskTableError(AbsorbError):
    """A table of labelled texts cannot be read, or lacks what a task needs."""


class NotCausalError(AbsorbError):
    """Something reads next-token logits, and the model gives none."""


class RowsError(AbsorbError):
    """Words are asked for by numbers that the task does not have, or by a table that cannot be read."""


class LabelError(AbsorbError):
    """Labels are missing, unknown or too few."""


class NonFiniteError(AbsorbError):
    """A tensor holds NaN or infinite values."""


class RuleError(AbsorbError):
    """There is no such absorption rule, or it cannot be applied with these thresholds."""


class ConvergenceError(AbsorbError):
    """An optimiser stopped short of its tolerance."""


class ShapeError(AbsorbError):
    """A tensor has another shape than the operation needs."""


class CacheCorruptedError(AbsorbError):
    """A stored artifact does not match its checksum or is incomplete."""


class ManifestMismatchError(AbsorbError):
    """A stored artifact was made from other inputs than those asked for."""


class SplitError(AbsorbError):
    """Words that a probe was trained on are among those that it would be scored on."""


class CheckpointError(AbsorbError):
    """A checkpoint is not there, cannot be read, or holds more than weights and settings."""


class ConfigFileError(AbsorbError):
    """A configuration file cannot be read."""


class WorkerError(AbsorbError):
    """A process that works for this one was killed."""


class TrainerError(AbsorbError):
    """A Trainer was asked for devices, an accelerator or a strategy that this machine does not have."""


class OutputFolderError(AbsorbError):
    """The output folder cannot be written."""
