"""The few exceptions a caller may want to catch. Every message says: what, the requirement, what came, the way out."""


class ForetokenError(Exception):
    """Anything foretoken refuses to do; the command line prints it in one or two lines."""


class ConfigError(ForetokenError, ValueError):
    """A configuration with an unknown field, a wrong type, or values that do not fit together."""


class DataError(ForetokenError, ValueError):
    """A store, file, batch or episode that is broken, or lacks what was asked of it."""


class EnvironmentMismatch(ForetokenError, ValueError):
    """An environment whose spaces differ from those a policy or store was made for."""


class CheckpointError(ForetokenError, RuntimeError):
    """A checkpoint that is half-written, of another version, or holds something other than tensors."""


class NonFiniteLoss(ForetokenError, ArithmeticError):
    """Training met a NaN or an infinity; the batch that caused it was saved."""


class UnknownName(ForetokenError, LookupError):
    """A system, preset, column or recipe that does not exist; the message names the nearest one."""


class MissingExtra(ForetokenError, ImportError):
    """An optional package is needed here; the message says which extra installs it."""
